//! A few seeds for every change; `cargo run --release -p daffi-sim -- --seeds 10000` runs many.

use daffi_sim::{Bug, Options, run};

/// Runs these seeds, and says how to see again what is wrong with one.
fn hold(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let report = run(seed, Options::default());
        assert!(
            report.violations.is_empty(),
            "seed {seed}: {:#?}\nto see it again: cargo run --release -p daffi-sim -- --seed {seed} --trace",
            report.violations
        );
        assert!(report.summary.values > 0 && report.summary.runs > 0, "seed {seed} does nothing: {report:?}");
    }
}

// In two halves, which run beside each other.

#[test]
fn the_first_seeds_keep_every_promise() {
    hold(0..25);
}

#[test]
fn the_next_seeds_keep_every_promise() {
    hold(25..50);
}

/// Each of these broke a promise once; what it found stands in the changelog.
#[test]
fn what_was_found_stays_fixed() {
    // The rest of a large broadcast without results was not sent, and its callees waited for it.
    hold([115, 141].into_iter());
    // A large call that was sent again had two turns at a time, the second one with an empty chunk.
    hold([1786].into_iter());
    // These were mistakes of the checker: what waited for room, an older connection of a name, and a call that waited
    // behind a task's.
    hold([1196, 2272, 2502, 5248].into_iter());
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in [3, 77_777] {
        let (one, other) = (run(seed, Options::default()), run(seed, Options::default()));
        assert_eq!(one.hash, other.hash, "seed {seed}");
        assert_eq!(one.summary, other.summary, "seed {seed}");
    }
    assert_ne!(run(1, Options::default()).hash, run(2, Options::default()).hash);
}

/// Nobody names a time of day here, so nothing may depend on what the clock on the wall says.
#[test]
fn a_clock_that_jumps_by_a_day_changes_nothing() {
    for seed in 100..105 {
        let with = |wall_jumps| {
            let mut options = Options::default();
            options.wall_jumps = wall_jumps;
            run(seed, options).hash
        };
        assert_eq!(with(true), with(false), "seed {seed}");
    }
}

/// A checker that finds nothing proves nothing: each bug on purpose has to be found.
#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        let found = (0..100).find(|seed| {
            let mut options = Options::default();
            options.bug = Some(bug);
            // A callee that is given what it does not know might be noticed by something else as well.
            let sign = if bug == Bug::NeverRun { "did not run there" } else { "" };
            run(*seed, options).violations.iter().any(|violation| violation.contains(sign))
        });
        assert!(found.is_some(), "{bug:?} is not found in 100 seeds");
    }
}
