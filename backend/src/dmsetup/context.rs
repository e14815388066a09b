//! What a verb works with: the options, the process, and where to write.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::console::{Console, Done, Failed};
use super::name::Mangling;
use super::options::Options;
use super::report::Report;
use super::tree::Graph;
use crate::control::VARIABLE;
use crate::control::client::{Client, ClientError};
use crate::control::schema::{Info, Waiting, Which};
use crate::mapper::{DmError, MAJOR};

pub(super) struct Context<'a> {
    pub options: Options,
    pub console: &'a mut Console,
    pub mangling: Mangling,
    /// The verb's name.
    pub verb: &'static str,
    /// Each device's name goes in front of what is said of it.
    pub multiple: bool,
    /// Something has been printed in the concise form.
    pub concise: bool,
    pub report: Option<Report>,
    /// All devices and what they lie on, once that has been asked for.
    pub graph: Option<Graph>,
    client: Option<Client>,
}

/// A device, for the process and for people.
pub(super) struct Device {
    pub which: Which,
    /// As libdm writes it in the message of a failure.
    pub shown: String,
}

impl Device {
    pub fn named(name: &str) -> Device {
        let which = Which { name: Some(name.to_owned()), ..Which::default() };
        Device { which, shown: format!("{name} ") }
    }
}

impl Context<'_> {
    pub fn new(options: Options, console: &mut Console) -> Result<Context<'_>, String> {
        let mode = std::env::var("DM_DEFAULT_NAME_MANGLING_MODE").ok();
        let mangling = Mangling::from(&options, mode.as_deref())?;
        let (multiple, concise, report, graph, client) = (false, false, None, None, None);
        Ok(Context { options, console, mangling, verb: "", multiple, concise, report, graph, client })
    }

    /// What is printed when all devices have had their turn.
    pub fn finish_output(&mut self) {
        if std::mem::take(&mut self.concise) {
            self.console.print("\n");
        }
        if let Some(report) = self.report.take() {
            self.console.print(&report.print());
        }
        self.console.flush();
    }

    fn client(&mut self) -> Result<&mut Client, ClientError> {
        if self.client.is_none() {
            let given = self.options.value("control-path").map(PathBuf::from);
            let path = given.or_else(|| std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from));
            let path = path.ok_or(ClientError::Nowhere)?;
            self.client = Some(Client::connect(&path)?);
        }
        self.client.as_mut().ok_or(ClientError::Nowhere)
    }

    /// Calls a method. What it waits for goes to standard error.
    pub fn call<T: DeserializeOwned>(&mut self, method: &str, params: &impl Serialize) -> Result<T, ClientError> {
        self.client()?;
        let Context { client: Some(client), console, .. } = self else { return Err(ClientError::Nowhere) };
        let mut last = None;
        client.call_patiently(method, params, &mut |waiting| {
            let mut now = waiting.clone();
            now.under_way.iter_mut().for_each(|operation| operation.for_ms = None);
            if last.as_ref() != Some(&now) {
                console.complain(&waiting_text(waiting));
                last = Some(now);
            }
        })
    }

    /// A method whose failure is told as libdm tells an ioctl's.
    pub fn ioctl<T: DeserializeOwned>(&mut self, ioctl: &str, device: &Device, params: &impl Serialize) -> Done<T> {
        let method = match ioctl {
            "reload" => "load",
            other => other,
        };
        self.call(method, params).map_err(|error| self.failed(ioctl, &device.shown, error))
    }

    /// Says why an ioctl failed.
    pub fn failed(&mut self, ioctl: &str, shown: &str, error: ClientError) -> Failed {
        match error {
            ClientError::Refused(error) => self.console.complain(&refusal(ioctl, shown, &error)),
            other => self.console.complain(&format!("vhost-user-dm: {other}")),
        }
        Failed
    }

    /// The device that `word` names, or else the options.
    pub fn device(&mut self, word: Option<&String>) -> Done<Device> {
        if let Some(word) = word {
            return self.named(word);
        }
        if let Some(uuid) = self.options.value("uuid") {
            let uuid = self.mangling.uuid(uuid);
            let uuid = uuid.or_else(|why| self.console.fail(&why))?;
            let shown = format!(" {uuid} ");
            return Ok(Device { which: Which { uuid: Some(uuid), ..Which::default() }, shown });
        }
        if let (Some(major), Some(minor)) = (self.options.number("major"), self.options.number("minor")) {
            let shown = format!(" ({major}:{minor})");
            let minor = u32::try_from(minor).ok().filter(|_| major == i64::from(MAJOR));
            let Some(minor) = minor else {
                let refused =
                    DmError::new(libc::ENXIO).detail(format!("devices of the process have major number {MAJOR}"));
                return Err(self.failed(self.verb, &shown, refused.into()));
            };
            return Ok(Device { which: Which { minor: Some(minor), ..Which::default() }, shown });
        }
        self.console.fail("No device specified.")
    }

    fn named(&mut self, word: &str) -> Done<Device> {
        let name = match word.strip_prefix("/dev/mapper/") {
            Some(name) => name,
            None if word.contains('/') => return self.at_path(word),
            None => word,
        };
        match self.mangling.name(name) {
            Ok(name) => Ok(Device::named(&name)),
            Err(why) => self.console.fail(&why),
        }
    }

    /// The device that is served on a path.
    fn at_path(&mut self, path: &str) -> Done<Device> {
        let real = |path: &str| std::fs::canonicalize(path).ok();
        let sought = real(path);
        let served = |info: &Info| {
            info.socket.as_deref().is_some_and(|socket| socket == path || (sought.is_some() && real(socket) == sought))
        };
        match self.devices()?.into_iter().find(served) {
            Some(info) => Ok(Device::named(&info.name)),
            None => self.console.fail(&format!("Device {path} not found")),
        }
    }

    /// All devices, in the kernel's order: by name.
    pub fn devices(&mut self) -> Done<Vec<Info>> {
        let mut devices: Vec<Info> =
            self.call("list", &serde_json::json!({})).map_err(|error| self.failed("list", " ", error))?;
        devices.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(devices)
    }

    /// A name as it is to be shown.
    pub fn shown(&self, name: &str) -> String {
        self.mangling.show(name)
    }
}

