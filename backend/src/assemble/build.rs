//! A disk of pieces.

use std::collections::HashMap;

use dm_table::Diagnostic;
use uuid::{Uuid, uuid};

use super::host::Scheme;
use super::label::{self, CODE, Identity};
use super::layout::{ALIGN, Back, GPT_ENTRIES, Item, Layout, Misfit, Placed, RECORD, Shape};
use super::piece::{Aim, Found, find};
use super::product::{From, Product, Row};
use super::spec::Spec;
use super::types::ESP;
use crate::check::human;

/// For identities that are made from what a disk consists of.
const NAMESPACE: Uuid = uuid!("6f6d7664-6d2d-5865-9184-6d656d626c65");

/// What the disk is to be, apart from its pieces.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Kind of its partition table.
    pub scheme: Scheme,
    /// Bytes in a logical block, if not what the pieces have.
    pub block: Option<u32>,
    /// Sectors, if not as few as possible.
    pub size: Option<u64>,
    /// GUID of a GPT's disk.
    pub guid: Option<Uuid>,
    /// Signature of an MBR's disk.
    pub signature: Option<u32>,
    /// Whether what is not given is made from the rest instead of by chance.
    pub reproducible: bool,
    /// The boot loader's bytes: [`CODE`] for the first sector, what comes after byte 512 for the sectors behind.
    pub boot: Vec<u8>,
}

/// Puts the disk together.
///
/// # Errors
/// What is wrong, where it stands, and what would be right.
pub fn build(specs: Vec<Spec>, wanted: &Wanted) -> Result<Product, String> {
    let mut pieces = specs.into_iter().map(find).collect::<Result<Vec<_>, _>>().map_err(text)?;
    let mut notes = Vec::new();
    let block = block(&pieces, wanted, &mut notes)?;
    let taken = signature(&pieces, wanted, &mut notes);
    let aim = Aim { scheme: wanted.scheme, numbers_of: taken };
    let mut items = Vec::with_capacity(pieces.len());
    for (index, piece) in pieces.iter_mut().enumerate() {
        items.push(piece.item(index, &aim).map_err(text)?);
    }
    keep_numbers_that_fit(&mut items, &mut pieces, wanted.scheme);
    let shape = Shape { scheme: wanted.scheme, block: u64::from(block / 512), size: wanted.size };
    let mut layout = shape.place(items).map_err(|misfit| refuse(&misfit, &pieces, wanted))?;
    check(&layout, &pieces, wanted).map_err(text)?;
    let identity = identify(&mut layout, wanted, taken);
    let label = label::write(&layout, identity, &wanted.boot)
        .map_err(|error| format!("vhost-user-dm: the partition table cannot be made: {error}"))?;
    let mut product = Product { head: label.head, tail: label.tail, block: block.into(), notes, ..Product::default() };
    product.what = describe(&layout, identity);
    product.uefi = layout.parts.iter().any(|placed| placed.part.kind.gpt() == Some(ESP));
    segments(&mut product, &layout, &pieces);
    Ok(product)
}

fn text(diagnostic: Diagnostic) -> String {
    diagnostic.to_string()
}

/// The logical blocks of the disk: the largest of the pieces', as stacking makes it (see `map::limits`).
fn block(pieces: &[Found], wanted: &Wanted, notes: &mut Vec<String>) -> Result<u32, String> {
    let of = |piece: &Found| piece.origin.as_ref().map_or(512, |data| data.origin.block);
    let largest = pieces.iter().max_by_key(|piece| of(piece));
    let have = largest.map_or(512, of);
    let block = wanted.block.unwrap_or(have);
    match largest {
        Some(piece) if have > block || !matches!(have, 512 | 4096) => Err(text(
            piece
                .spec
                .refuse(format!("it has blocks of {have} bytes, and so would the disk"))
                .expected("a disk of 512-byte or 4096-byte blocks")
                .help("--sector-size=4096 for a partition table of such blocks"),
        )),
        _ => {
            if block > have {
                notes.push(blocks_note(block.into()));
            }
            Ok(block)
        }
    }
}

/// What is missing for a table of such blocks.
pub fn blocks_note(block: u64) -> String {
    format!(
        "the partition table is for blocks of {block} bytes, and no piece has such: serve the disk with --block-size={block}, \
         or the guest does not find the partitions"
    )
}

