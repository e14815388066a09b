//! `-S`: which devices or regions are meant.

use regex_lite::Regex;

use super::report::{Field, Value};

#[derive(Debug)]
pub(super) enum Selection {
    All(Vec<Selection>),
    Any(Vec<Selection>),
    Not(Box<Selection>),
    Compare(&'static Field, Operator, String),
    Matches(&'static Field, Regex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    Unequal,
    AtLeast,
    AtMost,
    Above,
    Below,
}

/// Longer ones first, as they are looked for in this order.
const OPERATORS: [(&str, Option<Operator>); 9] = [
    ("=~", None),
    ("!~", None),
    ("!=", Some(Operator::Unequal)),
    (">=", Some(Operator::AtLeast)),
    ("<=", Some(Operator::AtMost)),
    ("==", Some(Operator::Equal)),
    ("=", Some(Operator::Equal)),
    (">", Some(Operator::Above)),
    ("<", Some(Operator::Below)),
];

/// Most conditions and brackets: more are no selection that somebody wrote.
const DEEPEST: usize = 100;

/// Finds fields by their names.
type Find<'a> = &'a dyn Fn(&str) -> Option<&'static Field>;

impl Selection {
    pub fn parse(text: &str, find: Find<'_>) -> Result<Selection, String> {
        let mut parser = Parser { rest: text, find, depth: 0 };
        let parsed = parser.any();
        parser.blanks();
        match parsed {
            Ok(selection) if parser.rest.is_empty() => Ok(selection),
            Ok(_) => Err(parser.wrong("what follows a condition is `&&`, `||` or `)`")),
            Err(error) => Err(error),
        }
    }

    pub fn fields(&self) -> Vec<&'static Field> {
        match self {
            Selection::All(parts) | Selection::Any(parts) => parts.iter().flat_map(Selection::fields).collect(),
            Selection::Not(part) => part.fields(),
            Selection::Compare(field, ..) | Selection::Matches(field, _) => vec![field],
        }
    }

    pub fn holds(&self, value: &dyn Fn(&str) -> Value) -> bool {
        match self {
            Selection::All(parts) => parts.iter().all(|part| part.holds(value)),
            Selection::Any(parts) => parts.iter().any(|part| part.holds(value)),
            Selection::Not(part) => !part.holds(value),
            Selection::Matches(field, regex) => regex.is_match(&value(field.id).shown()),
            Selection::Compare(field, operator, with) => compare(&value(field.id), *operator, with),
        }
    }
}

fn compare(value: &Value, operator: Operator, with: &str) -> bool {
    let (Some(number), Ok(with)) = (value.number(), with.parse::<f64>()) else {
        return (value.shown() == with) == (operator == Operator::Equal);
    };
    match operator {
        Operator::Equal => number == with,
        Operator::Unequal => number != with,
        Operator::AtLeast => number >= with,
        Operator::AtMost => number <= with,
        Operator::Above => number > with,
        Operator::Below => number < with,
    }
}

struct Parser<'a> {
    rest: &'a str,
    find: Find<'a>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        self.blanks();
        let taken = self.rest.strip_prefix(token);
        self.rest = taken.unwrap_or(self.rest);
        taken.is_some()
    }

    fn wrong(&self, why: &str) -> String {
        format!("{why}\nSelection syntax error at '{}'.", self.rest)
    }

    fn any(&mut self) -> Result<Selection, String> {
        let mut parts = vec![self.all()?];
        while self.take("||") || self.take("#") {
            parts.push(self.all()?);
        }
        Ok(Selection::Any(parts))
    }

    fn all(&mut self) -> Result<Selection, String> {
        let mut parts = vec![self.one()?];
        while self.take("&&") || self.take(",") {
            parts.push(self.one()?);
        }
        Ok(Selection::All(parts))
    }

    fn one(&mut self) -> Result<Selection, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.wrong("too many conditions"));
        }
        if self.take("!") {
            return Ok(Selection::Not(Box::new(self.one()?)));
        }
        if self.take("(") {
            let inner = self.any()?;
            return if self.take(")") { Ok(inner) } else { Err(self.wrong("a bracket is not closed")) };
        }
        self.condition()
    }

    fn condition(&mut self) -> Result<Selection, String> {
        self.blanks();
        let start = self.rest;
        let end = start.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(start.len());
        let (name, rest) = start.split_at(end);
        let Some(field) = (self.find)(name) else {
            return Err(self.wrong(&format!("Unrecognised selection field: {name}")));
        };
        self.rest = rest;
        self.blanks();
        let found = OPERATORS.iter().find(|(text, _)| self.take(text));
        let Some(&(text, operator)) = found else {
            return Err(self.wrong(&format!("Unrecognised comparison operator: {}", self.rest)));
        };
        let with = self.value()?;
        let Some(operator) = operator else {
            let regex = Regex::new(&with).map_err(|error| self.wrong(&format!("{with}: {error}")))?;
            let matches = Selection::Matches(field, regex);
            return Ok(if text == "!~" { Selection::Not(Box::new(matches)) } else { matches });
        };
        let of_order = !matches!(operator, Operator::Equal | Operator::Unequal);
        if of_order && !field.right {
            return Err(self.wrong(&format!("{text} compares numbers; {name} holds text")));
        }
        if field.right && with.parse::<f64>().is_err() {
            return Err(self.wrong(&format!("{name} holds numbers; {with:?} is none")));
        }
        Ok(Selection::Compare(field, operator, with))
    }

    fn value(&mut self) -> Result<String, String> {
        self.blanks();
        if let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"')) {
            let Some((value, rest)) = self.rest[1..].split_once(quote) else {
                return Err(self.wrong("a quote is not closed"));
            };
            self.rest = rest;
            return Ok(value.to_owned());
        }
        let ends = |(at, c): &(usize, char)| {
            c.is_whitespace()
                || matches!(c, ',' | '#' | ')')
                || ["&&", "||"].iter().any(|t| self.rest[*at..].starts_with(t))
        };
        let end = self.rest.char_indices().find(ends).map_or(self.rest.len(), |(at, _)| at);
        let (value, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::DEVICE;
    use super::*;

    fn holds(text: &str) -> Result<bool, String> {
        let find = |name: &str| DEVICE.iter().find(|field| field.id == name);
        let value = |id: &str| match id {
            "name" => Value::text("vm-root"),
            "open" => Value::Number(2),
            _ => Value::text(""),
        };
        Selection::parse(text, &find).map(|selection| selection.holds(&value))
    }

    #[test]
    fn conditions_are_joined_and_negated() {
        for (text, expected) in [
            ("name=vm-root", true),
            ("name = 'vm-root' && open>1", true),
            ("name=\"vm root\" || open = 2", true),
            ("open>=2,open<=2", true),
            ("open>2", false),
            ("!(open=2)", false),
            ("open=1 || open=2 && name=x", false),
            ("(open=1 # open=2) && name!=x", true),
            ("name=~^vm- && name!~home", true),
            ("uuid=\"\"", true),
        ] {
            assert_eq!(holds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for text in
            ["", "bogus=1", "name", "name=x y", "(name=x", "name='x", "open=two", "name>x", "name=~(", "name=x &&"]
        {
            assert!(holds(text).unwrap_err().contains("Selection syntax error at '"), "{text}");
        }
        assert!(holds(&"(".repeat(100_000)).is_err());
        assert!(holds(&"!".repeat(100_000)).is_err());
    }
}
