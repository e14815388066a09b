//! One connected front end.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::channel::Channel;
use super::config;
use super::control::{QueueControl, Shared, resume};
use super::vring::{Memory, Vring, with_queues};
use crate::disk::Disk;
use crate::guest::{DirtyLog, Guest, Inflight};
use crate::limited;
use crate::worker::Worker;
use crate::worker::pool::Pool;

/// What one front end has negotiated and set up. Ends with [`Session::end`].
pub struct Session {
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    queues: Vec<Arc<QueueControl>>,
    acked: AtomicU64,
    // The driver has chosen a cache mode in this session.
    chosen: AtomicBool,
    // The front end's dirty log, in use or not. Locked while what queues share is exchanged: messages come from two threads,
    // the protocol's and the relay's, and neither may resume what the other has paused.
    log: Mutex<Option<Arc<DirtyLog>>>,
    // The way to the front end, where it has given one.
    channel: Mutex<Option<Channel>>,
}

impl Session {
    /// A session with nothing negotiated yet.
    pub fn new(disk: Arc<Disk>, pool: Arc<Pool>) -> Arc<Session> {
        let shared = Arc::new(Shared {
            disk: disk.clone(),
            pool,
            guest: Mutex::new(None),
            inflight: Mutex::new(None),
            log: Mutex::new(None),
            write_through: Arc::new(AtomicBool::new(true)),
            closing: AtomicBool::new(false),
        });
        let queue = |i| Arc::new(QueueControl::new(usize::from(i), shared.clone()));
        Arc::new(Session {
            queues: (0..disk.offer.num_queues).map(queue).collect(),
            disk,
            shared,
            acked: AtomicU64::new(0),
            chosen: AtomicBool::new(false),
            log: Mutex::new(None),
            channel: Mutex::new(None),
        })
    }

    /// The way to the front end (SET_BACKEND_REQ_FD).
    pub fn set_channel(&self, channel: Channel) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    }

    /// The disk has another size: the front end is told, if there is a way.
    pub fn config_changed(&self) {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let limiter = &self.disk.limiters.control;
        match channel.as_ref().map(Channel::config_changed) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                *channel = None;
                limited!(limiter, warn, "{}: cannot tell the front end of the new size: {error}", self.disk.name());
            }
            None => limited!(
                limiter,
                warn,
                "{}: the front end cannot be told of the new size (it offers no VHOST_USER_PROTOCOL_F_BACKEND_REQ); its \
                 driver sees it when it starts anew",
                self.disk.name()
            ),
        }
    }

    /// The protocol's daemon for this session.
    ///
    /// # Errors
    /// The crate's, when it cannot make its vrings.
    pub fn daemon(self: &Arc<Session>) -> Result<VhostUserDaemon<Arc<Session>>, vhost_user_backend::Error> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let name = self.disk.name();
        with_queues(&self.queues, || VhostUserDaemon::new(name, self.clone(), memory))
    }

    /// Nothing is served any more: all queues have drained when this returns, and guest memory is let go.
    pub fn end(&self) {
        self.shared.closing.store(true, Ordering::Release);
        // All workers are told before one is waited for: each may have much memory to give back.
        let workers: Vec<_> = self.queues.iter().filter_map(|queue| queue.end()).filter_map(Arc::into_inner).collect();
        workers.iter().for_each(Worker::leave);
        drop(workers);
        *self.shared.guest.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.shared.inflight.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.shared.log.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Requests under way are recorded in `region` from now on (SET_INFLIGHT_FD). A queue that is being served drains and
    /// goes on with it; front ends bring a region with requests of a predecessor in it before they start a queue.
    pub fn set_inflight(&self, region: Option<Arc<Inflight>>) {
        let _exchanging = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in &self.queues {
            queue.pause();
        }
        if let Some(region) = &region {
            // A region of this guest's that comes from a predecessor knows what the driver has chosen there, if it has not
            // chosen here meanwhile.
            match region.choice().filter(|_| !self.chosen.load(Ordering::Relaxed)) {
                Some(write_through) => self.disk.chose_write_through.store(write_through, Ordering::Relaxed),
                None => region.note_choice(self.disk.chose_write_through.load(Ordering::Relaxed)),
            }
            self.choose_cache_mode();
        }
        *self.shared.inflight.lock().unwrap_or_else(PoisonError::into_inner) = region;
        resume(self.queues());
    }

    /// Another dirty log (SET_LOG_BASE): `size` bytes of `file` from byte `offset` on. It is used while LOG_ALL is
    /// negotiated. Nothing is marked in the one before it when this returns.
    ///
    /// # Errors
    /// What is wrong with the log; then things are as they were.
    pub fn set_log(&self, file: File, size: u64, offset: u64) -> io::Result<()> {
        let log = DirtyLog::map(file, size, offset).map_err(io::Error::other)?;
        let mut current = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = &*self.shared.guest.lock().unwrap_or_else(PoisonError::into_inner) {
            log.check_covers(guest).map_err(io::Error::other)?;
        }
        *current = Some(Arc::new(log));
        self.switch_log(&mut current);
        Ok(())
    }

    /// Marks what is written from now on, or no longer, as the front end has said by LOG_ALL and SET_LOG_BASE. Queues drain
    /// only if that makes a difference.
    fn switch_log(&self, current: &mut Option<Arc<DirtyLog>>) {
        let in_use = || self.shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        let logging = self.acked.load(Ordering::Relaxed) & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        let wanted = current.clone().filter(|_| logging);
        let before = in_use().clone();
        if wanted.as_ref().map(Arc::as_ptr) == before.as_ref().map(Arc::as_ptr) {
            return;
        }
        if wanted.is_none() {
            // The front end brings another one for its next migration.
            *current = None;
        }
        if wanted.is_some() != before.is_some() {
            let now = if wanted.is_some() { "begins" } else { "ends" };
            limited!(self.disk.limiters.control, info, "{}: the front end {now} to log dirty pages", self.disk.name());
        }
        // A queue that starts in between has the new one already.
        *in_use() = wanted;
        for queue in &self.queues {
            queue.pause();
        }
        resume(self.queues());
    }

    /// Its queues, for [`super::quiesce`].
    pub(super) fn queues(&self) -> impl Iterator<Item = &QueueControl> {
        self.queues.iter().map(Arc::as_ref)
    }

    /// Queues that are ready and rest go on, if the disk is not blocked.
    pub fn go_on(&self) {
        let _exchanging = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        resume(self.queues());
    }

    fn refused(&self, error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
        limited!(self.disk.limiters.control, error, "{}: {error}", self.disk.name());
        io::Error::other(error)
    }

    /// Largest ring that is offered, in entries.
    pub fn queue_size(&self) -> u16 {
        self.disk.offer.queue_size
    }

    /// virtio 1.2, 5.2.6.2: a write must be stable when it completes unless the driver can flush and has not chosen
    /// write-through.
    ///
    /// That choice outlives a reset and the session: QEMU keeps its own copy of the field and shows it to the next driver
    /// without asking or telling us, and a driver that believes in write-through never flushes.
    fn choose_cache_mode(&self) {
        let can_flush = self.acked(VIRTIO_BLK_F_FLUSH);
        let write_through = !can_flush || self.disk.chose_write_through.load(Ordering::Relaxed);
        self.shared.write_through.store(write_through, Ordering::Relaxed);
    }

    fn acked(&self, bit: u32) -> bool {
        self.acked.load(Ordering::Relaxed) & (1 << bit) != 0
    }

    /// The `writeback` field. 5.2.5.2: it starts as 0 where a driver takes CONFIG_WCE and cannot flush.
    fn writeback(&self) -> bool {
        let no_flush = self.acked(VIRTIO_BLK_F_CONFIG_WCE) && !self.acked(VIRTIO_BLK_F_FLUSH);
        !no_flush && !self.disk.chose_write_through.load(Ordering::Relaxed)
    }
}