/// The signature of the one disk with an MBR that the pieces come from.
fn signature(pieces: &[Found], wanted: &Wanted, notes: &mut Vec<String>) -> Option<u32> {
    if wanted.scheme == Scheme::Gpt {
        return None;
    }
    let mut all: Vec<(u32, &str)> =
        pieces.iter().filter_map(|p| p.entry.as_ref()).filter_map(|e| Some((e.signature?, e.disk.as_str()))).collect();
    all.dedup_by_key(|(signature, _)| *signature);
    match (wanted.signature, all.as_slice()) {
        (Some(given), _) => all.iter().any(|(signature, _)| *signature == given).then_some(given),
        (None, []) => None,
        (None, [(signature, disk)]) => {
            notes.push(format!("disk signature {signature:08x} as {disk} has it"));
            Some(*signature)
        }
        (None, _) => {
            notes.push("the pieces come from several disks, so the disk signature is a new one; or --signature".into());
            None
        }
    }
}

/// Drops the numbers that were taken over where they cannot all be kept.
fn keep_numbers_that_fit(items: &mut [Item], pieces: &mut [Found], scheme: Scheme) {
    let parts = items.iter().filter(|item| matches!(item, Item::Part(_))).count();
    let most = if scheme == Scheme::Gpt { GPT_ENTRIES } else { 4 };
    let mut seen: Vec<u32> = Vec::new();
    let given = |piece: &Found| piece.spec.attributes.number.is_some();
    for item in items.iter() {
        if let Item::Part(part) = item {
            seen.extend(part.number.filter(|_| given(&pieces[part.piece])));
        }
    }
    for item in items.iter_mut() {
        let Item::Part(part) = item else { continue };
        let Some(number) = part.number.filter(|_| !given(&pieces[part.piece])) else { continue };
        if parts > most || number as usize > most || seen.contains(&number) {
            part.number = None;
            let note = format!("it cannot have its number {number} here, so its PARTUUID is another one");
            pieces[part.piece].notes.push(note);
        } else {
            seen.push(number);
        }
    }
}

fn refuse(misfit: &Misfit, pieces: &[Found], wanted: &Wanted) -> String {
    let general = |what: String| format!("vhost-user-dm: {what}");
    let at = |piece: &usize| &pieces[*piece].spec;
    let number = |piece: &usize| pieces[*piece].place_of(|a| a.number.as_ref().map(|number| number.span));
    match misfit {
        Misfit::TooMany(count) => {
            general(format!("{count} partitions are more than the {GPT_ENTRIES} entries of a GPT; make several disks"))
        }
        Misfit::Size(least) => general(format!(
            "--size={}: the pieces with the partition table need {least} sectors ({}) at least",
            wanted.size.unwrap_or(0),
            human(least * 512)
        )),
        Misfit::Blocks => general(format!(
            "--size={}: this is no number of whole blocks of 4096 bytes: give a multiple of 8 sectors",
            wanted.size.unwrap_or(0)
        )),
        Misfit::Number(piece) => {
            text(at(piece).refuse_at(number(piece), "this number cannot be had").expected(match wanted.scheme {
                Scheme::Gpt => "a number from 1 to 128 that no other piece has",
                Scheme::Mbr => "a number from 1 to 4 that no other piece has",
            }))
        }
        Misfit::NumberOfLogical(piece) => text(
            at(piece)
                .refuse_at(number(piece), "with more than 4 partitions, an MBR numbers them in their order")
                .help("leave number= away (1 to 3, then 5 and on), or use --label=gpt"),
        ),
        Misfit::Beyond(piece) => text(
            at(piece)
                .refuse("it ends beyond what an MBR reaches: 2^32 blocks")
                .help("use --label=gpt, or give smaller pieces first"),
        ),
        Misfit::TooLarge => general("the disk would be larger than 2^63 bytes".into()),
    }
}

/// What the layout cannot see: identities that are there twice, several active partitions, a boot loader without room.
fn check(layout: &Layout, pieces: &[Found], wanted: &Wanted) -> Result<(), Diagnostic> {
    let mut guids: HashMap<Uuid, &str> = HashMap::new();
    let mut active: Option<&str> = None;
    for placed in &layout.parts {
        let piece = &pieces[placed.part.piece];
        let name = piece.spec.name();
        if wanted.scheme == Scheme::Gpt && !placed.part.guid.is_nil() {
            if let Some(other) = guids.insert(placed.part.guid, name) {
                let span = piece.place_of(|a| a.guid.as_ref().map(|guid| guid.span));
                return Err(piece
                    .spec
                    .refuse_at(span, format!("it has the GUID of {other}"))
                    .found(placed.part.guid.to_string())
                    .help("give one of them another one: guid=GUID"));
            }
        } else if wanted.scheme == Scheme::Mbr
            && placed.part.active
            && let Some(other) = active.replace(name)
        {
            let span = piece.place_of(|a| a.bootable.as_ref().map(|bootable| bootable.span));
            return Err(piece
                .spec
                .refuse_at(span, format!("{other} is bootable already"))
                .expected("one at most in an MBR"));
        }
    }
    Ok(())
}

