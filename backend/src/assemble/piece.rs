//! From what was asked for to partitions: sizes are looked up, and what was not said is taken over from the host.

use std::path::Path;

use dm_table::{Diagnostic, SECTOR_SIZE, Span};
use uuid::Uuid;

use super::host::{Entry, Origin, Scheme};
use super::layout::{Back, Item, Part};
use super::spec::{LABEL_LEN, Spec, What};
use super::types::{self, Type};
use crate::inspect::{self, Contents, Kind};

/// Attribute of an entry of a GPT: a BIOS's boot loader starts what is in it.
const LEGACY_BOOT: u64 = 1 << 2;
/// Attribute of data partitions, of Microsoft and of the Discoverable Partitions Specification: nothing may write it.
const READ_ONLY: u64 = 1 << 60;

/// A piece, looked up.
#[derive(Debug)]
pub struct Found {
    /// What was asked for.
    pub spec: Spec,
    /// Where its data is; none of a gap or zeroes.
    pub origin: Option<Data>,
    /// What the host's partition table says of it.
    pub entry: Option<Entry>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A part of a file or device.
#[derive(Debug)]
pub struct Data {
    /// The file or device.
    pub origin: Origin,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// What it contains.
    pub contents: Contents,
}

/// Looks a piece up.
///
/// # Errors
/// What is wrong and where.
pub fn find(spec: Spec) -> Result<Found, Diagnostic> {
    let What::Part { path, range, .. } = &spec.what else {
        return Ok(Found { spec, origin: None, entry: None, notes: Vec::new() });
    };
    let cannot = |reason: String| spec.refuse(reason);
    let origin = Origin::open(Path::new(path)).map_err(|error| {
        let diagnostic = cannot(format!("{path}: {error}"));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                diagnostic.help(format!("your user must be allowed to open it: setfacl -m u:$USER:rw {path}"))
            }
            _ => diagnostic,
        }
    })?;
    let whole = origin.bytes / SECTOR_SIZE;
    let (start, len) = match range {
        Some((start, len)) => (*start, *len),
        None if origin.bytes % SECTOR_SIZE != 0 => {
            return Err(cannot(format!("{path} has {} bytes, which is no number of whole sectors", origin.bytes))
                .help(format!("truncate --size=%512 {path}")));
        }
        None => (0, whole),
    };
    if len == 0 {
        return Err(cannot(format!("{path} is empty")));
    }
    if start.checked_add(len).is_none_or(|end| end > whole) {
        return Err(cannot(format!("{path} ends before that"))
            .found(format!("{len} sectors from sector {start} on"))
            .expected(format!("an end at or before sector {whole}")));
    }
    let contents = origin.look(start, len).map_err(|error| cannot(format!("{path} cannot be read: {error}")))?;
    let mut notes = Vec::new();
    let entry = origin.entry(*range).unwrap_or_else(|why| {
        notes.push(format!("type, GUID and label of the partition are not taken over: {why}"));
        None
    });
    let data = Data { origin, start, len, contents };
    Ok(Found { origin: Some(data), entry, notes, spec })
}

/// What all pieces together are to become.
pub struct Aim {
    /// Kind of the partition table.
    pub scheme: Scheme,
    /// Where the signature is taken from: then numbers are too, as Linux makes PARTUUIDs of both.
    pub numbers_of: Option<u32>,
}

