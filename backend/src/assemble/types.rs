//! Types of partitions: names for people, GUIDs of a GPT, numbers of an MBR.
//!
//! The names are those of `Type=` in systemd's repart.d(5), the GUIDs those of the Discoverable Partitions Specification
//! (uapi-group.org) and of UEFI, as far as a name is worth typing. Any other type can be given as it is.

use uuid::{Uuid, uuid};

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// In a GPT.
    Gpt(Uuid),
    /// In an MBR.
    Mbr(u8),
}

struct Named {
    name: &'static str,
    gpt: Uuid,
    /// None where an MBR has no place for such a thing.
    mbr: Option<u8>,
    people: &'static str,
}

const fn named(name: &'static str, gpt: Uuid, mbr: Option<u8>, people: &'static str) -> Named {
    Named { name, gpt, mbr, people }
}

/// Linux data, the type of what has no other.
const GENERIC: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
/// What UEFI firmware starts from.
pub const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// The part of GRUB that a BIOS starts.
pub const BIOS_BOOT: Uuid = uuid!("21686148-6449-6e6f-744e-656564454649");

/// Where an MBR's number stands for several, the first one counts.
const NAMED: [Named; 16] = [
    named("esp", ESP, Some(0xEF), "EFI system"),
    named("xbootldr", uuid!("bc13c2ff-59e6-4262-a352-b275fd6f7172"), Some(0xEA), "Linux extended boot"),
    named("linux-generic", GENERIC, Some(0x83), "Linux file system"),
    named("swap", uuid!("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"), Some(0x82), "Linux swap"),
    named("home", uuid!("933ac7e1-2eb4-4f13-b844-0e14e2aef915"), Some(0x83), "Linux home"),
    named("srv", uuid!("3b8f8425-20e0-4f3b-907f-1a25a76f98e8"), Some(0x83), "Linux server data"),
    named("var", uuid!("4d21b016-b534-45c2-a9fb-5c16e091fd2d"), Some(0x83), "Linux variable data"),
    named("tmp", uuid!("7ec6f557-3bc5-4aca-b293-16ef5df639d1"), Some(0x83), "Linux temporary data"),
    named("bios-boot", BIOS_BOOT, None, "BIOS boot"),
    named("lvm", uuid!("e6d6d379-f507-44c2-a23c-238f2a3df928"), Some(0x8E), "Linux LVM"),
    named("raid", uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e"), Some(0xFD), "Linux RAID"),
    named("luks", uuid!("ca7d7ccb-63ed-4c53-861c-1742536059cc"), Some(0xE8), "Linux LUKS"),
    named("msdata", uuid!("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"), Some(0x07), "Microsoft basic data"),
    named("msr", uuid!("e3c9e316-0b5c-4db8-817d-f92df00215ae"), None, "Microsoft reserved"),
    named("winre", uuid!("de94bba4-06d1-4d40-a16a-bfd50179d6ac"), Some(0x27), "Windows recovery"),
    named("fat32", uuid!("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"), Some(0x0C), "FAT32"),
];

/// Kinds of partitions that are for one architecture, in the order of [`ARCHITECTURES`]' GUIDs.
const KINDS: [&str; 6] = ["root", "root-verity", "root-verity-sig", "usr", "usr-verity", "usr-verity-sig"];

const ARCHITECTURES: [(&str, [Uuid; 6]); 18] = [
    (
        "x86",
        [
            uuid!("44479540-f297-41b2-9af7-d131d5f0458a"),
            uuid!("d13c5d3b-b5d1-422a-b29f-9454fdc89d76"),
            uuid!("5996fc05-109c-48de-808b-23fa0830b676"),
            uuid!("75250d76-8cc6-458e-bd66-bd47cc81a812"),
            uuid!("8f461b0d-14ee-4e81-9aa9-049b6fb97abd"),
            uuid!("974a71c0-de41-43c3-be5d-5c5ccd1ad2c0"),
        ],
    ),
    (
        "x86-64",
        [
            uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
            uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
            uuid!("41092b05-9fc8-4523-994f-2def0408b176"),
            uuid!("8484680c-9521-48c6-9c11-b0720656f69e"),
            uuid!("77ff5f63-e7b6-4633-acf4-1565b864c0e6"),
            uuid!("e7bb33fb-06cf-4e81-8273-e543b413e2e2"),
        ],
    ),
    (
        "alpha",
        [
            uuid!("6523f8ae-3eb1-4e2a-a05a-18b695ae656f"),
            uuid!("fc56d9e9-e6e5-4c06-be32-e74407ce09a5"),
            uuid!("d46495b7-a053-414f-80f7-700c99921ef8"),
            uuid!("e18cf08c-33ec-4c0d-8246-c6c6fb3da024"),
            uuid!("8cce0d25-c0d0-4a44-bd87-46331bf1df67"),
            uuid!("5c6e1c76-076a-457a-a0fe-f3b4cd21ce6e"),
        ],
    ),
    (
        "arc",
        [
            uuid!("d27f46ed-2919-4cb8-bd25-9531f3c16534"),
            uuid!("24b2d975-0f97-4521-afa1-cd531e421b8d"),
            uuid!("143a70ba-cbd3-4f06-919f-6c05683a78bc"),
            uuid!("7978a683-6316-4922-bbee-38bff5a2fecc"),
            uuid!("fca0598c-d880-4591-8c16-4eda05c7347c"),
            uuid!("94f9a9a1-9971-427a-a400-50cb297f0f35"),
        ],
    ),
    (
        "arm",
        [
            uuid!("69dad710-2ce4-4e3c-b16c-21a1d49abed3"),
            uuid!("7386cdf2-203c-47a9-a498-f2ecce45a2d6"),
            uuid!("42b0455f-eb11-491d-98d3-56145ba9d037"),
            uuid!("7d0359a3-02b3-4f0a-865c-654403e70625"),
            uuid!("c215d751-7bcd-4649-be90-6627490a4c05"),
            uuid!("d7ff812f-37d1-4902-a810-d76ba57b975a"),
        ],
    ),
    (
        "arm64",
        [
            uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"),
            uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820"),
            uuid!("6db69de6-29f4-4758-a7a5-962190f00ce3"),
            uuid!("b0e01050-ee5f-4390-949a-9101b17104e9"),
            uuid!("6e11a4e7-fbca-4ded-b9e9-e1a512bb664e"),
            uuid!("c23ce4ff-44bd-4b00-b2d4-b41b3419e02a"),
        ],
    ),
    (
        "ia64",
        [
            uuid!("993d8d3d-f80e-4225-855a-9daf8ed7ea97"),
            uuid!("86ed10d5-b607-45bb-8957-d350f23d0571"),
            uuid!("e98b36ee-32ba-4882-9b12-0ce14655f46a"),
            uuid!("4301d2a6-4e3b-4b2a-bb94-9e0b2c4225ea"),
            uuid!("6a491e03-3be7-4545-8e38-83320e0ea880"),
            uuid!("8de58bc2-2a43-460d-b14e-a76e4a17b47f"),
        ],
    ),
    (
        "loongarch64",
        [
            uuid!("77055800-792c-4f94-b39a-98c91b762bb6"),
            uuid!("f3393b22-e9af-4613-a948-9d3bfbd0c535"),
            uuid!("5afb67eb-ecc8-4f85-ae8e-ac1e7c50e7d0"),
            uuid!("e611c702-575c-4cbe-9a46-434fa0bf7e3f"),
            uuid!("f46b2c26-59ae-48f0-9106-c50ed47f673d"),
            uuid!("b024f315-d330-444c-8461-44bbde524e99"),
        ],
    ),
    (
        "mips-le",
        [
            uuid!("37c58c8a-d913-4156-a25f-48b1b64e07f0"),
            uuid!("d7d150d2-2a04-4a33-8f12-16651205ff7b"),
            uuid!("c919cc1f-4456-4eff-918c-f75e94525ca5"),
            uuid!("0f4868e9-9952-4706-979f-3ed3a473e947"),
            uuid!("46b98d8d-b55c-4e8f-aab3-37fca7f80752"),
            uuid!("3e23ca0b-a4bc-4b4e-8087-5ab6a26aa8a9"),
        ],
    ),
    (
        "mips64-le",
        [
            uuid!("700bda43-7a34-4507-b179-eeb93d7a7ca3"),
            uuid!("16b417f8-3e06-4f57-8dd2-9b5232f41aa6"),
            uuid!("904e58ef-5c65-4a31-9c57-6af5fc7c5de7"),
            uuid!("c97c1f32-ba06-40b4-9f22-236061b08aa8"),
            uuid!("3c3d61fe-b5f3-414d-bb71-8739a694a4ef"),
            uuid!("f2c2c7ee-adcc-4351-b5c6-ee9816b66e16"),
        ],
    ),
    (
        "ppc",
        [
            uuid!("1de3f1ef-fa98-47b5-8dcd-4a860a654d78"),
            uuid!("98cfe649-1588-46dc-b2f0-add147424925"),
            uuid!("1b31b5aa-add9-463a-b2ed-bd467fc857e7"),
            uuid!("7d14fec5-cc71-415d-9d6c-06bf0b3c3eaf"),
            uuid!("df765d00-270e-49e5-bc75-f47bb2118b09"),
            uuid!("7007891d-d371-4a80-86a4-5cb875b9302e"),
        ],
    ),
    (
        "ppc64",
        [
            uuid!("912ade1d-a839-4913-8964-a10eee08fbd2"),
            uuid!("9225a9a3-3c19-4d89-b4f6-eeff88f17631"),
            uuid!("f5e2c20c-45b2-4ffa-bce9-2a60737e1aaf"),
            uuid!("2c9739e2-f068-46b3-9fd0-01c5a9afbcca"),
            uuid!("bdb528a5-a259-475f-a87d-da53fa736a07"),
            uuid!("0b888863-d7f8-4d9e-9766-239fce4d58af"),
        ],
    ),
    (
        "ppc64-le",
        [
            uuid!("c31c45e6-3f39-412e-80fb-4809c4980599"),
            uuid!("906bd944-4589-4aae-a4e4-dd983917446a"),
            uuid!("d4a236e7-e873-4c07-bf1d-bf6cf7f1c3c6"),
            uuid!("15bb03af-77e7-4d4a-b12b-c0d084f7491c"),
            uuid!("ee2b9983-21e8-4153-86d9-b6901a54d1ce"),
            uuid!("c8bfbd1e-268e-4521-8bba-bf314c399557"),
        ],
    ),
    (
        "riscv32",
        [
            uuid!("60d5a7fe-8e7d-435c-b714-3dd8162144e1"),
            uuid!("ae0253be-1167-4007-ac68-43926c14c5de"),
            uuid!("3a112a75-8729-4380-b4cf-764d79934448"),
            uuid!("b933fb22-5c3f-4f91-af90-e2bb0fa50702"),
            uuid!("cb1ee4e3-8cd0-4136-a0a4-aa61a32e8730"),
            uuid!("c3836a13-3137-45ba-b583-b16c50fe5eb4"),
        ],
    ),
    (
        "riscv64",
        [
            uuid!("72ec70a6-cf74-40e6-bd49-4bda08e8f224"),
            uuid!("b6ed5582-440b-4209-b8da-5ff7c419ea3d"),
            uuid!("efe0f087-ea8d-4469-821a-4c2a96a8386a"),
            uuid!("beaec34b-8442-439b-a40b-984381ed097d"),
            uuid!("8f1056be-9b05-47c4-81d6-be53128e5b54"),
            uuid!("d2f9000a-7a18-453f-b5cd-4d32f77a7b32"),
        ],
    ),
    (
        "s390",
        [
            uuid!("08a7acea-624c-4a20-91e8-6e0fa67d23f9"),
            uuid!("7ac63b47-b25c-463b-8df8-b4a94e6c90e1"),
            uuid!("3482388e-4254-435a-a241-766a065f9960"),
            uuid!("cd0f869b-d0fb-4ca0-b141-9ea87cc78d66"),
            uuid!("b663c618-e7bc-4d6d-90aa-11b756bb1797"),
            uuid!("17440e4f-a8d0-467f-a46e-3912ae6ef2c5"),
        ],
    ),
    (
        "s390x",
        [
            uuid!("5eead9a9-fe09-4a1e-a1d7-520d00531306"),
            uuid!("b325bfbe-c7be-4ab8-8357-139e652d2f6b"),
            uuid!("c80187a5-73a3-491a-901a-017c3fa953e9"),
            uuid!("8a4f5770-50aa-4ed3-874a-99b710db6fea"),
            uuid!("31741cc4-1a2a-4111-a581-e00b447d2d06"),
            uuid!("3f324816-667b-46ae-86ee-9b0c0c6c11b4"),
        ],
    ),
    (
        "tilegx",
        [
            uuid!("c50cdd70-3862-4cc3-90e1-809a8c93ee2c"),
            uuid!("966061ec-28e4-4b2e-b4a5-1f0a825a1d84"),
            uuid!("b3671439-97b0-4a53-90f7-2d5a8f3ad47b"),
            uuid!("55497029-c7c1-44cc-aa39-815ed1558630"),
            uuid!("2fb4bf56-07fa-42da-8132-6b139f2026ae"),
            uuid!("4ede75e2-6ccc-4cc8-b9c7-70334b087510"),
        ],
    ),
];

/// Numbers of file systems that Windows and DOS know.
const MSDATA: [u8; 7] = [0x01, 0x04, 0x06, 0x07, 0x0B, 0x0C, 0x0E];

impl Type {
    /// The type that a word names: a name, a GUID, or an MBR's number as two hexadecimal digits.
    pub fn parse(word: &str) -> Option<Type> {
        if let Some(guid) = by_name(word) {
            return Some(guid);
        }
        let digits = word.strip_prefix("0x").unwrap_or(word);
        if digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return u8::from_str_radix(digits, 16).ok().filter(|number| *number != 0).map(Type::Mbr);
        }
        let guid = Uuid::try_parse(word).ok()?;
        (!guid.is_nil() && word.len() == 36).then_some(Type::Gpt(guid))
    }

    /// The same in a GPT; none where nothing corresponds.
    pub fn gpt(self) -> Option<Uuid> {
        match self {
            Type::Gpt(guid) => Some(guid),
            Type::Mbr(number) if MSDATA.contains(&number) => by_name("msdata").and_then(Type::gpt),
            Type::Mbr(number) => NAMED.iter().find(|named| named.mbr == Some(number)).map(|named| named.gpt),
        }
    }

    /// The same in an MBR; none where nothing corresponds.
    pub fn mbr(self) -> Option<u8> {
        match self {
            Type::Mbr(number) => Some(number),
            Type::Gpt(guid) => {
                let named = NAMED.iter().find(|named| named.gpt == guid).and_then(|named| named.mbr);
                named.or_else(|| architecture(guid).map(|_| 0x83))
            }
        }
    }

    /// What people call it.
    pub fn describe(self) -> String {
        match self {
            Type::Mbr(number) => match NAMED.iter().find(|named| named.mbr == Some(number)) {
                Some(named) => format!("{number:02x} {}", named.people),
                None => format!("{number:02x}"),
            },
            Type::Gpt(guid) => {
                let named = NAMED.iter().find(|named| named.gpt == guid).map(|named| named.people.to_owned());
                named.or_else(|| architecture(guid)).unwrap_or_else(|| guid.to_string())
            }
        }
    }
}

