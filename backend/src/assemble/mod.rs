//! `vhost-user-dm assemble`: a disk with a partition table out of pieces of the host.
//!
//! What the guest may write of the partition table are files of its own, so that nothing of the host's own table is ever
//! reached. `spec` reads what was asked for, `host` looks up what is there, `piece` takes over from the host's
//! partition table what was not said, `layout` places the partitions, `label` makes the bytes of the table, and
//! `product` the text of the dm table.

mod build;
mod discover;
mod files;
mod from;
mod host;
mod label;
mod layout;
mod piece;
mod product;
mod size;
mod sparse;
mod spec;
mod types;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};
use uuid::Uuid;

use crate::check::human;
use crate::inspect::{self, Finding, Severity};
use build::Wanted;
use files::Output;
use host::Scheme;
use product::{Files, Product};
use spec::Spec;

/// Command line of `assemble`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Assemble {
    /// Pieces in their order: NAME=PATH or NAME=PATH@START+LENGTH with ,type=TYPE ,guid=GUID ,label=TEXT ,number=N
    /// ,bootable ,ro behind; zero=SIZE is a partition of zeroes, gap=SIZE space between partitions. Sizes are sectors of 512
    /// bytes, or have KiB, MiB, GiB or TiB behind. A backslash takes what \= \@ \, and \\ mean to this command from them
    #[arg(value_name = "PIECE", required_unless_present_any = ["from", "image_dir", "lvm"])]
    pub pieces: Vec<String>,

    /// Instead of pieces: the same disk as this one or this image, with a copy of its partition table
    #[arg(long, value_name = "DISK", conflicts_with_all = ["pieces", "label", "size", "sector_size", "disk_guid", "signature", "boot_code"])]
    pub from: Option<PathBuf>,

    /// Partitions of DISK that the guest gets, by number: 1,3 (default: all)
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "from")]
    pub only: Option<Vec<u32>>,

    /// A file that takes the place of a partition of DISK
    #[arg(long, value_name = "N=PATH", value_parser = replacement, requires = "from")]
    pub replace: Vec<(u32, PathBuf)>,

    /// Pieces from the names of the files in DIR, before those that are given: esp.img, root.img or root-arm64.img, usr, home,
    /// swap, root-verity, ... with root.roothash. Implies --reproducible
    #[arg(long, visible_alias = "discover", value_name = "DIR", conflicts_with = "from")]
    pub image_dir: Option<PathBuf>,

    /// Instead of pieces: a logical volume of LVM2, without a partition table around it; or VG alone, for all of a group as a
    /// device each. The metadata is read, and nothing of it written; a volume that is active on this machine is refused
    #[arg(long, value_name = "VG/LV", conflicts_with_all = ["pieces", "from", "image_dir", "label", "size", "sector_size", "disk_guid", "signature", "boot_code"])]
    pub lvm: Option<String>,

    /// Where the physical volumes are (default: they are looked for among all block devices)
    #[arg(long, value_name = "DEV", requires = "lvm", num_args = 1..)]
    pub pv: Vec<PathBuf>,

    /// What the partitions of DISK that are not named become
    #[arg(long, value_enum, default_value_t = from::Rest::Error, requires = "from")]
    pub rest: from::Rest,

    /// Kind of the partition table
    #[arg(long, value_enum, default_value_t = Label::Gpt)]
    pub label: Label,

    /// Table file to write; the partition table goes to NAME.head and NAME.tail beside it
    #[arg(short, long, value_name = "NAME.table")]
    pub output: PathBuf,

    /// Size of the disk (default: as small as its pieces allow, in whole MiB)
    #[arg(long, value_parser = size::sectors)]
    pub size: Option<u64>,

    /// Bytes in a block of the disk: 512 or 4096 (default: what the pieces have)
    #[arg(long, value_name = "BYTES", value_parser = block)]
    pub sector_size: Option<u32>,

    /// GUID of the disk (default: a new one)
    #[arg(long, value_name = "GUID", value_parser = guid)]
    pub disk_guid: Option<Uuid>,

    /// Signature of a disk with an MBR, 8 hexadecimal digits (default: that of the disk that the pieces come from, or a new one)
    #[arg(long, value_name = "HEX", value_parser = signature)]
    pub signature: Option<u32>,

    /// Boot loader for a BIOS: its first 440 bytes go to the first sector; with --label=mbr what comes after byte 512 goes
    /// to the sectors behind, up to 1 MiB
    #[arg(long, value_name = "FILE")]
    pub boot_code: Option<PathBuf>,

    /// Make a disk that the guest can only read, so that pieces may be in use
    #[arg(long)]
    pub read_only: bool,

    /// Make GUIDs and signature from the sizes, names and types of the pieces: the same disk every time
    #[arg(long)]
    pub reproducible: bool,

    /// Go on in spite of a finding; once for each
    #[arg(long, value_name = "FINDING", value_parser = finding)]
    pub force: Vec<String>,

    /// Show what would be made, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Kind of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Label {
    /// GUID partition table
    Gpt,
    /// Master boot record, with extended partitions where there are more than 4
    Mbr,
}

