//! `stats list` and `stats report`.

use std::time::{Duration, Instant};

use super::super::console::{Done, Failed};
use super::super::context::{Context, Device};
use super::super::report::{self, Field, Group, N, NoReport, Report, T, Value, field};
use super::region::{Counters, Region};
use super::units::Units;
use super::{devices, regions, send, words};
use crate::control::schema::Info;

const C: Group = Group::Stats;
const R: Group = Group::Region;

static FIELDS: [Field; 58] = [
    field(Group::Name, "Name", 16, T, "name", "Name of the device."),
    field(Group::Name, "UUID", 32, T, "uuid", "Its uuid, if it has one."),
    field(C, "#Reads", 6, N, "read_count", "Reads that have ended."),
    field(C, "#RdMrgs", 7, N, "reads_merged_count", "Reads that were merged."),
    field(C, "#RdSectors", 10, N, "read_sector_count", "Sectors read."),
    field(C, "AccRdTime", 11, N, "read_time", "Sum of the times of reads, in ns."),
    field(C, "RdTicks", 7, N, "read_ticks", "Time in which there was a read under way, in ns."),
    field(C, "#Writes", 7, N, "write_count", "Writes that have ended."),
    field(C, "#WrMrgs", 7, N, "writes_merged_count", "Writes that were merged."),
    field(C, "#WrSectors", 10, N, "write_sector_count", "Sectors written."),
    field(C, "AccWrTime", 11, N, "write_time", "Sum of the times of writes, in ns."),
    field(C, "WrTicks", 7, N, "write_ticks", "Time in which there was a write under way, in ns."),
    field(C, "#InProg", 7, N, "in_progress_count", "Requests under way."),
    field(C, "IoTicks", 7, N, "io_ticks", "Time in which there was a request under way, in ns."),
    field(C, "QueueTicks", 10, N, "queue_ticks", "Requests under way, times how long, in ns."),
    field(C, "RMrg/s", 6, N, "reads_merged_per_sec", "Reads merged in a second."),
    field(C, "WMrg/s", 6, N, "writes_merged_per_sec", "Writes merged in a second."),
    field(C, "R/s", 3, N, "reads_per_sec", "Reads in a second."),
    field(C, "W/s", 3, N, "writes_per_sec", "Writes in a second."),
    field(C, "RSz/s", 5, N, "read_size_per_sec", "Data read in a second."),
    field(C, "WSz/s", 5, N, "write_size_per_sec", "Data written in a second."),
    field(C, "AvgRqSz", 7, N, "avg_request_size", "Data of a request, on average."),
    field(C, "QSize", 5, N, "queue_size", "Requests under way, on average."),
    field(C, "Util%", 5, N, "util", "Share of the time in which there was a request under way."),
    field(C, "AWait", 5, N, "await", "Time of a request on average, in ms."),
    field(C, "RdAWait", 7, N, "read_await", "Time of a read on average, in ms."),
    field(C, "WrAWait", 7, N, "write_await", "Time of a write on average, in ms."),
    field(C, "Throughput", 10, N, "throughput", "Requests in a second."),
    field(C, "SvcTm", 5, N, "service_time", "Time under way for each request, in ms."),
    field(C, "Histogram Counts", 16, T, "hist_count", "Requests by their time."),
    field(C, "Histogram Counts", 16, T, "hist_count_bounds", "The same, with the bounds."),
    field(C, "Histogram Counts", 16, T, "hist_count_ranges", "The same, with the ranges."),
    field(C, "Histogram%", 10, T, "hist_percent", "Share of requests by their time."),
    field(C, "Histogram%", 10, T, "hist_percent_bounds", "The same, with the bounds."),
    field(C, "Histogram%", 10, T, "hist_percent_ranges", "The same, with the ranges."),
    field(C, "IntervalNs", 10, N, "interval_ns", "The time that rates are of, in ns."),
    field(C, "Interval", 8, N, "interval", "The time that rates are of, in s."),
    field(R, "RgID", 4, N, "region_id", "Region."),
    field(R, "RgStart", 7, N, "region_start", "Where it begins."),
    field(R, "RgSize", 6, N, "region_len", "Its size."),
    field(R, "ArID", 4, N, "area_id", "Area of the region."),
    field(R, "ArStart", 7, N, "area_start", "Where it begins on the device."),
    field(R, "ArSize", 6, N, "area_len", "Its size."),
    field(R, "ArOff", 5, N, "area_offset", "Where it begins in the region."),
    field(R, "#Areas", 6, N, "area_count", "Areas of the region."),
    field(R, "GrpID", 5, N, "group_id", "Group of regions: there is none."),
    field(R, "ProgID", 6, T, "program_id", "Program that made it."),
    field(R, "UserData", 8, T, "user_data", "What that noted."),
    field(R, "Precise", 7, T, "precise", "1: times are counted in nanoseconds."),
    field(R, "#Bins", 9, T, "hist_bins", "Bins of the histogram."),
    field(R, "Histogram Bounds", 16, T, "hist_bounds", "Their bounds."),
    field(R, "Histogram Ranges", 16, T, "hist_ranges", "Their ranges."),
    field(R, "Name", 16, T, "stats_name", "Name of the device."),
    field(R, "ObjType", 7, T, "obj_type", "area or region."),
    field(Group::Info, "DevNo", 5, T, "devno", "Major and minor number."),
    field(Group::Info, "Maj", 3, N, "major", "Major number."),
    field(Group::Info, "Min", 3, N, "minor", "Minor number."),
    field(Group::Info, "Sectors", 10, N, "sectors", "Sectors of the device."),
];

