//! A few seeds for every change; `cargo run --release -p daffi-sim -- --seeds 10000` runs many.

use daffi_sim::{Bug, Options, run};

/// Runs these seeds, and says how to replay one that fails.
fn hold(seeds: impl Iterator<Item = u64>) {
    let (mut deaths, mut ran_unknown, mut cancelled, mut in_time) = (0, 0, 0, 0);
    let (mut one_way, mut takeovers) = (0, 0);
    let (mut too_deep, mut to_self) = (0, 0);
    for seed in seeds {
        let report = run(seed, Options::default());
        assert!(report.violations.is_empty(), "seed {seed}: {:#?}\n{}", report.violations, report.replay());
        assert!(report.summary.values > 0 && report.summary.runs > 0, "seed {seed} does nothing: {report:?}");
        deaths += report.summary.deaths;
        ran_unknown += report.summary.ran_unknown;
        cancelled += report.summary.cancelled;
        in_time += report.summary.cancelled_in_time;
        one_way += report.summary.one_way;
        takeovers += report.summary.takeovers;
        too_deep += report.summary.too_deep;
        to_self += report.summary.to_self;
    }
    println!("{deaths} deaths, {ran_unknown} ran and are unknown, {cancelled} cancelled, {in_time} in time");
    println!("{one_way} times one way alone was cut, {takeovers} names were taken over");
    println!("{too_deep} rings of calls were too deep, {to_self} nodes called themselves");
    assert!(too_deep > 0 && to_self > 5, "no ring of calls is too deep, or no node calls itself");
    assert!(one_way > 5 && takeovers > 0, "no way is cut in one direction, or no name taken over");
    assert!(deaths > 5 && ran_unknown > 5, "nobody dies in the middle of something");
    assert!(cancelled > 50 && in_time > 5, "nothing is cancelled when it is about to call");
}

// In two halves, which run in parallel.

#[test]
fn the_first_seeds_keep_every_promise() {
    hold(0..25);
}

#[test]
fn the_next_seeds_keep_every_promise() {
    hold(25..50);
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

/// A run that cannot continue is reported by its seed, and the next is as if it had never happened.
#[test]
fn a_panic_ends_one_run_alone() {
    let mut options = Options::default();
    options.bug = Some(Bug::Panics);
    let report = run(3, options);
    assert!(report.violations.iter().any(|violation| violation.contains("planted")), "{report:?}");
    assert!(report.replay().contains("--seed 3 "));
    let (next, again) = (run(3, Options::default()), run(3, Options::default()));
    assert_eq!(next.violations, [""; 0]);
    assert_eq!((next.hash, next.summary), (again.hash, again.summary));
}

/// No task names a time of day here, so nothing may depend on wall clocks: not even with processes whose
/// clocks are up to four days apart and jump by as much every three seconds.
#[test]
fn clocks_that_differ_by_days_and_jump_change_nothing() {
    for seed in 100..105 {
        let with = |clocks_differ| {
            let mut options = Options::default();
            options.clocks_differ = clocks_differ;
            run(seed, options)
        };
        let (wrong, right) = (with(true), with(false));
        assert_eq!(wrong.hash, right.hash, "seed {seed}");
        assert_eq!(wrong.violations, right.violations, "seed {seed}");
        assert!(wrong.wall_reads > 100, "seed {seed}: nobody looks at the clocks: {}", wrong.wall_reads);
    }
}

/// A checker that finds nothing proves nothing: each planted bug must be found, and by what it breaks.
#[test]
fn planted_bugs_are_found() {
    for (bug, sign) in Bug::ALL {
        let found = (0..100).find(|seed| {
            let mut options = Options::default();
            options.bug = Some(bug);
            run(*seed, options).violations.iter().any(|violation| violation.starts_with(sign))
        });
        assert!(found.is_some(), "{bug:?} is not found in 100 seeds as {sign:?}");
    }
}
