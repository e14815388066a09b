//! README.md shows tables, flags and paths: the program and the repository must agree with each of them.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dm_tests::{daemon, files};

const README: &str = include_str!("../../README.md");
/// Larger than any component of the examples needs to be.
const COMPONENT: u64 = 1 << 30;

/// The fenced blocks of one language.
fn blocks(language: &str) -> Vec<&'static str> {
    let mut rest = README;
    let mut blocks = Vec::new();
    while let Some((_, after)) = rest.split_once("\n```") {
        let (block, after) = after.split_once("\n```").expect("a fence is closed");
        let (its_language, text) = block.split_once('\n').unwrap_or((block, ""));
        if its_language == language {
            blocks.push(text);
        }
        rest = after;
    }
    blocks
}

/// Commands of the shell blocks, their continuation lines joined.
fn commands() -> Vec<String> {
    let text = blocks("sh").join("\n").replace("\\\n", " ");
    text.lines().map(|line| line.split('#').next().unwrap_or_default().trim().to_owned()).collect()
}

/// Inline code outside of fenced blocks.
fn spans() -> Vec<&'static str> {
    let prose = README.split("```").step_by(2);
    prose.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

/// The long flags in a text.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let flags = words.filter(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(char::is_alphabetic)));
    flags.map(str::to_owned).collect()
}

fn is_component(word: &str) -> bool {
    let number = word.split_once(':').is_some_and(|(major, minor)| {
        [major, minor].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let path = word.ends_with(".img") || word.starts_with("/dev/");
    number || (path && !word.starts_with("/dev/mapper/"))
}

/// A table with sparse files in the place of its components, in `dir`.
fn with_files(table: &str, dir: &Path) -> String {
    let mut words = table.split_inclusive([' ', '\n', ',', ';']).peekable();
    let mut result = String::new();
    while let Some(word) = words.next() {
        let name = word.trim_end_matches([' ', '\n', ',', ';']);
        if name.starts_with('#') {
            // A comment names nothing.
            let mut last = word;
            while !last.ends_with('\n') {
                last = words.next().unwrap_or("\n");
            }
            result.push('\n');
        } else if is_component(name) {
            let file = dir.join(name.replace(['/', ':'], "_"));
            files::sparse(&file, COMPONENT);
            result.push_str(file.to_str().expect("a path of ASCII"));
            result.push_str(&word[name.len()..]);
        } else {
            result.push_str(word);
        }
    }
    result
}

#[test]
fn the_tables_are_accepted() {
    let tables = blocks("table");
    assert!(tables.len() >= 5, "only {} examples", tables.len());
    for table in tables {
        let dir = files::disk_dir();
        let file = dir.path().join("disk.table");
        let text = with_files(table, dir.path());
        fs::write(&file, &text).expect("write the table");
        let (code, out, err) = daemon::run(["check".as_ref(), file.as_os_str()]).expect("run");
        assert_eq!(code, 0, "{table}\nas\n{text}\n{err}");
        assert!(out.contains(" segment"), "{out}");
        assert!(!out.contains("warning:"), "{table}\n{out}");
    }
}

#[test]
fn the_flags_are_those_of_the_program() {
    let help = |args: &[&str]| {
        let (code, out, err) = daemon::run(args).expect("run");
        assert_eq!(code, 0, "{err}");
        // dmsetup's usage goes where dmsetup's goes.
        flags(&(out + &err))
    };
    let commands_of_ours = ["check", "show", "export"].map(|command| help(&[command, "--help"]));
    let ours = commands_of_ours.iter().fold(help(&["--help"]), |ours, its| &ours | its);
    assert!(ours.contains("--table"), "{ours:?}");
    // A flag of another program is shown with that program before it.
    let is_ours = |code: &str| code.starts_with("--") || code.split(' ').next() == Some("vhost-user-dm");
    let commands = commands();
    let shown = spans().into_iter().chain(commands.iter().map(String::as_str)).filter(|code| is_ours(code));
    let shown: BTreeSet<String> = shown.flat_map(flags).collect();
    let unnamed: Vec<_> = ours.difference(&shown).collect();
    // The other commands have more flags than are worth naming; those that are named must be theirs.
    let others = ["assemble", "dmsetup", "replay", "top", "stats"].map(|command| help(&[command, "--help"]));
    let known = others.iter().fold(ours.clone(), |known, its| &known | its);
    let unknown: Vec<_> = shown.difference(&known).collect();
    assert!(unnamed.is_empty(), "README.md does not name {unnamed:?}");
    assert!(unknown.is_empty(), "vhost-user-dm has no {unknown:?}");
}

#[test]
fn the_demo_and_the_tests_come_first() {
    assert_eq!(commands().first().map(String::as_str), Some("ci/demo.sh"));
    assert_eq!(commands().get(1).map(String::as_str), Some("ci/test.sh"));
}

#[test]
fn the_paths_lead_somewhere() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let parts = ["ci/", "backend/", "table/", "tests/", "vm-images/"];
    let spans = spans();
    let paths = spans.iter().filter_map(|code| code.split_whitespace().next());
    let paths: Vec<_> = paths.filter(|path| parts.iter().any(|part| path.starts_with(part))).collect();
    assert!(paths.len() > 10, "{paths:?}");
    for path in paths {
        assert!(top.join(path).exists(), "README.md names {path}, which is not there");
    }
}