const LIST: &str = "stats_name,group_id,region_id,obj_type,region_start,region_len,area_count,area_len";
const LIST_AREAS: &str =
    "stats_name,group_id,region_id,obj_type,region_start,region_len,area_count,area_id,area_start,area_len";
const OBJECT: &str = "stats_name,group_id,region_id,obj_type,area_id,area_start,area_len";
const METRICS: &str = "reads_merged_per_sec,writes_merged_per_sec,reads_per_sec,writes_per_sec,read_size_per_sec,\
                       write_size_per_sec,avg_request_size,queue_size,util,await,read_await,write_await";
const COUNTERS: &str = "read_count,reads_merged_count,read_sector_count,read_time,read_ticks,write_count,\
                        writes_merged_count,write_sector_count,write_time,write_ticks,in_progress_count,io_ticks,queue_ticks";

/// Fields that can be shown.
pub(in super::super) fn fields() -> String {
    report::help(&FIELDS)
}

/// A row: a region or an area of it, and what was counted there.
struct Object<'a> {
    info: &'a Info,
    region: &'a Region,
    /// None: all areas of the region.
    area: Option<u64>,
    counters: Counters,
    interval: Duration,
    units: Units,
    suffixes: bool,
}

pub(super) fn list(context: &mut Context<'_>, devices: &[String]) -> Done {
    let (verbose, histogram) = (context.options.has("verbose"), context.options.has("histogram"));
    let object = if verbose { LIST_AREAS } else { LIST };
    let fields = format!("{object},{}", if histogram { "hist_bins,hist_bounds" } else { "program_id" });
    let Some(mut report) = start(context, &fields)? else { return Ok(()) };
    fill(context, devices, &mut report, None)?;
    context.console.print(&report.print());
    Ok(())
}

pub(super) fn report(context: &mut Context<'_>, devices: &[String]) -> Done {
    let fields = match (context.options.has("histogram"), context.options.has("relative"), context.options.has("raw")) {
        (true, false, _) => format!("{LIST},util,await,hist_count_bounds"),
        (true, true, _) => format!("{LIST},util,await,hist_percent_bounds"),
        (false, _, true) => format!("{OBJECT},{COUNTERS}"),
        (false, _, false) => format!("{OBJECT},{METRICS}"),
    };
    let seconds = context.options.number("interval").and_then(|interval| u64::try_from(interval).ok());
    let interval = Duration::from_secs(seconds.unwrap_or(1));
    let count = context.options.number("count").filter(|&count| count > 0);
    let endless = context.options.has("count") || seconds.is_some();
    let mut left = count.unwrap_or(if endless { i64::MAX } else { 1 });
    // How long the first counters were counted nobody knows; dmsetup takes it for an interval too.
    let mut since = interval;
    let mut next = Instant::now();
    loop {
        let Some(mut report) = start(context, &fields)? else { return Ok(()) };
        let taken = Instant::now();
        fill(context, devices, &mut report, Some(since))?;
        context.console.print(&report.print());
        left -= 1;
        if left == 0 {
            return Ok(());
        }
        context.console.print("\n");
        context.console.flush();
        if context.console.is_broken() {
            return Err(Failed);
        }
        next += interval;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        since = taken.elapsed().max(Duration::from_nanos(1));
    }
}

