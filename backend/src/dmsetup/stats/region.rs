//! A region and its counters, as the kernel writes them.

/// A line of `@stats_list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub id: u64,
    pub start: u64,
    pub len: u64,
    /// Sectors of each area but the last.
    pub step: u64,
    pub program: String,
    pub user_data: String,
    pub precise: bool,
    /// Bounds of the histogram, in nanoseconds.
    pub bounds: Vec<u64>,
}

/// Nanoseconds of a millisecond, in which times are without `precise_timestamps`.
const MS: u64 = 1_000_000;

impl Region {
    /// `0: 0+2048 2048 dmstats - precise_timestamps histogram:10,20`
    pub fn parse(line: &str) -> Option<Region> {
        let mut words = line.split(' ');
        let id = words.next()?.strip_suffix(':')?.parse().ok()?;
        let (start, len) = words.next()?.split_once('+')?;
        let step = words.next()?.parse().ok()?;
        let program = words.next().unwrap_or_default().to_owned();
        let user_data = words.next().unwrap_or_default().to_owned();
        let (mut precise, mut bounds) = (false, Vec::new());
        for word in words {
            match word.strip_prefix("histogram:") {
                Some(list) => bounds = list.split(',').map(|bound| bound.parse().ok()).collect::<Option<Vec<u64>>>()?,
                None => precise |= word == "precise_timestamps",
            }
        }
        if !precise {
            bounds.iter_mut().for_each(|bound| *bound = bound.saturating_mul(MS));
        }
        let (start, len) = (start.parse().ok()?, len.parse().ok()?);
        Some(Region { id, start, len, step, program, user_data, precise, bounds })
    }

    pub fn areas(&self) -> u64 {
        self.len.div_ceil(self.step.max(1)).max(1)
    }
}

/// Counters of an area, or the sum of several. Times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub start: u64,
    pub len: u64,
    pub reads: u64,
    pub reads_merged: u64,
    pub read_sectors: u64,
    pub read_ns: u64,
    pub writes: u64,
    pub writes_merged: u64,
    pub write_sectors: u64,
    pub write_ns: u64,
    pub in_progress: u64,
    pub io_ns: u64,
    pub queue_ns: u64,
    pub total_read_ns: u64,
    pub total_write_ns: u64,
    pub histogram: Vec<u64>,
}

impl Counters {
    /// A line of `@stats_print`: the range, thirteen counters, and the histogram if there is one.
    pub fn parse(line: &str, precise: bool) -> Option<Counters> {
        let mut words = line.split(' ');
        let (start, len) = words.next()?.split_once('+')?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let unit = if precise { 1 } else { MS };
        let mut counters = Counters {
            start: start.parse().ok()?,
            len: len.parse().ok()?,
            reads: number()?,
            reads_merged: number()?,
            read_sectors: number()?,
            read_ns: number()?.saturating_mul(unit),
            writes: number()?,
            writes_merged: number()?,
            write_sectors: number()?,
            write_ns: number()?.saturating_mul(unit),
            in_progress: number()?,
            io_ns: number()?.saturating_mul(unit),
            queue_ns: number()?.saturating_mul(unit),
            total_read_ns: number()?.saturating_mul(unit),
            total_write_ns: number()?.saturating_mul(unit),
            histogram: Vec::new(),
        };
        if let Some(histogram) = words.next() {
            counters.histogram = histogram.split(':').map(|count| count.parse().ok()).collect::<Option<_>>()?;
        }
        Some(counters)
    }

    /// The sum of areas that follow on each other.
    pub fn sum(areas: &[Counters]) -> Counters {
        let mut sum = Counters { start: areas.first().map_or(0, |area| area.start), ..Counters::default() };
        for area in areas {
            sum.len = sum.len.saturating_add(area.len);
            for (total, part) in sum.numbers().into_iter().zip(area.clone().numbers()) {
                *total = total.saturating_add(*part);
            }
            sum.histogram.resize(sum.histogram.len().max(area.histogram.len()), 0);
            sum.histogram
                .iter_mut()
                .zip(&area.histogram)
                .for_each(|(total, part)| *total = total.saturating_add(*part));
        }
        sum
    }

    fn numbers(&mut self) -> [&mut u64; 13] {
        [
            &mut self.reads,
            &mut self.reads_merged,
            &mut self.read_sectors,
            &mut self.read_ns,
            &mut self.writes,
            &mut self.writes_merged,
            &mut self.write_sectors,
            &mut self.write_ns,
            &mut self.in_progress,
            &mut self.io_ns,
            &mut self.queue_ns,
            &mut self.total_read_ns,
            &mut self.total_write_ns,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_read_as_the_kernel_writes_them() {
        let plain = Region::parse("0: 0+2048 1024 dmstats -").unwrap();
        assert_eq!((plain.id, plain.start, plain.len, plain.step, plain.areas()), (0, 0, 2048, 1024, 2));
        assert_eq!((plain.program.as_str(), plain.user_data.as_str(), plain.precise), ("dmstats", "-", false));
        let rich = Region::parse("7: 8+100 100 p data precise_timestamps histogram:10,20").unwrap();
        assert_eq!((rich.precise, rich.bounds.as_slice()), (true, &[10, 20][..]));
        assert_eq!(Region::parse("7: 8+100 100 p - histogram:10").unwrap().bounds, [10_000_000]);
        for line in ["", "x", "0: 1 2", "0: 1+x 2 p -", "0 1+2 2 p -", "0: 1+2 2 p - histogram:x"] {
            assert_eq!(Region::parse(line), None, "{line}");
        }
    }

    #[test]
    fn counters_are_read_and_summed() {
        let one = Counters::parse("0+8 1 2 3 4 5 6 7 8 9 10 11 12 13 1:2:3", true).unwrap();
        assert_eq!((one.reads, one.total_write_ns, one.histogram.as_slice()), (1, 13, &[1, 2, 3][..]));
        let other = Counters::parse("8+8 1 2 3 4 5 6 7 8 9 10 11 12 13", false).unwrap();
        assert_eq!((other.read_sectors, other.read_ns), (3, 4_000_000));
        let sum = Counters::sum(&[one, other]);
        assert_eq!((sum.start, sum.len, sum.reads, sum.read_ns, sum.histogram.len()), (0, 16, 2, 4_000_004, 3));
        for line in ["", "0+8", "0+8 1 2 3", "0+8 1 2 3 4 5 6 7 8 9 10 11 12 x", "0+8 1 2 3 4 5 6 7 8 9 10 11 12 13 x"]
        {
            assert_eq!(Counters::parse(line, false), None, "{line}");
        }
    }
}
