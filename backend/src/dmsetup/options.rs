//! dmsetup's options: getopt_long's rules, and all of them with every verb.

use std::collections::BTreeMap;
use std::ffi::OsString;

use lexopt::Arg;

/// An option: its long name, its letter, and whether a value follows.
struct Known(&'static str, Option<char>, bool);

/// The options of dmsetup 1.02, and ours at the end.
const KNOWN: [Known; 79] = [
    Known("readonly", Some('r'), false),
    Known("alias", None, true),
    Known("alldevices", None, false),
    Known("allprograms", None, false),
    Known("allregions", None, false),
    Known("area", None, false),
    Known("areas", None, true),
    Known("areasize", None, true),
    Known("bounds", None, true),
    Known("checks", None, false),
    Known("clear", None, false),
    Known("columns", Some('c'), false),
    Known("concise", None, false),
    Known("count", None, true),
    Known("deferred", None, false),
    Known("select", Some('S'), true),
    Known("exec", None, true),
    Known("filemap", None, false),
    Known("follow", None, true),
    Known("force", Some('f'), false),
    Known("foreground", None, false),
    Known("gid", Some('G'), true),
    Known("group", None, false),
    Known("groupid", None, true),
    Known("help", Some('h'), false),
    Known("histogram", None, false),
    Known("inactive", None, false),
    Known("interval", None, true),
    Known("length", None, true),
    Known("manglename", None, true),
    Known("major", Some('j'), true),
    Known("minor", Some('m'), true),
    Known("mode", Some('M'), true),
    Known("nameprefixes", None, false),
    Known("nogroup", None, false),
    Known("noflush", None, false),
    Known("noheadings", None, false),
    Known("nolockfs", None, false),
    Known("noopencount", None, false),
    Known("nosuffix", None, false),
    Known("notable", Some('n'), false),
    Known("notimesuffix", None, false),
    Known("udevcookie", None, true),
    Known("nomonitor", None, false),
    Known("noudevrules", None, false),
    Known("noudevsync", None, false),
    Known("options", Some('o'), true),
    Known("precise", None, false),
    Known("programid", None, true),
    Known("raw", None, false),
    Known("readahead", None, true),
    Known("region", None, false),
    Known("regions", None, true),
    Known("regionid", None, true),
    Known("relative", None, false),
    Known("retry", None, false),
    Known("rows", None, false),
    Known("segments", None, false),
    Known("separator", None, true),
    Known("setuuid", None, false),
    Known("showkeys", None, false),
    Known("sort", Some('O'), true),
    Known("start", None, true),
    Known("table", None, true),
    Known("target", None, true),
    Known("tree", None, false),
    Known("uid", Some('U'), true),
    Known("units", None, true),
    Known("uuid", Some('u'), true),
    Known("unbuffered", None, false),
    Known("unquoted", None, false),
    Known("userdata", None, true),
    Known("verbose", Some('v'), false),
    Known("verifyudev", None, false),
    Known("version", None, false),
    Known("yes", Some('y'), false),
    Known("addnodeonresume", None, false),
    Known("addnodeoncreate", None, false),
    Known("control-path", None, true),
];

/// What the command line says.
#[derive(Debug, Default)]
pub(super) struct Options {
    given: BTreeMap<&'static str, (usize, String)>,
    /// Verb, subcommand, devices ...
    pub words: Vec<String>,
}

impl Options {
    /// Reads a command line; an error is what getopt says of it, or dmsetup.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Options, String> {
        let mut options = Options::default();
        let mut parser = lexopt::Parser::from_args(args);
        loop {
            let mut long = false;
            let known = match parser.next().map_err(|error| format!("dmsetup: {error}"))? {
                None => break,
                Some(Arg::Value(word)) => {
                    options.words.push(text(word)?);
                    continue;
                }
                Some(Arg::Short('C')) => find("columns")?,
                Some(Arg::Short(letter)) => {
                    let with = |known: &&Known| known.1 == Some(letter);
                    KNOWN.iter().find(with).ok_or_else(|| format!("dmsetup: invalid option -- '{letter}'"))?
                }
                Some(Arg::Long(name)) => {
                    long = true;
                    find(name)?
                }
            };
            let value = match known.2 {
                true => text(parser.value().map_err(|_| missing(known))?)?,
                // Of a letter this would be the letters that follow.
                false if long && parser.optional_value().is_some() => {
                    return Err(format!("dmsetup: option '--{}' doesn't allow an argument", known.0));
                }
                false => String::new(),
            };
            let entry = options.given.entry(known.0).or_default();
            *entry = (entry.0 + 1, value);
        }
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), String> {
        if self.has("major") != self.has("minor") {
            return Err("Please specify both major number and minor number.".into());
        }
        if self.has("table") && self.has("notable") {
            return Err("--table and --notable are incompatible.".into());
        }
        if self.has("addnodeonresume") && self.has("addnodeoncreate") {
            return Err("--addnodeonresume and --addnodeoncreate are incompatible.".into());
        }
        for (name, least, complaint) in
            [("count", 0, "Count must be zero or greater."), ("interval", 1, "Interval must be a positive integer.")]
        {
            if self.value(name).is_some_and(|value| atoi(value) < least) {
                return Err(complaint.into());
            }
        }
        match self.value("readahead") {
            Some(value) if atoi(value) < -1 => {
                Err(format!("Negative read ahead value ({}) is not understood.", atoi(value)))
            }
            _ => Ok(()),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.count(name) > 0
    }

    /// How often it was given.
    pub fn count(&self, name: &str) -> usize {
        debug_assert!(KNOWN.iter().any(|known| known.0 == name), "{name}");
        self.given.get(name).map_or(0, |(count, _)| *count)
    }

    /// The value that was given last.
    pub fn value(&self, name: &str) -> Option<&str> {
        debug_assert!(KNOWN.iter().any(|known| known.0 == name), "{name}");
        self.given.get(name).map(|(_, value)| value.as_str())
    }

    /// A number as dmsetup reads it: what is none is 0.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.value(name).map(atoi)
    }

    /// Whether devices are chosen by an option.
    pub fn selects_device(&self) -> bool {
        self.has("uuid") || self.has("major")
    }
}

