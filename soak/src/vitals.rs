//! What processes hold, over time: memory, file descriptors, threads.

use std::{collections::BTreeMap, fs, time::Duration};

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Seconds since the beginning.
    pub at: f64,
    pub rss_kib: f64,
    /// What of its memory was in use, if the process has told.
    pub held_kib: Option<f64>,
    pub fds: f64,
    pub threads: f64,
    /// Nothing was going on.
    pub quiet: bool,
}

/// The samples of all processes, by serial and title.
#[derive(Debug, Default)]
pub struct Vitals {
    samples: BTreeMap<(u16, String), Vec<Sample>>,
    /// Seconds of CPU by serial, as last seen.
    cpu: BTreeMap<u16, f64>,
}

/// How one quantity went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    pub first: f64,
    pub last: f64,
    pub most: f64,
    pub per_hour: f64,
}

impl Vitals {
    /// Looks at a process, unless it has ended, and notes what it holds as it says itself.
    pub fn sample(
        &mut self,
        serial: u16,
        title: &str,
        pid: u32,
        at: Duration,
        quiet: bool,
        held_kib: Option<u32>,
    ) {
        let Some(sample) = look(pid, at, quiet) else { return };
        let sample = Sample { held_kib: held_kib.map(f64::from), ..sample };
        self.samples.entry((serial, title.to_owned())).or_default().push(sample);
        if let Some(cpu) = cpu(pid) {
            self.cpu.insert(serial, cpu);
        }
    }

    /// The process has ended, so its samples say nothing of what happens in the long run.
    pub fn forget(&mut self, serial: u16) {
        self.samples.retain(|(of, _), _| *of != serial);
    }

    /// Seconds of CPU of all processes together.
    pub fn cpu(&self) -> f64 {
        self.cpu.values().sum()
    }

    /// All processes that were there for half of the run at least, with their samples.
    pub fn lasting(&self, run: Duration) -> impl Iterator<Item = (&str, &[Sample])> {
        self.samples.iter().filter_map(move |((_, title), samples)| {
            let (first, last) = (samples.first()?, samples.last()?);
            (last.at - first.at >= run.as_secs_f64() / 2.0).then_some((title.as_str(), samples.as_slice()))
        })
    }
}

/// How a quantity went, without the first tenth, in which everything warms up.
pub fn trend(samples: &[Sample], quiet: bool, of: impl Fn(&Sample) -> Option<f64>) -> Option<Trend> {
    let points = points(samples, quiet, of);
    let (first, last) = (points.first()?.1, points.last()?.1);
    let most = points.iter().map(|(_, value)| *value).fold(first, f64::max);
    Some(Trend { first, last, most, per_hour: slope(&points) })
}

/// By how much a quantity was more in the last third than in the first one, at quiet moments. Nothing is known of that
/// after a few of them.
pub fn growth(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let points = points(samples, true, of);
    let third = points.len() / 3;
    let median = |points: &[(f64, f64)]| -> f64 {
        let mut values: Vec<f64> = points.iter().map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (third >= THIRD_MIN).then(|| median(&points[points.len() - third..]) - median(&points[..third]))
}

/// How many samples have to be in a third.
const THIRD_MIN: usize = 5;

/// Hours and values, without the first tenth.
fn points(samples: &[Sample], quiet: bool, of: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Vec::new() };
    let warm = first.at + (last.at - first.at) / 10.0;
    samples
        .iter()
        .filter(|sample| sample.at >= warm && (!quiet || sample.quiet))
        .filter_map(|sample| Some((sample.at / 3600.0, of(sample)?)))
        .collect()
}

/// Of the line with the least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}

fn look(pid: u32, at: Duration, quiet: bool) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Sample {
        at: at.as_secs_f64(),
        rss_kib: number("VmRSS:")?,
        held_kib: None,
        fds: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as f64,
        threads: number("Threads:")?,
        quiet,
    })
}

/// Seconds of CPU that a process has had.
fn cpu(pid: u32) -> Option<f64> {
    /// `USER_HZ`, which Linux shows to programs whatever it uses itself.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_A_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64, fds: f64, quiet: bool) -> Sample {
        Sample { at, rss_kib: 0.0, held_kib: None, fds, threads: 0.0, quiet }
    }

    #[test]
    fn a_leak_has_a_slope_and_a_wave_has_none() {
        let leak: Vec<_> = (0..100).map(|at| sample(f64::from(at) * 36.0, f64::from(at), true)).collect();
        let trend_of = trend(&leak, true, |sample| Some(sample.fds)).unwrap();
        assert!((trend_of.per_hour - 100.0).abs() < 1e-6, "{trend_of:?}");
        // From 10 on: the medians of 30 each.
        assert_eq!(growth(&leak, |sample| Some(sample.fds)), Some(60.0));
        assert_eq!(growth(&leak[..14], |sample| Some(sample.fds)), None, "there are too few of them");
        assert_eq!(growth(&leak, |sample| sample.held_kib), None);
        let wave: Vec<_> =
            (0..1000).map(|at| sample(f64::from(at) * 36.0, f64::from(at % 2) * 10.0, true)).collect();
        assert_eq!(growth(&wave, |sample| Some(sample.fds)), Some(0.0));
        let trend_of = trend(&wave, true, |sample| Some(sample.fds)).unwrap();
        assert!(trend_of.per_hour.abs() < 0.1, "{trend_of:?}");
        assert_eq!(trend_of.most, 10.0);
    }

    #[test]
    fn the_beginning_and_the_busy_do_not_count_where_they_are_not_to() {
        let mut samples = vec![sample(0.0, 1000.0, true)];
        samples.extend((1..=10).map(|at| sample(f64::from(at) * 100.0, 5.0, at % 2 == 0)));
        samples.push(sample(990.0, 77.0, false));
        let trend_of = trend(&samples, true, |sample| Some(sample.fds)).unwrap();
        assert_eq!((trend_of.first, trend_of.last, trend_of.most, trend_of.per_hour), (5.0, 5.0, 5.0, 0.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_can_be_looked_at() {
        let sample = look(std::process::id(), Duration::ZERO, true).unwrap();
        assert!(sample.rss_kib > 0.0 && sample.fds > 0.0 && sample.threads > 0.0, "{sample:?}");
        assert!(cpu(std::process::id()).is_some());
    }
}
