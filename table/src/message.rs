//! Messages to targets: the words behind `dmsetup message NAME SECTOR`.
//!
//! Only the words are judged here, in the order of the kernel's handlers; whether a bad block is already listed
//! is for who keeps the list.

use std::fmt;

use crate::lexer;

/// Why a message is refused, always with EINVAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageError {
    kernel: Option<String>,
    expected: String,
}

impl MessageError {
    fn new(kernel: impl Into<String>, expected: impl Into<String>) -> MessageError {
        MessageError { kernel: Some(kernel.into()), expected: expected.into() }
    }

    fn empty(expected: impl Into<String>) -> MessageError {
        MessageError::new("ioctl: Empty message received.", expected)
    }

    /// The kernel log's line behind `device-mapper: `: `dust: selected block value out of range`. For some
    /// mistakes the kernel has none.
    pub fn kernel(&self) -> Option<&str> {
        self.kernel.as_deref()
    }

    /// What would have been right.
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

impl fmt::Display for MessageError {
    /// The kernel's line, where it has one, and what would have been right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kernel {
            Some(kernel) => write!(f, "{kernel} (expected {})", self.expected),
            None => write!(f, "expected {}", self.expected),
        }
    }
}

impl std::error::Error for MessageError {}

/// A message to a [`Dust`](crate::Dust) target. Upper and lower case are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DustMessage {
    /// `addbadblock <block> [<count>]`
    AddBadBlock {
        /// The block, counted from the start of the device.
        block: u64,
        /// How many writes to it fail before one repairs it.
        write_fails: u8,
    },
    /// `removebadblock <block>`
    RemoveBadBlock {
        /// The block.
        block: u64,
    },
    /// `queryblock <block>`: whether it is bad.
    QueryBlock {
        /// The block.
        block: u64,
    },
    /// `countbadblocks`
    CountBadBlocks,
    /// `listbadblocks`
    ListBadBlocks,
    /// `clearbadblocks`
    ClearBadBlocks,
    /// `enable`: reads of bad blocks fail from now on.
    Enable,
    /// `disable`: they do not.
    Disable,
    /// `quiet`: turns the log lines off, or on again.
    Quiet,
}

const DUST_MESSAGES: &str = "addbadblock <block> [<writes that fail>], removebadblock <block>, queryblock <block>, \
                             countbadblocks, listbadblocks, clearbadblocks, enable, disable or quiet";

impl DustMessage {
    /// Reads a message to a target whose device has so many `blocks`; a part of one at the end counts.
    ///
    /// Linux 6.12 takes the number of blocks for a block too, which are counted from 0; that is refused here,
    /// unless the device ends with a part of a block.
    ///
    /// # Errors
    /// The words are no message, or a block is not on the device. Of numbers that are none the kernel says nothing.
    pub fn parse(words: &[&str], blocks: u64) -> Result<DustMessage, MessageError> {
        let block = |word| dust_block(word, blocks);
        let (said, message) = match *words {
            [] => return Err(MessageError::empty(DUST_MESSAGES)),
            [said] => (said, dust_word(said)?),
            [said, at] => {
                let block = block(at)?;
                let message = match lower(said).as_str() {
                    "addbadblock" => Some(DustMessage::AddBadBlock { block, write_fails: 0 }),
                    "removebadblock" => Some(DustMessage::RemoveBadBlock { block }),
                    "queryblock" => Some(DustMessage::QueryBlock { block }),
                    _ => None,
                };
                (said, message)
            }
            [said, at, count] => {
                dust_number(at)?;
                let expected = "the number of writes that fail, from 0 to 255";
                let count =
                    lexer::kernel_uint(count).ok_or(MessageError { kernel: None, expected: expected.into() })?;
                let write_fails = u8::try_from(count)
                    .map_err(|_| MessageError::new("dust: selected write fail count out of range", expected))?;
                let block = block(at)?;
                let adds = lower(said) == "addbadblock";
                (said, adds.then_some(DustMessage::AddBadBlock { block, write_fails }))
            }
            [..] => {
                let line = format!("dust: invalid number of arguments '{}'", words.len());
                return Err(MessageError::new(line, DUST_MESSAGES));
            }
        };
        let unknown = || MessageError::new(format!("dust: unrecognized message '{said}' received"), DUST_MESSAGES);
        message.ok_or_else(unknown)
    }
}