fn block(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("512 or 4096".into()),
    }
}

/// What can be forced beside what is found in the pieces.
const OWN_IDS: [&str; 2] = ["overwrite", "changed"];

fn finding(text: &str) -> Result<String, String> {
    let mut known = inspect::IDS.iter().chain(&OWN_IDS);
    match known.any(|id| *id == text) {
        true => Ok(text.to_owned()),
        false => Err("no finding has this name; they stand in brackets before each".into()),
    }
}

fn replacement(text: &str) -> Result<(u32, PathBuf), String> {
    let halves = text.split_once('=').and_then(|(number, path)| Some((number.parse().ok()?, path)));
    match halves {
        Some((number, path)) if !path.is_empty() => Ok((number, path.into())),
        _ => Err("the partition's number, = and a path".into()),
    }
}

fn guid(text: &str) -> Result<Uuid, String> {
    spec::guid(text).ok_or_else(|| "32 hexadecimal digits as 8-4-4-4-12, not all 0".into())
}

fn signature(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let hex = digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u32::from_str_radix(digits, 16).ok().filter(|number| hex && *number != 0);
    number.ok_or_else(|| "8 hexadecimal digits, not all 0".into())
}

/// Runs the command; `words` is the command line, for the table to tell.
///
/// # Errors
/// What is said to the user.
pub fn run(args: &Assemble, words: &[String]) -> Result<(), String> {
    if let Some(name) = &args.lvm {
        return volume::run(name, args, &command(words));
    }
    let files = Files::beside(&args.output).map_err(|e| format!("vhost-user-dm: {e}"))?;
    let mut product = match &args.from {
        Some(path) => of_disk(path, args)?,
        None => of_pieces(args)?,
    };
    if args.read_only {
        product.freeze();
    }
    let command = command(words);
    let table = product.table(&files, &command);
    let mut outputs = vec![Output { path: &files.head, bytes: &product.head }];
    if !product.tail.is_empty() {
        outputs.push(Output { path: &files.tail, bytes: &product.tail });
    }
    outputs.push(Output { path: &files.table, bytes: table.as_bytes() });
    let mut findings = inspect::findings(&product.doubted);
    findings.extend(files::findings(&files, &outputs).map_err(|e| format!("vhost-user-dm: {e}"))?);
    let forced: BTreeSet<String> = args.force.iter().cloned().collect();
    inspect::force(&mut findings, &forced);
    for finding in &findings {
        eprintln!("{}", shown(finding));
    }
    if findings.iter().any(|finding| finding.severity == Severity::Refuse) {
        return Err(
            "vhost-user-dm: nothing was written; --force=FINDING goes on in spite of one, by the name in brackets"
                .into(),
        );
    }
    print!("{}", report(&product));
    if args.dry_run {
        print!("\n{table}\nnothing was written (--dry-run)\n");
        return Ok(());
    }
    let left_over = files::left_over(&files, &outputs);
    files::write(&outputs).map_err(|e| format!("vhost-user-dm: {e}"))?;
    if let Some(path) = left_over {
        // It is part of no disk any more; that it is still there does no harm.
        let _ = std::fs::remove_file(path);
    }
    print!("{}", next(&files, &outputs, &args.output, product.block));
    if product.uefi {
        println!("# with -bios /usr/share/ovmf/OVMF.fd it starts from the EFI system partition");
    }
    Ok(())
}