/// An option by its name, or the beginning of its name if no other begins so.
fn find(name: &str) -> Result<&'static Known, String> {
    if let Some(known) = KNOWN.iter().find(|known| known.0 == name) {
        return Ok(known);
    }
    let mut begin: Vec<&Known> = KNOWN.iter().filter(|known| known.0.starts_with(name)).collect();
    match (begin.pop(), begin.is_empty()) {
        (Some(known), true) => Ok(known),
        (Some(last), false) => {
            begin.push(last);
            let names = begin.iter().map(|known| format!("'--{}'", known.0)).collect::<Vec<_>>();
            Err(format!("dmsetup: option '--{name}' is ambiguous; possibilities: {}", names.join(" ")))
        }
        (None, _) => Err(format!("dmsetup: unrecognized option '--{name}'")),
    }
}

fn missing(known: &Known) -> String {
    format!("dmsetup: option '--{}' requires an argument", known.0)
}

fn text(word: OsString) -> Result<String, String> {
    word.into_string().map_err(|word| format!("dmsetup: {}: not UTF-8", word.display()))
}

/// The C library's atoi(3).
pub(super) fn atoi(text: &str) -> i64 {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    // Only too many digits fail, for which atoi gives anything.
    sign * digits[..end].parse::<i64>().unwrap_or(if end == 0 { 0 } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn options_stand_anywhere_and_may_be_cut_short() {
        let options = parse("-u U create --tab x disk -vv --verb -- -n").unwrap();
        assert_eq!(options.words, ["create", "disk", "-n"]);
        assert_eq!((options.value("uuid"), options.value("table")), (Some("U"), Some("x")));
        assert_eq!(options.count("verbose"), 3);
        assert!(parse("info -c").unwrap().has("columns") && parse("info -C").unwrap().has("columns"));
        assert_eq!(parse("info -uA --uuid=B").unwrap().value("uuid"), Some("B"), "the last one counts");
        assert_eq!(parse("-j0 -m 7 info").unwrap().number("minor"), Some(7));
        // One name may be the beginning of another.
        assert!(parse("stats list --region").unwrap().has("region"));
        assert_eq!(
            parse("ls --con=s").unwrap_err(),
            "dmsetup: option '--con' is ambiguous; possibilities: '--concise' '--control-path'"
        );
        assert_eq!(parse("ls --contr s").unwrap().value("control-path"), Some("s"));
    }

    /// Taken from dmsetup 1.02.185.
    #[test]
    fn what_it_does_not_take_it_refuses_in_getopts_words() {
        for (line, words) in [
            ("create --foo", "dmsetup: unrecognized option '--foo'"),
            ("-Z", "dmsetup: invalid option -- 'Z'"),
            ("create --t", "dmsetup: option '--t' is ambiguous; possibilities: '--table' '--target' '--tree'"),
            ("splitname --units", "dmsetup: option '--units' requires an argument"),
            ("-j 1 info", "Please specify both major number and minor number."),
            ("--table x -n create", "--table and --notable are incompatible."),
            ("create --readahead -5 x", "Negative read ahead value (-5) is not understood."),
            ("create --count -1", "Count must be zero or greater."),
            ("--tree=yes", "dmsetup: option '--tree' doesn't allow an argument"),
        ] {
            assert_eq!(parse(line).unwrap_err(), words, "{line}");
        }
    }

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        for (text, number) in
            [("12", 12), (" +7x", 7), ("-3", -3), ("abc", 0), ("", 0), ("99999999999999999999", i64::MAX)]
        {
            assert_eq!(atoi(text), number, "{text:?}");
        }
    }
}