/// `None`: the fields were asked for, and have been told.
fn start(context: &mut Context<'_>, fields: &str) -> Done<Option<Report>> {
    match Report::new(&context.options, &FIELDS, fields) {
        Ok(report) => Ok(Some(report)),
        Err(NoReport::Help(text)) => {
            context.console.complain(&text);
            Ok(None)
        }
        Err(NoReport::Wrong(text)) => context.console.fail(&text),
    }
}

fn fill(context: &mut Context<'_>, names: &[String], report: &mut Report, interval: Option<Duration>) -> Done {
    let text = context.options.value("units").unwrap_or("h");
    let suffixes = !context.options.has("nosuffix");
    let Some(units) = Units::parse(text, suffixes) else {
        return context.console.fail("Invalid --units argument.");
    };
    let devices: Vec<Device> = devices(context, names)?;
    if devices.is_empty() {
        context.console.say("No devices found");
    }
    for device in devices {
        let info: Info = context.ioctl("info", &device, &device.which)?;
        for region in regions(context, &device, false)? {
            let counted = match interval {
                Some(_) => counters(context, &device, &region)?,
                None if context.options.has("area") || context.options.has("verbose") => {
                    (0..region.areas()).map(|index| area_of(&region, index)).collect()
                }
                None => Vec::new(),
            };
            let interval = interval.unwrap_or_default();
            for (area, counters) in objects(context, &region, counted) {
                let suffixes = !context.options.has("notimesuffix");
                let object = Object { info: &info, region: &region, area, counters, interval, units, suffixes };
                report.add(&|id| object.value(id));
            }
        }
    }
    Ok(())
}

/// What has been counted in each area of a region; it begins again from 0.
fn counters(context: &mut Context<'_>, device: &Device, region: &Region) -> Done<Vec<Counters>> {
    let text = send(context, device, words(["@stats_print_clear", &region.id.to_string()]))?;
    let counters: Option<Vec<Counters>> = text.lines().map(|line| Counters::parse(line, region.precise)).collect();
    match counters {
        Some(counters) => Ok(counters),
        None => context.console.fail(&format!("The process's counters cannot be read: {text}")),
    }
}

fn area_of(region: &Region, index: u64) -> Counters {
    let offset = index.saturating_mul(region.step);
    let len = region.step.min(region.len.saturating_sub(offset));
    Counters { start: region.start.saturating_add(offset), len, ..Counters::default() }
}

/// The rows of a region: an area each if there are several, and the region.
fn objects(context: &Context<'_>, region: &Region, areas: Vec<Counters>) -> Vec<(Option<u64>, Counters)> {
    let (area, whole) = (context.options.has("area"), context.options.has("region"));
    let with_areas = area || (!whole && areas.len() > 1);
    let sum = Counters::sum(&areas);
    let mut objects = Vec::new();
    if with_areas {
        objects.extend(areas.into_iter().enumerate().map(|(index, counters)| (Some(index as u64), counters)));
    }
    if whole || !area {
        objects.push((None, Counters { len: region.len, start: region.start, ..sum }));
    }
    objects
}