/// As libdm writes it, with what the kernel's log would have, which here has no other place.
fn refusal(ioctl: &str, shown: &str, error: &DmError) -> String {
    let mut text = format!("device-mapper: {ioctl} ioctl on {shown} failed: {}", error.strerror());
    for line in &error.kernel {
        // Writing to a String cannot fail.
        let _ = write!(text, "\ndevice-mapper: {line}");
    }
    if let Some(detail) = &error.detail {
        let _ = write!(text, "\n{}", detail.trim_end());
    }
    text
}

fn waiting_text(waiting: &Waiting) -> String {
    let mut text = format!("waiting for {}; Ctrl-C takes it back", waiting.what);
    for operation in &waiting.under_way {
        let _ = write!(
            text,
            "\n  {} of {} sectors at sector {} of {}",
            operation.kind, operation.sectors, operation.sector, operation.component
        );
        if let Some(ms) = operation.for_ms {
            let _ = write!(text, ", for {}.{} s", ms / 1000, ms % 1000 / 100);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::schema::UnderWay;

    /// Transcript 4.
    #[test]
    fn failures_are_told_in_libdms_words() {
        let error = DmError::new(libc::EBUSY).kernel("ioctl: Unable to change name").detail("why\n");
        assert_eq!(
            refusal("rename", &Device::named("a2").shown, &error),
            "device-mapper: rename ioctl on a2  failed: Device or resource busy\ndevice-mapper: ioctl: Unable to change name\nwhy"
        );
    }

    #[test]
    fn what_is_waited_for_is_said() {
        let read =
            UnderWay { kind: "read".into(), component: "vda".into(), sector: 8, sectors: 16, for_ms: Some(1234) };
        let waiting = Waiting { what: "1 request".into(), under_way: vec![read] };
        let text = "waiting for 1 request; Ctrl-C takes it back\n  read of 16 sectors at sector 8 of vda, for 1.2 s";
        assert_eq!(waiting_text(&waiting), text);
    }
}
