//! Less of the machine for a process than there is: control groups of the kernel, which need root. By `bash tests/netns/run`.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::support::Process;

/// A control group of either version, which is removed with this once its processes are gone.
pub struct Group(PathBuf);

impl Group {
    /// So many percent of one CPU.
    pub fn cpu_percent(percent: u64) -> Self {
        const PERIOD_US: u64 = 100_000;
        let quota = percent * PERIOD_US / 100;
        let group = Self::new("cpu");
        if is_second_version() {
            group.write("cpu.max", &format!("{quota} {PERIOD_US}"));
        } else {
            group.write("cpu.cfs_period_us", &PERIOD_US.to_string());
            group.write("cpu.cfs_quota_us", &quota.to_string());
        }
        group
    }

    /// So many MiB of memory, and whoever wants more is killed.
    pub fn memory_mib(mib: u64) -> Self {
        let group = Self::new("memory");
        let file = if is_second_version() { "memory.max" } else { "memory.limit_in_bytes" };
        group.write(file, &(mib << 20).to_string());
        group
    }

    fn new(controller: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let root = PathBuf::from("/sys/fs/cgroup");
        let root = if is_second_version() { root } else { root.join(controller) };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = root.join(format!("daffi-{}-{number}", std::process::id()));
        fs::create_dir(&group).unwrap();
        Self(group)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    pub fn applies_to(&self, process: &Process) {
        self.write("cgroup.procs", &process.id().to_string());
    }

    /// How often somebody had to wait for the CPU because of it.
    pub fn throttled(&self) -> u64 {
        let stat = fs::read_to_string(self.0.join("cpu.stat")).unwrap();
        stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap().parse().unwrap()
    }
}

fn is_second_version() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap()
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes may take a moment to be gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
