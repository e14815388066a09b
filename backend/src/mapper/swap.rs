//! Suspend, resume, and the exchange of tables under a running guest.
//!
//! **An exchange** is made ready while the guest runs: the map is built over the devices as they are now, those of the devices
//! above it too, and what was written to components that the new table does not lead to is made durable. Then all queues
//! concerned come to rest, the rest of that is made durable, chains and tables are exchanged, and the queues go on. Requests
//! that have come meanwhile are in the rings, and are the new table's.

use std::sync::Arc;
use std::time::Instant;

use crate::chain::Chain;
use crate::check;
use crate::control::schema::{Info, Resume, Resumed, Suspend, UnderWay, Waiting};
use crate::daemon::log_start;
use crate::disk::Disk;
use crate::frontend::Session;
use crate::frontend::quiesce::{self, Waits};
use crate::hold::Exchanged;
use crate::limited;
use crate::worker::ops;

use super::device::{Device, Tables};
use super::keep;
use super::serve::{self, Socket};
use super::state::{Committed, Prepared, StateError};
use super::table::{self, Table};
use super::{Caller, Claim, DmError, Mapper, Verb, durable};

/// What is exchanged under a device.
struct Change {
    minor: u32,
    disk: Arc<Disk>,
    session: Option<Arc<Session>>,
    table: Arc<Table>,
    old: Arc<Chain>,
    new: Arc<Chain>,
}

impl Mapper {
    /// DM_DEV_SUSPEND with DM_SUSPEND_FLAG.
    ///
    /// # Errors
    /// No such device (ENXIO), caller gone (EINTR).
    pub fn suspend(&self, suspend: &Suspend, caller: &dyn Caller) -> Verb<Info> {
        let (minor, claim) = self.claim(&suspend.which, caller, |devices, minor| devices.above(minor, true))?;
        if self.devices().get(minor)?.suspended.is_none() {
            self.rest(minor, &claim, caller)?;
            let chain = self.devices().get(minor)?.disk.chain();
            let written = if suspend.noflush { Vec::new() } else { durable::written(&chain) };
            let flushed = durable::sync(written, caller);
            if let Err(error) = flushed {
                self.unrest(&claim);
                return Err(error);
            }
            self.devices().get_mut(minor)?.suspended = Some(Instant::now());
        }
        self.devices().info(minor)
    }

    /// DM_DEV_SUSPEND without DM_SUSPEND_FLAG.
    ///
    /// # Errors
    /// No such device (ENXIO), the new table cannot be used (EINVAL ...), caller gone (EINTR).
    pub fn resume(&self, resume: &Resume, caller: &dyn Caller) -> Verb<Resumed> {
        let (minor, claim) = self.claim(&resume.which, caller, |devices, minor| devices.concerned(minor))?;
        let (new, began) = {
            let devices = self.devices();
            let device = devices.get(minor)?;
            (device.inactive.clone(), device.suspended)
        };
        let paused = match new {
            Some(table) => {
                let first = self.devices().get(minor)?.active.is_none();
                let paused = self.exchange(minor, &table, resume, &claim, caller)?;
                Some(began.map_or(paused, |began| began.elapsed())).filter(|_| !first)
            }
            None => {
                if self.devices().get(minor)?.active.is_some() {
                    self.serve_new(minor, self.socket_if_new(minor)?);
                }
                self.go_on(minor, &claim);
                began.map(|began| began.elapsed())
            }
        };
        let info = self.devices().info(minor)?;
        let paused_us = paused.map(|paused| u64::try_from(paused.as_micros()).unwrap_or(u64::MAX));
        if let Some(us) = paused_us {
            log::debug!("{}: {us} microseconds without requests", info.name);
        }
        Ok(Resumed { info, paused_us })
    }

