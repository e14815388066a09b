//! Verbs that change devices.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use dm_table::{Format, Source};

use super::concise::{self, Entry};
use super::console::Done;
use super::context::{Context, Device};
use super::name::Mangling;
use super::options::atoi;
use super::show;
use crate::control::client::ClientError;
use crate::control::schema::{
    Create, Info, Line, Load, Loaded, Message, Query, Remove, Removed, Rename, Reply, Resume, Resumed, Suspend, Wait,
    Which,
};
use crate::mapper::MAJOR;

/// Attempts of `remove --retry`, and the time between them: libdm's.
const RETRIES: usize = 25;
const BETWEEN: Duration = Duration::from_millis(200);

/// A table's text, and what it is called in messages.
#[derive(Default)]
struct Text {
    text: String,
    source: String,
    empty: bool,
}

pub(super) fn create(context: &mut Context<'_>, words: &[String]) -> Done {
    if context.options.has("concise") {
        return create_concise(context, words);
    }
    let Some((name, rest)) = words.split_first() else {
        return context.console.fail("Please provide a name for the new device.");
    };
    let entry = Entry {
        name: name.clone(),
        uuid: context.options.value("uuid").map(str::to_owned),
        minor: context.options.number("minor"),
        read_only: context.options.has("readonly"),
        table: None,
    };
    create_one(context, &entry, rest.first())
}

fn create_concise(context: &mut Context<'_>, words: &[String]) -> Done {
    if words.len() > 1 {
        return context.console.fail("dmsetup create --concise takes at most one argument");
    }
    if ["table", "minor", "uuid", "notable", "inactive"].iter().any(|option| context.options.has(option)) {
        let text = "--concise is incompatible with --[no]table, --minor, --uuid and --inactive.";
        return context.console.fail(text);
    }
    let text = match words.first() {
        Some(text) => text.clone(),
        None => read_stdin(context)?,
    };
    for entry in concise::entries(&text) {
        match entry {
            Ok(entry) => create_one(context, &entry, None)?,
            Err(why) => return context.console.fail(&why),
        }
    }
    Ok(())
}

/// Creates a device, loads its table and resumes it, or leaves nothing of it.
fn create_one(context: &mut Context<'_>, entry: &Entry, file: Option<&String>) -> Done {
    // Read before anything is done, as dmsetup does.
    let name = context.mangling.name(&entry.name).or_else(|why| context.console.fail(&why))?;
    let uuid =
        entry.uuid.as_deref().filter(|uuid| !uuid.is_empty()).map(|uuid| context.mangling.uuid(uuid)).transpose();
    let uuid = uuid.or_else(|why| context.console.fail(&why))?;
    let table = match (&entry.table, context.options.has("notable")) {
        (_, true) => Text { empty: true, ..Text::default() },
        (Some(table), _) => scan(context, table.clone(), String::new())?,
        (None, _) => table_text(context, file)?,
    };
    let shown = format!("{name} {}", uuid.as_deref().unwrap_or_default());
    let number = entry.minor.map(|minor| format!("({MAJOR}:{minor})")).unwrap_or_default();
    let Some(minor) = entry.minor.map(u32::try_from).transpose().ok() else {
        return context.console.fail(&format!("A minor number is at least 0, not {}.", entry.minor.unwrap_or(0)));
    };
    let create = Create { name: name.clone(), uuid, minor };
    let device = Device { shown: format!("{shown}{number}"), ..Device::named(&name) };
    let info: Info = context.ioctl("create", &device, &create)?;
    if !table.empty {
        let made = Device { shown: format!("{name} ({}:{})", info.major, info.minor), ..Device::named(&name) };
        let done = load_text(context, &made, &table, entry.read_only).and_then(|()| resume_one(context, &made, false));
        if done.is_err() {
            let remove = Remove { which: made.which, ..Remove::default() };
            let _: Result<Removed, ClientError> = context.call("remove", &remove);
            return done;
        }
    }
    show::verbosely(context, &Device::named(&name))
}

