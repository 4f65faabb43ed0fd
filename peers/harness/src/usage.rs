use std::{fs, time::Instant};

/// How often the kernel's clock for processor time ticks, in all that it tells programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Time, and what the kernel has counted up to it.
pub(crate) struct Usage {
    at: Instant,
    /// Processor seconds of each process, all of its threads.
    processes: Vec<f64>,
    /// Ticks of all processors, and those that the host took away.
    total: u64,
    stolen: u64,
}

/// What happened between two [`Usage`]s.
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    pub(crate) processes: Vec<f64>,
    /// The part of the machine's time that the host took away.
    pub(crate) steal: f64,
}

impl Usage {
    pub(crate) fn now(processes: &[u32]) -> Self {
        let processes = processes.iter().map(|&id| processor_seconds(id)).collect();
        let all = fs::read_to_string("/proc/stat").expect("/proc/stat");
        let first = all.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal
        let ticks: Vec<u64> = first.split_whitespace().skip(1).take(8).flat_map(str::parse).collect();
        let stolen = ticks.get(7).copied().unwrap_or(0);
        Self { at: Instant::now(), processes, total: ticks.iter().sum(), stolen }
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    pub(crate) fn until(&self, end: &Self) -> Spent {
        Spent {
            seconds: (end.at - self.at).as_secs_f64(),
            processes: self.processes.iter().zip(&end.processes).map(|(a, b)| b - a).collect(),
            steal: (end.stolen - self.stolen) as f64 / (end.total - self.total).max(1) as f64,
        }
    }
}

fn processor_seconds(process: u32) -> f64 {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    // The name in parentheses may have spaces; user and system time are the 12th and 13th after it.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    fields.flat_map(str::parse::<u64>).sum::<u64>() as f64 / TICKS_PER_SECOND
}
