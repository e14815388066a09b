//! The fields of `info -c`, `splitname` and `stats`.

use super::report::{Field, Group, N, T, field};

/// What is to be known of a device.
pub(super) static DEVICE: [Field; 32] = [
    field(Group::Name, "Name", 16, T, "name", "Name of the device."),
    field(Group::Name, "MangledName", 16, T, "mangled_name", "Its name as the process has it."),
    field(Group::Name, "UnmangledName", 16, T, "unmangled_name", "Its name without \\xNN."),
    field(Group::Name, "UUID", 32, T, "uuid", "Its uuid, if it has one."),
    field(Group::Name, "MangledUUID", 32, T, "mangled_uuid", "Its uuid as the process has it."),
    field(Group::Name, "UnmangledUUID", 32, T, "unmangled_uuid", "Its uuid without \\xNN."),
    field(Group::Name, "RAhead", 6, N, "read_ahead", "0: its guest reads ahead."),
    field(Group::Info, "BlkDevName", 16, T, "blkdevname", "Its name: it is no block device of this machine."),
    field(Group::Info, "Stat", 4, T, "attr", "(L)ive, (I)nactive, (s)uspended, (r)ead-only, read-(w)rite."),
    field(Group::Info, "Tables", 6, T, "tables_loaded", "Which of the live and inactive table slots are filled."),
    field(Group::Info, "Suspended", 9, T, "suspended", "Whether it is suspended."),
    field(Group::Info, "Read-only", 9, T, "readonly", "Whether it is read-only or writeable."),
    field(Group::Info, "DevNo", 5, T, "devno", "Major and minor number."),
    field(Group::Info, "Maj", 3, N, "major", "Major number."),
    field(Group::Info, "Min", 3, N, "minor", "Minor number."),
    field(Group::Info, "Open", 4, N, "open", "Front ends and devices that use it."),
    field(Group::Info, "Targ", 4, N, "segments", "Segments of its live table."),
    field(Group::Info, "Event", 6, N, "events", "Number of its last event."),
    field(Group::Info, "Sectors", 10, N, "sectors", "Sectors of its live table (not in dmsetup)."),
    field(Group::Info, "FrontEnd", 8, T, "connected", "Whether a front end is connected (not in dmsetup)."),
    field(Group::Info, "Socket", 16, T, "socket", "Where it is served (not in dmsetup)."),
    field(Group::Deps, "#Devs", 5, N, "device_count", "Number of devices that it lies on."),
    field(Group::Deps, "DevNamesUsed", 16, T, "devs_used", "Devices of the process that it lies on."),
    field(Group::Deps, "DevNosUsed", 16, T, "devnos_used", "Numbers of the devices that it lies on; paths of files."),
    field(
        Group::Deps,
        "BlkDevNamesUsed",
        16,
        T,
        "blkdevs_used",
        "Names of the devices that it lies on; paths of files.",
    ),
    field(Group::Deps, "#Refs", 5, N, "device_ref_count", "Number of devices that lie on it."),
    field(Group::Deps, "RefNames", 8, T, "names_using_dev", "Devices that lie on it."),
    field(Group::Deps, "RefDevNos", 9, T, "devnos_using_dev", "Numbers of the devices that lie on it."),
    field(Group::Split, "Subsys", 6, T, "subsystem", "Who made it, by its uuid."),
    field(Group::Split, "VG", 4, T, "vg_name", "LVM's volume group."),
    field(Group::Split, "LV", 4, T, "lv_name", "LVM's logical volume."),
    field(Group::Split, "LVLayer", 7, T, "lv_layer", "LVM's layer of it."),
];

/// What `info -c` shows.
pub(super) const INFO: &str = "name,major,minor,attr,open,segments,events,uuid";

/// Parts of a name.
pub(super) static SPLIT: [Field; 4] = [
    field(Group::Split, "Subsys", 6, T, "subsystem", "Who gives names of this form."),
    field(Group::Split, "VG", 4, T, "vg_name", "LVM's volume group."),
    field(Group::Split, "LV", 4, T, "lv_name", "LVM's logical volume."),
    field(Group::Split, "LVLayer", 7, T, "lv_layer", "LVM's layer of it."),
];

/// What `splitname` shows.
pub(super) const SPLITNAME: &str = "vg_name,lv_name,lv_layer";
