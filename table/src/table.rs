//! Tables, the devices of a file, and printing them.

use std::fmt;
use std::sync::Arc;

use crate::concise::Concise;
use crate::params::DeviceName;
use crate::{DevRef, Sectors, Source, Span, Target, names};

/// All that one text holds.
#[derive(Clone, Debug)]
pub struct TableFile {
    /// The text, for diagnostics about it.
    pub source: Arc<Source>,
    /// The devices in the order of the text; a plain file has one without a name.
    pub devices: Vec<Device>,
}

impl TableFile {
    /// All devices on one line, as `dmsetup table --concise` prints them: `name,uuid,minor,ro|rw,table[,table]…`,
    /// separated by `;`. Device names within tables are as the user gave them.
    ///
    /// [`parse`](crate::parse()) with [`Format::Concise`](crate::Format::Concise) reads it back, but for a device
    /// without a name (of a plain file), whose name field is empty.
    pub fn display_concise(&self) -> impl fmt::Display + '_ {
        Concise(self)
    }
}

/// One device of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name; none in a plain file.
    pub name: Option<String>,
    /// Where the name stands; empty, at the start of the text, where there is none.
    pub name_span: Span,
    /// Its uuid, if it has one.
    pub uuid: Option<String>,
    /// The minor number asked for, if any.
    pub minor: Option<u32>,
    /// Whether it is to be served read-only.
    pub read_only: bool,
    /// Its table; shared, as it may have ten thousand lines and who serves it keeps it.
    pub table: Arc<Table>,
}

impl Device {
    /// The name as it stands under `/dev/mapper/`: bytes other than `0-9A-Za-z#+-.:=@_` as `\xNN`. It is fit
    /// for a file name. `None` where the device has no name.
    pub fn mapper_name(&self) -> Option<String> {
        self.name.as_deref().and_then(names::mapper_name)
    }
}

/// Lines that follow on each other from sector 0. May be empty, as dmsetup accepts a device without a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The lines in order.
    pub lines: Vec<Line>,
}

impl Table {
    /// The device's size in sectors: where the last line ends.
    pub fn len(&self) -> Sectors {
        self.lines.last().map_or(Sectors::ZERO, |line| Sectors::new(line.start.get().saturating_add(line.len.get())))
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Every device that the table names, in order, as often as it is named.
    pub fn device_refs(&self) -> impl Iterator<Item = &DevRef> {
        self.lines.iter().flat_map(|line| line.target.device_refs())
    }

    /// The table as `dmsetup table` prints it, with `name` deciding how each device is written.
    pub fn display_with<'a>(&'a self, name: &'a dyn Fn(&DevRef) -> String) -> impl fmt::Display + 'a {
        Printed { table: self, name }
    }
}

impl fmt::Display for Table {
    /// As `dmsetup table` prints it, with devices as the user gave them: lines joined by line ends, and one
    /// blank after the type even where no argument follows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printed { table: self, name: &|dev| dev.text.clone() }.fmt(f)
    }
}

struct Printed<'a> {
    table: &'a Table,
    name: &'a DeviceName<'a>,
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.table.lines.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{} {} {} ", line.start, line.len, line.target.type_name())?;
            line.target.print(f, self.name)?;
        }
        Ok(())
    }
}

/// One line: a range of the device and its target.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The first sector on the device.
    pub start: Sectors,
    /// The length in sectors, never 0.
    pub len: Sectors,
    /// The target.
    pub target: Target,
    /// The whole line without blanks around it and without a comment at its end.
    pub span: Span,
    /// Where the start stands.
    pub start_span: Span,
    /// Where the length stands.
    pub len_span: Span,
    /// Where the type stands.
    pub type_span: Span,
}
