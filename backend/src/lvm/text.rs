//! The language of LVM2's metadata (libdm/libdm-config.c): `key = value`, `name { ... }`, numbers, strings, lists.

/// Deepest nesting; a volume group has four levels.
const DEEPEST: u32 = 16;

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// Keys and values in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section(pub Vec<(String, Value)>);

impl Section {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(its, _)| its == key).map(|(_, value)| value)
    }

    /// A number that is not negative, or what is missing.
    pub fn number(&self, key: &str) -> Result<u64, String> {
        match self.get(key) {
            Some(Value::Number(number)) => u64::try_from(*number).map_err(|_| format!("`{key}` is negative")),
            _ => Err(format!("the number `{key}` is missing")),
        }
    }

    pub fn text(&self, key: &str) -> Result<&str, String> {
        match self.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(format!("the string `{key}` is missing")),
        }
    }

    pub fn list(&self, key: &str) -> Result<&[Value], String> {
        match self.get(key) {
            Some(Value::List(list)) => Ok(list),
            _ => Err(format!("the list `{key}` is missing")),
        }
    }

    pub fn section(&self, key: &str) -> Result<&Section, String> {
        match self.get(key) {
            Some(Value::Section(section)) => Ok(section),
            _ => Err(format!("the section `{key}` is missing")),
        }
    }

    /// The sections within, with their names.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }

    /// Whether a list of strings has this one.
    pub fn has(&self, key: &str, text: &str) -> bool {
        self.list(key).is_ok_and(|list| list.iter().any(|value| matches!(value, Value::Text(its) if its == text)))
    }
}

/// Reads a text. The error says in which line.
pub(super) fn parse(text: &str) -> Result<Section, String> {
    let mut reader = Reader { rest: text, line: 1 };
    reader.section(0).map_err(|why| format!("line {} of the metadata: {why}", reader.line))
}

struct Reader<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Reader<'a> {
    /// Goes behind blanks, line ends and comments. A NUL ends the text.
    fn skip(&mut self) {
        loop {
            let begin = self.rest.trim_start();
            let blanks = &self.rest[..self.rest.len() - begin.len()];
            self.line += blanks.bytes().filter(|byte| *byte == b'\n').count() as u32;
            self.rest = begin;
            if !begin.starts_with('#') {
                break;
            }
            self.rest = begin.find('\n').map_or("", |end| &begin[end..]);
        }
        if self.rest.starts_with('\0') {
            self.rest = "";
        }
    }

    fn take(&mut self, what: char) -> bool {
        self.skip();
        let rest = self.rest.strip_prefix(what);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn section(&mut self, depth: u32) -> Result<Section, String> {
        let mut section = Section::default();
        loop {
            self.skip();
            match (self.rest.is_empty(), depth) {
                (true, 0) => return Ok(section),
                (true, _) => return Err("the text ends within a section".into()),
                (false, 1..) if self.take('}') => return Ok(section),
                _ => {}
            }
            let key = self.word()?;
            let value = if self.take('{') {
                if depth == DEEPEST {
                    return Err("sections lie too deep in one another".into());
                }
                Value::Section(self.section(depth + 1)?)
            } else if self.take('=') {
                self.value()?
            } else {
                return Err(format!("neither `=` nor `{{` follows `{key}`"));
            };
            section.0.push((key, value));
        }
    }

    /// A name, perhaps in quotes.
    fn word(&mut self) -> Result<String, String> {
        self.skip();
        if self.rest.starts_with('"') {
            return self.string();
        }
        let ends = |c: char| c.is_whitespace() || c.is_control() || "#={}[],\"".contains(c);
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match rest.chars().next() {
            Some(c) if word.is_empty() => Err(format!("a name is expected, not {c:?}")),
            None if word.is_empty() => Err("a name is expected, and the text ends".into()),
            _ => Ok(word.to_owned()),
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        if !self.take('[') {
            return self.scalar();
        }
        let mut list = Vec::new();
        while !self.take(']') {
            list.push(self.scalar()?);
            if !self.take(',') && !self.rest.starts_with(']') {
                return Err("neither `,` nor `]` follows a value of a list".into());
            }
        }
        Ok(Value::List(list))
    }

    fn scalar(&mut self) -> Result<Value, String> {
        self.skip();
        if self.rest.starts_with('"') {
            return self.string().map(Value::Text);
        }
        let word = self.word()?;
        // What is no whole number (a fraction) means nothing to us.
        Ok(word.parse().map_or(Value::Text(word), Value::Number))
    }

    fn string(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.line += text.bytes().filter(|byte| *byte == b'\n').count() as u32;
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
                _ => text.push(c),
            }
        }
        Err("the text ends within a string".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_with_comments_lists_and_escapes() {
        let text = "# head\nvg {\n\tid = \"a-b\" # end\n\tn = -5\n\tl = [\n\"x\", 7,\n\"y\\\"\\\\\"]\n\te = []\n s { } }\nk=1.5\n\0rest";
        let all = parse(text).unwrap();
        let vg = all.section("vg").unwrap();
        assert_eq!(vg.text("id"), Ok("a-b"));
        assert_eq!(vg.get("n"), Some(&Value::Number(-5)));
        let list = [Value::Text("x".into()), Value::Number(7), Value::Text("y\"\\".into())];
        assert_eq!(vg.list("l").unwrap(), list);
        assert_eq!(vg.list("e").unwrap(), []);
        assert!(vg.section("s").unwrap().0.is_empty());
        assert_eq!(all.text("k"), Ok("1.5"));
        assert!(vg.has("l", "x") && !vg.has("l", "z"));
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_line() {
        for (text, why) in [
            ("a {", "line 1 of the metadata: the text ends within a section"),
            ("a\n= \"x", "line 2 of the metadata: the text ends within a string"),
            ("a = [1 2]", "line 1 of the metadata: neither `,` nor `]` follows a value of a list"),
            ("a\n\nb", "line 3 of the metadata: neither `=` nor `{` follows `a`"),
            ("}", "line 1 of the metadata: a name is expected, not '}'"),
            ("a = ", "line 1 of the metadata: a name is expected, and the text ends"),
            ("a = [", "line 1 of the metadata: a name is expected, and the text ends"),
        ] {
            assert_eq!(parse(text), Err(why.into()), "{text}");
        }
        assert!(parse(&"a{".repeat(100_000)).unwrap_err().contains("too deep"));
    }
}
