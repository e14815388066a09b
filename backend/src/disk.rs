//! A disk to be served.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dm_table::{DevRef, Device, Sectors, Span, TableFile};

use crate::chain::Chain;
use crate::frontend::config::Offer;
use crate::hold::Hold;
use crate::limit::Limiters;
use crate::request::ID_LEN;
use crate::stats;

/// One disk: what a socket serves. It stays when its table is exchanged.
pub struct Disk {
    // What is served now.
    chain: Mutex<Arc<Chain>>,
    // No queue may start: its device is suspended, or one that it lies on.
    blocked: AtomicBool,
    /// Whether the components are ours to write.
    pub hold: Hold,
    /// Answer to GET_ID, filled up with zeroes.
    pub serial: [u8; ID_LEN],
    /// Queues and ring size.
    pub offer: Offer,
    /// The driver asked for write-through (CONFIG_WCE). Outlives sessions: see `frontend::Session`.
    pub chose_write_through: AtomicBool,
    /// How much is said of it in the log.
    pub limiters: Arc<Limiters>,
    /// What it has done.
    pub stats: stats::Disk,
}

impl Disk {
    /// A disk that serves `chain`.
    pub fn new(chain: Chain, serial: &str, offer: Offer, incoming: bool) -> Disk {
        let mut bytes = [0; ID_LEN];
        for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Disk {
            limiters: chain.limiters.clone(),
            chain: Mutex::new(Arc::new(chain)),
            blocked: AtomicBool::new(false),
            hold: Hold::new(incoming),
            serial: bytes,
            offer,
            chose_write_through: AtomicBool::new(false),
            stats: stats::Disk::new(),
        }
    }

    /// What is served now.
    pub fn chain(&self) -> Arc<Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves something else from now on. Queues that are being served keep what they have: they must rest.
    pub fn exchange(&self, chain: Arc<Chain>) {
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
    }

    /// Its name, for the log.
    pub fn name(&self) -> String {
        self.chain().name.clone()
    }

    /// Whether no queue may start.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    /// No queue starts any more, or queues may start again. Those that run, or rest, are not touched.
    pub fn block(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Release);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.hold.end(&self.chain());
    }
}

/// The table of one plain file or partition, as `--blk-file` serves it.
pub fn whole(path: &str, size: Sectors) -> TableFile {
    use dm_table::{Line, Linear, Source, Table, Target};
    let span = Span { start: 0, end: path.len() };
    let dev = DevRef { text: path.to_owned(), span };
    let target = Target::Linear(Linear { dev, start: Sectors::ZERO, start_span: span });
    let line =
        Line { start: Sectors::ZERO, len: size, target, span, start_span: span, len_span: span, type_span: span };
    let table = Arc::new(Table { lines: vec![line] });
    TableFile {
        source: Arc::new(Source::new("--blk-file", path)),
        devices: vec![Device { name: None, name_span: span, uuid: None, minor: None, read_only: false, table }],
    }
}