    /// Brings the queues of a device to rest, and of those above it.
    fn rest(&self, minor: u32, claim: &Claim<'_>, caller: &dyn Caller) -> Verb<()> {
        let sessions: Vec<Arc<Session>> = {
            let devices = self.devices();
            let above = devices.above(minor, true);
            let claimed = above.iter().filter_map(|minor| devices.all.get(minor));
            // Blocked before the session is looked for: one that begins later sees it.
            claimed.clone().for_each(|device| device.disk.block(true));
            // What is held back for no other reason than time goes on now (dm.c, `dm_table_presuspend_targets`).
            claimed.clone().for_each(|device| device.disk.chain().map.own_targets().for_each(|t| t.presuspend()));
            claimed.filter_map(|device| device.session()).collect()
        };
        self.lives.hurry();
        let sessions: Vec<&Session> = sessions.iter().map(Arc::as_ref).collect();
        let name = self.devices().get(minor)?.name.clone();
        quiesce::quiesce(&sessions, &Relay { caller, name }).map_err(|quiesce::TakenBack| {
            self.unrest(claim);
            DmError::new(libc::EINTR).detail("taken back while requests were under way; the device goes on as before")
        })?;
        let disks: Vec<_> = {
            let devices = self.devices();
            let above = devices.above(minor, true);
            above.iter().filter_map(|minor| Some((*minor, devices.all.get(minor)?.disk.clone()))).collect()
        };
        for (minor, disk) in disks {
            disk.chain().map.own_targets().for_each(|target| target.postsuspend());
            self.lives.rest(minor);
        }
        Ok(())
    }

    /// Lets the queues go on of those claimed devices that are not suspended and lie on none that is.
    fn unrest(&self, claim: &Claim<'_>) {
        let devices = self.devices();
        let free = claim.minors.iter().filter(|minor| !devices.is_blocked(**minor));
        let free: Vec<_> = free.filter_map(|minor| devices.all.get(minor)).collect();
        free.iter().for_each(|device| device.disk.chain().map.own_targets().for_each(|target| target.resume()));
        free.iter().for_each(|device| device.disk.block(false));
        let sessions: Vec<_> = free.iter().filter_map(|device| device.session()).collect();
        let disks: Vec<_> = free.iter().map(|device| (device.minor, device.disk.clone())).collect();
        drop(devices);
        disks.iter().for_each(|(minor, disk)| self.lives.go_on(*minor, disk));
        sessions.iter().for_each(|session| session.go_on());
    }

    /// Makes the inactive table the live one; its queues rest, or go on in the end, as they did before. Returns how long they
    /// had to rest for it. On failure the new table is dropped and the device is left suspended with the old one (dm.c,
    /// `do_resume`), unless it was this program that refused.
    fn exchange(
        &self,
        minor: u32,
        table: &Arc<Table>,
        resume: &Resume,
        claim: &Claim<'_>,
        caller: &dyn Caller,
    ) -> Verb<std::time::Duration> {
        let above = self.devices().above(minor, true);
        let changes = match self.prepare(minor, table, &above) {
            Ok(changes) => changes,
            Err(error) => return Err(self.fail(minor, error, claim, caller)),
        };
        changes.iter().try_for_each(|change| change.is_bearable(resume.force || table.force))?;
        let exchanged = self.exchange_now(minor, &changes, resume.noflush, claim, caller);
        let (began, kept) = match exchanged {
            Ok(exchanged) => exchanged,
            Err(error) if error.errno == libc::EINTR => {
                self.unrest(claim);
                return Err(error);
            }
            Err(error) => return Err(self.fail(minor, error, claim, caller)),
        };
        self.go_on(minor, claim);
        let paused = began.elapsed();
        if let Some(Err(error)) = kept.map(Committed::settle) {
            log::error!("the new table is served and kept, but a loss of power may bring the old one back: {error}");
        }
        for change in &changes {
            // One that has connected meanwhile may have asked for the size before it changed.
            change.tell(self.devices().get(change.minor).ok().and_then(Device::session));
        }
        if changes.iter().any(|change| change.minor == minor && !change.old.is_empty()) {
            self.devices().get(minor)?.events.raise();
        }
        Ok(paused)
    }

    /// Returns since when the queues have rested, and what is still to be done to keep the new table.
    fn exchange_now(
        &self,
        minor: u32,
        changes: &[Change],
        noflush: bool,
        claim: &Claim<'_>,
        caller: &dyn Caller,
    ) -> Verb<(Instant, Option<Committed<'_>>)> {
        let left: Vec<_> = match noflush {
            true => Vec::new(),
            false => changes.iter().flat_map(|change| durable::left(&change.old, &change.new)).collect(),
        };
        // What can be done before the guest has to wait. It is done again, so its failure is found then.
        let _ = durable::sync(left.clone(), caller);
        let tables: Tables = changes.iter().map(|change| (change.minor, change.table.clone())).collect();
        let state = self.prepare_to_keep(&tables)?;
        let began = Instant::now();
        self.rest(minor, claim, caller)?;
        durable::sync(left, caller)?;
        let socket = self.socket_if_new(minor)?;
        let held = hold_new(changes)?;
        // The targets of the tables above have what they remember, over other ranges.
        let new = changes.iter().find(|change| change.minor == minor);
        if let Some(change) = new
            && let Err(unwilling) = self.lives.activate(&change.new)
        {
            hold_old(held);
            return Err(unwilling.error(minor));
        }
        // What is served from now on is kept before a guest writes to it.
        let mut kept = match self.commit_state(state, &tables) {
            Ok(kept) => kept,
            Err(error) => {
                new.into_iter().for_each(|change| self.lives.retire(&change.new));
                hold_old(held);
                return Err(error);
            }
        };
        self.switch(minor, changes)?;
        new.into_iter().for_each(|change| self.lives.retire(&change.old));
        if let Some(kept) = &mut kept {
            kept.made();
        }
        self.serve_new(minor, socket);
        Ok((began, kept))
    }

