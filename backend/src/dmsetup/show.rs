//! Verbs that show devices.

use std::fmt::Write;
use std::process::Command;

use super::console::{Done, Failed};
use super::context::{Context, Device};
use super::fields::{DEVICE, INFO, SPLIT, SPLITNAME};
use super::name::{Mangling, Split};
use super::report::{Group, NoReport, Report, Value};
use super::tree::{self, Graph};
use super::verbs::Verb;
use crate::control::client::ClientError;
use crate::control::schema::{Dep, Info, Line, Query, TargetType, Version};

/// How a device is written, by `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    Number,
    /// The same for devices of the process, which are no block devices of the machine.
    Name,
}

impl Naming {
    fn parse(options: &str) -> Result<Naming, String> {
        let mut naming = Naming::Number;
        for option in options.split(',') {
            naming = match option {
                _ if "devno".starts_with(option) => Naming::Number,
                _ if "blkdevname".starts_with(option) || "devname".starts_with(option) => Naming::Name,
                _ => return Err(format!("Option not recognised: {option}.")),
            };
        }
        Ok(naming)
    }

    fn of(context: &Context<'_>) -> Naming {
        let given = context.options.value("options").filter(|_| !context.options.has("columns"));
        given.and_then(|options| Naming::parse(options).ok()).unwrap_or(Naming::Number)
    }
}

/// Checks `-o` and the like before anything is done.
pub(super) fn check_options(context: &mut Context<'_>, verb: &Verb) -> Result<(), String> {
    let options = &context.options;
    let given = options.value("options");
    if options.has("tree") {
        return tree::Options::parse(given.unwrap_or_default()).map(drop);
    }
    match given {
        Some(given) if !options.has("columns") && !matches!(verb.name, "splitname" | "stats") => {
            Naming::parse(given).map(drop)
        }
        _ => Ok(()),
    }
}

/// Makes the report of a verb that has one; `Some` is the end of the command.
pub(super) fn start_report(context: &mut Context<'_>, verb: &Verb, selecting: bool) -> Option<u8> {
    let report = match verb.name {
        "splitname" => Report::new(&context.options, &SPLIT, SPLITNAME),
        "info" if context.options.has("columns") => Report::new(&context.options, &DEVICE, INFO),
        _ if selecting => Report::new(&context.options, &DEVICE, "name"),
        _ => return None,
    };
    match report {
        Ok(report) => {
            context.report = Some(report);
            None
        }
        Err(NoReport::Help(text)) => {
            context.console.complain(&text);
            Some(0)
        }
        Err(NoReport::Wrong(text)) => {
            context.console.complain(&text);
            Some(1)
        }
    }
}

/// Does `what` for each device, all of them whatever happens to one.
pub(super) fn all(context: &mut Context<'_>, what: fn(&mut Context<'_>, &Device, Option<&Info>) -> Done) -> Done {
    let devices = context.devices()?;
    if devices.is_empty() {
        context.console.say("No devices found");
    }
    context.multiple = true;
    let mut done = Ok(());
    for info in devices {
        done = done.and(what(context, &Device::named(&info.name), Some(&info)));
    }
    done
}

