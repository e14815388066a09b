//! Tables of fields that the user chooses: `-o`, `-O`, `-S` and how they are written.

use std::cmp::Ordering;
use std::fmt::Write;

use super::options::Options;
use super::select::Selection;

/// What can be asked for.
#[derive(Debug)]
pub(super) struct Field {
    /// Fields that are listed together: a prefix of `_all`, and a title.
    pub group: Group,
    pub heading: &'static str,
    pub width: usize,
    /// Numbers stand at the right.
    pub right: bool,
    pub id: &'static str,
    pub about: &'static str,
}

/// Text and numbers: where they stand in a column.
pub(super) const T: bool = false;
pub(super) const N: bool = true;

/// A field in a line of a table of them.
pub(super) const fn field(
    group: Group,
    heading: &'static str,
    width: usize,
    right: bool,
    id: &'static str,
    about: &'static str,
) -> Field {
    Field { group, heading, width, right, id, about }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Name,
    Info,
    Deps,
    Split,
    Stats,
    Region,
}

impl Group {
    fn prefix_and_title(self) -> (&'static str, &'static str) {
        match self {
            Group::Name => ("name", "Mapped Device Name"),
            Group::Info => ("info", "Mapped Device Information"),
            Group::Deps => ("deps", "Mapped Device Relationship Information"),
            Group::Split => ("splitname", "Mapped Device Name Components"),
            Group::Stats => ("stats", "Mapped Device Statistics"),
            Group::Region => ("region", "Mapped Device Statistics Region Information"),
        }
    }
}

/// What a field of a row holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Number(u64),
    /// A number, and how it is written.
    Real(f64, String),
}

impl Value {
    pub fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }

    pub fn shown(&self) -> String {
        match self {
            Value::Text(text) | Value::Real(_, text) => text.clone(),
            Value::Number(number) => number.to_string(),
        }
    }

    /// As a number; text is none.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Text(_) => None,
            Value::Number(number) => Some(*number as f64),
            Value::Real(number, _) => Some(*number),
        }
    }

    fn order(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Number(one), Value::Number(other)) => one.cmp(other),
            _ => match (self.number(), other.number()) {
                (Some(one), Some(other)) => one.total_cmp(&other),
                _ => self.shown().cmp(&other.shown()),
            },
        }
    }
}

/// How a report is written.
#[derive(Debug)]
struct Style {
    aligned: bool,
    headings: bool,
    prefixes: bool,
    quoted: bool,
    rows: bool,
    separator: String,
}

impl Style {
    fn new(options: &Options) -> Style {
        let headings = !options.has("noheadings");
        let prefixes = options.has("nameprefixes");
        let separator = options.value("separator");
        Style {
            aligned: headings && !prefixes && separator.is_none(),
            headings,
            prefixes,
            quoted: !options.has("unquoted"),
            rows: options.has("rows"),
            separator: separator.unwrap_or(if headings { " " } else { ":" }).to_owned(),
        }
    }
}

/// Why there is no report.
#[derive(Debug, PartialEq)]
pub(super) enum NoReport {
    /// The fields were asked for.
    Help(String),
    /// A name that is no field's, or the like: what to say.
    Wrong(String),
}

struct Row {
    shown: Vec<Value>,
    keys: Vec<Value>,
}

pub(super) struct Report {
    shown: Vec<&'static Field>,
    // What to sort by, and whether the largest comes first.
    keys: Vec<(&'static Field, bool)>,
    selection: Option<Selection>,
    style: Style,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(options: &Options, known: &'static [Field], default: &str) -> Result<Report, NoReport> {
        let asked = match options.value("options") {
            Some(more) if more.starts_with('+') => format!("{default},{}", &more[1..]),
            Some(fields) => fields.to_owned(),
            None => default.to_owned(),
        };
        let mut shown = Vec::new();
        for name in asked.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if matches!(name, "help" | "?") {
                return Err(NoReport::Help(help(known)));
            }
            let found = fields(known, name);
            if found.is_empty() {
                return Err(NoReport::Wrong(format!("{}Unrecognised field: {name}", help(known))));
            }
            shown.extend(found);
        }
        let mut keys = Vec::new();
        for key in options.value("sort").unwrap_or_default().split(',').filter(|key| !key.is_empty()) {
            let name = key.trim_start_matches(['+', '-']);
            let Some(&field) = fields(known, name).first() else {
                return Err(NoReport::Wrong(format!("{}dm_report: Unrecognised field: {name}", help(known))));
            };
            keys.push((field, key.starts_with('-')));
        }
        let selection = options.value("select").map(|text| Selection::parse(text, &|name| one(known, name)));
        let selection = selection.transpose().map_err(NoReport::Wrong)?;
        Ok(Report { shown, keys, selection, style: Style::new(options), rows: Vec::new() })
    }

