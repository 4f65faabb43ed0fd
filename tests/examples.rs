//! Every example runs to its end and prints what it is about.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longer than any example takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Examples that others have tests for, or that are not programs to their own end.
const NOT_HERE: [&str; 2] = ["process1", "process2"];

#[test]
fn demo() {
    let lines = run("demo");
    for expected in
        ["proc1 | Calculated delta = 7", "proc2 | Func2 has been triggered!", "proc2 | Calculated sum is 10"]
    {
        assert!(lines.iter().filter(|line| *line == expected).count() >= 2, "{expected}: {lines:#?}");
    }
}

#[test]
fn pipeline() {
    check(
        "pipeline",
        &[
            "front: the answer is \"3 words\"",
            "counter: editor asked me",
            "counter: of the front's 3 s less than 2 s were left: true",
            "front: no answer from \"summary\" within 2s",
            "counter: nobody waits any more, editor neither; I have stopped working",
        ],
    );
}

#[test]
fn broadcast() {
    check(
        "broadcast",
        &[
            "attic: \"temperature\" on \"attic\" failed: the sensor is broken",
            "cellar: no answer from \"temperature\" within 1s",
            "kitchen: 24 °C",
            "asked: [\"kitchen\"]",
            "attic heard \"dinner is ready\"",
            "cellar heard \"dinner is ready\"",
            "kitchen heard \"dinner is ready\"",
            "no process offers \"announced\"; did you mean announce?",
        ],
    );
}

#[test]
fn schedule() {
    check(
        "schedule",
        &[
            "period 1",
            "period 2",
            "period 3",
            "it is Cancelled; failures: 0, skipped: …",
            "next in …",
            "at time 1",
            "at time 2",
            "at_time has a time that is 60.…",
            "sent already: false",
            "eta",
        ],
    );
}

#[test]
fn singleton() {
    check(
        "singleton",
        &[
            "the currency is EUR",
            "too early: \"till.pay\" on \"shop\" has no instance yet…",
            "the till is empty: true",
            "250 makes 250",
            "100 makes 350",
            "the till is empty: false",
            "a second one: Till is a singleton and already has an instance…",
        ],
    );
}

#[test]
fn typed_errors() {
    check(
        "typed_errors",
        &[
            "withdraw 30: 70 left",
            "withdraw 500: \"withdraw\" on \"bank\" failed: there are only 100 left",
            "  so I take 100",
            "withdraw 0: \"withdraw\" on \"bank\" failed: the account is closed",
            "  so I go elsewhere",
            "statement: \"bank\" said: …",
            "audit: panicked is true: the books do not add up",
            "no process offers \"withdrew\"; did you mean withdraw?",
            "  may have run: false, worth another try: true",
            "no process named \"savings bank\" is connected to the controller",
            "  may have run: false, worth another try: true",
            "caller and callee disagree on \"withdraw\": …",
            "  may have run: false, worth another try: false",
            "no answer from \"wait\" within 100ms",
            "  may have run: true, worth another try: true",
        ],
    );
}

#[test]
fn async_app() {
    check(
        "async_app",
        &[
            "7 * 7 = 49",
            "8 * 8 = 64",
            "1, 2 and 3: 1, 4 and 9",
            "the first five squares make 55",
            "that takes too long for me",
            "the worker has stopped sleeping, cancelled: true",
            "FG would block this thread's async runtime: use `.await` on the call instead",
        ],
    );
}

#[test]
fn standalone_controller() {
    check(
        "standalone_controller",
        &[
            "first: 2 * 21 = 42",
            "caller offers []",
            "first offers [\"double\"]",
            "second offers [\"double\"]",
            "double(i64) -> i64 on [\"first\", \"second\"]",
            "first is gone: 2 * 22 = 44",
            "no process named \"first\" is connected to the controller",
        ],
    );
}

/// A program that links another controller: it is found although nothing names it, and the default one is not linked.
/// A package of its own, since in this workspace daffi has its default features; so cargo builds it here.
#[test]
fn own_controller() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/own_controller/program/Cargo.toml");
    let cargo = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .args(["--quiet", "--manifest-path"])
            .arg(&manifest)
            .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("own_controller"))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(cargo(&["run"]), "2 + 3 = 5\n");
    let linked = cargo(&["tree", "--edges", "normal"]);
    assert!(linked.contains("own_controller") && !linked.contains("daffi-controller"), "{linked}");
}

#[test]
fn every_example_has_its_test() {
    let this = include_str!("examples.rs");
    for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").read_dir().unwrap() {
        let path = entry.unwrap().path();
        // A folder is a package of its own.
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(NOT_HERE.contains(&name) || this.contains(&format!("\nfn {name}() {{")), "{name}");
        }
    }
}

/// Runs an example and compares its lines; one that ends with `…` is the beginning of a line.
fn check(name: &str, expected: &[&str]) {
    let lines = run(name);
    let same = |(line, expected): (&String, &&str)| match expected.strip_suffix('…') {
        Some(beginning) => line.starts_with(beginning),
        None => line == expected,
    };
    assert!(
        lines.len() == expected.len() && lines.iter().zip(expected).all(same),
        "{name} printed {lines:#?}\ninstead of {expected:#?}"
    );
}

/// Runs an example to its end and gives what it printed.
fn run(name: &str) -> Vec<String> {
    let program = program(name);
    assert!(
        program.exists(),
        "{} is not there: `cargo test` builds examples only if it is not told what to test; run `cargo build --examples` before",
        program.display()
    );
    let mut child = Command::new(&program)
        // `demo` would have cargo build what lies beside it already.
        .env_remove("CARGO")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    // All examples print less than a pipe holds.
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{name} ended with {status} and printed\n{stdout}\nand on stderr\n{stderr}");
    stdout.lines().map(str::to_owned).collect()
}

/// Examples lie in a folder beside that of the tests.
fn program(name: &str) -> PathBuf {
    let this = env::current_exe().unwrap();
    let folder = this.parent().and_then(Path::parent).expect("tests lie in target/…/deps");
    folder.join("examples").join(format!("{name}{}", env::consts::EXE_SUFFIX))
}