/// The type with this name; where it says no architecture, for that of this machine.
pub fn by_name(name: &str) -> Option<Type> {
    if let Some(named) = NAMED.iter().find(|named| named.name == name) {
        return Some(Type::Gpt(named.gpt));
    }
    // `root-x86-64-verity`, in the words of the specification, is `root-x86-64-verity` in repart.d's too.
    let (kind, rest) = name.split_once('-').unwrap_or((name, ""));
    let (architecture, suffix) = match rest.find("verity") {
        Some(at) => (rest[..at].trim_end_matches('-'), &rest[at..]),
        None => (rest, ""),
    };
    let kind = if suffix.is_empty() { kind.to_owned() } else { format!("{kind}-{suffix}") };
    let architecture = if architecture.is_empty() { native()? } else { architecture };
    let index = KINDS.iter().position(|known| *known == kind)?;
    let (_, guids) = ARCHITECTURES.iter().find(|(known, _)| *known == architecture)?;
    Some(Type::Gpt(guids[index]))
}

/// The names that can be given, for people.
pub fn names() -> String {
    let names: Vec<&str> = NAMED.iter().map(|named| named.name).collect();
    format!(
        "{}, root, usr, and with -verity and -verity-sig; root-x86-64 and so on for another machine",
        names.join(", ")
    )
}