impl Found {
    /// The partition or gap; `index` is the piece's place in the list.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn item(&mut self, index: usize, aim: &Aim) -> Result<Item, Diagnostic> {
        let (back, len) = match (&self.spec.what, &self.origin) {
            (What::Gap(len), _) => return Ok(Item::Gap(*len)),
            (What::Zero(len), _) => (Back::Zero, *len),
            (What::Part { .. }, Some(data)) => {
                let path = data.origin.path.to_string_lossy().into_owned();
                (Back::Linear { path, start: data.start }, data.len)
            }
            (What::Part { .. }, None) => return Err(self.spec.refuse("it was not looked up")),
        };
        let attributes = &self.spec.attributes;
        let kind = self.kind(aim)?;
        let label = self.label(aim)?;
        let same = self.entry.as_ref().filter(|entry| entry.scheme == aim.scheme);
        let mut bits = same.map_or(0, |entry| entry.bits);
        bits |= if attributes.bootable.is_some() { LEGACY_BOOT } else { 0 };
        bits |= if attributes.read_only.is_some() { READ_ONLY } else { 0 };
        let taken = same.filter(|entry| entry.signature.is_some() && entry.signature == aim.numbers_of);
        let part = Part {
            piece: index,
            label,
            kind,
            guid: attributes.guid.as_ref().map(|guid| guid.value).or(same.and_then(|e| e.guid)).unwrap_or(Uuid::nil()),
            bits,
            active: attributes.bootable.is_some() || same.is_some_and(|entry| entry.active),
            number: attributes.number.as_ref().map(|number| number.value).or(taken.map(|entry| entry.number)),
            back,
            len,
        };
        self.note(aim, &part);
        Ok(Item::Part(Box::new(part)))
    }

    fn kind(&self, aim: &Aim) -> Result<Type, Diagnostic> {
        let fits = |kind: &Type| match aim.scheme {
            Scheme::Gpt => kind.gpt().map(Type::Gpt),
            Scheme::Mbr => kind.mbr().map(Type::Mbr),
        };
        let table = match aim.scheme {
            Scheme::Gpt => "GPT",
            Scheme::Mbr => "MBR",
        };
        if let Some(given) = &self.spec.attributes.kind {
            return fits(&given.value).ok_or_else(|| {
                self.spec
                    .refuse_at(given.span, format!("this type has no counterpart in a partition table of kind {table}"))
                    .found(given.value.describe())
                    .help(match aim.scheme {
                        Scheme::Gpt => "give the GUID, or a name",
                        Scheme::Mbr => "give two hexadecimal digits",
                    })
            });
        }
        if let Some(entry) = &self.entry {
            return fits(&entry.kind).ok_or_else(|| {
                let reason = format!(
                    "the type that it has on {} has no counterpart in a partition table of kind {table}",
                    entry.disk
                );
                self.spec.refuse(reason).found(entry.kind.describe()).help("give another one: type=TYPE")
            });
        }
        let by_name = types::by_name(self.spec.name());
        let kind = by_name.unwrap_or_else(|| by_contents(self.origin.as_ref().map(|data| &data.contents)));
        // An MBR has no number for some of them.
        Ok(fits(&kind).or_else(|| fits(&by_contents(None))).unwrap_or(kind))
    }

    fn label(&self, aim: &Aim) -> Result<String, Diagnostic> {
        let taken = self.entry.as_ref().and_then(|entry| entry.label.clone());
        let given = self.spec.attributes.label.as_ref().map(|label| label.value.clone());
        let label = given.or(taken).unwrap_or_else(|| self.spec.name().to_owned());
        let units = label.encode_utf16().count();
        if aim.scheme == Scheme::Gpt && units > LABEL_LEN {
            return Err(self
                .spec
                .refuse("the name is too long for a GPT")
                .found(format!("{units} units of UTF-16"))
                .expected(format!("at most {LABEL_LEN}; or label=TEXT")));
        }
        Ok(label)
    }

    /// Says what was taken over, and what could not be.
    fn note(&mut self, aim: &Aim, part: &Part) {
        let Some(entry) = &self.entry else { return };
        let from = format!("partition {} of {}", entry.number, entry.disk);
        let note = match (entry.scheme, aim.scheme) {
            (Scheme::Gpt, Scheme::Gpt) => format!("type, GUID, label and attributes as {from} has them"),
            (Scheme::Mbr, Scheme::Mbr) if part.number == Some(entry.number) => {
                format!("type and number as {from} has them")
            }
            (Scheme::Mbr, Scheme::Mbr) => format!("type as {from} has it; its PARTUUID is another one"),
            (Scheme::Gpt, Scheme::Mbr) => {
                format!("type as {from} has it; an MBR keeps neither its PARTUUID nor its label")
            }
            (Scheme::Mbr, Scheme::Gpt) => format!("type as {from} has it; a GPT cannot keep its PARTUUID"),
        };
        self.notes.push(note);
    }

    /// Where a mistake in the given GUID or number stands.
    pub fn place_of(&self, what: fn(&super::spec::Attributes) -> Option<Span>) -> Span {
        what(&self.spec.attributes).unwrap_or(self.spec.span)
    }

    /// The same for who looks for doubts; `at` is its first sector on the disk.
    pub fn doubted(&self, at: u64) -> Option<inspect::Piece> {
        let data = self.origin.as_ref()?;
        Some(inspect::Piece {
            name: format!("{} ({})", self.spec.name(), data.origin.path.display()),
            path: data.origin.path.clone(),
            start: data.start,
            len: data.len,
            at,
            write: self.spec.attributes.read_only.is_none(),
            room: None,
            inside: inspect::Inside::Known(data.contents.clone()),
            number: None,
        })
    }
}

fn by_contents(contents: Option<&Contents>) -> Type {
    let name = match contents.map(|contents| contents.kind) {
        Some(Kind::Swap) => "swap",
        Some(Kind::Lvm) => "lvm",
        Some(Kind::Md) => "raid",
        Some(Kind::Luks) => "luks",
        Some(Kind::Ntfs | Kind::Fat | Kind::Exfat) => "msdata",
        _ => "linux-generic",
    };
    types::by_name(name).unwrap_or(Type::Mbr(0x83))
}