fn of_disk(path: &Path, args: &Assemble) -> Result<Product, String> {
    let mut replace = BTreeMap::new();
    for (number, file) in &args.replace {
        if replace.insert(*number, file.clone()).is_some() {
            return Err(format!("vhost-user-dm: --replace={number}=...: this partition is replaced twice"));
        }
    }
    let only = args.only.as_ref().map(|only| only.iter().copied().collect());
    from::build(&from::Wanted { path, only, replace, rest: args.rest })
}

fn of_pieces(args: &Assemble) -> Result<Product, String> {
    let mut specs = args.image_dir.as_deref().map(discover::specs).transpose()?.unwrap_or_default();
    for (index, text) in args.pieces.iter().enumerate() {
        specs.push(Spec::parse(format!("piece {}", index + 1), text).map_err(|diagnostic| diagnostic.to_string())?);
    }
    let scheme = match args.label {
        Label::Gpt => Scheme::Gpt,
        Label::Mbr => Scheme::Mbr,
    };
    let wanted = Wanted {
        scheme,
        block: args.sector_size,
        size: args.size,
        guid: args.disk_guid,
        signature: args.signature,
        reproducible: args.reproducible || args.image_dir.is_some(),
        boot: boot_code(args, scheme)?,
    };
    build::build(specs, &wanted)
}

fn boot_code(args: &Assemble, scheme: Scheme) -> Result<Vec<u8>, String> {
    let Some(path) = &args.boot_code else { return Ok(Vec::new()) };
    let cannot = |why: &dyn std::fmt::Display| format!("vhost-user-dm: --boot-code={}: {why}", path.display());
    let most = match scheme {
        Scheme::Gpt => 512,
        Scheme::Mbr => layout::ALIGN * 512,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, most + 1), &mut bytes))
        .map_err(|error| cannot(&error))?;
    match bytes.len() as u64 {
        len if len <= most => Ok(bytes),
        _ if scheme == Scheme::Gpt => Err(cannot(
            &"it is longer than a sector, and behind that there is the GPT: the rest of a boot loader belongs in a piece \
              with type=bios-boot",
        )),
        _ => Err(cannot(&"it is longer than the 1 MiB before the first partition")),
    }
}

/// The command line as it can be typed again.
fn command(words: &[String]) -> String {
    let program = std::iter::once("vhost-user-dm");
    let words = program.chain(words.iter().skip(1).map(String::as_str));
    shlex::try_join(words.clone()).unwrap_or_else(|_| words.collect::<Vec<_>>().join(" "))
}

fn shown(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Note => "note",
        Severity::Warn => "warning",
        Severity::Refuse => "error",
    };
    let help = finding.help.as_ref().map(|help| format!("\n  = help: {help}")).unwrap_or_default();
    format!("{severity}[{}]: {}{help}", finding.id, finding.text)
}

fn report(product: &Product) -> String {
    let mut text = format!("{}, {}-byte blocks\n", product.what, product.block);
    for row in &product.rows {
        text.push_str(&format!(
            "{:>3}  {:>9}  at sector {:<10} {}\n",
            row.number,
            human(row.len * 512),
            row.start,
            row.what
        ));
        for note in &row.notes {
            text.push_str(&format!("     {note}\n"));
        }
    }
    for note in &product.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

/// What to do with what was made.
fn next(files: &Files, outputs: &[Output<'_>], given: &Path, block: u64) -> String {
    let block = if block > 512 { format!(" --block-size={block}") } else { String::new() };
    let names: Vec<String> = outputs.iter().map(|output| output.path.display().to_string()).collect();
    let quoted = |path: &Path| shlex::try_quote(&path.to_string_lossy()).unwrap_or_default().into_owned();
    let socket = files.table.with_extension("sock");
    format!(
        "\nwrote {}\n\n# serve it, then boot it\n\
         vhost-user-dm --socket-path={socket} --table={table}{block}\n\
         qemu-system-x86_64 -accel kvm -cpu host -smp 2 -m 1G -nographic \\\n    \
         -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\\n    \
         -chardev socket,id=disk,path={socket},reconnect=1 -device vhost-user-blk-pci,chardev=disk,bootindex=1\n",
        names.join(", "),
        socket = quoted(&socket),
        table = quoted(given),
    )
}