/// The specification's name for the architecture of this machine.
fn native() -> Option<&'static str> {
    Some(match std::env::consts::ARCH {
        "x86_64" => "x86-64",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64-le",
        "powerpc64" => "ppc64",
        "powerpc" => "ppc",
        other => ARCHITECTURES.iter().map(|(name, _)| *name).find(|name| *name == other)?,
    })
}

/// What a GUID for one architecture stands for.
fn architecture(guid: Uuid) -> Option<String> {
    ARCHITECTURES.iter().find_map(|(name, guids)| {
        let index = guids.iter().position(|known| *known == guid)?;
        Some(format!("Linux {} ({name})", KINDS[index]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_guids_and_numbers_are_types() {
        let esp = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(Type::parse("esp"), Some(Type::Gpt(esp)));
        assert_eq!(Type::parse("C12A7328-F81F-11D2-BA4B-00A0C93EC93B"), Some(Type::Gpt(esp)));
        assert_eq!(Type::parse("ef"), Some(Type::Mbr(0xEF)));
        assert_eq!(Type::parse("0x83"), Some(Type::Mbr(0x83)));
        assert_eq!(Type::parse("root-arm64").and_then(Type::gpt), Some(uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae")));
        assert_eq!(
            Type::parse("usr-x86-64-verity-sig").and_then(Type::gpt),
            Some(uuid!("e7bb33fb-06cf-4e81-8273-e543b413e2e2"))
        );
        for wrong in ["", "0", "00", "830", "nonsense", "root-z80", "root-verity-x", "c12a7328f81f11d2ba4b00a0c93ec93b"]
        {
            assert_eq!(Type::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn types_correspond_where_they_can() {
        assert_eq!(Type::Mbr(0x83).gpt(), Some(GENERIC));
        assert_eq!(Type::Mbr(0x0B).gpt(), by_name("msdata").and_then(Type::gpt));
        assert_eq!(Type::Mbr(0x42).gpt(), None);
        assert_eq!(by_name("root-riscv64").and_then(Type::mbr), Some(0x83));
        assert_eq!(by_name("esp").and_then(Type::mbr), Some(0xEF));
        assert_eq!(Type::Gpt(BIOS_BOOT).mbr(), None);
    }

    #[test]
    fn no_name_and_no_guid_stands_for_two_things() {
        let mut names: Vec<_> = NAMED.iter().map(|named| named.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMED.len());
        let mut guids: Vec<_> = ARCHITECTURES.iter().flat_map(|(_, guids)| guids).collect();
        guids.sort_unstable();
        guids.dedup();
        assert_eq!(guids.len(), ARCHITECTURES.len() * KINDS.len());
    }
}
