//! Help.

use super::fields::DEVICE;
use super::report;
use super::stats;
use super::verbs::VERBS;

const OPTIONS: &str = "        [-h|--help [-c]] [--version] [-v|--verbose] [-y|--yes] [-f|--force] [--checks]
        [-r|--readonly] [--inactive] [--noflush] [--nolockfs] [--noopencount] [--retry]
        [-u|--uuid <uuid>] [-j|--major <major> -m|--minor <minor>] [--manglename {none|hex|auto}]
        [-c|-C|--columns] [-o|--options <fields>] [-O|--sort <fields>] [-S|--select <selection>]
        [--nameprefixes] [--noheadings] [--separator <text>] [--rows] [--unquoted]";

const NOTES: &str = "\
<device> is a name, /dev/mapper/NAME, the path that it is served on, or (one only) -u or -j and -m.
<options> of ls and deps: devno, devname, blkdevname; of ls --tree: ascii, utf, vt100; compact, inverted,
notrunc; blkdevname, [no]device, active, open, rw, uuid. Fields: help -c. Options may be cut short.
A table is read from standard input if neither --table nor a file is given.";

fn head(name: &str) -> String {
    format!(
        "Usage:\n\nvhost-user-dm {name} [--control-path <socket>]\n{OPTIONS}\n\n\
         The process is the one whose socket --control-path or VHOST_USER_DM_CONTROL names.\n\n"
    )
}

/// Of all verbs.
pub(super) fn dmsetup() -> String {
    let verbs = VERBS.iter().map(|verb| format!("\t{} {}\n", verb.name, verb.usage));
    format!("{}{}\n{NOTES}\n", head("dmsetup"), verbs.collect::<String>())
}

/// Of `stats`.
pub(super) fn stats() -> String {
    format!("{}{}\n", head("dmsetup stats"), stats::USAGE)
}

/// Fields that can be shown.
pub(super) fn fields(of_stats: bool) -> String {
    if of_stats { stats::fields() } else { report::help(&DEVICE) }
}
