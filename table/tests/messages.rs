//! Every recorded message is taken or refused as by a real kernel, with the same words.

#[path = "common/transcript.rs"]
mod transcript;

use std::collections::BTreeMap;
use std::sync::Arc;

use dm_table::{
    DustMessage, Format, LogWritesMessage, MessageError, RegionMapping, Source, Switch, SwitchMessage, Target, parse,
};
use transcript::{Message, messages};

const TARGETS: &str = include_str!("../../tests/data/oracle/out612-2.txt");
const STORES: &str = include_str!("../../tests/data/oracle/out612-5.txt");
const BLOCKS: &str = include_str!("../../tests/data/oracle/out612-8.txt");

/// Sectors of each disk of the machine that was recorded.
const DISK: u64 = 131_072;

fn of(text: &str, kind: &str) -> Vec<Message> {
    messages(text).into_iter().filter(|message| message.table.split(' ').nth(2) == Some(kind)).collect()
}

fn words(message: &Message) -> Vec<&str> {
    message.args.split(' ').skip(1).collect()
}

/// Compares what was refused: the kernel said the same, or nothing.
fn check_refused(message: &Message, error: &MessageError) {
    assert!(!message.accepted, "{}: {error}", message.args);
    assert_eq!(error.kernel(), message.kernel.first().map(String::as_str), "{}", message.args);
    assert!(
        !error.expected().is_empty()
            && error.to_string().ends_with(error.expected().trim_end()) | error.kernel().is_some()
    );
}

/// A list of bad blocks, as the kernel keeps it.
struct Dust {
    bad: BTreeMap<u64, u8>,
    quiet: bool,
}

impl Dust {
    /// Reply and log line; `Err` where the message fails.
    fn take(&mut self, message: DustMessage) -> Result<(Option<String>, Option<String>), String> {
        let (mut reply, mut log) = (None, None);
        match message {
            DustMessage::AddBadBlock { block, write_fails } => {
                if self.bad.contains_key(&block) {
                    return Err(format!("dust: dust_add_block: block {block} already in badblocklist"));
                }
                self.bad.insert(block, write_fails);
                let added = format!("badblock added at block {block} with write fail count {write_fails}");
                log = Some(format!("dust: dust_add_block: {added}"));
            }
            DustMessage::RemoveBadBlock { block } => match self.bad.remove(&block) {
                Some(_) => log = Some(format!("dust: dust_remove_block: badblock removed at block {block}")),
                None => return Err(format!("dust: dust_remove_block: block {block} not found in badblocklist")),
            },
            DustMessage::QueryBlock { block } => {
                let not = if self.bad.contains_key(&block) { "" } else { "not " };
                reply = Some(format!("dust_query_block: block {block} {not}found in badblocklist"));
            }
            DustMessage::CountBadBlocks => {
                reply = Some(format!("countbadblocks: {} badblock(s) found", self.bad.len()));
            }
            DustMessage::ListBadBlocks if self.bad.is_empty() => reply = Some("No blocks in badblocklist".to_owned()),
            DustMessage::ListBadBlocks => {
                reply = Some(self.bad.keys().map(u64::to_string).collect::<Vec<_>>().join("\n"));
            }
            DustMessage::ClearBadBlocks => {
                let what = if self.bad.is_empty() { "no badblocks found" } else { "badblocks cleared" };
                self.bad.clear();
                reply = Some(format!("dust_clear_badblocks: {what}"));
            }
            DustMessage::Enable => return Ok((None, Some("dust: enabling read failures on bad sectors".to_owned()))),
            DustMessage::Disable => return Ok((None, Some("dust: disabling read failures on bad sectors".to_owned()))),
            DustMessage::Quiet => self.quiet = !self.quiet,
        }
        Ok((reply, log.filter(|_| !self.quiet)))
    }
}

