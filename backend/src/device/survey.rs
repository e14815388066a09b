//! What is known of a component without opening it: for advice before anything is served.

use std::path::PathBuf;

use dm_table::Sectors;

use super::claims;
use super::component::{Identity, Kind};
use super::error::OpenError;
use super::lookup;
use super::sysfs::Disk;

/// A use of a device or file by this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Its short name: `mounted`, `swap`, `md`, `lvm`, `held`, `loop`.
    pub id: &'static str,
    /// What it is: `it is mounted on /srv (ext4)`.
    pub what: String,
    /// Whether the machine may change the data.
    pub writes: bool,
    /// What ends it: `umount /srv`.
    pub release: String,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Survey {
    /// As the user wrote it; for a number, the node.
    pub path: PathBuf,
    /// File or block device.
    pub kind: Kind,
    /// What makes another path the same.
    pub identity: Identity,
    /// Its size, where that is known without opening it.
    pub size: Option<Sectors>,
    /// Of a partition, its disk and its first sector there.
    pub whole: Option<(Identity, u64)>,
    /// What excludes writing to it.
    pub uses: Vec<Use>,
}

/// Looks at what a table names, as [`super::Registry::open`] would find it.
///
/// # Errors
/// There is no such thing, or it is no storage.
pub fn survey(text: &str, number: Option<(u64, u64)>) -> Result<Survey, OpenError> {
    let located = lookup::locate(text, number)?;
    let disk = match located.kind {
        Kind::Block { major, minor } => Disk::numbered(major, minor),
        Kind::File => None,
    };
    let claims = match (located.kind, &disk) {
        (Kind::File, _) => claims::of_file(located.identity),
        (Kind::Block { .. }, Some(disk)) => claims::of_block(disk, located.identity),
        (Kind::Block { .. }, None) => Vec::new(),
    };
    let as_use =
        |claim: claims::Claim| Use { id: claim.id, what: claim.what, writes: claim.writes, release: claim.release };
    let whole = disk.as_ref().and_then(|disk| {
        let rdev = disk.whole()?.rdev()?;
        Some((Identity::Block { rdev }, disk.value("start")?))
    });
    Ok(Survey {
        size: match located.kind {
            Kind::File => u64::try_from(located.stat.st_size).ok().map(Sectors::from_bytes_floor),
            Kind::Block { .. } => disk.as_ref().and_then(|disk| disk.value("size")).map(Sectors::new),
        },
        path: located.path,
        kind: located.kind,
        identity: located.identity,
        whole,
        uses: claims.into_iter().map(as_use).collect(),
    })
}