pub(super) fn load(context: &mut Context<'_>, words: &[String]) -> Done {
    if context.options.has("notable") {
        return context.console.fail("--notable only available when creating new device.");
    }
    let (name, rest) = match context.options.selects_device() {
        true if words.len() > 1 => return context.console.fail("Too many command line arguments."),
        true => (None, words),
        false if words.is_empty() => return context.console.fail("Please specify device."),
        false => (words.first(), &words[1..]),
    };
    let device = context.device(name)?;
    let table = table_text(context, rest.first())?;
    let read_only = context.options.has("readonly");
    load_text(context, &device, &table, read_only)?;
    show::verbosely(context, &device)
}

fn load_text(context: &mut Context<'_>, device: &Device, table: &Text, read_only: bool) -> Done {
    let directory = std::env::current_dir().ok().and_then(|directory| directory.into_os_string().into_string().ok());
    let source = if table.source.is_empty() { "--table" } else { table.source.as_str() };
    let load = Load {
        which: device.which.clone(),
        table: table.text.clone(),
        source: Some(source.to_owned()),
        directory,
        read_only,
        force: context.options.has("force"),
    };
    let loaded: Loaded = context.ioctl("reload", device, &load)?;
    loaded.warnings.iter().for_each(|warning| context.console.complain(warning));
    Ok(())
}

/// The table that `--table`, a file or standard input gives.
fn table_text(context: &mut Context<'_>, file: Option<&String>) -> Done<Text> {
    if let Some(table) = context.options.value("table") {
        let table = table.to_owned();
        return scan(context, table, String::new());
    }
    match file {
        Some(file) => match std::fs::read(file).map(String::from_utf8) {
            Ok(Ok(text)) => scan(context, text, file.clone()),
            Ok(Err(_)) => context.console.fail(&format!("Invalid format on line 1 of table {file}: it is not text.")),
            Err(error) => context.console.fail(&format!("Couldn't open '{file}' for reading.\n{error}")),
        },
        None => {
            let text = read_stdin(context)?;
            scan(context, text, "<stdin>".to_owned())
        }
    }
}

fn read_stdin(context: &mut Context<'_>) -> Done<String> {
    let mut text = String::new();
    match std::io::stdin().read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => context.console.fail(&format!("Read from stdin aborted: {error}")),
    }
}

/// Refuses what dmsetup cannot read itself; all else is for the process to judge.
fn scan(context: &mut Context<'_>, text: String, source: String) -> Done<Text> {
    match dm_table::parse(Arc::new(Source::new(source.clone(), text.clone())), Format::Plain) {
        Ok(file) => {
            let empty = file.devices.iter().all(|device| device.table.is_empty());
            Ok(Text { text, source, empty })
        }
        Err(refused) => {
            let reason = refused.reason();
            let of_dmsetup = ["Invalid format on", "Target type name"].iter().any(|start| reason.starts_with(start));
            if !of_dmsetup {
                return Ok(Text { text, source, empty: false });
            }
            // dmsetup has no name for a table that stands on the command line.
            let named = if source.is_empty() { "--table" } else { source.as_str() };
            let picture = dm_table::parse(Arc::new(Source::new(named, text)), Format::Plain);
            let picture = picture.err().map(|refused| refused.to_string()).unwrap_or_default();
            // Its first line is the reason once more.
            let place = picture.split_once('\n').map_or("", |(_, place)| place);
            context.console.fail(&format!("{reason}\n{place}"))
        }
    }
}

pub(super) fn remove(context: &mut Context<'_>, words: &[String]) -> Done {
    let device = context.device(words.first())?;
    let (deferred, force) = (context.options.has("deferred"), context.options.has("force"));
    let remove = Remove { which: device.which.clone(), deferred, force };
    let mut left = if context.options.has("retry") { RETRIES } else { 0 };
    loop {
        match context.call::<Removed>("remove", &remove) {
            Ok(_) => return Ok(()),
            Err(ClientError::Refused(error)) if error.errno == libc::EBUSY && left > 0 => {
                left -= 1;
                std::thread::sleep(BETWEEN);
            }
            Err(error) => return Err(context.failed("remove", &device.shown, error)),
        }
    }
}