fn lower(word: &str) -> String {
    word.to_ascii_lowercase()
}

fn dust_word(said: &str) -> Result<Option<DustMessage>, MessageError> {
    Ok(Some(match lower(said).as_str() {
        "addbadblock" | "removebadblock" | "queryblock" => {
            let line = format!("dust: {said} requires an additional argument");
            return Err(MessageError::new(line, "the number of a block"));
        }
        "countbadblocks" => DustMessage::CountBadBlocks,
        "listbadblocks" => DustMessage::ListBadBlocks,
        "clearbadblocks" => DustMessage::ClearBadBlocks,
        "enable" => DustMessage::Enable,
        "disable" => DustMessage::Disable,
        "quiet" => DustMessage::Quiet,
        _ => return Ok(None),
    }))
}

fn dust_number(word: &str) -> Result<u64, MessageError> {
    let none = || MessageError { kernel: None, expected: "the number of a block, in decimal, without sign".into() };
    lexer::kernel_u64(word).ok_or_else(none)
}

fn dust_block(word: &str, blocks: u64) -> Result<u64, MessageError> {
    let block = dust_number(word)?;
    if block < blocks {
        return Ok(block);
    }
    let expected = match blocks {
        0 => "a device that has a block".to_owned(),
        blocks => format!("a block from 0 to {}, the device's last", blocks - 1),
    };
    Err(MessageError::new("dust: selected block value out of range", expected))
}

/// A message to a [`LogWrites`](crate::LogWrites) target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogWritesMessage<'a> {
    /// `mark <name>`: a mark in the log. What of the name does not fit into a block is not logged.
    Mark(&'a str),
}

impl<'a> LogWritesMessage<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// The words are no message.
    pub fn parse(words: &[&'a str]) -> Result<LogWritesMessage<'a>, MessageError> {
        let expected = "mark and a name without blanks";
        match *words {
            [] => Err(MessageError::empty(expected)),
            [said, name] if said.eq_ignore_ascii_case("mark") => Ok(LogWritesMessage::Mark(name)),
            [said, _] => {
                let line = format!("log-writes: Unrecognised log writes target message received: {said}");
                Err(MessageError::new(line, expected))
            }
            [..] => {
                let got = words.len();
                let line = format!("log-writes: Invalid log-writes message arguments, expect 2 arguments, got {got}");
                Err(MessageError::new(line, expected))
            }
        }
    }
}

/// A message to a [`Switch`](crate::Switch) target.
#[derive(Clone, Debug)]
pub enum SwitchMessage<'a> {
    /// `set_region_mappings [<region>]:<path>…`
    SetRegionMappings(RegionMappings<'a>),
}

const MAPPING: &str = "[<region>]:<path> or R<regions to repeat>,<count>, in hexadecimal";

impl<'a> SwitchMessage<'a> {
    /// Reads a message to a target of so many `regions` and `paths`.
    ///
    /// # Errors
    /// The words are no message. The mappings in it are judged when they are taken.
    pub fn parse(words: &'a [&'a str], regions: u64, paths: u64) -> Result<SwitchMessage<'a>, MessageError> {
        match words {
            [] => Err(MessageError::empty("set_region_mappings")),
            [said, words @ ..] if said.eq_ignore_ascii_case("set_region_mappings") => {
                Ok(SwitchMessage::SetRegionMappings(RegionMappings { words, regions, paths, region: 0 }))
            }
            _ => Err(MessageError::new("switch: Unrecognised message received.", "set_region_mappings")),
        }
    }
}

