//! Devices that stand on other devices of the same file.

use std::collections::HashMap;

use crate::table::TableFile;
use crate::{DevRef, Diagnostic, Target, names};

/// As many names of a loop are told at its start and at its end.
const LOOP_NAMES: usize = 6;

/// Finds a file's devices by `/dev/mapper/NAME`.
#[derive(Clone, Debug)]
pub struct MapperNames(HashMap<String, usize>);

impl MapperNames {
    /// The index in [`TableFile::devices`] of the device that `dev` names as `/dev/mapper/NAME`, if it is one
    /// of the file.
    ///
    /// NAME may be as the file has it or as it stands in `/dev/mapper` (see
    /// [`Device::mapper_name`](crate::Device::mapper_name)).
    pub fn get(&self, dev: &DevRef) -> Option<usize> {
        let name = names::mapper_name(dev.mapper_name()?)?;
        self.0.get(&name).copied()
    }
}

/// A device's use of another: by which target, under which name, and which one it is.
struct Use<'a> {
    target: &'a Target,
    /// Which of the target's devices.
    n: usize,
    dev: &'a DevRef,
    index: usize,
}

impl TableFile {
    /// The file's devices by `/dev/mapper/NAME`.
    pub fn mapper_names(&self) -> MapperNames {
        let named = self.devices.iter().enumerate();
        MapperNames(named.filter_map(|(index, device)| Some((device.mapper_name()?, index))).collect())
    }

    /// Indices into [`TableFile::devices`], each once, such that a device comes before those that name it as
    /// `/dev/mapper/NAME`. Apart from that they are in the file's order.
    ///
    /// Fails where devices stand on each other in a loop, or one on itself; the diagnostic names the loop and
    /// points at the name that closes it.
    pub fn load_order(&self) -> Result<Vec<usize>, Diagnostic> {
        let names = self.mapper_names();
        let uses: Vec<Vec<Use<'_>>> = self.devices.iter().map(|device| uses(&names, device)).collect();

        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            /// On the path from the root to where the search is.
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.devices.len()];
        let mut order = Vec::with_capacity(self.devices.len());
        // Device and the number of its uses that were followed. No recursion: a file may stack any depth.
        let mut path: Vec<(usize, usize)> = Vec::new();
        for root in 0..self.devices.len() {
            if marks[root] == Mark::New {
                marks[root] = Mark::Open;
                path.push((root, 0));
            }
            while let Some((device, followed)) = path.last_mut() {
                let Some(next) = uses[*device].get(*followed) else {
                    marks[*device] = Mark::Done;
                    order.push(*device);
                    path.pop();
                    continue;
                };
                *followed += 1;
                match marks[next.index] {
                    Mark::New => {
                        marks[next.index] = Mark::Open;
                        path.push((next.index, 0));
                    }
                    Mark::Open => {
                        let entered = path.iter().position(|&(device, _)| device == next.index).unwrap_or(0);
                        return Err(self.stacked_in_a_loop(next, path[entered..].iter().map(|&(device, _)| device)));
                    }
                    Mark::Done => {}
                }
            }
        }
        Ok(order)
    }

    fn stacked_in_a_loop(&self, closes: &Use<'_>, through: impl Iterator<Item = usize>) -> Diagnostic {
        let name = |index: usize| self.devices[index].name.as_deref().unwrap_or_default();
        let mut names: Vec<&str> = through.chain([closes.index]).map(name).collect();
        let count = names.len() - 1;
        let more = format!("({} more)", names.len().saturating_sub(2 * LOOP_NAMES));
        if names.len() > 2 * LOOP_NAMES {
            let tail = names.len() - LOOP_NAMES;
            names.splice(LOOP_NAMES..tail, [more.as_str()]);
        }
        let named = names.join(" -> ");
        // The kernel's text and errno for a device in its own table, the one loop that can be tried there.
        let refusal = Diagnostic::error(&self.source, closes.dev.span, closes.target.lookup_failed(closes.n, "EINVAL"));
        let refusal = refusal.found(format!("a loop of devices: {named}"));
        if count == 1 {
            refusal.expected("another device than the one whose table this is")
        } else {
            refusal.expected("devices that stand on each other without coming back to the first")
        }
    }
}

fn uses<'a>(names: &MapperNames, device: &'a crate::Device) -> Vec<Use<'a>> {
    let targets = device.table.lines.iter().map(|line| &line.target);
    let refs = targets.flat_map(|target| target.device_refs().enumerate().map(move |(n, dev)| (target, n, dev)));
    refs.filter_map(|(target, n, dev)| Some(Use { target, n, dev, index: names.get(dev)? })).collect()
}