/// All that are not in use; with `--force` the others become `error` and go with their users.
pub(super) fn remove_all(context: &mut Context<'_>, _: &[String]) -> Done {
    let deferred = context.options.has("deferred");
    remove_those_that_can(context, deferred, false)?;
    if !context.options.has("force") || context.devices()?.is_empty() {
        return Ok(());
    }
    remove_those_that_can(context, deferred, true)?;
    let left = context.devices()?.len();
    if left > 0 {
        context.console.complain(&format!("Unable to remove {left} device(s)."));
    }
    Ok(())
}

/// Removing one may let go of another.
fn remove_those_that_can(context: &mut Context<'_>, deferred: bool, force: bool) -> Done {
    let mut before = usize::MAX;
    loop {
        let devices = context.devices()?;
        if devices.is_empty() || devices.len() >= before {
            return Ok(());
        }
        before = devices.len();
        for info in devices {
            let which = Device::named(&info.name).which;
            match context.call::<Removed>("remove", &Remove { which, deferred, force }) {
                Ok(_) | Err(ClientError::Refused(_)) => {}
                Err(error) => return Err(context.failed("remove_all", " ", error)),
            }
        }
    }
}

pub(super) fn suspend(context: &mut Context<'_>, words: &[String]) -> Done {
    let device = context.device(words.first())?;
    let suspend = Suspend { which: device.which.clone(), noflush: context.options.has("noflush") };
    let _: Info = context.ioctl("suspend", &device, &suspend)?;
    show::verbosely(context, &device)
}

pub(super) fn resume(context: &mut Context<'_>, words: &[String]) -> Done {
    let device = context.device(words.first())?;
    let noflush = context.options.has("noflush");
    resume_one(context, &device, noflush)?;
    show::verbosely(context, &device)
}

fn resume_one(context: &mut Context<'_>, device: &Device, noflush: bool) -> Done {
    let which = device.which.clone();
    let resume = Resume { which, noflush, force: context.options.has("force") };
    let resumed: Resumed = context.ioctl("resume", device, &resume)?;
    if let Some(us) = resumed.paused_us.filter(|_| context.options.has("verbose")) {
        context.console.complain(&format!("{}: paused for {us} us", context.shown(&resumed.info.name)));
    }
    Ok(())
}

pub(super) fn clear(context: &mut Context<'_>, words: &[String]) -> Done {
    let device = context.device(words.first())?;
    let _: Info = context.ioctl("clear", &device, &device.which)?;
    show::verbosely(context, &device)
}

/// A table of one `error` line instead of the device's.
pub(super) fn wipe_table(context: &mut Context<'_>, words: &[String]) -> Done {
    let device = context.device(words.first())?;
    let query = Query { which: device.which.clone(), inactive: context.options.has("inactive") };
    let lines: Vec<Line> = context.ioctl("table", &device, &query)?;
    let sectors = lines.last().map_or(0, |line| line.start.saturating_add(line.len));
    let table = Text { text: format!("0 {sectors} error\n"), source: "wipe_table".into(), empty: false };
    let read_only = context.options.has("readonly");
    load_text(context, &device, &table, read_only)?;
    let noflush = context.options.has("force") || context.options.has("noflush");
    let resumed = resume_one(context, &device, noflush);
    if resumed.is_err() {
        let _: Result<Info, ClientError> = context.call("clear", &device.which);
    }
    resumed
}

pub(super) fn rename(context: &mut Context<'_>, words: &[String]) -> Done {
    let (new, old) = match words {
        [old, new] => (new, Some(old)),
        [new] => (new, None),
        _ => return context.console.fail("Incorrect number of arguments."),
    };
    let device = context.device(old)?;
    let setuuid = context.options.has("setuuid");
    let mangled = match setuuid {
        true => context.mangling.uuid(new),
        false if new.is_empty() => Err("Non empty new name is required.".to_owned()),
        false => context.mangling.name(new),
    };
    let new = mangled.or_else(|why| context.console.fail(&why))?;
    rename_to(context, &device, new, setuuid)
}

fn rename_to(context: &mut Context<'_>, device: &Device, new: String, setuuid: bool) -> Done {
    let (name, uuid) = if setuuid { (None, Some(new)) } else { (Some(new), None) };
    let rename = Rename { which: device.which.clone(), name, uuid };
    let _: Info = context.ioctl("rename", device, &rename)?;
    Ok(())
}

