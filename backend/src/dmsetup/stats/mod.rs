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
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::super::testing::Fake;

    #[test]
    fn features_are_counted_as_the_kernel_wants_it() {
        assert_eq!(super::features(false, None), Vec::<String>::new());
        assert_eq!(super::features(true, None), ["1", "precise_timestamps"]);
        assert_eq!(super::features(false, Some(&[10_000_000, 20_000_000])), ["1", "histogram:10,20"]);
        let features = super::features(false, Some(&[500, 20_000_000]));
        assert_eq!(features, ["2", "precise_timestamps", "histogram:500,20000000"]);
    }

    /// A device `vm` of 4096 sectors with a region of two areas, and the messages that it gets.
    fn process() -> (Fake, Arc<Mutex<Vec<String>>>) {
        let messages = Arc::new(Mutex::new(Vec::new()));
        let seen = messages.clone();
        let fake = Fake::new(move |method, params| {
            let info = json!({
                "name": "vm", "major": 0, "minor": 0, "read_only": false, "suspended": false, "live": true, "inactive": false,
                "open_count": 1, "event_nr": 0, "targets": 1, "sectors": 4096, "deferred_remove": false
            });
            match method {
                "list" => Ok(json!([info])),
                "info" => Ok(info),
                "table" => Ok(json!([
                    {"start": 0, "len": 4000, "target": "zero", "params": ""},
                    {"start": 4000, "len": 96, "target": "error", "params": ""}
                ])),
                "message" => {
                    let words = params["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
                    let message = words.collect::<Vec<_>>().join(" ");
                    seen.lock().unwrap().push(message.clone());
                    let counters = "8 0 64 16 2 0 16 4 0 500 1000 0 0";
                    match message.split(' ').next().unwrap() {
                        "@stats_create" => Ok(json!({"text": "3"})),
                        "@stats_list" => Ok(json!({"text": "3: 0+4096 2048 dmstats -\n"})),
                        "@stats_print" | "@stats_print_clear" => {
                            Ok(json!({"text": format!("0+2048 {counters}\n2048+2048 {counters}\n")}))
                        }
                        _ => Ok(json!({})),
                    }
                }
                _ => Err(libc::EINVAL),
            }
        });
        (fake, messages)
    }

    #[test]
    fn regions_are_made_and_dropped_by_the_kernels_messages() {
        let (process, messages) = process();
        for (line, said, sent) in [
            (
                "create vm --areas 2",
                "vm: Created new region with 2 area(s) as region ID 3\n",
                "@stats_create 0+4096 /2 dmstats -",
            ),
            (
                "create --alldevices --start 1m --length 8 --areasize 4 --bounds 1ms,2ms --userdata x --programid p",
                "vm: Created new region with 2 area(s) as region ID 3\n",
                "@stats_create 2048+8 4 1 histogram:1,2 p x",
            ),
            ("clear vm --regionid 3", "", "@stats_list|@stats_clear 3"),
            ("delete vm --allregions", "", "@stats_list dmstats|@stats_delete 3"),
            (
                "print --allregions --clear",
                "0+2048 8 0 64 16 2 0 16 4 0 500 1000 0 0\n2048+2048 8 0 64 16 2 0 16 4 0 500 1000 0 0\n",
                "@stats_list|@stats_print_clear 3",
            ),
        ] {
            assert_eq!(process.dmsetup(&format!("stats {line}")), (0, said.to_owned()), "{line}");
            assert_eq!(std::mem::take(&mut *messages.lock().unwrap()).join("|"), sent, "{line}");
        }
        assert_eq!(process.dmsetup("stats create vm --segments").1.lines().count(), 2);
        let sent = ["@stats_create 0+4000 /1 dmstats -", "@stats_create 4000+96 /1 dmstats -"];
        assert_eq!(*messages.lock().unwrap(), sent);
        let missing = (1, "No such region: 9.\nCommand failed.\n".to_owned());
        assert_eq!(process.dmsetup("stats delete vm --regionid 9"), missing);
    }

    #[test]
    fn regions_are_listed_and_reported() {
        let (process, _) = process();
        let list = "Name             GrpID RgID ObjType RgStart RgSize #Areas ArSize ProgID\n\
                    vm                   -    3 region        0  2.00m      2  1.00m dmstats\n";
        let (code, text) = process.dmsetup("stats list");
        assert_eq!((code, text.replace("ProgID \n", "ProgID\n").as_str()), (0, list));
        let (_, text) = process.dmsetup("stats list -v --noheadings -o obj_type,area_id,area_start");
        assert_eq!(text, "area:0:0\narea:1:1.00m\nregion:0:0\n");
        let fields = "-o obj_type,reads_per_sec,avg_request_size,await,util";
        let (_, text) = process.dmsetup(&format!("stats report --noheadings {fields} vm"));
        assert_eq!(text, "area:8.00:4.00k:2.00:50.00\narea:8.00:4.00k:2.00:50.00\nregion:16.00:4.00k:2.00:100.00\n");
        let (_, text) = process.dmsetup("stats report --noheadings -o region_id -S region_id=7");
        assert_eq!(text, "");
        let (_, text) = process.dmsetup("stats report --noheadings -o region_id,read_count --count 2 --interval 1");
        assert_eq!(text, "3:8\n3:8\n3:16\n\n3:8\n3:8\n3:16\n");
        assert_eq!(process.dmsetup("stats report --units x").1, "Invalid --units argument.\nCommand failed.\n");
    }
}
