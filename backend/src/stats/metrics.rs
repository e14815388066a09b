//! A file of OpenMetrics text that is kept up to date, for node_exporter's textfile collector or whoever reads files.
//!
//! A file rather than a socket that answers HTTP: what scrapes a machine has a way to collect files, needs no access to
//! this process, and gets the last numbers even while this process is being replaced. Each text is written beside the file
//! and renamed, so that nobody reads half of one.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::openmetrics;
use crate::control::schema::StatsQuery;
use crate::mapper::Mapper;

/// Why metrics cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("--metrics-path={}: {what} failed: {error}", path.display())]
pub struct MetricsError {
    path: PathBuf,
    what: String,
    error: io::Error,
}

/// Writes the file again and again; dropped, it ends and removes the file, whose numbers are then nobody's.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Writes the file, and then every `interval` in a thread of its own.
    ///
    /// # Errors
    /// The file cannot be written, or there is no thread. What goes wrong later is logged.
    pub fn start(mapper: Arc<Mapper>, path: &Path, interval: Duration) -> Result<Writer, MetricsError> {
        let new = beside(path)?;
        write(&mapper, path, &new)?;
        let (end, ended) = channel::<()>();
        let its_path = path.to_owned();
        let work = move || {
            let mut failing = false;
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                match write(&mapper, &its_path, &new) {
                    Ok(()) => failing = false,
                    Err(error) if !std::mem::replace(&mut failing, true) => {
                        log::error!("{error}; it is tried again every {interval:?}");
                    }
                    Err(_) => {}
                }
            }
        };
        let failed = |error| MetricsError { path: path.to_owned(), what: "starting a thread".to_owned(), error };
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(work).map_err(failed)?;
        Ok(Writer { path: path.to_owned(), end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where the next text is written. Collectors that look for `*.prom` do not see it.
fn beside(path: &Path) -> Result<PathBuf, MetricsError> {
    let Some(name) = path.file_name() else {
        let error = io::Error::from(io::ErrorKind::IsADirectory);
        return Err(MetricsError { path: path.to_owned(), what: "finding its name".to_owned(), error });
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(path.with_file_name(hidden))
}

fn write(mapper: &Mapper, path: &Path, new: &Path) -> Result<(), MetricsError> {
    let failed = |what: String| move |error| MetricsError { path: path.to_owned(), what, error };
    let snapshots = mapper.stats(&StatsQuery::default()).unwrap_or_default();
    let text = openmetrics(&snapshots);
    // What a predecessor has left goes first: in a directory of several users it may be a link to somewhere else.
    let _ = std::fs::remove_file(new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(new)
        .map_err(failed(format!("creating {}", new.display())))?;
    file.write_all(text.as_bytes()).map_err(failed(format!("writing {}", new.display())))?;
    std::fs::rename(new, path).map_err(failed(format!("renaming {} to it", new.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::schema::Create;
    use crate::device::Registry;
    use crate::mapper::Settings;
    use crate::worker::pool::{Pool, WorkerSettings};

    fn mapper() -> Arc<Mapper> {
        let pool = Pool::new(0, WorkerSettings::default());
        Mapper::new(Settings::default(), Registry::new(), Arc::new(pool), None)
    }

    #[test]
    fn the_file_is_there_at_once_follows_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disks.prom");
        std::fs::write(dir.path().join(".disks.prom.new"), "left").unwrap();
        let mapper = mapper();
        let writer = Writer::start(mapper.clone(), &path, Duration::from_millis(1)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("# EOF\n") && !text.contains("disk-1"));
        mapper.create(&Create { name: "disk-1".into(), ..Create::default() }).unwrap();
        // Each look sees a whole text.
        while !std::fs::read_to_string(&path)
            .map(|text| {
                assert!(text.ends_with("# EOF\n"), "{text}");
                text.contains("device=\"disk-1\"")
            })
            .unwrap()
        {}
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let start =
            |path: &Path| Writer::start(mapper(), path, Duration::from_secs(1)).expect_err("no file").to_string();
        let missing = start(&dir.path().join("missing/disks.prom"));
        assert!(missing.contains("missing/.disks.prom.new") && missing.contains("No such file"), "{missing}");
        assert!(start(dir.path()).contains("renaming"));
        assert!(start(Path::new("/")).contains("finding its name"));
    }
}
