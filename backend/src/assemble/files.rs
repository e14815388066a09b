//! Writing what was made: whole or not at all, and over nothing that somebody else made.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::product::{Files, MARK, mark};
use crate::inspect::{Finding, Severity};

/// Largest table that is read to find out who made it. One of ours has a few hundred lines.
const MOST_TABLE: u64 = 1 << 20;

/// As much of another file as is compared. A header has some MiB.
const MOST_BYTES: u64 = 1 << 28;

/// A file that is to be written.
pub struct Output<'a> {
    /// Its name.
    pub path: &'a Path,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// What speaks against writing these files over those that are there.
///
/// A table is ours by its mark, another file by being named with its checksum in the table.
///
/// # Errors
/// The system's, with the path.
pub fn findings(files: &Files, outputs: &[Output<'_>]) -> Result<Vec<Finding>, String> {
    let table = read(&files.table, MOST_TABLE)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let ours = table.as_deref().is_none_or(|text| text.lines().take(3).any(|line| line.starts_with(MARK)));
    let mut findings = Vec::new();
    for output in outputs {
        let there = read(output.path, MOST_BYTES)?;
        let Some(there) = there.filter(|there| there != output.bytes) else { continue };
        let shown = output.path.display();
        if output.path == files.table {
            if !ours {
                findings.push(overwrite(format!("{shown} is there already, and was not made by assemble")));
            }
            continue;
        }
        let name = output.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = |line: &str| line.starts_with("# ") && line.ends_with(&format!("  {name}"));
        let known = table.as_deref().filter(|_| ours).and_then(|text| text.lines().find(|line| known(line)));
        match known {
            Some(line) if line == mark(output.path, &there) => {}
            Some(_) => findings.push(Finding {
                id: "changed",
                severity: Severity::Refuse,
                text: format!(
                    "{shown} was written to since it was made: a guest has changed its partition table or boot loader"
                ),
                help: Some("give the new disk another name, or lose those changes".into()),
            }),
            None => findings.push(overwrite(format!(
                "{shown} is there already, and no table beside it says that assemble made it"
            ))),
        }
    }
    Ok(findings)
}

fn overwrite(text: String) -> Finding {
    Finding { id: "overwrite", severity: Severity::Refuse, text, help: Some("give another name: -o NAME.table".into()) }
}

/// A file's bytes, as far as the limit; none where there is no file.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, String> {
    let shown = |error: io::Error| format!("{}: {error}", path.display());
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(shown(error)),
        Ok(meta) if !meta.is_file() => return Err(format!("{}: it is not a file, and is left alone", path.display())),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(shown)?;
    Ok(Some(bytes))
}

/// The file of the end that an earlier disk of this name had, if this one has none and nobody has changed it.
pub fn left_over(files: &Files, outputs: &[Output<'_>]) -> Option<PathBuf> {
    let table = read(&files.table, MOST_TABLE).ok()??;
    let tail = read(&files.tail, MOST_BYTES).ok()??;
    let line = mark(&files.tail, &tail);
    let ours = String::from_utf8_lossy(&table).lines().any(|known| known == line);
    (ours && outputs.iter().all(|output| output.path != files.tail)).then(|| files.tail.clone())
}

/// Writes all files beside their names, and gives them their names when all are on the disk.
///
/// # Errors
/// The system's, with the path. What was written so far is removed, unless it has its name already.
pub fn write(outputs: &[Output<'_>]) -> Result<(), String> {
    let mut pending: Vec<Pending<'_>> = Vec::new();
    for output in outputs {
        let pending_file = Pending::write(output).map_err(|error| format!("{}: {error}", output.path.display()))?;
        pending.push(pending_file);
    }
    for file in pending {
        let name = file.name.display();
        file.finish().map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// A file that has not its name yet. It goes when this drops.
struct Pending<'a> {
    name: &'a Path,
    path: Option<PathBuf>,
}

impl<'a> Pending<'a> {
    fn write(output: &Output<'a>) -> io::Result<Pending<'a>> {
        let name = output.path;
        let mut path = name.as_os_str().to_owned();
        path.push(format!(".new-{}", std::process::id()));
        let path = PathBuf::from(path);
        let mut file = File::options().write(true).create_new(true).mode(0o666).open(&path)?;
        let pending = Pending { name, path: Some(path) };
        file.write_all(output.bytes)?;
        // A file that is replaced passes on who may use it.
        if let Ok(meta) = fs::metadata(name) {
            file.set_permissions(Permissions::from_mode(meta.permissions().mode() & 0o777))?;
        }
        file.sync_all()?;
        Ok(pending)
    }

    fn finish(mut self) -> io::Result<()> {
        let Some(path) = self.path.take() else { return Ok(()) };
        fs::rename(&path, self.name)?;
        let parent = self.name.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed lies there under a name that says what it was.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(files: &Files, head: &[u8], table: &str) -> Vec<&'static str> {
        let outputs =
            [Output { path: &files.head, bytes: head }, Output { path: &files.table, bytes: table.as_bytes() }];
        findings(files, &outputs).unwrap().iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn only_what_is_ours_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::beside(&dir.path().join("disk.table")).unwrap();
        let table = |head: &[u8]| format!("{MARK}: a disk\n{}\n0 1 zero\n", mark(&files.head, head));
        assert_eq!(ids(&files, b"one", &table(b"one")), [""; 0]);
        let outputs = [
            Output { path: &files.head, bytes: b"one" },
            Output { path: &files.table, bytes: table(b"one").as_bytes() },
        ]
        .map(|o| (o.path.to_owned(), o.bytes.to_owned()));
        let outputs: Vec<_> = outputs.iter().map(|(path, bytes)| Output { path, bytes }).collect();
        write(&outputs).unwrap();
        assert_eq!(fs::read(&files.head).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");

        assert_eq!(ids(&files, b"two", &table(b"two")), [""; 0], "both are ours");
        fs::write(&files.head, b"by a guest").unwrap();
        assert_eq!(ids(&files, b"two", &table(b"two")), ["changed"]);
        fs::write(&files.table, "0 1 zero\n").unwrap();
        assert_eq!(ids(&files, b"two", &table(b"two")), ["overwrite", "overwrite"]);
        fs::remove_file(&files.table).unwrap();
        assert_eq!(ids(&files, b"two", &table(b"two")), ["overwrite"]);
        assert_eq!(ids(&files, b"by a guest", &table(b"two")), [""; 0], "it is what would be written");
    }

    #[test]
    fn names_that_no_table_can_have_are_refused() {
        assert!(Files::beside(Path::new("/tmp/a b.table")).is_err());
        assert!(Files::beside(Path::new("/tmp")).is_err());
        assert_eq!(Files::beside(Path::new("/x/disk")).unwrap().head, Path::new("/x/disk.head"));
        assert_eq!(Files::beside(Path::new("/x/disk.v2.table")).unwrap().tail, Path::new("/x/disk.v2.tail"));
    }
}