/// One device, or all if none is named.
fn each(
    context: &mut Context<'_>,
    words: &[String],
    what: fn(&mut Context<'_>, &Device, Option<&Info>) -> Done,
) -> Done {
    if words.is_empty() && !context.options.selects_device() {
        return all(context, what);
    }
    let device = context.device(words.first())?;
    what(context, &device, None)
}

fn find(context: &mut Context<'_>, device: &Device) -> Done<Info> {
    match context.call::<Info>("info", &device.which) {
        Ok(info) => Ok(info),
        Err(ClientError::Refused(error)) if error.errno == libc::ENXIO => {
            context.console.fail("Device does not exist.")
        }
        Err(error) => Err(context.failed("info", &device.shown, error)),
    }
}

/// With `-v`, what has become of a device.
pub(super) fn verbosely(context: &mut Context<'_>, device: &Device) -> Done {
    if !context.options.has("verbose") {
        return Ok(());
    }
    let info = find(context, device)?;
    let text = info_text(&info, context.mangling);
    context.console.print(&text);
    Ok(())
}

pub(super) fn info(context: &mut Context<'_>, words: &[String]) -> Done {
    each(context, words, |context, device, info| {
        let info = match info {
            Some(info) => info.clone(),
            None => find(context, device)?,
        };
        if context.report.is_some() {
            return add_row(context, &info);
        }
        let text = info_text(&info, context.mangling);
        context.console.print(&text);
        Ok(())
    })
}

fn add_row(context: &mut Context<'_>, info: &Info) -> Done {
    let needs = context.report.as_ref().is_some_and(|report| report.needs(Group::Deps));
    if needs && context.graph.is_none() {
        context.graph = Some(graph(context)?);
    }
    let Context { report, graph, mangling, .. } = context;
    if let Some(report) = report {
        report.add(&|id| value(info, graph.as_ref(), *mangling, id));
    }
    Ok(())
}

/// All devices and what they lie on.
pub(super) fn graph(context: &mut Context<'_>) -> Done<Graph> {
    let mut nodes = Vec::new();
    for info in context.devices()? {
        let device = Device::named(&info.name);
        match context.call::<Vec<Dep>>("deps", &query(context, &device)) {
            Ok(deps) => nodes.push((info, deps)),
            // It went meanwhile.
            Err(ClientError::Refused(error)) if error.errno == libc::ENXIO => {}
            Err(error) => return Err(context.failed("deps", &device.shown, error)),
        }
    }
    Ok(Graph::new(nodes))
}

fn query(context: &Context<'_>, device: &Device) -> Query {
    Query { which: device.which.clone(), inactive: context.options.has("inactive") }
}

/// A field of [`DEVICE`].
fn value(info: &Info, graph: Option<&Graph>, mangling: Mangling, id: &str) -> Value {
    let uuid = info.uuid.as_deref().unwrap_or_default();
    let split = || Split::new(&dm_table::unmangle(&info.name), uuid.split_once('-').map_or("", |(prefix, _)| prefix));
    let number = |number: u32| Value::Number(u64::from(number));
    let either = |is: bool, yes: &str, no: &str| Value::text(if is { yes } else { no });
    match id {
        "name" | "blkdevname" => Value::text(mangling.show(&info.name)),
        "mangled_name" => Value::text(&info.name),
        "unmangled_name" => Value::text(dm_table::unmangle(&info.name)),
        "uuid" => Value::text(mangling.show(uuid)),
        "mangled_uuid" => Value::text(uuid),
        "unmangled_uuid" => Value::text(dm_table::unmangle(uuid)),
        "read_ahead" => Value::Number(0),
        "attr" => Value::text(attributes(info)),
        "tables_loaded" => Value::text(match (info.live, info.inactive) {
            (true, true) => "Both",
            (true, false) => "Live",
            (false, true) => "Inactive",
            (false, false) => "None",
        }),
        "suspended" => either(info.suspended, "Suspended", "Active"),
        "readonly" => either(info.read_only, "Read-only", "Writeable"),
        "devno" => Value::text(format!("{}:{}", info.major, info.minor)),
        "major" => number(info.major),
        "minor" => number(info.minor),
        "open" => number(info.open_count),
        "segments" => number(info.targets),
        "events" => number(info.event_nr),
        "sectors" => Value::Number(info.sectors),
        "connected" => either(info.connected, "yes", "no"),
        "socket" => Value::text(info.socket.as_deref().unwrap_or_default()),
        "subsystem" | "vg_name" | "lv_name" | "lv_layer" => split().value(id),
        _ => graph.map_or(Value::text(""), |graph| graph.value(info, mangling, id)),
    }
}

fn attributes(info: &Info) -> String {
    let one = |is: bool, yes: char, no: char| if is { yes } else { no };
    [
        one(info.live, 'L', '-'),
        one(info.inactive, 'I', '-'),
        one(info.suspended, 's', '-'),
        one(info.read_only, 'r', 'w'),
    ]
    .iter()
    .collect()
}

/// The block of `info`. dmsetup has the read-ahead of the block device in it; here, there is none.
fn info_text(info: &Info, mangling: Mangling) -> String {
    let mut text = String::new();
    let state = if info.suspended { "SUSPENDED" } else { "ACTIVE" };
    let read_only = if info.read_only { " (READ-ONLY)" } else { "" };
    let deferred = if info.deferred_remove { " (DEFERRED REMOVE)" } else { "" };
    let tables = match (info.live, info.inactive) {
        (true, true) => "LIVE & INACTIVE",
        (true, false) => "LIVE",
        (false, true) => "INACTIVE",
        (false, false) => "None",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "Name:              {}", mangling.show(&info.name));
    let _ = writeln!(text, "State:             {state}{read_only}{deferred}");
    let _ = writeln!(text, "Tables present:    {tables}");
    let _ = writeln!(text, "Open count:        {}", info.open_count);
    let _ = writeln!(text, "Event number:      {}", info.event_nr);
    let _ = writeln!(text, "Major, minor:      {}, {}", info.major, info.minor);
    let _ = writeln!(text, "Number of targets: {}", info.targets);
    if let Some(uuid) = &info.uuid {
        let _ = writeln!(text, "UUID: {}", mangling.show(uuid));
    }
    text.push('\n');
    text
}

/// `-S`: the verb for each device that is meant.
pub(super) fn selected(context: &mut Context<'_>, verb: &'static Verb, words: &[String]) -> Done {
    let devices = match words {
        [] => context.devices()?,
        words => {
            let mut named = Vec::new();
            for word in words {
                let device = context.device(Some(word))?;
                named.push(find(context, &device)?);
            }
            named
        }
    };
    let Some(report) = context.report.take() else { return Err(Failed) };
    let graph = if report.needs(Group::Deps) { Some(graph(context)?) } else { None };
    context.multiple = true;
    for info in devices {
        if report.selects(&|id| value(&info, graph.as_ref(), context.mangling, id)) {
            let name = context.shown(&info.name);
            (verb.run)(context, &[name])?;
        }
    }
    Ok(())
}

pub(super) fn table(context: &mut Context<'_>, words: &[String]) -> Done {
    each(context, words, |context, device, info| lines(context, device, info, "table"))
}

pub(super) fn status(context: &mut Context<'_>, words: &[String]) -> Done {
    each(context, words, |context, device, info| lines(context, device, info, "status"))
}

/// `table`, `status`, and `ls` of some.
fn lines(context: &mut Context<'_>, device: &Device, info: Option<&Info>, method: &'static str) -> Done {
    let params = query(context, device);
    let lines: Vec<Line> = match context.call(method, &params) {
        Ok(lines) => lines,
        Err(ClientError::Refused(error)) if method == "status" && error.errno == libc::ENXIO => {
            return context.console.fail("Device does not exist.");
        }
        Err(error) => return Err(context.failed(method, &device.shown, error)),
    };
    let of_type = |line: &&Line| context.options.value("target").is_none_or(|target| line.target == target);
    let mut shown: Vec<&Line> = lines.iter().filter(of_type).collect();
    let without = lines.is_empty() && !context.options.has("target");
    if shown.is_empty() && !without {
        return Ok(());
    }
    let verbose = context.options.has("verbose");
    let command = context.options.value("exec").map(str::to_owned).filter(|command| !command.is_empty());
    let info = match info {
        Some(info) => info.clone(),
        // Asked for only where it is needed.
        None if verbose || command.is_some() || context.options.has("concise") || context.verb == "ls" => {
            find(context, device)?
        }
        None => Info { name: device.which.name.clone().unwrap_or_default(), ..Info::default() },
    };
    let name = context.shown(&info.name);
    if command.is_none() || verbose {
        if context.verb == "ls" {
            context.console.say(&format!("{name}\t({}, {})", info.major, info.minor));
        } else if method == "table" && context.options.has("concise") {
            let text = concise(&info, context.mangling, &shown);
            context.console.print(if context.concise { ";" } else { "" });
            context.console.print(&text);
            context.concise = true;
        } else {
            let none = Line::default();
            if without {
                shown.push(&none);
            }
            print_lines(context, &info, &shown);
        }
    }
    match command {
        Some(command) => execute(context, &command, &info),
        None => Ok(()),
    }
}

fn print_lines(context: &mut Context<'_>, info: &Info, lines: &[&Line]) {
    let verbose = context.options.has("verbose");
    if verbose {
        let text = info_text(info, context.mangling);
        context.console.print(&text);
    }
    let front = if context.multiple && !verbose { format!("{}: ", context.shown(&info.name)) } else { String::new() };
    for line in lines {
        context.console.say(&format!("{front}{}", line_text(line)));
    }
    if context.multiple && verbose {
        context.console.print("\n");
    }
}

/// A line; nothing for a device without a table.
fn line_text(line: &Line) -> String {
    match line.target.as_str() {
        "" => String::new(),
        target => format!("{} {} {target} {}", line.start, line.len, line.params),
    }
}

fn concise(info: &Info, mangling: Mangling, lines: &[&Line]) -> String {
    let quoted = |text: &str| {
        let quoted = |c| if matches!(c, ',' | ';' | '\\') { vec!['\\', c] } else { vec![c] };
        text.chars().flat_map(quoted).collect::<String>()
    };
    let uuid = info.uuid.as_deref().unwrap_or_default();
    let mode = if info.read_only { "ro" } else { "rw" };
    let (name, uuid) = (quoted(&mangling.show(&info.name)), quoted(&mangling.show(uuid)));
    let mut text = format!("{name},{uuid},{},{mode}", info.minor);
    for Line { start, len, target, params } in lines {
        // Writing to a String cannot fail.
        let _ = write!(text, ",{start} {len} {target} {}", quoted(params));
    }
    text
}

/// Runs a command with the device: where it is served, as it has no node in /dev.
fn execute(context: &mut Context<'_>, command: &str, info: &Info) -> Done {
    let mut words = command.split_ascii_whitespace();
    let Some(program) = words.next() else { return Ok(()) };
    context.console.flush();
    let device = info.socket.clone().unwrap_or_else(|| info.name.clone());
    match Command::new(program).args(words).arg(device).status() {
        // As with dmsetup, what has become of it is not ours to judge.
        Ok(_) => Ok(()),
        Err(error) => context.console.fail(&format!("{program}: {error}")),
    }
}

pub(super) fn ls(context: &mut Context<'_>, _: &[String]) -> Done {
    let given = |option: &str| context.options.value(option).is_some_and(|value| !value.is_empty());
    if given("target") || given("exec") {
        return all(context, |context, device, info| lines(context, device, info, "status"));
    }
    if context.options.has("tree") {
        return tree::show(context);
    }
    all(context, |context, _, info| {
        if let Some(info) = info {
            let name = context.shown(&info.name);
            let line = match Naming::of(context) {
                Naming::Number => format!("{name}\t({}:{})", info.major, info.minor),
                Naming::Name => format!("{name}\t({name})"),
            };
            context.console.say(&line);
        }
        Ok(())
    })
}

pub(super) fn deps(context: &mut Context<'_>, words: &[String]) -> Done {
    each(context, words, |context, device, info| {
        let query = query(context, device);
        let deps: Vec<Dep> = context.ioctl("deps", device, &query)?;
        let verbose = context.options.has("verbose");
        verbosely(context, device)?;
        let front = match info {
            Some(info) if !verbose => format!("{}: ", context.shown(&info.name)),
            None if context.multiple && !verbose => {
                device.which.name.as_deref().map(|name| format!("{}: ", context.shown(name))).unwrap_or_default()
            }
            _ => String::new(),
        };
        let text = deps_text(&deps, Naming::of(context), context.mangling);
        context.console.say(&format!("{front}{text}"));
        if context.multiple && verbose {
            context.console.print("\n");
        }
        Ok(())
    })
}

fn deps_text(deps: &[Dep], naming: Naming, mangling: Mangling) -> String {
    let mut text = format!("{} dependencies\t:", deps.len());
    for dep in deps {
        let name = if dep.mapped { mangling.show(&dep.name) } else { dep.name.clone() };
        // Writing to a String cannot fail.
        let _ = match (naming, dep.major, dep.minor) {
            (Naming::Number, Some(major), Some(minor)) => write!(text, " ({major}, {minor})"),
            _ => write!(text, " ({name})"),
        };
    }
    text
}

fn target_types(context: &mut Context<'_>) -> Done<Vec<TargetType>> {
    context.call("targets", &serde_json::json!({})).map_err(|error| context.failed("targets", " ", error))
}

fn say_type(context: &mut Context<'_>, TargetType { name, version: [major, minor, patch] }: &TargetType) {
    context.console.say(&format!("{name:<16} v{major}.{minor}.{patch}"));
}

pub(super) fn targets(context: &mut Context<'_>, _: &[String]) -> Done {
    target_types(context)?.iter().for_each(|known| say_type(context, known));
    Ok(())
}

pub(super) fn target_version(context: &mut Context<'_>, words: &[String]) -> Done {
    let known = target_types(context)?;
    let Some(word) = words.first() else {
        known.iter().for_each(|known| say_type(context, known));
        return Ok(());
    };
    match known.iter().find(|known| known.name == *word) {
        Some(known) => {
            say_type(context, known);
            Ok(())
        }
        None => {
            let error = crate::mapper::DmError::new(libc::EINVAL);
            Err(context.failed("target-version", &format!("{word} "), error.into()))
        }
    }
}

pub(super) fn version(context: &mut Context<'_>, _: &[String]) -> Done {
    context.console.say(&format!("Library version:   {} (vhost-user-dm)", env!("CARGO_PKG_VERSION")));
    let version: Version =
        context.call("version", &serde_json::json!({})).map_err(|error| context.failed("version", " ", error))?;
    context.console.say(&format!("Driver version:    {}", version.driver));
    Ok(())
}

pub(super) fn splitname(context: &mut Context<'_>, words: &[String]) -> Done {
    let (name, subsystem) = match words {
        [name, subsystem] => (name, subsystem.as_str()),
        [name] => (name, "LVM"),
        _ => return Ok(()),
    };
    let split = Split::new(name, subsystem);
    if let Some(report) = &mut context.report {
        report.add(&|id| split.value(id));
    }
    Ok(())
}

/// The devices of a graph by name, for fields.
impl Graph {
    fn value(&self, info: &Info, mangling: Mangling, id: &str) -> Value {
        let list = |names: Vec<String>| Value::text(names.join(","));
        let deps = self.deps(&info.name);
        let name = |dep: &Dep| if dep.mapped { mangling.show(&dep.name) } else { dep.name.clone() };
        let number = |dep: &Dep| match (dep.major, dep.minor) {
            (Some(major), Some(minor)) => format!("{major}:{minor}"),
            _ => dep.name.clone(),
        };
        let users = || self.users(&info.name);
        match id {
            "device_count" => Value::Number(deps.len() as u64),
            "devs_used" => list(deps.iter().filter(|dep| dep.mapped).map(name).collect()),
            "devnos_used" => list(deps.iter().map(number).collect()),
            "blkdevs_used" => list(deps.iter().map(name).collect()),
            "device_ref_count" => Value::Number(users().count() as u64),
            "names_using_dev" => list(users().map(|user| mangling.show(&user.name)).collect()),
            "devnos_using_dev" => list(users().map(|user| format!("{}:{}", user.major, user.minor)).collect()),
            _ => Value::text(""),
        }
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
