//! The verbs.

use super::console::Done;
use super::context::Context;
use super::{change, show, stats, usage};

pub(super) struct Verb {
    pub name: &'static str,
    /// What follows it, for people.
    pub usage: &'static str,
    /// Fewest words that follow.
    pub least: usize,
    pub most: usize,
    /// It is done for each of its words in turn.
    pub each: bool,
    /// `-S` may say for which devices.
    pub selectable: bool,
    pub run: fn(&mut Context<'_>, &[String]) -> Done,
}

const fn verb(
    name: &'static str,
    usage: &'static str,
    (least, most): (usize, usize),
    (each, selectable): (bool, bool),
    run: fn(&mut Context<'_>, &[String]) -> Done,
) -> Verb {
    Verb { name, usage, least, most, each, selectable, run }
}

const ANY: usize = usize::MAX;
const ONCE: (bool, bool) = (false, false);
const EACH: (bool, bool) = (true, false);
const CHOSEN: (bool, bool) = (true, true);

pub(super) static VERBS: [Verb; 34] = [
    verb("help", "[-c]", (0, 0), ONCE, help),
    verb(
        "create",
        "<name> [-u <uuid>] [-j <major> -m <minor>] [-r] [-n | --table <table> | <table_file>]\n\
         \tcreate --concise [<name>,<uuid>,<minor>,[ro|rw],<line>[,<line>...][;...]]",
        (0, 2),
        ONCE,
        change::create,
    ),
    verb("remove", "[--deferred] [-f] [--retry] <device>...", (0, ANY), CHOSEN, change::remove),
    verb("remove_all", "[--deferred] [-f]", (0, 0), ONCE, change::remove_all),
    verb("suspend", "[--noflush] [--nolockfs] <device>...", (0, ANY), CHOSEN, change::suspend),
    verb("resume", "[--noflush] [--nolockfs] [-f] <device>...", (0, ANY), CHOSEN, change::resume),
    verb("load", "[-r] [-f] <device> [--table <table> | <table_file>]", (0, 2), ONCE, change::load),
    verb("clear", "<device>...", (0, ANY), CHOSEN, change::clear),
    verb("reload", "[-r] [-f] <device> [--table <table> | <table_file>]", (0, 2), ONCE, change::load),
    verb("wipe_table", "[-f] [--noflush] [--nolockfs] <device>...", (0, ANY), CHOSEN, change::wipe_table),
    verb("rename", "<device> [--setuuid] <new_name_or_uuid>", (1, 2), ONCE, change::rename),
    verb("message", "<device> <sector> <message>", (2, ANY), ONCE, change::message),
    verb("ls", "[--target <type>] [--exec <command>] [-o <options>] [--tree]", (0, 0), ONCE, show::ls),
    verb("names", "(NetBSD's name of ls)", (0, 0), ONCE, show::ls),
    verb("info", "[-c] [-o <fields>] [<device>...]", (0, ANY), EACH, show::info),
    verb("deps", "[-o <options>] [<device>...]", (0, ANY), CHOSEN, show::deps),
    verb("stats", "<command> [<options>] [<device>...]", (1, ANY), ONCE, stats::stats),
    verb("status", "[--target <type>] [--noflush] [<device>...]", (0, ANY), CHOSEN, show::status),
    verb("table", "[--inactive] [--concise] [--target <type>] [<device>...]", (0, ANY), CHOSEN, show::table),
    verb("wait", "<device> [<event_nr>]", (0, 2), ONCE, change::wait),
    verb("targets", "", (0, 0), ONCE, show::targets),
    verb("target-version", "[<type>...]", (0, ANY), EACH, show::target_version),
    verb("version", "", (0, 0), ONCE, show::version),
    verb("splitname", "<name> [<subsystem>]", (1, 2), ONCE, show::splitname),
    verb("mangle", "[<device>...]", (0, ANY), EACH, change::mangle),
    verb("mknodes", "[<device>...] (does nothing: there are no nodes)", (0, ANY), EACH, nothing),
    verb("udevcreatecookie", "(does nothing: udev has no part in this)", (0, 0), ONCE, nothing),
    verb("udevreleasecookie", "[<cookie>] (does nothing)", (0, 1), ONCE, nothing),
    verb("udevflags", "<cookie> (does nothing)", (1, 1), ONCE, nothing),
    verb("udevcomplete", "<cookie> (does nothing)", (1, 1), ONCE, nothing),
    verb("udevcomplete_all", "[<age_in_minutes>] (does nothing)", (0, 1), ONCE, nothing),
    verb("udevcookies", "(does nothing)", (0, 0), ONCE, nothing),
    verb("setgeometry", "(refused)", (0, ANY), ONCE, |context, _| {
        refuse(context, "setgeometry: a vhost-user-blk disk has no geometry that can be set; guests do not ask for one")
    }),
    verb("measure", "(refused)", (0, ANY), ONCE, |context, _| {
        refuse(context, "measure: IMA measures devices of the kernel; there is none here")
    }),
];

pub(super) fn find(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.name == name)
}

fn nothing(_: &mut Context<'_>, _: &[String]) -> Done {
    Ok(())
}

fn refuse(context: &mut Context<'_>, why: &str) -> Done {
    context.console.fail(why)
}

fn help(context: &mut Context<'_>, _: &[String]) -> Done {
    context.console.complain(&usage::dmsetup());
    if context.options.has("columns") {
        context.console.complain(&usage::fields(false));
    }
    Ok(())
}
