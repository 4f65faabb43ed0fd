//! What the run showed, as text and as JSON.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use serde_json::{Value, json};

use crate::{
    process::lock,
    record::NAMES,
    vitals::{Sample, Trend, Vitals, trend},
    world::World,
};

const WAYS: [&str; 5] = ["answered", "one way", "broadcast", "broadcast without results", "scheduled"];

/// What all worlds together showed.
#[derive(Debug)]
pub struct Report {
    pub violated: u64,
    pub text: String,
    pub json: Value,
}

impl Report {
    pub fn new(worlds: &[World], own: &Vitals, run: Duration, seed: u64) -> Self {
        let mut text = String::new();
        let mut say = |line: String| {
            let _ = writeln!(text, "{line}");
        };
        let mut calls = [0; WAYS.len()];
        let mut outcomes = [0; NAMES.len()];
        let (mut runs, mut violated, mut windows) = (0, 0, 0);
        let mut violations = Vec::new();
        let mut faults = BTreeMap::<&str, u64>::new();
        for world in worlds {
            let history = lock(&world.history);
            add(&mut calls, &history.calls);
            add(&mut outcomes, &history.outcomes);
            runs += history.runs;
            violated += history.violated;
            violations.extend(history.violations.iter().cloned());
            windows += world.windows;
            for (name, count) in &world.faults {
                *faults.entry(name).or_default() += count;
            }
        }
        let hours = run.as_secs_f64() / 3600.0;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let busy = (worlds.iter().map(|world| world.vitals.cpu()).sum::<f64>() + own.cpu())
            / (run.as_secs_f64() * cpus);
        let made: u64 = calls.iter().sum();
        let struck: u64 = faults.values().sum();

        say(format!(
            "{:.1} minutes, seed {seed}, {windows} windows, {:.0} % of the CPU",
            hours * 60.0,
            busy * 100.0
        ));
        say(format!("{made} calls, {runs} runs of callbacks, {struck} faults, {violated} violations"));
        for violation in &violations {
            say(format!("  VIOLATION: {violation}"));
        }
        say("calls:".to_owned());
        for (name, count) in WAYS.iter().zip(calls) {
            say(format!("  {name:<28}{count:>12}"));
        }
        say("outcomes, with one for each node of a broadcast:".to_owned());
        for (name, count) in NAMES.iter().zip(outcomes).filter(|(_, count)| *count > 0) {
            say(format!("  {name:<28}{count:>12}"));
        }
        say("faults:".to_owned());
        for (name, count) in &faults {
            say(format!("  {name:<28}{count:>12}"));
        }
        say("processes that lived through it, at the quiet end of windows: first, last, most, and per hour"
            .to_owned());
        say(format!("  {:<24}{:>34}{:>28}{:>28}", "", "memory in MiB", "descriptors", "threads"));
        let mut processes = Vec::new();
        let vitals = worlds.iter().map(|world| &world.vitals).chain([own]);
        for (title, samples) in vitals.flat_map(|vitals| vitals.lasting(run)) {
            let (line, value) = process(title, samples);
            say(line);
            processes.push(value);
        }

        let named = |names: &[&str], counts: &[u64]| -> Value {
            names.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), json!(count))).collect()
        };
        let json = json!({
            "minutes": hours * 60.0,
            "seed": seed,
            "windows": windows,
            "cpu_share": busy,
            "calls": named(&WAYS, &calls),
            "outcomes": named(&NAMES, &outcomes),
            "runs": runs,
            "faults": faults,
            "violated": violated,
            "violations": violations,
            "processes": processes,
        });
        Self { violated, text, json }
    }
}

fn add<const N: usize>(sum: &mut [u64; N], more: &[u64; N]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

fn process(title: &str, samples: &[Sample]) -> (String, Value) {
    type Of = fn(&Sample) -> f64;
    let of: [(&str, Of); 3] = [
        ("rss_mib", |sample| sample.rss_kib / 1024.0),
        ("fds", |sample| sample.fds),
        ("threads", |sample| sample.threads),
    ];
    let mut line = format!("  {title:<24}");
    let mut value = json!({ "process": title, "samples": samples.len() });
    for (name, of) in of {
        let digits = usize::from(name == "rss_mib");
        if let Some(Trend { first, last, most, per_hour }) = trend(samples, true, of) {
            let _ = write!(line, "{first:>8.digits$}{last:>8.digits$}{most:>6.digits$}{per_hour:>+8.1}/h");
        }
        for (when, quiet) in [("quiet", true), ("always", false)] {
            if let Some(Trend { first, last, most, per_hour }) = trend(samples, quiet, of) {
                value[name][when] =
                    json!({ "first": first, "last": last, "most": most, "per_hour": per_hour });
            }
        }
    }
    (line, value)
}