/// Gives the disk and those partitions that have none an identity.
fn identify(layout: &mut Layout, wanted: &Wanted, signature: Option<u32>) -> Identity {
    let mut content = format!("{:?} {} {}\n", wanted.scheme, layout.shape.block, layout.len);
    for placed in &layout.parts {
        let part = &placed.part;
        content.push_str(&format!(
            "{} {} {} {:?} {} {:x} {:?}\n",
            placed.number, placed.start, placed.len, part.kind, part.guid, part.bits, part.label
        ));
    }
    let own = match wanted.reproducible {
        true => Uuid::new_v5(&NAMESPACE, content.as_bytes()),
        false => Uuid::new_v4(),
    };
    let disk = wanted.guid.unwrap_or(own);
    for placed in layout.parts.iter_mut().filter(|placed| placed.part.guid.is_nil()) {
        placed.part.guid = match wanted.reproducible {
            true => Uuid::new_v5(&own, format!("partition {}", placed.number).as_bytes()),
            false => Uuid::new_v4(),
        };
    }
    match wanted.scheme {
        Scheme::Gpt => Identity::Guid(disk),
        // 0 stands for no signature.
        Scheme::Mbr => Identity::Signature(wanted.signature.or(signature).unwrap_or(own.as_fields().0.max(1))),
    }
}

fn describe(layout: &Layout, identity: Identity) -> String {
    let parts = crate::check::count(layout.parts.len(), "partition");
    let (kind, id) = match identity {
        Identity::Guid(guid) => ("GPT", guid.to_string()),
        Identity::Signature(signature) => ("MBR", format!("{signature:08x}")),
    };
    format!("{kind} {id}, {parts}, {} sectors ({})", layout.len, human(layout.len * 512))
}

fn segments(product: &mut Product, layout: &Layout, pieces: &[Found]) {
    let kind = if layout.shape.scheme == Scheme::Gpt { "protective MBR, GPT" } else { "MBR" };
    product.push(ALIGN, From::Head(0), Some(kind.to_owned()));
    let (mut at, mut records) = (ALIGN, 0);
    for placed in &layout.parts {
        if let Some(record) = placed.record {
            product.push(record - at, From::Zero, None);
            let comment = format!("extended boot record of partition {}", placed.number);
            product.push(RECORD, From::Head(ALIGN + records * RECORD), Some(comment));
            records += 1;
            at = record + RECORD;
        }
        product.push(placed.start - at, From::Zero, None);
        let piece = &pieces[placed.part.piece];
        let row = row(placed, piece, layout.shape.scheme, product.signature_text());
        let frozen = piece.spec.attributes.read_only.is_some();
        product.push(
            placed.part.len,
            From::back(&placed.part.back, frozen),
            Some(format!("partition {}: {}", row.number, row.what)),
        );
        product.push(placed.len - placed.part.len, From::Zero, None);
        product.rows.push(row);
        product.doubted.extend(piece.doubted(placed.start));
        at = placed.start + placed.len;
    }
    let tail = layout.shape.tail();
    product.push(layout.len - tail - at, From::Zero, None);
    product.push(tail, From::Tail, Some("backup of the GPT".to_owned()));
}

fn row(placed: &Placed, piece: &Found, scheme: Scheme, signature: String) -> Row {
    let part = &placed.part;
    let partuuid = match scheme {
        Scheme::Gpt => part.guid.to_string(),
        Scheme::Mbr => format!("{signature}-{:02x}", placed.number),
    };
    let back = match &part.back {
        Back::Zero => "zeroes".to_owned(),
        Back::Linear { path, start: 0 } => path.clone(),
        Back::Linear { path, start } => format!("{path} from sector {start}"),
    };
    let mut what = format!("{:?}, {}, {back}", part.label, part.kind.describe());
    if let Some(data) = &piece.origin {
        what.push_str(&format!(" ({})", data.contents.describe()));
    }
    if piece.spec.attributes.read_only.is_some() {
        what.push_str(", read-only");
    }
    let mut notes = vec![format!("PARTUUID={partuuid}")];
    notes.extend(piece.notes.iter().cloned());
    Row { number: placed.number, start: placed.start, len: placed.len, what, notes }
}

impl Product {
    /// The signature in the MBR, as Linux writes it.
    fn signature_text(&self) -> String {
        self.head
            .get(CODE..CODE + 4)
            .map_or(String::new(), |bytes| bytes.iter().rev().map(|b| format!("{b:02x}")).collect())
    }
}
