//! `assemble --lvm`: a logical volume, or all of a volume group, as it lies on its physical volumes.

use std::collections::BTreeSet;
use std::sync::Arc;

use dm_table::{Format, Source};

use super::files::{self, Output};
use super::product::{Files, MARK};
use super::{Assemble, next, shown};
use crate::inspect::{self, Severity};
use crate::lvm;

/// Runs the command for the volume of this name.
pub(super) fn run(name: &str, args: &Assemble, command: &str) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| format!("vhost-user-dm: {error}");
    let made = lvm::tables(name, &args.pv).map_err(|error| said(&error))?;
    let format = if made.concise { Format::Concise } else { Format::Auto };
    let file = dm_table::parse(Arc::new(Source::new(name, made.text.clone())), format).map_err(|d| d.to_string())?;
    // The concise form has no comments.
    let text = if made.concise { made.text } else { format!("{MARK}: {name}\n# {command}\n{}", made.text) };
    let files = Files::beside(&args.output).map_err(|error| said(&error))?;
    let outputs = [Output { path: &files.table, bytes: text.as_bytes() }];
    let mut findings = inspect::findings(&inspect::components(&file, false, false));
    findings.extend(files::findings(&files, &outputs).map_err(|error| said(&error))?);
    inspect::force(&mut findings, &args.force.iter().cloned().collect::<BTreeSet<_>>());
    findings.iter().for_each(|finding| eprintln!("{}", shown(finding)));
    made.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if findings.iter().any(|finding| finding.severity == Severity::Refuse) {
        return Err(said(&"nothing was written; --force=FINDING goes on in spite of one, by the name in brackets"));
    }
    if args.dry_run {
        print!("{text}\nnothing was written (--dry-run)\n");
        return Ok(());
    }
    files::write(&outputs).map_err(|error| said(&error))?;
    print!("{}", next(&files, &outputs, &args.output, 512));
    Ok(())
}