    /// Whether a field of the group is needed.
    pub fn needs(&self, group: Group) -> bool {
        let selected = self.selection.iter().flat_map(|selection| selection.fields());
        self.shown.iter().copied().chain(self.keys.iter().map(|key| key.0)).chain(selected).any(|f| f.group == group)
    }

    /// Whether an object with these fields is chosen.
    pub fn selects(&self, value: &dyn Fn(&str) -> Value) -> bool {
        self.selection.as_ref().is_none_or(|selection| selection.holds(value))
    }

    /// A row, if it is chosen.
    pub fn add(&mut self, value: &dyn Fn(&str) -> Value) {
        if self.selects(value) {
            let shown = self.shown.iter().map(|field| value(field.id)).collect();
            let keys = self.keys.iter().map(|(field, _)| value(field.id)).collect();
            self.rows.push(Row { shown, keys });
        }
    }

    /// The text. Nothing where there is no row.
    pub fn print(mut self) -> String {
        self.rows.sort_by(|one, other| {
            let pairs = one.keys.iter().zip(&other.keys).zip(&self.keys);
            let orders = pairs.map(|((one, other), (_, down))| match down {
                true => other.order(one),
                false => one.order(other),
            });
            orders.fold(Ordering::Equal, Ordering::then)
        });
        if self.rows.is_empty() {
            return String::new();
        }
        let cells: Vec<Vec<String>> = self.rows.iter().map(|row| self.cells(row)).collect();
        if self.style.rows { self.in_rows(&cells) } else { self.in_columns(&cells) }
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let cell = |(field, value): (&&Field, &Value)| {
            let value = value.shown();
            match (self.style.prefixes, self.style.quoted) {
                (false, _) => value,
                (true, true) => format!("DM_{}='{value}'", field.id.to_ascii_uppercase()),
                (true, false) => format!("DM_{}={value}", field.id.to_ascii_uppercase()),
            }
        };
        self.shown.iter().zip(&row.shown).map(cell).collect()
    }

    fn in_columns(&self, cells: &[Vec<String>]) -> String {
        let width = |(index, field): (usize, &&Field)| {
            let widest = cells.iter().map(|row| row[index].chars().count()).max().unwrap_or(0);
            let heading = if self.style.headings { field.heading.len() } else { 0 };
            field.width.max(heading).max(widest)
        };
        let widths: Vec<usize> = self.shown.iter().enumerate().map(width).collect();
        let pad = |text: &str, index: usize, right: bool| match (self.style.aligned, right) {
            (false, _) => text.to_owned(),
            (true, true) => format!("{text:>width$}", width = widths[index]),
            (true, false) => format!("{text:<width$}", width = widths[index]),
        };
        let mut text = String::new();
        let mut line = |cells: Vec<String>| {
            text.push_str(&cells.join(&self.style.separator));
            text.push('\n');
        };
        if self.style.headings {
            line(self.shown.iter().enumerate().map(|(index, field)| pad(field.heading, index, false)).collect());
        }
        for row in cells {
            let numbered = row.iter().zip(&self.shown).enumerate();
            line(numbered.map(|(index, (cell, field))| pad(cell, index, field.right)).collect());
        }
        text
    }

    fn in_rows(&self, cells: &[Vec<String>]) -> String {
        let mut text = String::new();
        for (index, field) in self.shown.iter().enumerate() {
            let heading = self.style.headings.then(|| field.heading.to_owned());
            let values = cells.iter().map(|row| row[index].clone());
            text.push_str(&heading.into_iter().chain(values).collect::<Vec<_>>().join(&self.style.separator));
            text.push('\n');
        }
        text
    }
}

