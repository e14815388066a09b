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