pub(super) fn message(context: &mut Context<'_>, words: &[String]) -> Done {
    let (name, words) = match context.options.selects_device() {
        true => (None, words),
        false => (words.first(), &words[1..]),
    };
    let device = context.device(name)?;
    let Some((sector, words)) = words.split_first() else {
        return context.console.fail("Invalid sector.");
    };
    let Some(sector) = sector.trim_start().strip_prefix('+').unwrap_or(sector.trim_start()).parse().ok() else {
        return context.console.fail("Invalid sector.");
    };
    if words.is_empty() {
        context.console.complain("No message supplied.");
    }
    let message = Message { which: device.which.clone(), sector, args: split(&words.join(" ")) };
    let reply: Reply = context.ioctl("message", &device, &message)?;
    if let Some(text) = reply.text {
        context.console.print(&text);
        if !text.is_empty() && !text.ends_with('\n') {
            context.console.print("\n");
        }
    }
    Ok(())
}

/// Words as the kernel cuts them out of a message: at blanks, and what stands behind a backslash is no blank.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t'..='\r' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(chars.next().unwrap_or('\\')),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

pub(super) fn wait(context: &mut Context<'_>, words: &[String]) -> Done {
    let (name, rest) = match context.options.selects_device() {
        true => (None, words),
        false if words.is_empty() => return context.console.fail("No device specified."),
        false => (words.first(), &words[1..]),
    };
    let device = context.device(name)?;
    let event_nr = rest.last().map(|number| u32::try_from(atoi(number)).unwrap_or(0));
    let wait = Wait { which: device.which.clone(), event_nr };
    // The kernel's name of the ioctl.
    let waited: Result<Info, ClientError> = context.call("wait", &wait);
    waited.map_err(|error| context.failed("waitevent", &device.shown, error))?;
    show::verbosely(context, &device)
}

/// Renames to the form that names are to have.
pub(super) fn mangle(context: &mut Context<'_>, words: &[String]) -> Done {
    if words.is_empty() && !context.options.selects_device() {
        let devices = context.devices()?;
        if devices.is_empty() {
            context.console.say("No devices found");
        }
        let each = |info: &Info| mangle_one(context, &Device::named(&info.name));
        return devices.iter().map(each).fold(Ok(()), Done::and);
    }
    // The name as it is.
    let device = match words.first() {
        Some(name) => Device::named(name),
        None => context.device(None)?,
    };
    mangle_one(context, &device)
}