    fn commit_state<'a>(&'a self, mut state: Option<Prepared<'a>>, tables: &Tables) -> Verb<Option<Committed<'a>>> {
        loop {
            match state.map(Prepared::commit) {
                None => return Ok(None),
                Some(Err(StateError::Outrun)) => state = self.prepare_to_keep(tables)?,
                Some(committed) => return committed.map(Some).map_err(|error| keep::unkept(&error)),
            }
        }
    }

    /// The device is no longer suspended.
    fn go_on(&self, minor: u32, claim: &Claim<'_>) {
        if let Ok(device) = self.devices().get_mut(minor) {
            device.suspended = None;
        }
        self.unrest(claim);
    }

    /// A failed resume leaves the device suspended, with the table that it had.
    fn fail(&self, minor: u32, error: DmError, claim: &Claim<'_>, caller: &dyn Caller) -> DmError {
        let dropped = self.devices().get_mut(minor).ok().and_then(|device| device.inactive.take());
        drop(dropped);
        if self.devices().get(minor).is_ok_and(|device| device.active.is_none()) {
            // Nothing to suspend.
            self.unrest(claim);
            return error;
        }
        match self.rest(minor, claim, caller) {
            Ok(()) => {
                if let Ok(device) = self.devices().get_mut(minor) {
                    device.suspended.get_or_insert_with(Instant::now);
                }
                // Devices above it stay blocked by that.
                self.unrest(claim);
                error
            }
            Err(_) => error,
        }
    }

    /// Builds what is exchanged: the device's table over the devices that it lies on as they are now, and the tables that lie
    /// on it, lower ones first.
    fn prepare(&self, minor: u32, table: &Arc<Table>, above: &[u32]) -> Verb<Vec<Change>> {
        table.still_fits(minor)?;
        let devices = self.devices();
        let mut tables = Tables::new();
        for &claimed in above {
            let old = match claimed == minor {
                true => Some(table),
                false => devices.get(claimed)?.active.as_ref(),
            };
            let Some(old) = old else { continue };
            let mut mapped = devices.mapped(claimed);
            for (lower, table) in &tables {
                if let Some(lying) = mapped.by_minor.get_mut(lower) {
                    lying.map = Some(table.map.clone());
                    lying.read_only = table.declared;
                }
            }
            let built = match old.lowers().is_empty() {
                true => old.clone(),
                false => Arc::new(
                    old.rebuild(&mapped, claimed != minor).map_err(|refused| table::refused(claimed, &refused))?,
                ),
            };
            tables.insert(claimed, built);
        }
        let change = |(minor, table): (&u32, &Arc<Table>)| {
            let device = devices.all.get(minor)?;
            Some(Change {
                minor: *minor,
                disk: device.disk.clone(),
                session: device.session(),
                table: table.clone(),
                old: device.disk.chain(),
                new: Arc::new(devices.chain(*minor, &tables)?),
            })
        };
        Ok(tables.iter().filter_map(change).collect())
    }

    /// The exchange itself. All queues rest.
    fn switch(&self, minor: u32, changes: &[Change]) -> Verb<()> {
        let mut devices = self.devices();
        let mut dropped = Vec::new();
        for change in changes {
            change.disk.exchange(change.new.clone());
            let device = devices.get_mut(change.minor)?;
            dropped.push(device.active.replace(change.table.clone()));
        }
        dropped.push(devices.get_mut(minor)?.inactive.take());
        // Files may be closed, which is nothing to hold a lock for.
        drop(devices);
        drop(dropped);
        Ok(())
    }

