//! The two sides in step: each command and each operation goes to both, and what they say is compared.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use dm_tests::control::Output;
use dm_tests::operations::{Operation, SECTOR, fill};
use fastrand::Rng;

use crate::guest::Kernel;
use crate::sides::{COMPONENTS, Ours, Request, Side, component};
use crate::snapshots;

/// Where the two differ, for people.
pub type Checked<T = ()> = Result<T, String>;

/// How long texts may take to become the same: both sides do things in the background.
const SETTLING: Duration = Duration::from_secs(180);

/// Both sides with the same components.
pub struct Duo<'k> {
    pub kernel: &'k mut Kernel,
    pub ours: Ours,
    pub rng: Rng,
    /// Commands so far, for who has to find out.
    pub history: Vec<String>,
    devices: Vec<String>,
    /// Persistent stores of exceptions, and the sectors of their chunks.
    pub stores: Vec<(String, u64)>,
    /// Devices may be suspended in the middle of operations.
    pub rests: bool,
}

/// Operations of one device that are to come.
#[derive(Clone)]
pub struct Mix<'a> {
    pub device: &'a str,
    pub sectors: u64,
    /// Where something begins or ends.
    pub borders: Vec<u64>,
    pub writes: bool,
    pub discards: bool,
    pub zeroes: bool,
    /// Every fifth operation is a discard, which begins at a multiple of so many sectors.
    pub discards_of: Option<u64>,
    /// No discard goes beyond a multiple of it.
    pub discard_within: u64,
}

impl<'a> Mix<'a> {
    pub fn new(device: &'a str, sectors: u64) -> Self {
        Mix {
            device,
            sectors,
            borders: vec![0, sectors],
            writes: true,
            discards: true,
            zeroes: true,
            discards_of: None,
            discard_within: u64::MAX,
        }
    }

    pub fn reads(device: &'a str, sectors: u64) -> Self {
        Mix { writes: false, ..Mix::new(device, sectors) }
    }

    fn operation(&self, rng: &mut Rng) -> Operation {
        let len = match rng.u8(..10) {
            0..=5 => rng.u64(1..=8),
            6..=8 => rng.u64(1..=64),
            _ => rng.u64(1..=200),
        };
        let len = len.min(self.sectors);
        let last = self.sectors - len;
        let at = match rng.choice(&self.borders).filter(|_| rng.bool()) {
            Some(border) => (border + rng.u64(..12)).saturating_sub(8).min(last),
            None => rng.u64(..=last),
        };
        let length = len as u32;
        let kind = rng.u8(..100);
        if let (50..=69, Some(unit)) = (kind, self.discards_of) {
            return Operation::Discard(at / unit * unit, length);
        }
        match kind {
            _ if !self.writes => Operation::Read(at, length),
            0..=44 => Operation::Write(at, length, rng.u64(1..1 << 53)),
            45..=49 => Operation::Flush,
            50..=54 if self.discards => {
                let left = self.discard_within - at % self.discard_within;
                Operation::Discard(at, length.min(u32::try_from(left).unwrap_or(length)))
            }
            55..=59 if self.zeroes => Operation::WriteZeroes(at, length),
            _ => Operation::Read(at, length),
        }
    }
}

impl<'k> Duo<'k> {
    /// Components of noise, the same on both sides, and no devices.
    pub fn new(kernel: &'k mut Kernel, mut rng: Rng) -> Self {
        kernel.clear();
        let (ours, noise) = (Ours::start(), rng.u64(..));
        let (history, devices, stores) = (Vec::new(), Vec::new(), Vec::new());
        let mut duo = Duo { kernel, ours, rng, history, devices, stores, rests: true };
        for (index, (_, sectors)) in COMPONENTS.iter().enumerate() {
            let mut bytes = vec![0; *sectors as usize * SECTOR];
            fill(noise.wrapping_add(index as u64), &mut bytes);
            duo.kernel.place(index, &bytes);
            duo.ours.place(index, &bytes);
        }
        duo
    }