impl VhostUserBackend for Session {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues.len()
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.disk.offer.queue_size)
    }

    fn features(&self) -> u64 {
        config::features(&self.disk.chain())
    }

    fn acked_features(&self, features: u64) {
        // Also sent while queues are served, when a migration begins or ends: the same features with or without LOG_ALL.
        self.acked.store(features, Ordering::Relaxed);
        self.choose_cache_mode();
        self.switch_log(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
            // The interposer's: the crate knows little of them.
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
    }

    fn reset_device(&self) {
        // The crate has disabled every vring by now, which drained them.
        self.acked.store(0, Ordering::Relaxed);
        self.choose_cache_mode();
        self.switch_log(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Each vring is told by itself.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = config::space(&self.disk.chain(), self.disk.offer, self.writeback());
        config::window(&space, offset, size)
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        // An error would drop the connection, and with it the guest's disk, for a write that a driver must not do.
        match (offset as usize, buf) {
            // QEMU says what was negotiated when the driver is ready; a driver may choose before that.
            (config::WRITEBACK, [value @ (0 | 1)])
                if self.acked(VIRTIO_BLK_F_CONFIG_WCE) || self.acked.load(Ordering::Relaxed) == 0 =>
            {
                let write_through = *value == 0;
                self.chosen.store(true, Ordering::Relaxed);
                if let Some(region) = &*self.shared.inflight.lock().unwrap_or_else(PoisonError::into_inner) {
                    region.note_choice(write_through);
                }
                if self.disk.chose_write_through.swap(write_through, Ordering::Relaxed) == write_through {
                    return Ok(());
                }
                self.choose_cache_mode();
                limited!(
                    self.disk.limiters.control,
                    info,
                    "{}: the driver chose {}",
                    self.disk.name(),
                    if write_through { "write-through" } else { "write-back" }
                );
            }
            _ => {
                limited!(
                    self.disk.limiters.control,
                    warn,
                    "{}: a write of {} bytes at offset {offset} of the configuration space is ignored",
                    self.disk.name(),
                    buf.len()
                );
            }
        }
        Ok(())
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let _exchanging = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing may touch the old regions when this returns: they are unmapped with their last user.
        for queue in &self.queues {
            queue.pause();
        }
        let guest = Guest::new(memory.memory().into_inner()).map_err(|error| self.refused(error))?;
        if let Some(log) = &*self.shared.log.lock().unwrap_or_else(PoisonError::into_inner) {
            log.check_covers(&guest).map_err(|error| self.refused(error))?;
        }
        *self.shared.guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(guest));
        // All of them: one that lost its ring with an earlier change may have it back now.
        resume(self.queues());
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // No thread of the crate's: our workers serve the rings.
        Vec::new()
    }

    fn handle_event(&self, _: u16, _: EventSet, _: &[Vring], _: usize) -> io::Result<()> {
        Err(io::Error::other("vhost-user-dm has no threads of the vhost-user-backend crate"))
    }
}