fn plain(name: &str) -> String {
    name.chars().filter(|&c| c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

fn one(known: &'static [Field], name: &str) -> Option<&'static Field> {
    known.iter().find(|field| plain(field.id) == plain(name))
}

/// The fields of that name: one, or all of a group.
fn fields(known: &'static [Field], name: &str) -> Vec<&'static Field> {
    if let Some(field) = one(known, name) {
        return vec![field];
    }
    let name = plain(name);
    let of = |field: &&'static Field| name == "all" || name == format!("{}all", field.group.prefix_and_title().0);
    known.iter().filter(of).collect()
}

/// The fields that there are.
pub(super) fn help(known: &'static [Field]) -> String {
    let mut text = String::new();
    let mut group = None;
    for field in known {
        let (prefix, title) = field.group.prefix_and_title();
        // Writing to a String cannot fail.
        if group != Some(field.group) {
            let underline = "-".repeat(title.len() + 7);
            let _ = writeln!(text, "{title} Fields\n{underline}");
            let _ = writeln!(text, "  {:<21} - All fields in this section.", format!("{prefix}_all"));
        }
        let _ = writeln!(text, "  {:<21} - {}", field.id, field.about);
        group = Some(field.group);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fields::{INFO, SPLIT, SPLITNAME};
    use super::super::name::Split;
    use super::*;

    fn split(line: &str) -> Result<String, NoReport> {
        let options = Options::parse(line.split(' ').map(std::ffi::OsString::from)).unwrap();
        let mut report = Report::new(&options, &SPLIT, SPLITNAME)?;
        for name in &options.words {
            let split = Split::new(name, "LVM");
            report.add(&|id| split.value(id));
        }
        Ok(report.print())
    }

    /// Taken from dmsetup 1.02.185.
    #[test]
    fn reports_are_written_as_libdm_writes_them() {
        for (line, text) in [
            ("vg-lv--x-real", "VG   LV   LVLayer\nvg   lv-x real   \n"),
            ("--noheadings vg-lv", "vg:lv:\n"),
            ("-o vg_name,lv_name vg-lv-l", "VG   LV  \nvg   lv  \n"),
            ("--nameprefixes --unquoted vg-lv", "VG LV LVLayer\nDM_VG_NAME=vg DM_LV_NAME=lv DM_LV_LAYER=\n"),
            ("--nameprefixes vg-lv", "VG LV LVLayer\nDM_VG_NAME='vg' DM_LV_NAME='lv' DM_LV_LAYER=''\n"),
            ("--nameprefixes --noheadings vg-lv--x-real", "DM_VG_NAME='vg':DM_LV_NAME='lv-x':DM_LV_LAYER='real'\n"),
            ("--separator , vg-lv", "VG,LV,LVLayer\nvg,lv,\n"),
            ("--noheadings --separator , vg-lv", "vg,lv,\n"),
            ("--rows vg-lv", "VG vg\nLV lv\nLVLayer \n"),
            ("--nameprefixes --noheadings --rows vg-lv", "DM_VG_NAME='vg'\nDM_LV_NAME='lv'\nDM_LV_LAYER=''\n"),
            ("-o +subsystem vg-lv", "VG   LV   LVLayer Subsys\nvg   lv           LVM   \n"),
            ("-o splitname_all vg-lv", "Subsys VG   LV   LVLayer\nLVM    vg   lv          \n"),
            ("-o vg_name,vg_name vg-lv", "VG   VG  \nvg   vg  \n"),
            ("-o vgName vg-lv", "VG  \nvg  \n"),
            ("-S vg_name=vg vg-lv", "VG   LV   LVLayer\nvg   lv          \n"),
            ("-S vg_name=x vg-lv", ""),
        ] {
            assert_eq!(split(line).unwrap(), text, "{line}");
        }
        assert!(matches!(split("-o help x"), Err(NoReport::Help(text)) if text.contains("  lv_layer              - ")));
        assert!(
            matches!(split("-o bogus x"), Err(NoReport::Wrong(text)) if text.ends_with("Unrecognised field: bogus"))
        );
    }

    #[test]
    fn rows_are_sorted_by_what_they_are_asked_to_be() {
        let lines = |line: &str| split(line).unwrap().lines().collect::<Vec<_>>().join(" ");
        assert_eq!(lines("--noheadings -o lv_name -O -vg_name,lv_name b-1 a-2 b-0"), "0 1 2");
        let options =
            Options::parse(["-O", "-minor", "-o", "minor", "--noheadings"].map(std::ffi::OsString::from)).unwrap();
        let mut report = Report::new(&options, &super::super::fields::DEVICE, INFO).unwrap();
        for minor in [9, 10, 1] {
            report.add(&|_| Value::Number(minor));
        }
        assert_eq!(report.print(), "10\n9\n1\n");
    }
}
