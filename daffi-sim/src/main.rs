//! Runs seeds, and for each that breaks a promise says how to run it again.

use std::{env, process::ExitCode, time::Instant};

use daffi_sim::{Options, run};

const USAGE: &str = "usage: daffi-sim --seeds COUNT [--from SEED] | --seed SEED [--trace] [--log]";

/// The command line arguments.
#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    from: u64,
    seed: Option<u64>,
    trace: bool,
    log: bool,
}

fn main() -> ExitCode {
    let arguments = match parse(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if arguments.log {
        tracing_subscriber::fmt().without_time().with_max_level(tracing::Level::DEBUG).init();
    }
    let mut options = Options::default();
    options.trace = arguments.trace;
    let (first, count) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.from, arguments.seeds.unwrap_or(100)),
    };
    let began = Instant::now();
    let (mut failed, mut calls, mut frames) = (0u64, 0, 0);
    let (mut cancelled, mut in_time, mut deaths, mut ran_unknown) = (0, 0, 0, 0);
    let (mut one_way, mut takeovers) = (0, 0);
    let (mut too_deep, mut to_self) = (0, 0);
    for seed in first..first.saturating_add(count) {
        let report = run(seed, options);
        calls += report.summary.calls;
        frames += report.frames;
        cancelled += report.summary.cancelled;
        in_time += report.summary.cancelled_in_time;
        deaths += report.summary.deaths;
        one_way += report.summary.one_way;
        takeovers += report.summary.takeovers;
        too_deep += report.summary.too_deep;
        to_self += report.summary.to_self;
        ran_unknown += report.summary.ran_unknown;
        if !report.violations.is_empty() {
            failed += 1;
            println!("seed {seed} breaks {} promises:", report.violations.len());
            for violation in report.violations.iter().take(5) {
                println!("  {violation}");
            }
            println!("  {}", report.replay());
        }
        if arguments.seed.is_some() {
            println!("{:?} of virtual time, {:#?}, trace {:016x}", report.time, report.summary, report.hash);
        } else if (seed + 1 - first).is_multiple_of(1000) {
            println!("{} seeds in {:.0?}, {failed} of them failed", seed + 1 - first, began.elapsed());
        }
    }
    println!(
        "{count} seeds from {first}, {calls} calls, {frames} frames, {deaths} deaths within a step, {ran_unknown} calls that \
         ran at a callee that was gone then, {cancelled} tasks cancelled, {in_time} of them when they were to call, {one_way} ways cut in one direction, {takeovers} names taken over, \
         {too_deep} rings of calls too deep, {to_self} calls of a node to itself, in {:.1?}: \
         {failed} failed",
        began.elapsed()
    );
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn parse(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(option) = given.next() {
        let mut number = || {
            let value = given.next().unwrap_or_default();
            value.parse().map_err(|_| format!("{option} takes a number, not {value:?}"))
        };
        match option.as_str() {
            "--seeds" => arguments.seeds = Some(number()?),
            "--from" => arguments.from = number()?,
            "--seed" => arguments.seed = Some(number()?),
            "--trace" => arguments.trace = true,
            "--log" => arguments.log = true,
            _ => return Err(format!("unknown option {option:?}")),
        }
    }
    Ok(arguments)
}
