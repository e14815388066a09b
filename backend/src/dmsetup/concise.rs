//! `create --concise`: `name,uuid,minor,flags,table[,table]…[;…]`, as dmsetup reads it: device by device, so that those in
//! front of a mistake are made.

use super::options::atoi;

/// A device to be made.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub uuid: Option<String>,
    pub minor: Option<i64>,
    pub read_only: bool,
    /// Its table; none: from elsewhere.
    pub table: Option<String>,
}

/// The devices of a text, up to the first mistake: what dmsetup says of that.
pub(super) fn entries(text: &str) -> impl Iterator<Item = Result<Entry, String>> + '_ {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        if text.is_empty() {
            return None;
        }
        Some(next(text).map(|(entry, after)| {
            rest = Some(after);
            entry
        }))
    })
}

fn blank(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// The first device, and the text behind it.
fn next(text: &str) -> Result<(Entry, &str), String> {
    let mut fields = vec![String::new()];
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let after = &text[at + c.len_utf8()..];
        let in_table = fields.len() == 5;
        let mut push = |c| fields.last_mut().map_or((), |field: &mut String| field.push(c));
        match c {
            '\\' => match chars.next() {
                Some((_, quoted)) => push(quoted),
                None => {
                    let why = "Backslash must be followed by another character at end of string.";
                    return Err(format!("{why}\n{}", parsed(&fields)));
                }
            },
            ',' if !in_table => {
                fields.push(String::new());
                while chars.next_if(|&(_, c)| blank(c)).is_some() {}
            }
            ',' => push('\n'),
            ';' => return Ok((entry(fields)?, after.trim_start_matches(blank))),
            c => {
                push(c);
                if after.is_empty() {
                    return Ok((entry(fields)?, after));
                }
            }
        }
    }
    let why = "Incomplete entry: five comma-separated fields are required for each device";
    Err(format!("{why}\n{}", parsed(&fields)))
}

fn entry(fields: Vec<String>) -> Result<Entry, String> {
    let words = parsed(&fields);
    let Ok([name, uuid, minor, flags, table]) = <[String; 5]>::try_from(fields) else {
        return Err(format!("Five comma-separated fields are required for each device\n{words}"));
    };
    let read_only = match flags.as_str() {
        "ro" => true,
        "rw" | "" => false,
        other => return Err(format!("Invalid flags parameter '{other}' must be 'ro' or 'rw' or empty.")),
    };
    let uuid = Some(uuid).filter(|uuid| !uuid.is_empty());
    let minor = Some(minor).filter(|minor| !minor.is_empty()).map(|minor| atoi(&minor));
    Ok(Entry { name, uuid, minor, read_only, table: Some(table) })
}

/// What has been read, for people.
fn parsed(fields: &[String]) -> String {
    let field = |index: usize| fields.get(index).map_or("(null)", String::as_str);
    format!(
        "Parsed {} fields: name: {} uuid: {} minor: {} flags: {} table: {}",
        fields.len(),
        field(0),
        field(1),
        field(2),
        field(3),
        field(4)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Result<Entry, String>> {
        entries(text).collect()
    }

    fn plain(name: &str, table: &str) -> Entry {
        Entry { name: name.into(), table: Some(table.into()), ..Entry::default() }
    }

    /// Transcript 4.
    #[test]
    fn devices_are_read_one_by_one() {
        assert_eq!(read(""), []);
        assert_eq!(read("c1,,,,0 8 zero"), [Ok(plain("c1", "0 8 zero"))]);
        assert_eq!(read("c9,,,,0 8 zero;"), [Ok(plain("c9", "0 8 zero"))]);
        assert_eq!(read(r"c\,8,,,,0 8 zero"), [Ok(plain("c,8", "0 8 zero"))]);
        let c2 = Entry { uuid: Some("uu2".into()), read_only: true, ..plain("c2", "0 8 zero\n8 8 error") };
        let c3 = Entry { minor: Some(50), ..plain("c3", "0 8 linear /dev/vda 0") };
        assert_eq!(read("c2,uu2,,ro,0 8 zero,8 8 error;c3,,50,rw,0 8 linear /dev/vda 0"), [Ok(c2), Ok(c3)]);
        let c6 = Entry { uuid: Some("u6 ".into()), ..plain(" c6 ", "0 8 zero \n 8 8 zero ") };
        let both = [Ok(c6), Ok(plain("c7", "0 8 zero"))];
        assert_eq!(read(" c6 , u6 , , , 0 8 zero , 8 8 zero ; c7,,,,0 8 zero"), both);
        assert_eq!(read("c10,,abc,,0 8 zero")[0].as_ref().unwrap().minor, Some(0));
    }

    /// Transcript 4.
    #[test]
    fn mistakes_are_told_in_dmsetups_words() {
        for (text, words) in [
            ("c4,,,xx,0 8 zero", "Invalid flags parameter 'xx' must be 'ro' or 'rw' or empty."),
            (
                "c5,,,0 8 zero",
                "Five comma-separated fields are required for each device\n\
                 Parsed 4 fields: name: c5 uuid:  minor:  flags: 0 8 zero table: (null)",
            ),
            (
                "c11,,,,",
                "Incomplete entry: five comma-separated fields are required for each device\n\
                 Parsed 5 fields: name: c11 uuid:  minor:  flags:  table: ",
            ),
            (
                "c12,,,,0 8 zero\\",
                "Backslash must be followed by another character at end of string.\n\
                 Parsed 5 fields: name: c12 uuid:  minor:  flags:  table: 0 8 zero",
            ),
        ] {
            assert_eq!(read(text), [Err(words.to_owned())], "{text}");
            assert_eq!(read(&format!("a,,,,0 1 zero;{text}")).len(), 2, "those in front are made: {text}");
        }
    }
}
