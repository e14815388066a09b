//! Pieces from the names of the files in a directory: types of the Discoverable Partitions Specification.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::spec::Spec;
use super::types;

/// Endings of image files.
const ENDINGS: [&str; 2] = ["img", "raw"];

/// In which order partitions lie, by the beginnings of their names: boot loaders first, what grows last.
const ORDER: [&str; 10] = ["bios-boot", "esp", "xbootldr", "swap", "usr", "root", "srv", "var", "tmp", "home"];
/// Behind those that have a place, and before what grows.
const OTHERS: usize = 6;

/// The pieces that a directory holds, in the order in which they are to lie.
///
/// # Errors
/// What is wrong with the directory or one of its names.
pub fn specs(dir: &Path) -> Result<Vec<Spec>, String> {
    let failed = |what: String| format!("vhost-user-dm: --image-dir={}: {what}", dir.display());
    let mut images: Vec<(usize, String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| failed(error.to_string()))? {
        let path = entry.map_err(|error| failed(error.to_string()))?.path();
        if !path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) {
            continue;
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let stem = stem.ok_or_else(|| failed(format!("{} is not UTF-8", path.display())))?.to_owned();
        let rank =
            ORDER.iter().position(|kind| stem == *kind || stem.starts_with(&format!("{kind}-"))).unwrap_or(OTHERS);
        images.push((rank, stem, path));
    }
    images.sort();
    if let Some(pair) = images.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        let names = pair.iter().map(|(_, _, path)| path.display().to_string());
        return Err(failed(format!("{} are two files for one partition", names.collect::<Vec<_>>().join(" and "))));
    }
    if images.is_empty() {
        return Err(failed(format!(
            "it holds no file whose name ends with .img or .raw; what the names stand for: {}",
            types::names()
        )));
    }
    images.iter().map(|(_, stem, path)| spec(dir, stem, path).map_err(&failed)).collect()
}

fn spec(dir: &Path, stem: &str, path: &Path) -> Result<Spec, String> {
    let shown = path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))?;
    let mut text = format!("{}={}", escaped(stem), escaped(shown));
    if let Some(guid) = verity(dir, stem)? {
        text.push_str(&format!(",guid={guid}"));
    }
    Spec::parse(shown, text).map_err(|diagnostic| diagnostic.to_string())
}

fn escaped(text: &str) -> String {
    let special = |c: char| matches!(c, '\\' | '=' | '@' | ',');
    let piece = text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect::<String>();
    // These two are no names of partitions.
    if matches!(piece.as_str(), "gap" | "zero") { format!("\\{piece}") } else { piece }
}

/// What a root hash beside the image makes the partition's GUID: its first half for the data, its second half for the
/// hashes (the specification, "Verity Partitions").
fn verity(dir: &Path, stem: &str) -> Result<Option<Uuid>, String> {
    let (data, hashes) = match stem.strip_suffix("-verity") {
        Some(data) => (data, true),
        None => (stem, false),
    };
    for ending in ["roothash", "usrhash"] {
        let path = dir.join(format!("{data}.{ending}"));
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let digits = text.trim();
        if digits.len() < 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("{}: a root hash has 64 hexadecimal digits or more", path.display()));
        }
        let half = if hashes { &digits[digits.len() - 32..] } else { &digits[..32] };
        return Uuid::try_parse(half).map(Some).map_err(|error| format!("{}: {error}", path.display()));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::spec::What;

    #[test]
    fn names_make_the_order_and_root_hashes_the_guids() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home.img", "root-verity.raw", "esp.img", "root.img", "gap.img", "a,b.img", "notes.txt"] {
            fs::write(dir.path().join(name), [0; 512]).unwrap();
        }
        let hash = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";
        fs::write(dir.path().join("root.roothash"), format!("{hash}\n")).unwrap();
        let specs = specs(dir.path()).unwrap();
        let names: Vec<&str> = specs.iter().map(Spec::name).collect();
        assert_eq!(names, ["esp", "root", "root-verity", "a,b", "gap", "home"]);
        let guid = |index: usize| specs[index].attributes.guid.as_ref().map(|guid| guid.value.simple().to_string());
        assert_eq!(guid(1).as_deref(), Some(&hash[..32]));
        assert_eq!(guid(2).as_deref(), Some(&hash[32..]));
        assert!(matches!(&specs[4].what, What::Part { name, .. } if name == "gap"));
        fs::write(dir.path().join("esp.raw"), [0; 512]).unwrap();
        assert!(super::specs(dir.path()).is_err_and(|why| why.contains("two files")));
    }

    #[test]
    fn a_directory_without_images_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(specs(dir.path()).is_err_and(|why| why.contains("no file whose name ends")));
        fs::write(dir.path().join("root.img"), [0; 512]).unwrap();
        fs::write(dir.path().join("root.roothash"), "xyz").unwrap();
        assert!(specs(dir.path()).is_err_and(|why| why.contains("root.roothash")));
    }
}
