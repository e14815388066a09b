//! Whose an overlay is. What is in one counts only while it is locked: until then another process may be writing it, making it
//! or removing it.
//!
//! Who finds none makes a file of the size that it needs and nothing in it, and all that find it then are equal: one of them
//! gets the locks. Only who has these writes to it, and only who has them and made it removes it when it cannot be served. Who
//! gets them sees first whether the path still leads to what it has locked, as it may have been removed in between.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::OverlayError;
use super::kept::{self, Kept};
use crate::device::{Component, OpenError};

/// Attempts to lock what another process makes or removes at the same moment, and time between two.
const TRIES: usize = 100;
const NAP: Duration = Duration::from_millis(5);
/// How often one gives way to others that find the same new overlay.
const MOST_YIELDS: u32 = 20;

/// An overlay that nobody else has.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    made: bool,
    // Locks and claim are on it.
    component: Arc<Component>,
}

impl Held {
    /// Takes what is there, or makes one of so many bytes. `open` locks it.
    ///
    /// # Errors
    /// It is not there, is no overlay, or somebody else has it.
    pub fn take(
        path: &Path,
        make: Option<u64>,
        mut open: impl FnMut(&str) -> Result<Arc<Component>, OpenError>,
    ) -> Result<(Held, Kept), OverlayError> {
        let wrong = |what| move |source| OverlayError::System { path: path.to_owned(), what, source };
        let absolute = std::path::absolute(path).map_err(wrong("no path"))?;
        let text = absolute.to_str().ok_or_else(|| OverlayError::NotOne {
            path: path.to_owned(),
            why: "is no UTF-8, and a table cannot name it",
        })?;
        let (mut made, mut yielded) = (false, 0);
        let mut last = io::Error::other("other processes make and remove it all the time");
        for _ in 0..TRIES {
            match make.map(|size| kept::make(&absolute, size)).transpose() {
                Ok(now) => made |= now.unwrap_or(false),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::AlreadyExists) => {
                    last = error;
                    std::thread::sleep(NAP);
                    continue;
                }
                Err(error) => return Err(wrong("cannot be made with the size that it needs")(error)),
            }
            // What it is not is said in words of its own.
            let looked = match Kept::open(&absolute, false) {
                Err(OverlayError::System { source, .. })
                    if make.is_some() && source.kind() == io::ErrorKind::NotFound =>
                {
                    made = false;
                    continue;
                }
                looked => looked?,
            };
            let component = match open(text) {
                Err(OpenError::NotFound { .. }) if make.is_some() => {
                    made = false;
                    continue;
                }
                // Of several that find it new all may have given way to one another. One that is served is not so for long.
                Err(OpenError::Locked { .. }) if make.is_some() && looked.is_empty() && yielded < MOST_YIELDS => {
                    yielded += 1;
                    std::thread::sleep(NAP * (1 + std::process::id() % 8));
                    continue;
                }
                opened => opened.map_err(OverlayError::Open)?,
            };
            if !kept::leads_to(&absolute, component.identity) {
                made = false;
                continue;
            }
            let kept = Kept::open(&absolute, true)?;
            let held = Held { path: absolute.clone(), made, component };
            if kept.identity().map_err(wrong("cannot be looked at"))? == held.component.identity {
                return Ok((held, kept));
            }
        }
        Err(wrong("cannot be taken")(last))
    }

    /// Nobody is to remove it any more.
    pub fn keep(&mut self) {
        self.made = false;
    }

    /// It was made by this process.
    pub fn is_made(&self) -> bool {
        self.made
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.made || !kept::leads_to(&self.path, self.component.identity) {
            return;
        }
        // A guest may have come and gone while its process failed for another reason.
        let unused = Kept::open(&self.path, false).is_ok_and(|kept| kept.each(&mut |_| ()).is_ok_and(|used| used == 0));
        if unused {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