fn mangle_one(context: &mut Context<'_>, device: &Device) -> Done {
    let info: Info = match context.call("info", &device.which) {
        Ok(info) => info,
        Err(error) => return Err(context.failed("status", &device.shown, error)),
    };
    let uuid = info.uuid.as_deref().unwrap_or_default();
    let form = |text: &str, name: bool| match (context.mangling, name) {
        (Mangling::None, _) => Ok(dm_table::unmangle(text)),
        (mangling, true) => mangling.name(text),
        (mangling, false) => mangling.uuid(text),
    };
    let (name, new_uuid) = match (form(&info.name, true), form(uuid, false)) {
        (Ok(name), Ok(uuid)) => (name, uuid),
        (Err(why), _) | (_, Err(why)) => return context.console.fail(&why),
    };
    if new_uuid != uuid {
        let text = "Unable to change device UUID. The device must be deactivated first.";
        return context.console.fail(&format!("{}: {uuid}: UUID in incorrect form. \n{text}", info.name));
    }
    if name == info.name {
        let (shown, and) = if uuid.is_empty() { ("[no UUID]", "") } else { (uuid, "and UUID ") };
        context.console.say(&format!("{name}: {shown}: name {and}already in correct form"));
        return Ok(());
    }
    context.console.say(&format!("{}: renaming to {name}", info.name));
    let which = Which { name: Some(info.name.clone()), ..Which::default() };
    rename_to(context, &Device { which, shown: format!("{} ", info.name) }, name, false)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::super::testing::Fake;

    #[test]
    fn messages_are_cut_as_the_kernel_cuts_them() {
        for (text, words) in
            [("", vec![]), ("  a  b\t c ", vec!["a", "b", "c"]), (r"a\ b c\\", vec!["a b", r"c\"]), (r"\", vec![r"\"])]
        {
            assert_eq!(super::split(text), words, "{text:?}");
        }
    }

    /// A process in which one method fails, and the methods that are called with what for.
    fn process(failing: &'static str, errno: i32) -> (Fake, Arc<Mutex<Vec<String>>>) {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let info = json!({
            "name": "a", "major": 0, "minor": 7, "read_only": false, "suspended": false, "live": true, "inactive": false,
            "open_count": 1, "event_nr": 0, "targets": 1, "sectors": 8, "deferred_remove": false
        });
        let fake = Fake::new(move |method, params: &Value| {
            let whom = params["which"]["name"].as_str().or(params["name"].as_str()).unwrap_or("?");
            seen.lock().unwrap().push(format!("{method} {whom}"));
            match method {
                method if method == failing => Err(errno),
                "load" => Ok(json!({"warnings": ["doubtful"], "info": info})),
                "resume" => Ok(json!({"info": info})),
                "remove" => Ok(json!({"deferred": false})),
                "table" | "status" => Ok(json!([{"start": 0, "len": 8, "target": "zero", "params": ""}])),
                "list" => Ok(json!([info])),
                _ => Ok(info.clone()),
            }
        });
        (fake, calls)
    }

    #[test]
    fn a_device_is_created_whole_or_not_at_all() {
        let (fake, calls) = process("", 0);
        let (code, said) = fake.dmsetup("create a b.table --table 0");
        assert!(code == 1 && said.starts_with("Invalid format on line 1 of table .\n  --> --table:1:2\n"), "{said}");
        assert_eq!(*calls.lock().unwrap(), Vec::<String>::new(), "what cannot be read is not tried");
        assert_eq!(fake.dmsetup("create --concise a,,,,0\t8\tzero").0, 0);
        assert_eq!(*calls.lock().unwrap(), ["create a", "load a", "resume a"]);
        for (failing, ioctl, shown) in [("load", "reload", "a (0:7)"), ("resume", "resume", "a (0:7)")] {
            let (fake, calls) = process(failing, libc::EINVAL);
            let (code, said) = fake.dmsetup("create a --table 0\t8\tzero");
            assert_eq!(code, 1);
            let words = format!("device-mapper: {ioctl} ioctl on {shown} failed: Invalid argument\nCommand failed.\n");
            assert!(said.ends_with(&words), "{said}");
            assert_eq!(calls.lock().unwrap().last().unwrap(), "remove a");
        }
    }

    #[test]
    fn each_device_has_its_turn_up_to_the_first_failure() {
        let (fake, calls) = process("suspend", libc::ENXIO);
        let said = "device-mapper: suspend ioctl on a  failed: No such device or address\nCommand failed.\n";
        assert_eq!(fake.dmsetup("suspend a b"), (1, said.to_owned()));
        assert_eq!(*calls.lock().unwrap(), ["suspend a"]);
        assert_eq!(fake.dmsetup("table a b"), (0, "a: 0 8 zero \nb: 0 8 zero \n".to_owned()));
        assert_eq!(fake.dmsetup("table -S name=a&&open=1"), (0, "a: 0 8 zero \n".to_owned()));
        assert_eq!(fake.dmsetup("table -S open=2"), (0, String::new()));
        assert_eq!(fake.dmsetup("table a --target error"), (0, String::new()));
        assert_eq!(fake.dmsetup("ls --target zero"), (0, "a\t(0, 7)\n".to_owned()));
        assert_eq!(fake.dmsetup("-j 1 -m 7 table").0, 1, "no device has another major number");
        assert_eq!(fake.dmsetup("-j 0 -m 7 table"), (0, "0 8 zero \n".to_owned()));
        assert_eq!(fake.dmsetup("table /dev/mapper/a"), (0, "0 8 zero \n".to_owned()));
        assert_eq!(fake.dmsetup("table ./a"), (1, "Device ./a not found\nCommand failed.\n".to_owned()));
    }

    #[test]
    fn a_wiped_table_is_dropped_where_it_cannot_be_resumed() {
        let (fake, calls) = process("resume", libc::EINVAL);
        assert_eq!(fake.dmsetup("wipe_table a").0, 1);
        assert_eq!(*calls.lock().unwrap(), ["table a", "load a", "resume a", "clear a"]);
    }
}