    fn sides(&mut self) -> [(&'static str, &mut dyn Side); 2] {
        [("the kernel", self.kernel), ("vhost-user-dm", &mut self.ours)]
    }

    /// Puts bytes at the begin of a component of both sides.
    pub fn place(&mut self, name: &str, bytes: &[u8]) {
        self.sides().into_iter().for_each(|(_, side)| side.place(component(name), bytes));
    }

    /// `dmsetup ARGS` on both sides, `{a}` being component a; each with what it said in the same words.
    fn both(&mut self, args: &[&str]) -> [Output; 2] {
        self.history.push(format!("dmsetup {}", args.join(" ")));
        self.sides().map(|(_, side)| {
            let placed: Vec<String> = args.iter().map(|arg| placed(side, arg)).collect();
            let mut output = side.dmsetup(&placed.iter().map(String::as_str).collect::<Vec<_>>());
            output.stdout = in_words_of_both(side, &output.stdout);
            output
        })
    }

    /// What must succeed and say the same.
    pub fn must(&mut self, args: &[&str]) -> Checked<String> {
        let [kernel, ours] = self.both(args);
        for (name, output) in [("the kernel", &kernel), ("vhost-user-dm", &ours)] {
            if output.code != 0 {
                return Err(format!("dmsetup {args:?} of {name}: {}", output.stderr.trim_end()));
            }
        }
        self.same_text(args, &kernel.stdout, &ours.stdout)?;
        Ok(ours.stdout)
    }

    /// What both must refuse.
    pub fn must_not(&mut self, args: &[&str]) -> Checked {
        for (output, name) in self.both(args).into_iter().zip(["the kernel", "vhost-user-dm"]) {
            if output.code == 0 {
                return Err(format!("dmsetup {args:?}: {name} did it"));
            }
        }
        Ok(())
    }

    fn same_text(&self, args: &[&str], kernel: &str, ours: &str) -> Checked {
        if kernel == ours {
            return Ok(());
        }
        Err(format!("dmsetup {args:?}:\n  the kernel    {kernel:?}\n  vhost-user-dm {ours:?}"))
    }

    pub fn create(&mut self, name: &str, table: &str) -> Checked {
        self.devices.push(name.to_owned());
        self.must(&["create", name, "--table", table]).map(drop)
    }

    /// Another table for a device.
    pub fn swap(&mut self, name: &str, table: &str) -> Checked {
        self.must(&["load", name, "--table", table])?;
        self.suspend_and_resume(name)
    }

    pub fn remove(&mut self, name: &str) -> Checked {
        self.sides().into_iter().for_each(|(_, side)| side.close());
        self.devices.retain(|known| known != name);
        self.must(&["remove", "--retry", name]).map(drop)
    }

    pub fn suspend_and_resume(&mut self, name: &str) -> Checked {
        self.must(&["suspend", name])?;
        self.must(&["resume", name]).map(drop)
    }

    /// A random list of so many operations, and what both make of it. Somewhere in it a device may be suspended and resumed.
    pub fn play(&mut self, count: u64, mixes: &[Mix<'_>]) -> Checked {
        let mut list = Vec::new();
        for _ in 0..count {
            let mix = &mixes[self.rng.usize(..mixes.len())];
            list.push((mix.device.to_owned(), mix.operation(&mut self.rng)));
        }
        if self.rng.u8(..3) > 0 || !self.rests {
            return self.io(&list);
        }
        let (before, after) = list.split_at(self.rng.usize(..list.len()));
        let device = mixes[self.rng.usize(..mixes.len())].device;
        self.io(before)?;
        self.suspend_and_resume(device)?;
        self.io(after)
    }

    /// All of a device, read.
    pub fn read_all(&mut self, device: &str, sectors: u64) -> Checked {
        let list = (0..sectors).step_by(128).map(|at| {
            let length = (sectors - at).min(128) as u32;
            (device.to_owned(), Operation::Read(at, length))
        });
        self.io(&list.collect::<Vec<_>>())
    }

    /// One after another. With `DM_KERNEL_STEPS` set both sides wait for each other after each of them, and the first read
    /// that differs is told sector by sector.
    pub fn io(&mut self, list: &[Request]) -> Checked {
        self.history.push(format!("{} operations", list.len()));
        if std::env::var_os("DM_KERNEL_STEPS").is_none() {
            return self.run(list);
        }
        for one in list {
            self.history.push(format!("{} {}", one.0, one.1));
            self.run(std::slice::from_ref(one)).map_err(|why| why + &self.sectors_that_differ(one))?;
        }
        Ok(())
    }

    fn sectors_that_differ(&mut self, (device, operation): &Request) -> String {
        let Operation::Read(at, len) = *operation else { return String::new() };
        let list: Vec<Request> = (at..at + u64::from(len)).map(|at| (device.clone(), Operation::Read(at, 1))).collect();
        let [kernel, ours] = self.sides().map(|(_, side)| side.io(&list));
        let pairs = (at..).zip(kernel.iter().zip(&ours)).filter(|(_, (kernel, ours))| kernel != ours);
        let sectors: Vec<u64> = pairs.map(|(at, _)| at).collect();
        format!("sectors of {device} that differ: {sectors:?}")
    }

    fn run(&mut self, list: &[Request]) -> Checked {
        let [kernel, ours] = self.sides().map(|(_, side)| side.io(list));
        assert_eq!((kernel.len(), ours.len()), (list.len(), list.len()), "each operation has an outcome");
        let Some(at) = (0..list.len()).find(|&at| kernel[at] != ours[at]) else { return Ok(()) };
        let mut text = String::from("the outcomes of operations differ:\n");
        for at in at.saturating_sub(5)..=at {
            let (device, operation) = &list[at];
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {at}: {device} {operation}: {} {}", kernel[at], ours[at]);
        }
        text += "(first the kernel's; the components are now those of the end of the list)\n";
        Err(text + &self.differences(|_, _| true))
    }

    /// Where components differ, in sectors for which `compared` holds.
    fn differences(&mut self, compared: impl Fn(&str, u64) -> bool) -> String {
        let stores = self.stores.clone();
        let mut text = String::new();
        for (index, (name, _)) in COMPONENTS.iter().enumerate() {
            let chunk = stores.iter().find(|(store, _)| store == name).map(|(_, chunk)| *chunk);
            let [kernel, ours] = self.sides().map(|(_, side)| match chunk {
                Some(chunk) => snapshots::in_order(side.bytes(index), chunk),
                None => side.bytes(index),
            });
            let pairs = kernel.chunks(SECTOR).zip(ours.chunks(SECTOR)).zip(0..);
            let differ = pairs.filter(|((kernel, ours), at)| kernel != ours && compared(name, *at));
            let differ: Vec<_> = differ.map(|((kernel, ours), at)| (at, &kernel[..32], &ours[..32])).collect();
            if let Some((at, kernel, ours)) = differ.first() {
                let all: Vec<u64> = differ.iter().map(|(at, ..)| *at).take(40).collect();
                let _ = writeln!(
                    text,
                    "component {name} differs in {} sectors, {all:?}; sector {at} begins\n  {kernel:02x?} and\n  {ours:02x?}",
                    differ.len()
                );
            }
        }
        text
    }

    /// That the components are the same, byte for byte, where `compared` of component and sector holds.
    pub fn same_components(&mut self, compared: impl Fn(&str, u64) -> bool) -> Checked {
        let text = self.differences(compared);
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    /// Waits until `dmsetup VERB DEVICE` says the same on both sides and `is` of it holds.
    pub fn settle(&mut self, verb: &str, device: &str, is: impl Fn(&str) -> bool) -> Checked<String> {
        self.settle_as(verb, device, str::to_owned, is)
    }

    /// As [`settle`](Self::settle), where an old kernel says something else, which `newer` makes a newer one's.
    pub fn settle_as(
        &mut self,
        verb: &str,
        device: &str,
        newer: impl Fn(&str) -> String,
        is: impl Fn(&str) -> bool,
    ) -> Checked<String> {
        let begun = Instant::now();
        let length = self.history.len();
        loop {
            let [mut kernel, ours] = self.both(&[verb, device]);
            kernel.stdout = newer(&kernel.stdout);
            self.history.truncate(length);
            if kernel.stdout == ours.stdout && (kernel.code, ours.code) == (0, 0) && is(&ours.stdout) {
                return Ok(ours.stdout);
            }
            if begun.elapsed() > SETTLING {
                self.same_text(&[verb, device], &kernel.stdout, &ours.stdout)?;
                return Err(format!("dmsetup {verb} {device} still says {ours:?} and {kernel:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// That `table` and `status` of a device say the same, once all is at rest.
    pub fn same_texts(&mut self, device: &str) -> Checked {
        self.settle("table", device, |_| true)?;
        self.same_status(device)
    }

    pub fn same_status(&mut self, device: &str) -> Checked {
        self.settle("status", device, |_| true).map(drop)
    }

    /// Texts of all devices, then without them the components.
    pub fn finish(&mut self) -> Checked {
        for device in self.devices.clone() {
            self.same_texts(&device)?;
        }
        self.remove_all()?;
        self.same_components(|_, _| true)
    }

    pub fn remove_all(&mut self) -> Checked {
        while let Some(device) = self.devices.last().cloned() {
            self.remove(&device)?;
        }
        Ok(())
    }
}

fn placed(side: &dyn Side, text: &str) -> String {
    COMPONENTS
        .iter()
        .enumerate()
        .fold(text.to_owned(), |text, (index, (name, _))| text.replace(&format!("{{{name}}}"), &side.node(index)))
}

/// Components as `{a}`, mapped devices as `{NAME}`, whatever they are called on this side.
fn in_words_of_both(side: &mut dyn Side, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut words: Vec<(String, &str)> =
        COMPONENTS.iter().enumerate().map(|(index, (name, _))| (side.shown(index), *name)).collect();
    let is_number =
        |word: &str| word.split(':').count() == 2 && !word.contains(|c: char| c != ':' && !c.is_ascii_digit());
    if !text.split_whitespace().any(|word| is_number(word) && !words.iter().any(|(shown, _)| shown == word)) {
        return replaced(text, &words);
    }
    let info = ["info", "-c", "--noheadings", "--separator", " ", "-o", "major,minor,name"];
    let devices = side.dmsetup(&info).stdout;
    words.extend(devices.lines().filter_map(|line| {
        let mut parts = line.split_whitespace();
        Some((format!("{}:{}", parts.next()?, parts.next()?), parts.next()?))
    }));
    replaced(text, &words)
}

/// Each word that is the first of one of the pairs by the second, in braces.
fn replaced(text: &str, words: &[(String, &str)]) -> String {
    let lines = text.split('\n').map(|line| {
        let known = |word: &str| match words.iter().find(|(shown, _)| shown == word) {
            Some((_, name)) => format!("{{{name}}}"),
            None => word.to_owned(),
        };
        line.split(' ').map(known).collect::<Vec<_>>().join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}