    /// A device that gets its first table gets its socket, where devices that are created have one.
    fn socket_if_new(&self, minor: u32) -> Verb<Option<Socket>> {
        let Some(dir) = &self.settings.socket_dir else { return Ok(None) };
        let devices = self.devices();
        let device = devices.get(minor)?;
        if device.serving.is_some() {
            return Ok(None);
        }
        Socket::at(serve::socket_path(dir, &device.name)).map(Some).map_err(|error| serve::unservable(&error))
    }
}

impl Mapper {
    /// Serves a device on its new socket, when it has something to serve.
    fn serve_new(&self, minor: u32, socket: Option<Socket>) {
        let mut devices = self.devices();
        let (Some(socket), Ok(device)) = (socket, devices.get_mut(minor)) else { return };
        log_start(&device.disk, &socket.shown);
        match self.serve(minor, &device.disk, socket) {
            Ok(serving) => device.serving = Some(serving),
            // No thread, or no descriptors: the next resume tries again.
            Err(error) => {
                log::error!("{}: it cannot be served, until it is resumed again: {error}", device.disk.name())
            }
        }
    }
}

impl Change {
    /// # Errors
    /// What a guest would not survive.
    fn is_bearable(&self, force: bool) -> Verb<()> {
        if self.session.is_none() || self.old.is_empty() {
            return Ok(());
        }
        let name = &self.old.name;
        let (now, then) = (self.old.len(), self.new.len());
        if then < now && !force {
            return Err(DmError::new(libc::EBUSY).detail(format!(
                "{name}: a front end is connected, and the new table has {then} sectors where the live one has {now}: \
                 requests beyond them would fail. --force resumes it all the same; `dmsetup clear` drops it"
            )));
        }
        let (now, then) = (self.old.map.limits().logical_block, self.new.map.limits().logical_block);
        if then > now {
            return Err(DmError::new(libc::EINVAL).detail(format!(
                "{name}: its front end was told of blocks of {now} bytes, and the new table has blocks of {then}: end the \
                 front end first"
            )));
        }
        Ok(())
    }

    /// What happens is said in the log, and to the front end where it can see it.
    fn tell(&self, session: Option<Arc<Session>>) {
        if self.old.len() != self.new.len()
            && let Some(session) = session
        {
            session.config_changed();
        }
        limited!(
            self.disk.limiters.control,
            info,
            "{}: {} sectors, {} on {} from now on",
            self.new.name,
            self.new.len(),
            check::count(self.new.map.segments(), "segment"),
            check::count(self.new.map.devices().len(), "component"),
        );
    }
}

/// What the disks of changes have taken for them.
type Held<'a> = Vec<(&'a Change, Exchanged)>;

/// Takes the components of the new chains, and leaves those of the old ones.
fn hold_new(changes: &[Change]) -> Verb<Held<'_>> {
    let mut held = Held::new();
    for change in changes {
        match change.disk.hold.exchange(&change.old, &change.new) {
            Ok(exchanged) => held.push((change, exchanged)),
            Err(error) => {
                hold_old(held);
                return Err(DmError::new(libc::EBUSY).detail(error.to_string()));
            }
        }
    }
    Ok(held)
}

/// The changes are not made: each disk holds what it held before.
fn hold_old(held: Held<'_>) {
    // Of several that took a component the first one locked it, and is the last to give it back.
    for (change, exchanged) in held.into_iter().rev() {
        if let Err(error) = change.disk.hold.undo(&change.old, exchanged) {
            log::error!("{}: {error}; no queue is served until its components can be locked again", change.old.name);
        }
    }
}

/// Tells the caller what a drain waits for.
struct Relay<'a> {
    caller: &'a dyn Caller,
    name: String,
}

impl Waits for Relay<'_> {
    fn gone(&self) -> bool {
        self.caller.gone()
    }

    fn tell(&self, under_way: &[(String, ops::UnderWay)]) {
        /// Most operations that are told of.
        const MOST: usize = 16;
        let what = format!("{}: waiting for {} operations under way", self.name, under_way.len());
        let sectors = |bytes: u64| bytes / dm_table::SECTOR_SIZE;
        let told = under_way.iter().take(MOST).map(|(component, op)| UnderWay {
            kind: op.action.to_string(),
            component: component.clone(),
            sector: sectors(op.at),
            sectors: sectors(op.left),
            for_ms: None,
        });
        self.caller.tell(&Waiting { what, under_way: told.collect() });
    }
}
