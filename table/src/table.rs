//! Tables, the devices of a file, and printing them.

use std::fmt;
use std::sync::Arc;

use crate::{DevRef, Diagnostic, Sectors, Source, Span, Target};

/// Which of the two forms a text has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Find out from the text.
    #[default]
    Auto,
    /// One table, one line per target: what `dmsetup create` reads.
    Plain,
    /// `name,uuid,minor,flags,table[,table]…[;…]`: what `dmsetup create --concise` reads.
    Concise,
}

/// Parses a text; the first thing wrong with it, in the order in which dmsetup and the kernel look, is the error.
pub fn parse(source: Arc<Source>, format: Format) -> Result<TableFile, Diagnostic> {
    let _ = format;
    Err(Diagnostic::error(
        &source,
        Span::default(),
        "parser not here yet",
    ))
}

/// All that one text holds.
#[derive(Clone, Debug)]
pub struct TableFile {
    /// The text, for diagnostics about it.
    pub source: Arc<Source>,
    /// The devices in the order of the text; a plain file has one without a name.
    pub devices: Vec<Device>,
}

impl TableFile {
    /// Indices into `devices` such that a device comes before those that name it as `/dev/mapper/NAME`.
    pub fn load_order(&self) -> Result<Vec<usize>, Diagnostic> {
        Ok((0..self.devices.len()).collect())
    }

    /// One line, as `dmsetup table --concise` prints it.
    pub fn display_concise(&self) -> impl fmt::Display + '_ {
        ""
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
    /// Its table.
    pub table: Table,
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
        self.lines.last().map_or(Sectors::ZERO, |line| {
            Sectors::new(line.start.get().saturating_add(line.len.get()))
        })
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Every device that the table names, in order, as often as it is named.
    pub fn device_refs(&self) -> impl Iterator<Item = &DevRef> {
        std::iter::empty()
    }

    /// The table with `name` deciding how each device is written.
    pub fn display_with<'a>(
        &'a self,
        name: &'a dyn Fn(&DevRef) -> String,
    ) -> impl fmt::Display + 'a {
        let _ = name;
        ""
    }
}

impl fmt::Display for Table {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
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