/// The mappings of a [`SwitchMessage`], in order. After a mistake there are no more; those before it stay in
/// force, as in the kernel.
#[derive(Clone, Debug)]
pub struct RegionMappings<'a> {
    words: &'a [&'a str],
    regions: u64,
    paths: u64,
    /// The region that was set last.
    region: u64,
}

/// What one word of a [`SwitchMessage`] sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionMapping {
    /// `<region>:<path>`, or `:<path>` for the region after the last; where that comes first, region 1.
    Set {
        /// The region.
        region: u64,
        /// The path that it lies on from now on.
        path: u64,
    },
    /// `R<cycle>,<count>`: from `first` on, one after the other, `count` regions go where the region `cycle`
    /// before each lies (then).
    Repeat {
        /// The first region that is set.
        first: u64,
        /// How many are set; all of them are there.
        count: u64,
        /// From 1 to `first`.
        cycle: u64,
    },
}

impl RegionMappings<'_> {
    fn read(&mut self, word: &str) -> Result<RegionMapping, MessageError> {
        match word.strip_prefix(['R', 'r']) {
            Some(repeat) => self.repeat(word, repeat),
            None => self.set(word),
        }
    }

    fn repeat(&mut self, word: &str, repeat: &str) -> Result<RegionMapping, MessageError> {
        let numbers = repeat.split_once(',').filter(|(cycle, count)| !cycle.is_empty() && !count.is_empty());
        let numbers = numbers.and_then(|(cycle, count)| Some((hex(cycle)?, hex(count)?)));
        let (cycle, count) = numbers.ok_or_else(|| no_mapping(word))?;
        let (last, regions) = (self.region, self.regions);
        if cycle == 0 || cycle - 1 > last {
            let line = format!("invalid set_region_mappings cycle length: {} > {last}", cycle.wrapping_sub(1));
            return Err(switch(line, format!("to repeat from 1 to {} regions", last.saturating_add(1))));
        }
        if last.checked_add(count).is_none_or(|end| end >= regions) {
            let line = format!("invalid set_region_mappings region number: {last} + {count} >= {regions}");
            return Err(switch(line, format!("at most {} regions to set", regions.saturating_sub(last + 1))));
        }
        self.region += count;
        Ok(RegionMapping::Repeat { first: last + 1, count, cycle })
    }

    fn set(&mut self, word: &str) -> Result<RegionMapping, MessageError> {
        let numbers = word.split_once(':').filter(|(_, path)| !path.is_empty());
        let (region, path) = numbers.ok_or_else(|| no_mapping(word))?;
        let region = if region.is_empty() { Some(self.region.wrapping_add(1)) } else { hex(region) };
        let (region, path) = region.zip(hex(path)).ok_or_else(|| no_mapping(word))?;
        self.region = region;
        let (regions, paths) = (self.regions, self.paths);
        if region >= regions {
            let line = format!("invalid set_region_mappings region number: {region} >= {regions}");
            return Err(switch(line, format!("a region below {regions} (0x{regions:x})")));
        }
        if path >= paths {
            let line = format!("invalid set_region_mappings device: {path} >= {paths}");
            return Err(switch(line, format!("a path below {paths} (0x{paths:x})")));
        }
        Ok(RegionMapping::Set { region, path })
    }
}

impl Iterator for RegionMappings<'_> {
    type Item = Result<RegionMapping, MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (word, rest) = self.words.split_first()?;
        let mapping = self.read(word);
        self.words = if mapping.is_ok() { rest } else { &[] };
        Some(mapping)
    }
}

fn switch(line: String, expected: impl Into<String>) -> MessageError {
    MessageError::new(format!("switch: {line}"), expected)
}

fn no_mapping(word: &str) -> MessageError {
    switch(format!("invalid set_region_mappings argument: '{word}'"), MAPPING)
}

/// The kernel's `parse_hex` of a whole word: digits modulo 2^64.
fn hex(word: &str) -> Option<u64> {
    word.chars().try_fold(0u64, |number, digit| Some(number << 4 | u64::from(digit.to_digit(16)?)))
}
