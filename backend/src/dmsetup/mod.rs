//! `vhost-user-dm dmsetup`: dmsetup's command line for the devices of a running process.
//!
//! It makes verbs out of the methods of the control socket as libdm does out of the kernel's ioctls, with dmsetup's options,
//! words and exit codes, so that a script written for dmsetup needs its prefix changed and nothing else. Behaviour was taken
//! from dmsetup 1.02.185.

mod change;
mod concise;
mod console;
mod context;
mod fields;
mod name;
mod options;
mod report;
mod select;
mod show;
mod stats;
#[cfg(test)]
mod testing;
mod tree;
mod usage;
mod verbs;

use std::ffi::OsString;
use std::process::ExitCode;

use console::{Console, Done};
use context::Context;
use options::Options;
use verbs::Verb;

/// Runs a command: what stands behind `vhost-user-dm dmsetup`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut console = Console::standard();
    let code = run(args, &mut console);
    match console.finish() {
        true => ExitCode::from(code),
        false => ExitCode::FAILURE,
    }
}

fn run(args: impl IntoIterator<Item = OsString>, console: &mut Console) -> u8 {
    let could_not = |console: &mut Console, why: String| {
        console.complain(&why);
        console.complain("Couldn't process command line.");
        1
    };
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(why) => return could_not(console, why),
    };
    let of_stats = options.words.first().is_some_and(|word| word == "stats");
    if options.has("help") {
        console.complain(&if of_stats { usage::stats() } else { usage::dmsetup() });
        if options.has("columns") {
            console.complain(&usage::fields(of_stats));
        }
        return 0;
    }
    let mut context = match Context::new(options, console) {
        Ok(context) => context,
        Err(why) => return could_not(console, why),
    };
    if context.options.has("version") {
        let _ = show::version(&mut context, &[]);
        return 0;
    }
    let words = std::mem::take(&mut context.options.words);
    let Some((name, words)) = words.split_first() else {
        context.console.complain(&usage::dmsetup());
        return 1;
    };
    let Some(verb) = verbs::find(name) else {
        context.console.complain("Unknown command.");
        context.console.complain(&usage::dmsetup());
        return 1;
    };
    if words.len() < verb.least || words.len() > verb.most {
        context.console.complain("Incorrect number of arguments.");
        context.console.complain(&if of_stats { usage::stats() } else { usage::dmsetup() });
        return 1;
    }
    if let Err(why) = show::check_options(&mut context, verb) {
        return could_not(console, why);
    }
    let selecting = verb.selectable && context.options.has("select");
    if let Some(code) = show::start_report(&mut context, verb, selecting) {
        return code;
    }
    match perform(&mut context, verb, words) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// A verb for all its devices, up to the first for which it fails.
fn perform(context: &mut Context<'_>, verb: &'static Verb, words: &[String]) -> Done {
    let one_at_a_time = verb.each && words.len() != 1;
    context.multiple = one_at_a_time && (!words.is_empty() || !context.options.selects_device());
    context.verb = verb.name;
    let done = match verb.selectable && context.options.has("select") {
        true => show::selected(context, verb, words),
        false => in_turn(context, verb, words),
    };
    context.finish_output();
    if done.is_err() {
        context.console.complain("Command failed.");
    }
    done
}

fn in_turn(context: &mut Context<'_>, verb: &Verb, words: &[String]) -> Done {
    if !verb.each || words.len() < 2 {
        return (verb.run)(context, words);
    }
    words.iter().try_for_each(|word| (verb.run)(context, std::slice::from_ref(word)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::dmsetup;
    use super::*;

    /// Taken from dmsetup 1.02.185, without the help that follows.
    #[test]
    fn what_needs_no_process_is_done_without_one() {
        for (line, code, text) in [
            ("splitname vg-lv--x-real", 0, "VG   LV   LVLayer\nvg   lv-x real   \n"),
            ("splitname -o bogus x", 1, "Unrecognised field: bogus\n"),
            ("create a --foo", 1, "dmsetup: unrecognized option '--foo'\nCouldn't process command line.\n"),
            ("create --table x", 1, "Please provide a name for the new device.\nCommand failed.\n"),
            ("create --concise a b", 1, "dmsetup create --concise takes at most one argument\nCommand failed.\n"),
            ("load", 1, "Please specify device.\nCommand failed.\n"),
            ("remove", 1, "No device specified.\nCommand failed.\n"),
            ("ls -o foo", 1, "Option not recognised: foo.\nCouldn't process command line.\n"),
            ("ls --tree -o foo", 1, "Tree options not recognised: foo.\nCouldn't process command line.\n"),
            ("ls --manglename foo", 1, "Unknown name mangling mode.\nCouldn't process command line.\n"),
            ("remove a/b", 1, "Command failed.\n"),
            ("create a/b --table x", 1, "Name \"a/b\" invalid. It contains \"/\".\nCommand failed.\n"),
            ("mknodes", 0, ""),
            ("udevcomplete 1", 0, ""),
            ("stats print x", 1, "Please specify a --regionid or use --allregions.\nCommand failed.\n"),
            ("stats create", 1, "Please specify device(s) or use --alldevices.\nCommand failed.\n"),
        ] {
            let words: Vec<&str> = line.split(' ').chain(["--control-path", "/nonexistent"]).collect();
            let (found, said) = dmsetup(&words);
            assert_eq!(found, code, "{line}: {said}");
            assert!(said.ends_with(text) && (!text.is_empty() || said.is_empty()), "{line}: {said}");
        }
        for (line, start) in [
            ("", "Usage:"),
            ("bogus", "Unknown command.\nUsage:"),
            ("splitname", "Incorrect number of arguments.\nUsage:"),
        ] {
            let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
            let (code, said) = dmsetup(&words);
            assert!(code == 1 && said.starts_with(start), "{line}: {said}");
        }
        assert_eq!(dmsetup(&["--help"]).0, 0);
        assert!(dmsetup(&["help", "-c"]).1.contains("Mapped Device Information Fields"));
        assert!(dmsetup(&["stats", "help", "-c"]).1.contains("Mapped Device Statistics Fields"));
    }

    #[test]
    fn a_process_that_is_not_there_is_missed() {
        let (code, said) = dmsetup(&["ls", "--control-path=/nonexistent"]);
        assert_eq!(code, 1);
        assert!(said.starts_with("vhost-user-dm: cannot connect to the control socket /nonexistent: "), "{said}");
        assert!(said.ends_with("\nCommand failed.\n"), "{said}");
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_panics(words in prop::collection::vec("[-a-z=,;:/0-9\\\\ \"'()!~#&|]{0,12}", 0..5), verb in 0..verbs::VERBS.len()) {
            let verb = &verbs::VERBS[verb];
            // These would read the test's standard input.
            prop_assume!(!["create", "load", "reload"].contains(&verb.name));
            // In front, where no `--` takes it for a word: a process that the environment names is none of this test's.
            let mut line = vec!["--control-path", "/nonexistent", verb.name];
            line.extend(words.iter().map(String::as_str));
            prop_assert!(dmsetup(&line).0 <= 1);
        }

        #[test]
        fn no_text_panics(text in "[-+a-z0-9=,;:. \\\\\"'()!~#&|\\n]{0,40}", any in ".{0,20}") {
            for text in [&text, &any] {
                let _ = concise::entries(text).count();
                let _ = name::Split::new(text, "LVM");
                let _ = options::atoi(text);
                let _ = change::split(text);
                for mode in [name::Mangling::None, name::Mangling::Auto, name::Mangling::Hex] {
                    let _ = (mode.name(text), mode.uuid(text), mode.show(text));
                }
            }
        }
    }
}