impl Object<'_> {
    fn value(&self, id: &str) -> Value {
        let Object { info, region, counters, .. } = self;
        let size = |sectors: u64| Value::Real(sectors as f64, self.units.show(sectors as f64));
        match id {
            "name" | "stats_name" => Value::text(dm_table::unmangle(&info.name)),
            "uuid" => Value::text(dm_table::unmangle(info.uuid.as_deref().unwrap_or_default())),
            "devno" => Value::text(format!("{}:{}", info.major, info.minor)),
            "major" => Value::Number(info.major.into()),
            "minor" => Value::Number(info.minor.into()),
            "sectors" => Value::Number(info.sectors),
            "region_id" => Value::Number(region.id),
            "region_start" => size(region.start),
            "region_len" => size(region.len),
            "area_id" => Value::Number(self.area.unwrap_or(0)),
            "area_start" => size(counters.start),
            "area_len" if self.area.is_none() => size(region.step.min(region.len)),
            "area_len" => size(counters.len),
            "area_offset" => size(counters.start.saturating_sub(region.start)),
            "area_count" => Value::Number(region.areas()),
            "group_id" => Value::Real(0.0, "-".into()),
            "program_id" => Value::text(&region.program),
            "user_data" => Value::text(&region.user_data),
            "precise" => Value::text(if region.precise { "1" } else { "0" }),
            "hist_bins" if region.bounds.is_empty() => Value::text("0"),
            "hist_bins" => Value::text((region.bounds.len() + 1).to_string()),
            "hist_bounds" => Value::text(self.bounds(false)),
            "hist_ranges" => Value::text(self.bounds(true)),
            "obj_type" => Value::text(if self.area.is_some() { "area" } else { "region" }),
            _ => self.counted(id),
        }
    }

    fn counted(&self, id: &str) -> Value {
        let c = &self.counters;
        let number = match id {
            "read_count" => c.reads,
            "reads_merged_count" => c.reads_merged,
            "read_sector_count" => c.read_sectors,
            "read_time" => c.read_ns,
            "read_ticks" => c.total_read_ns,
            "write_count" => c.writes,
            "writes_merged_count" => c.writes_merged,
            "write_sector_count" => c.write_sectors,
            "write_time" => c.write_ns,
            "write_ticks" => c.total_write_ns,
            "in_progress_count" => c.in_progress,
            "io_ticks" => c.io_ns,
            "queue_ticks" => c.queue_ns,
            "interval_ns" => u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX),
            _ => return self.derived(id),
        };
        Value::Number(number)
    }

    /// Rates and averages, by dmstats's formulas.
    fn derived(&self, id: &str) -> Value {
        let c = &self.counters;
        let seconds = self.interval.as_secs_f64();
        let over = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
        let per_second = |count: u64| over(count as f64, seconds);
        let decimal = |number: f64| Value::Real(number, format!("{number:.2}"));
        let size = |sectors: f64| Value::Real(sectors, self.units.show(sectors));
        let ms = |ns: u64, count: u64| decimal(over(ns as f64 / 1e6, count as f64));
        let requests = c.reads.saturating_add(c.writes);
        match id {
            "reads_merged_per_sec" => decimal(per_second(c.reads_merged)),
            "writes_merged_per_sec" => decimal(per_second(c.writes_merged)),
            "reads_per_sec" => decimal(per_second(c.reads)),
            "writes_per_sec" => decimal(per_second(c.writes)),
            "read_size_per_sec" => size(per_second(c.read_sectors)),
            "write_size_per_sec" => size(per_second(c.write_sectors)),
            "avg_request_size" => size(over(c.read_sectors.saturating_add(c.write_sectors) as f64, requests as f64)),
            "queue_size" => decimal(over(c.queue_ns as f64 / 1e9, seconds)),
            "util" => decimal((over(c.io_ns as f64 / 1e9, seconds) * 100.0).min(100.0)),
            "await" => ms(c.read_ns.saturating_add(c.write_ns), requests),
            "read_await" => ms(c.read_ns, c.reads),
            "write_await" => ms(c.write_ns, c.writes),
            "throughput" => decimal(per_second(requests)),
            "service_time" => ms(c.io_ns, requests),
            "interval" => Value::Real(seconds, format!("{seconds:.6}")),
            "hist_count" => Value::text(self.histogram(false, None)),
            "hist_count_bounds" => Value::text(self.histogram(false, Some(false))),
            "hist_count_ranges" => Value::text(self.histogram(false, Some(true))),
            "hist_percent" => Value::text(self.histogram(true, None)),
            "hist_percent_bounds" => Value::text(self.histogram(true, Some(false))),
            "hist_percent_ranges" => Value::text(self.histogram(true, Some(true))),
            _ => Value::text(""),
        }
    }

    /// Lower bounds, or ranges, of the bins.
    fn edges(&self, ranges: bool) -> Vec<String> {
        let bounds = &self.region.bounds;
        if bounds.is_empty() {
            return Vec::new();
        }
        let time = |ns: u64| self.time(ns);
        let lower = std::iter::once(0).chain(bounds.iter().copied());
        let upper = bounds.iter().map(|&bound| Some(bound)).chain([None]);
        let edge = |(lower, upper): (u64, Option<u64>)| match (ranges, upper) {
            (false, _) => time(lower),
            (true, Some(upper)) => format!("{}-{}", time(lower), time(upper)),
            (true, None) => format!(">={}", time(lower)),
        };
        lower.zip(upper).map(edge).collect()
    }

    fn bounds(&self, ranges: bool) -> String {
        self.edges(ranges).join(", ")
    }

    fn histogram(&self, percent: bool, ranges: Option<bool>) -> String {
        let counts = &self.counters.histogram;
        let sum = counts.iter().fold(0u64, |sum, &count| sum.saturating_add(count));
        let count = |&count: &u64| match percent {
            true => format!("{:.2}%", if sum == 0 { 0.0 } else { count as f64 * 100.0 / sum as f64 }),
            false => count.to_string(),
        };
        let counts = counts.iter().map(count);
        let bins: Vec<String> = match ranges {
            None => counts.collect(),
            Some(ranges) => self.edges(ranges).iter().zip(counts).map(|(edge, n)| format!("{edge}: {n}")).collect(),
        };
        bins.join(", ")
    }

    fn time(&self, ns: u64) -> String {
        let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
        let fits = units.iter().find(|(unit, _)| ns >= *unit && ns.is_multiple_of(*unit));
        let (unit, name) = fits.copied().unwrap_or((1, if ns == 0 { "" } else { "ns" }));
        format!("{}{}", ns / unit, if self.suffixes { name } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(fields: &str, area: Option<u64>) -> String {
        let region = Region::parse("3: 0+4096 2048 dmstats - precise_timestamps histogram:1000,2000000").unwrap();
        let lines = "0+2048 100 0 800 200000000 50 0 400 100000000 2 500000000 3000000000 0 0 10:20:30\n\
                     2048+2048 100 0 800 200000000 50 0 400 100000000 0 500000000 1000000000 0 0 10:20:10";
        let areas: Vec<Counters> = lines.lines().map(|line| Counters::parse(line, true).unwrap()).collect();
        let counters = area.map_or_else(|| Counters::sum(&areas), |index| areas[index as usize].clone());
        let info = Info { name: "vm".into(), ..Info::default() };
        let units = Units::parse("h", true).unwrap();
        let interval = Duration::from_secs(2);
        let object = Object { info: &info, region: &region, area, counters, interval, units, suffixes: true };
        fields.split(',').map(|id| object.value(id).shown()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rates_and_averages_are_dmstatss() {
        assert_eq!(shown(OBJECT, None), "vm - 3 region 0 0 1.00m");
        assert_eq!(shown(OBJECT, Some(1)), "vm - 3 area 1 1.00m 1.00m");
        assert_eq!(shown("reads_per_sec,writes_per_sec,read_size_per_sec", None), "100.00 50.00 400.00k");
        assert_eq!(shown("avg_request_size,queue_size,util", None), "4.00k 2.00 50.00");
        assert_eq!(shown("await,read_await,write_await", None), "2.00 2.00 2.00");
        assert_eq!(shown("read_count,in_progress_count,interval", Some(0)), "100 2 2.000000");
    }

    #[test]
    fn histograms_name_their_bins() {
        assert_eq!(shown("hist_bins,hist_bounds", None), "3 0, 1us, 2ms");
        assert_eq!(shown("hist_ranges", None), "0-1us, 1us-2ms, >=2ms");
        assert_eq!(shown("hist_count_bounds", None), "0: 20, 1us: 40, 2ms: 40");
        assert_eq!(shown("hist_percent", None), "20.00%, 40.00%, 40.00%");
    }

    #[test]
    fn each_field_has_a_value() {
        for field in &FIELDS {
            let text = shown(field.id, None);
            assert!(!text.is_empty() || matches!(field.id, "uuid"), "{}", field.id);
        }
    }
}
