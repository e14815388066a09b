//! The device-mapper table language: parser, diagnostics and printer.
//!
//! The grammar is dmsetup's (the text layer) followed by the kernel's checks for each line
//! (`dm_table_add_target` and the targets' constructors), in that order, so that a table which one of them
//! refuses is refused here with the same text. Nothing here does I/O: a device named in a table is a
//! [`DevRef`], text with a place, and whoever holds the devices resolves it.
//!
//! ```
//! use std::sync::Arc;
//! use dm_table::{Format, Source, parse};
//!
//! let source = Arc::new(Source::new("disk.table", "0 2048 linear /dev/sda1 0\n2048 8 zero\n"));
//! let file = parse(source, Format::Auto)?;
//! assert_eq!(file.devices[0].table.to_string(), "0 2048 linear /dev/sda1 0\n2048 8 zero ");
//!
//! let source = Arc::new(Source::new("disk.table", "0 2048 linear /dev/sda1 0x10\n"));
//! let refused = parse(source, Format::Auto).unwrap_err();
//! assert_eq!(refused.reason(), "linear: Invalid device sector");
//! assert_eq!((refused.line(), refused.column()), (1, 25));
//! # Ok::<(), dm_table::Diagnostic>(())
//! ```
#![forbid(unsafe_code)]

mod concise;
mod diagnostic;
mod lexer;
mod line;
mod message;
mod names;
mod order;
mod params;
mod parse;
mod plain;
mod sectors;
mod source;
mod table;

pub use diagnostic::{Diagnostic, Severity};
pub use message::{DustMessage, LogWritesMessage, MessageError, RegionMapping, RegionMappings, SwitchMessage};
pub use names::{mapper_name as mangle, unmangle};
pub use order::MapperNames;
pub use params::{
    CorruptByte, Delay, DelayLeg, DevRef, Dust, Ebs, ErrorTarget, Features, Flakey, Linear, LogWrites, Mirror,
    MirrorLog, Persistence, Position, Resync, Snapshot, SnapshotMerge, SnapshotOrigin, Stripe, Striped, Switch, Target,
    Unstriped, target_types,
};
pub use parse::{Format, parse};
pub use sectors::{SECTOR_SIZE, Sectors};
pub use source::{Source, Span};
pub use table::{Device, Line, Table, TableFile};
