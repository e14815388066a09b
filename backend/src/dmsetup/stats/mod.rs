//! `stats`: regions of devices in which requests are counted, as dmstats handles them. Each is made by a message
//! `@stats_...` to its device, in the kernel's form (Documentation/admin-guide/device-mapper/statistics.rst).

mod region;
mod report;
mod units;

use super::console::Done;
use super::context::{Context, Device};
use super::show;
use crate::control::schema::{Info, Line, Message, Query, Reply};
use region::Region;
pub(super) use report::fields;

/// Commands of `stats`.
pub(super) const USAGE: &str = "\
\thelp [-c]
\tcreate [--start <start>] [--length <len>] [--areas <n> | --areasize <size>] [--segments]
\t    [--bounds <times>] [--precise] [--programid <id>] [--userdata <text>] --alldevices|<device>...
\tdelete --regionid <id>|--allregions [--programid <id>|--allprograms] --alldevices|<device>...
\tclear --regionid <id>|--allregions [<device>...]
\tlist [-v] [--programid <id>|--allprograms] [-o <fields>] [<device>...]
\tprint --regionid <id>|--allregions [--clear] [<device>...]
\treport [--interval <seconds>] [--count <n>] [--units <u>] [--area] [--region] [--raw] [--histogram]
\t    [--programid <id>|--allprograms] [--regionid <id>] [-o <fields>] [-O <fields>] [-S <selection>] [<device>...]
\tversion
Sizes are in sectors, or with a unit: b, s, k, m, g, t. Times: ns, us, ms, s. report sets the counters back.";

/// The program that regions are made in the name of, as dmstats does.
const PROGRAM: &str = "dmstats";

pub(super) fn stats(context: &mut Context<'_>, words: &[String]) -> Done {
    let Some((command, devices)) = words.split_first() else { return Ok(()) };
    for (one, other) in [("allprograms", "programid"), ("allregions", "regionid")] {
        if context.options.has(one) && context.options.has(other) {
            return context.console.fail(&format!("Please supply one of --{one} and --{other}"));
        }
    }
    match command.as_str() {
        "help" => {
            context.console.complain(&super::usage::stats());
            if context.options.has("columns") {
                context.console.complain(&fields());
            }
            Ok(())
        }
        "version" => show::version(context, &[]),
        "create" => {
            check_create(context)?;
            for_each(context, devices, true, create)
        }
        "delete" => {
            needs_regions(context)?;
            for_each(context, devices, true, delete)
        }
        "clear" => {
            needs_regions(context)?;
            for_each(context, devices, false, clear)
        }
        "print" => {
            needs_regions(context)?;
            for_each(context, devices, false, print)
        }
        "list" => report::list(context, devices),
        "report" => report::report(context, devices),
        "group" | "ungroup" | "update_filemap" => context
            .console
            .fail(&format!("{command}: groups of regions and regions of files are not supported; see help")),
        _ => {
            context.console.complain("Unknown stats command.");
            context.console.fail(&super::usage::stats())
        }
    }
}

