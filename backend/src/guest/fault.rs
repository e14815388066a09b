//! Memory that someone else can truncate, made harmless.
//!
//! Guest memory and memory-backed component files are shared: whoever has the file can cut it short, and the next touch
//! of what is gone raises SIGBUS. The handler here puts a page of zeroes in the hole and takes a note; the code that
//! touched the memory looks at the note afterwards and does not believe what it got.

use std::ffi::{c_int, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be guarded at once: 16 front ends with all memory slots that vhost-user has.
const SLOTS: usize = 8192;

struct Slot {
    // 0 when free.
    start: AtomicUsize,
    end: AtomicUsize,
    // What a hole is filled by: the page size of the mapping.
    page: AtomicUsize,
    hit: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        hit: AtomicBool::new(false),
    }
}; SLOTS];

/// A guarded range of memory. To be dropped before the range is unmapped.
#[derive(Debug)]
pub struct Guard(usize);

impl Guard {
    /// Guards `[start, start + len)`, mapped with pages of `page` bytes.
    ///
    /// # Errors
    /// All slots are taken.
    pub fn new(start: usize, len: usize, page: usize) -> std::io::Result<Guard> {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        for (index, slot) in TABLE.iter().enumerate() {
            if slot.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.hit.store(false, Ordering::Relaxed);
                slot.page.store(page, Ordering::Relaxed);
                // The handler believes a slot from here on.
                slot.end.store(start + len, Ordering::Release);
                return Ok(Guard(index));
            }
        }
        Err(std::io::Error::other(format!("more than {SLOTS} shared mappings")))
    }

    /// Whether memory of the range was found missing. What was read from it since then may be zeroes that are not there.
    #[inline]
    pub fn hit(&self) -> bool {
        TABLE[self.0].hit.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &TABLE[self.0];
        slot.end.store(0, Ordering::Release);
        slot.start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: the action is all zeroes but for a handler with the signature that SA_SIGINFO asks for; the handler does only
    // what a signal handler may do (atomics and system calls).
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if result != 0 {
        log::warn!("cannot handle SIGBUS: {}", std::io::Error::last_os_error());
    }
}

extern "C" fn on_sigbus(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and for SIGBUS it has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE {
        let (end, start) = (slot.end.load(Ordering::Acquire), slot.start.load(Ordering::Acquire));
        if start == 0 || address < start || address >= end {
            continue;
        }
        let page = slot.page.load(Ordering::Relaxed).max(1);
        let hole = start + (address - start) / page * page;
        slot.hit.store(true, Ordering::Relaxed);
        // SAFETY: the page lies in a mapping that its owner guards, which is only reached through raw pointers, and stays
        // mapped: other memory takes its place. mmap is a plain system call here.
        let filled = unsafe {
            libc::mmap(
                hole as *mut c_void,
                page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if filled != libc::MAP_FAILED {
            return;
        }
        break;
    }
    // Not ours: let the fault happen again with the default action, which ends the process and leaves a core.
    // SAFETY: resetting a signal's action is a plain system call.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}