/// What writes between the recorded messages repaired, by the number of messages before it.
const REPAIRED: [(usize, u64); 5] = [(20, 3), (21, 2), (23, 1), (26, 2), (27, 3)];

#[test]
fn dust() {
    let mut dust = Dust { bad: BTreeMap::new(), quiet: false };
    let recorded = of(BLOCKS, "dust");
    let (mut taken, mut refused, mut differs) = (0, 0, 0);
    for (index, message) in recorded.iter().enumerate() {
        for (_, block) in REPAIRED.iter().filter(|(at, _)| *at == index) {
            dust.bad.remove(block);
        }
        // The last device before the messages has blocks of 4096 bytes.
        match DustMessage::parse(&words(message), DISK / 8) {
            Err(error) if message.args == "0 addbadblock 16384" => {
                // The kernel takes the block behind the last.
                assert!(message.accepted);
                assert_eq!(error.kernel(), Some("dust: selected block value out of range"));
                dust.bad.insert(16_384, 0);
                differs += 1;
            }
            Err(error) => {
                if message.args == "0 removebadblock 16384" {
                    dust.bad.remove(&16_384);
                    differs += 1;
                } else {
                    check_refused(message, &error);
                    refused += 1;
                }
            }
            Ok(parsed) => {
                let quiet = dust.quiet;
                match dust.take(parsed) {
                    Ok((reply, log)) => {
                        assert!(message.accepted, "{}", message.args);
                        assert_eq!(message.output.join("\n"), reply.unwrap_or_default(), "{}", message.args);
                        assert_eq!(message.kernel.first(), log.as_ref(), "{}", message.args);
                        taken += 1;
                    }
                    Err(line) => {
                        assert!(!message.accepted, "{}", message.args);
                        let said = message.kernel.first();
                        assert_eq!(said, Some(&line).filter(|_| !quiet), "{}", message.args);
                        refused += 1;
                    }
                }
            }
        }
    }
    assert_eq!((taken, refused, differs), (22, 11, 2));
}

/// Takes all mappings, as a switch does, into a list of paths by region.
fn switch(words: &[&str], map: &mut [u64], paths: u64) -> Result<(), MessageError> {
    let SwitchMessage::SetRegionMappings(mappings) = SwitchMessage::parse(words, map.len() as u64, paths)?;
    for mapping in mappings {
        match mapping? {
            RegionMapping::Set { region, path } => map[region as usize] = path,
            RegionMapping::Repeat { first, count, cycle } => {
                (first..first + count).for_each(|region| map[region as usize] = map[(region - cycle) as usize]);
            }
        }
    }
    Ok(())
}

#[test]
fn switch_messages() {
    let recorded = of(TARGETS, "switch");
    let (mut taken, mut refused) = (0, 0);
    let mut map = [0; 8];
    for message in recorded.iter().filter(|message| !message.args.starts_with("64 ")) {
        match switch(&words(message), &mut map, 3) {
            Ok(()) => {
                assert!(message.accepted, "{}", message.args);
                taken += 1;
            }
            Err(error) => {
                check_refused(message, &error);
                refused += 1;
            }
        }
    }
    assert_eq!((taken, refused, recorded.len()), (4, 4, 9));
}

