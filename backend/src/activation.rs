//! Sockets that were open before this process started: `LISTEN_FDS` and its companions (sd_listen_fds(3)), as systemd's
//! .socket units and systemd-socket-activate pass them.
//!
//! The variables stay set: this process starts no other that could take them for its own, and the descriptors, which are
//! replaced by duplicates when they are taken over, are closed on exec.

use std::env::VarError;

/// Number of the first descriptor that is passed.
const FIRST: i32 = 3;

/// A socket that was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Its descriptor.
    pub fd: i32,
    /// Its name, empty where none is given: FileDescriptorName= of a .socket unit, by default the unit's name.
    pub name: String,
}

/// Variables that contradict themselves.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// No number of sockets.
    #[error("LISTEN_FDS={0}: expected how many sockets are passed, from 0 to 65535")]
    Number(String),
    /// Not as many names as sockets.
    #[error("LISTEN_FDNAMES={names} has {have} names, but LISTEN_FDS says that {expected} sockets are passed")]
    Names {
        /// The variable.
        names: String,
        /// Names in it.
        have: usize,
        /// Sockets.
        expected: usize,
    },
}

/// The sockets that were passed to this process, in order.
///
/// # Errors
/// See [`ActivationError`].
pub fn passed() -> Result<Vec<Passed>, ActivationError> {
    let get = |name: &str| match std::env::var(name) {
        Ok(value) => Some(value),
        Err(VarError::NotUnicode(value)) => Some(value.to_string_lossy().into_owned()),
        Err(VarError::NotPresent) => None,
    };
    parse(std::process::id(), get)
}

fn parse(own_pid: u32, get: impl Fn(&str) -> Option<String>) -> Result<Vec<Passed>, ActivationError> {
    // Variables that were meant for a parent say nothing about this process.
    if get("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(own_pid) {
        return Ok(Vec::new());
    }
    let Some(number) = get("LISTEN_FDS") else { return Ok(Vec::new()) };
    let expected: u16 = number.parse().map_err(|_| ActivationError::Number(number))?;
    let mut names: Vec<String> = match get("LISTEN_FDNAMES") {
        None => vec![String::new(); expected.into()],
        Some(_) if expected == 0 => Vec::new(),
        Some(names) => {
            let split: Vec<String> = names.split(':').map(str::to_owned).collect();
            if split.len() != usize::from(expected) {
                return Err(ActivationError::Names { names, have: split.len(), expected: expected.into() });
            }
            split
        }
    };
    Ok(names.drain(..).zip(FIRST..).map(|(name, fd)| Passed { fd, name }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pid: &str, fds: Option<&str>, names: Option<&str>) -> Result<Vec<Passed>, ActivationError> {
        parse(7, |name| match name {
            "LISTEN_PID" => Some(pid.to_owned()),
            "LISTEN_FDS" => fds.map(str::to_owned),
            "LISTEN_FDNAMES" => names.map(str::to_owned),
            _ => None,
        })
    }

    #[test]
    fn what_was_passed_is_listed_with_its_names() {
        let socket = |fd, name: &str| Passed { fd, name: name.into() };
        assert_eq!(parsed("7", Some("2"), Some("a:b")).unwrap(), [socket(3, "a"), socket(4, "b")]);
        assert_eq!(parsed("7", Some("2"), Some(":b")).unwrap(), [socket(3, ""), socket(4, "b")]);
        assert_eq!(parsed("7", Some("1"), None).unwrap(), [socket(3, "")]);
        assert!(parsed("7", Some("0"), Some("")).unwrap().is_empty());
        assert!(parsed("7", None, Some("a")).unwrap().is_empty());
    }

    #[test]
    fn what_was_passed_to_another_process_is_not_ours() {
        for pid in ["8", "", "x", "-7", "77777777777777777777"] {
            assert!(parsed(pid, Some("nonsense"), Some("a:b")).unwrap().is_empty(), "{pid}");
        }
    }

    #[test]
    fn contradictions_are_errors() {
        for number in ["", "x", "-1", "65536", "1.0"] {
            assert!(matches!(parsed("7", Some(number), None), Err(ActivationError::Number(_))), "{number}");
        }
        for (number, names) in [("1", "a:b"), ("2", "a"), ("2", ""), ("2", "a:b:")] {
            assert!(matches!(parsed("7", Some(number), Some(names)), Err(ActivationError::Names { .. })), "{names}");
        }
    }
}