/// Does `what` for the devices that are named, or for all.
fn for_each(
    context: &mut Context<'_>,
    words: &[String],
    on_demand: bool,
    what: fn(&mut Context<'_>, &Device) -> Done,
) -> Done {
    if words.is_empty() && !context.options.selects_device() {
        if on_demand && !context.options.has("alldevices") {
            return context.console.fail("Please specify device(s) or use --alldevices.");
        }
        if context.devices()?.is_empty() {
            context.console.say("No devices found");
        }
    }
    for device in devices(context, words)? {
        what(context, &device)?;
    }
    Ok(())
}

/// The devices that are named.
fn devices(context: &mut Context<'_>, words: &[String]) -> Done<Vec<Device>> {
    match words {
        [] if context.options.selects_device() => Ok(vec![context.device(None)?]),
        [] => Ok(context.devices()?.iter().map(|info| Device::named(&info.name)).collect()),
        words => words.iter().map(|word| context.device(Some(word))).collect(),
    }
}

fn needs_regions(context: &mut Context<'_>) -> Done {
    match context.options.has("regionid") || context.options.has("allregions") {
        true => Ok(()),
        false => context.console.fail("Please specify a --regionid or use --allregions."),
    }
}

/// A message to a device; its answer.
fn send(context: &mut Context<'_>, device: &Device, words: Vec<String>) -> Done<String> {
    let message = Message { which: device.which.clone(), sector: 0, args: words };
    let reply: Reply = context.ioctl("message", device, &message)?;
    Ok(reply.text.unwrap_or_default())
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// The regions of a device that the options mean.
fn regions(context: &mut Context<'_>, device: &Device, of_all_programs: bool) -> Done<Vec<Region>> {
    let program = context.options.value("programid").unwrap_or(PROGRAM).to_owned();
    let all = of_all_programs || context.options.has("allprograms") || program.is_empty();
    let text = send(context, device, if all { words(["@stats_list"]) } else { words(["@stats_list", &program]) })?;
    let regions: Option<Vec<Region>> = text.lines().map(Region::parse).collect();
    let Some(mut regions) = regions else {
        return context.console.fail(&format!("The process's list of regions cannot be read: {text}"));
    };
    if let Some(id) = context.options.number("regionid") {
        regions.retain(|region| i64::try_from(region.id) == Ok(id));
        if regions.is_empty() {
            return context.console.fail(&format!("No such region: {id}."));
        }
    }
    Ok(regions)
}

fn check_create(context: &mut Context<'_>) -> Done {
    for option in ["allregions", "allprograms"] {
        if context.options.has(option) {
            return context.console.fail(&format!("Cannot use --{option} with create."));
        }
    }
    if context.options.has("areas") && context.options.has("areasize") {
        return context.console.fail("Please specify one of --areas and --areasize.");
    }
    if context.options.value("programid") == Some("") && !context.options.has("force") {
        return context.console.fail("Creating a region with no program id requires --force.");
    }
    if context.options.has("filemap") || context.options.has("alias") {
        return context
            .console
            .fail("--filemap and --alias: regions of files and groups of regions are not supported.");
    }
    Ok(())
}

fn create(context: &mut Context<'_>, device: &Device) -> Done {
    let size = |context: &mut Context<'_>, name: &str| match context.options.value(name).map(units::sectors) {
        None => Ok(None),
        Some(Ok(sectors)) => Ok(Some(sectors)),
        Some(Err(why)) => context.console.fail(&format!("Invalid {name} argument: {why}")),
    };
    let (start, length) = (size(context, "start")?.unwrap_or(0), size(context, "length")?);
    let area = size(context, "areasize")?.filter(|&area| area > 0);
    let areas = context.options.number("areas").and_then(|areas| u64::try_from(areas).ok()).unwrap_or(1).max(1);
    let bounds = match context.options.value("bounds").map(units::bounds).transpose() {
        Ok(bounds) => bounds,
        Err(why) => return context.console.fail(&format!("Invalid --bounds argument: {why}")),
    };
    let query = Query { which: device.which.clone(), inactive: false };
    let lines: Vec<Line> = context.ioctl("table", device, &query)?;
    let end = lines.last().map_or(0, |line| line.start.saturating_add(line.len));
    let ranges: Vec<(u64, u64)> = match context.options.has("segments") {
        true => lines.iter().map(|line| (line.start, line.len)).collect(),
        false => vec![(start, length.unwrap_or(end.saturating_sub(start)))],
    };
    let info: Info = context.ioctl("info", device, &device.which)?;
    for (start, len) in ranges {
        let step = area.map_or_else(|| format!("/{areas}"), |area| area.to_string());
        let mut message = words(["@stats_create", &format!("{start}+{len}"), &step]);
        message.extend(features(context.options.has("precise"), bounds.as_deref()));
        message.push(context.options.value("programid").unwrap_or(PROGRAM).to_owned());
        message.push(context.options.value("userdata").filter(|data| !data.is_empty()).unwrap_or("-").to_owned());
        let id = match send(context, device, message) {
            Ok(id) => id,
            Err(failed) => {
                let name = context.shown(&info.name);
                context.console.complain(&format!("{name}: Could not create statistics region."));
                return Err(failed);
            }
        };
        let count = area.map_or(areas, |area| len.div_ceil(area));
        let name = context.shown(&info.name);
        context.console.say(&format!("{name}: Created new region with {count} area(s) as region ID {}", id.trim()));
    }
    Ok(())
}

/// What stands between the areas and the program: a count of words, and the words.
fn features(precise: bool, bounds: Option<&[u64]>) -> Vec<String> {
    const MS: u64 = 1_000_000;
    // Without nanoseconds, counters and bounds are in milliseconds.
    let precise = precise || bounds.is_some_and(|bounds| bounds.iter().any(|bound| bound % MS != 0));
    let unit = if precise { 1 } else { MS };
    let mut features = Vec::new();
    if precise {
        features.push("precise_timestamps".to_owned());
    }
    if let Some(bounds) = bounds {
        let bounds = bounds.iter().map(|bound| (bound / unit).to_string()).collect::<Vec<_>>();
        features.push(format!("histogram:{}", bounds.join(",")));
    }
    if !features.is_empty() {
        features.insert(0, features.len().to_string());
    }
    features
}

fn delete(context: &mut Context<'_>, device: &Device) -> Done {
    for region in regions(context, device, false)? {
        if send(context, device, words(["@stats_delete", &region.id.to_string()])).is_err() {
            return context.console.fail("Could not delete statistics region.");
        }
    }
    Ok(())
}

fn clear(context: &mut Context<'_>, device: &Device) -> Done {
    for region in regions(context, device, true)? {
        if send(context, device, words(["@stats_clear", &region.id.to_string()])).is_err() {
            return context.console.fail(&format!("Clearing statistics region {} failed.", region.id));
        }
    }
    Ok(())
}

fn print(context: &mut Context<'_>, device: &Device) -> Done {
    let message = if context.options.has("clear") { "@stats_print_clear" } else { "@stats_print" };
    for region in regions(context, device, true)? {
        match send(context, device, words([message, &region.id.to_string()])) {
            Ok(text) => context.console.print(&text),
            Err(_) => return context.console.fail("Could not print statistics region."),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn features_are_counted_as_the_kernel_wants_it() {
        assert_eq!(super::features(false, None), Vec::<String>::new());
        assert_eq!(super::features(true, None), ["1", "precise_timestamps"]);
        assert_eq!(super::features(false, Some(&[10_000_000, 20_000_000])), ["1", "histogram:10,20"]);
        let features = super::features(false, Some(&[500, 20_000_000]));
        assert_eq!(features, ["2", "precise_timestamps", "histogram:500,20000000"]);
    }
}