#[test]
fn regions_are_mapped_one_by_one_in_cycles_and_until_the_first_mistake() {
    let mut map = [0, 1, 0, 1, 0, 1, 0, 1];
    assert_eq!(switch(&["set_region_mappings", "0:2", ":1", "R2,6"], &mut map, 3), Ok(()));
    assert_eq!(map, [2, 1, 2, 1, 2, 1, 2, 1]);
    // Without a number in front, the first is region 1.
    assert_eq!(switch(&["Set_Region_Mappings", ":0", "r1,2", "7:2"], &mut map, 3), Ok(()));
    assert_eq!(map, [2, 0, 0, 0, 2, 1, 2, 2]);

    let mut refused = |words: &[&str], line: &str| {
        let error = switch(&[&["set_region_mappings"], words].concat(), &mut map, 3).expect_err("a mistake");
        assert_eq!(error.kernel(), Some(format!("switch: invalid set_region_mappings {line}").as_str()));
    };
    refused(&["0:1", "zz:1", "1:1"], "argument: 'zz:1'");
    refused(&["0"], "argument: '0'");
    refused(&["0:"], "argument: '0:'");
    refused(&["0:1x"], "argument: '0:1x'");
    refused(&["R,1"], "argument: 'R,1'");
    refused(&["R1"], "argument: 'R1'");
    refused(&["R1,"], "argument: 'R1,'");
    refused(&["R1,2x"], "argument: 'R1,2x'");
    refused(&["R0,1"], "cycle length: 18446744073709551615 > 0");
    refused(&["3:0", "R5,1"], "cycle length: 4 > 3");
    refused(&["R1,ffffffffffffffff"], "region number: 0 + 18446744073709551615 >= 8");
    refused(&["7:0", ":0"], "region number: 8 >= 8");
    refused(&[""], "argument: ''");
    assert_eq!(map, [1, 0, 0, 0, 2, 1, 2, 0], "what stood before each mistake has been set");
}

#[test]
fn a_switch_knows_how_many_regions_it_has() {
    let source = Arc::new(Source::new("t", "0 65 switch 1 8 0 /dev/vda 0"));
    let file = parse(source, Format::Plain).expect("well formed");
    let line = &file.devices[0].table.lines[0];
    let Target::Switch(switch) = &line.target else { panic!("{:?}", line.target) };
    assert_eq!(switch.regions(line.len), 9);
    assert_eq!(Switch::NO_REGION_TABLE, "Cannot allocate region table");
}

#[test]
fn log_writes() {
    let recorded: Vec<_> = messages(STORES).into_iter().filter(|message| !message.args.is_empty()).collect();
    let (mut marks, mut refused) = (Vec::new(), 0);
    for message in &recorded {
        match LogWritesMessage::parse(&words(message)) {
            Ok(LogWritesMessage::Mark(name)) => {
                assert!(message.accepted, "{}", message.args);
                marks.push(name.to_owned());
            }
            Err(error) => {
                check_refused(message, &error);
                refused += 1;
            }
        }
    }
    assert_eq!((marks, refused), (vec!["hello".to_owned()], 2));
}

#[test]
fn an_empty_message_is_refused_as_before_any_target() {
    let dust = DustMessage::parse(&[], 1).expect_err("empty");
    let log_writes = LogWritesMessage::parse(&[]).expect_err("empty");
    let switch = SwitchMessage::parse(&[], 1, 1).expect_err("empty");
    for error in [dust, log_writes, switch] {
        assert_eq!(error.kernel(), Some("ioctl: Empty message received."));
    }
}

#[test]
fn numbers_of_blocks_are_the_kernels() {
    let block = |text| DustMessage::parse(&["QueryBlock", text], 4);
    assert_eq!(block("3"), Ok(DustMessage::QueryBlock { block: 3 }));
    assert_eq!(block("18446744073709551617"), Ok(DustMessage::QueryBlock { block: 1 }));
    for silent in ["+1", "-1", "0x1", ""] {
        assert_eq!(block(silent).map_err(|error| error.kernel().map(str::to_owned)), Err(None), "{silent:?}");
    }
    let add = |count| DustMessage::parse(&["addbadblock", "0", count], 4);
    assert_eq!(add("4294967297"), Ok(DustMessage::AddBadBlock { block: 0, write_fails: 1 }));
    assert_eq!(add("x").map_err(|error| error.kernel().map(str::to_owned)), Err(None));
    // Before the word is looked at.
    let unknown = DustMessage::parse(&["foo", "4"], 4).expect_err("unknown");
    assert_eq!(unknown.kernel(), Some("dust: selected block value out of range"));
}
