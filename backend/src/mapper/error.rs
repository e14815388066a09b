//! Why a verb fails.

use std::fmt;

/// A refusal, as the kernel gives it by errno and log line, and what is to be said beyond that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmError {
    /// The errno.
    pub errno: i32,
    /// What the kernel's log would say, without its prefix `device-mapper: `.
    pub kernel: Vec<String>,
    /// More, for people: where in the table, why, what would work.
    pub detail: Option<String>,
}

impl DmError {
    /// An errno alone.
    pub fn new(errno: i32) -> DmError {
        DmError { errno, kernel: Vec::new(), detail: None }
    }

    /// With what the kernel's log would say.
    #[must_use]
    pub fn kernel(mut self, line: impl Into<String>) -> DmError {
        self.kernel.push(line.into());
        self
    }

    /// With more for people.
    #[must_use]
    pub fn detail(mut self, text: impl Into<String>) -> DmError {
        self.detail = Some(text.into());
        self
    }

    /// What strerror(3) says of the errno.
    pub fn strerror(&self) -> String {
        nix::errno::Errno::from_raw(self.errno).desc().to_owned()
    }

    /// The errno that has this symbol.
    pub(super) fn number(symbol: &str) -> Option<i32> {
        (1..=133).find(|errno| DmError::new(*errno).symbol() == symbol)
    }

    /// The errno's symbol.
    pub fn symbol(&self) -> String {
        format!("{:?}", nix::errno::Errno::from_raw(self.errno))
    }
}

impl fmt::Display for DmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.strerror())?;
        for line in &self.kernel {
            write!(f, "; {line}")?;
        }
        match &self.detail {
            Some(detail) => write!(f, "\n{detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DmError {}
