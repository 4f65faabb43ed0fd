//! What the run showed, as text and as JSON.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use serde_json::{Value, json};

use crate::{
    process::lock,
    record::NAMES,
    vitals::{Sample, Trend, Vitals, growth, trend},
    world::World,
};

/// Something of which a process has more or less over time.
struct Quantity {
    name: &'static str,
    digits: usize,
    of: fn(&Sample) -> Option<f64>,
    /// By how much it may be more in the end than in the beginning, at quiet moments.
    growth_max: fn(&str) -> Option<f64>,
}

const QUANTITIES: [Quantity; 4] = [
    Quantity {
        name: "rss_mib",
        digits: 1,
        of: |sample| Some(sample.rss_kib / 1024.0),
        // What the allocator keeps for later is its own affair. The controller alone does not tell how much of its memory that is,
        // and what it takes does not grow with payloads.
        growth_max: |title| title.ends_with("controller").then_some(4.0),
    },
    Quantity {
        name: "held_mib",
        digits: 2,
        of: |sample| Some(sample.held_kib? / 1024.0),
        growth_max: |_| Some(1.0),
    },
    Quantity { name: "fds", digits: 0, of: |sample| Some(sample.fds), growth_max: |_| Some(4.0) },
    Quantity {
        name: "threads",
        digits: 0,
        of: |sample| Some(sample.threads),
        // A callee has more of them for ten seconds after many callbacks have blocked, which may be more often at one time than at
        // another. All others have as many as they began with.
        growth_max: |title| Some(if title.contains("callee") { 40.0 } else { 2.0 }),
    },
];

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
            for (title, samples) in world.vitals.lasting(run) {
                let grown = grown(title, samples);
                violated += grown.len() as u64;
                violations.extend(grown);
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
        say(format!(
            "  {:<24}{:>34}{:>34}{:>34}{:>34}",
            "", "resident memory in MiB", "in use in MiB", "descriptors", "threads"
        ));
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

/// What a process has more and more of, in words.
fn grown(title: &str, samples: &[Sample]) -> Vec<String> {
    let grown = QUANTITIES.iter().filter_map(|quantity| {
        let growth_max = (quantity.growth_max)(title)?;
        let growth = growth(samples, quantity.of).filter(|growth| *growth > growth_max)?;
        Some(format!("{title}: {} has grown by {growth:.1} in quiet moments", quantity.name))
    });
    grown.collect()
}

fn process(title: &str, samples: &[Sample]) -> (String, Value) {
    let mut line = format!("  {title:<24}");
    let mut value = json!({ "process": title, "samples": samples.len() });
    for Quantity { name, digits, of, .. } in QUANTITIES {
        if let Some(Trend { first, last, most, per_hour }) = trend(samples, true, of) {
            let _ = write!(line, "{first:>8.digits$}{last:>8.digits$}{most:>8.digits$}{per_hour:>+8.1}/h");
        } else {
            let _ = write!(line, "{:>34}", "-");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Half an hour of quiet moments, in which these grow steadily by so many MiB from one third to the last one.
    fn samples(rss: f64, held: Option<f64>) -> Vec<Sample> {
        samples_with_threads(rss, held, 0.0)
    }

    /// The same, with so many threads more.
    fn samples_with_threads(rss: f64, held: Option<f64>, threads: f64) -> Vec<Sample> {
        let sample = |number: u32| {
            let part = f64::from(number) / 40.0;
            let held_kib = held.map(|held| 1024.0 * (1.0 + held * part));
            let rss_kib = 1024.0 * (5.0 + rss * part);
            Sample {
                at: part * 1800.0,
                rss_kib,
                held_kib,
                fds: 21.0,
                threads: 2.0 + threads * part,
                quiet: true,
            }
        };
        (0..=60).map(sample).collect()
    }

    #[test]
    fn memory_that_grows_is_a_violation() {
        assert_eq!(grown("steady controller", &samples(3.0, None)), [""; 0]);
        let told = grown("steady controller", &samples(9.0, None));
        assert!(told.len() == 1 && told[0].contains("controller: rss_mib has grown"), "{told:?}");
        // Of the others, what they have allocated counts alone.
        assert_eq!(grown("steady callee-0", &samples(90.0, Some(0.5))), [""; 0]);
        let told = grown("steady callee-0", &samples(9.0, Some(3.0)));
        assert!(told.len() == 1 && told[0].contains("callee-0: held_mib has grown"), "{told:?}");
    }

    #[test]
    fn threads_that_become_more_are_a_violation() {
        for (title, few, many) in [
            ("steady controller", 1.0, 3.0),
            ("bouncing caller-1", 1.0, 3.0),
            ("steady callee-0", 35.0, 50.0),
        ] {
            assert_eq!(grown(title, &samples_with_threads(0.0, None, few)), [""; 0]);
            let told = grown(title, &samples_with_threads(0.0, None, many));
            assert!(told.len() == 1 && told[0].contains(&format!("{title}: threads has grown")), "{told:?}");
        }
        // More for a while, as after many callbacks have blocked.
        let mut wave = samples(0.0, None);
        wave.iter_mut().skip(30).step_by(3).for_each(|sample| sample.threads += 200.0);
        assert_eq!(grown("steady callee-0", &wave), [""; 0]);
    }
}
