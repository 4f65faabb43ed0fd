use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{
    Address,
    frame::{Frame, Request},
};

use crate::common::*;

/// The program, killed if a test ends early.
struct Program {
    child: Child,
    address: Address,
}

impl Program {
    fn start(options: &[&str]) -> Self {
        Self::run(command(&["--listen", "tcp://127.0.0.1:0"]).args(options))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap();
        Self { child, address }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daffi-controller"));
    command.args(options).stderr(Stdio::null());
    command
}

fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < until, "the program did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_stops_it_cleanly() {
    for signal in ["-TERM", "-INT"] {
        let mut program = Program::start(&["--strategy", "least-busy", "--heartbeat", "500ms"]);
        let mut node = RawNode::join(&program.address, "a", &[]);
        program.signal(signal);
        node.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
        assert_eq!(node.drain(), 0);
        drop(node);
        assert_eq!(program.wait().code(), Some(0));
    }
}

#[test]
fn calls_in_flight_finish_or_are_cut_off_with_their_own_exit_code() {
    for (grace, answers, code) in [("20s", true, 0), ("50ms", false, 4)] {
        let mut program = Program::start(&["--grace", grace]);
        let mut a = RawNode::join(&program.address, "a", &[]);
        let mut b = RawNode::join(&program.address, "b", &["f"]);
        a.send(&request(1, "f", &Bytes::new()));
        let id = b.request();
        let begun = Instant::now();
        program.signal("-TERM");
        b.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
        a.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
        if answers {
            b.send(&reply(id, b"result"));
            a.expect(|frame| matches!(frame, Frame::Reply(_)));
        }
        a.drain();
        b.drain();
        drop((a, b));
        assert_eq!(program.wait().code(), Some(code));
        // By default it would wait for 10 s; with the answer it need not wait at all.
        assert!(begun.elapsed() < AT_ONCE, "{grace}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_second_signal_stops_it_at_once() {
    let mut program = Program::start(&["--grace", "60s"]);
    let mut a = RawNode::join(&program.address, "a", &[]);
    let mut b = RawNode::join(&program.address, "b", &["f"]);
    a.send(&request(1, "f", &Bytes::new()));
    b.request();
    program.signal("-TERM");
    b.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
    program.signal("-TERM");
    assert_eq!(program.wait().code(), Some(4));
}

#[test]
fn it_serves_with_several_threads() {
    let mut program = Program::start(&["--threads", "3"]);
    let mut callee = RawNode::join(&program.address, "callee", &["f"]);
    let mut callers: Vec<_> =
        (0..5).map(|number| RawNode::join(&program.address, &format!("caller{number}"), &[])).collect();
    for caller in &mut callers {
        caller.send(&request(1, "f", &Bytes::new()));
        let id = callee.request();
        callee.send(&reply(id, b"result"));
        caller.expect(|frame| matches!(frame, Frame::Reply(_)));
    }
    program.signal("-TERM");
    for node in callers.iter_mut().chain([&mut callee]) {
        node.drain();
    }
    drop((callee, callers));
    assert_eq!(program.wait().code(), Some(0));
}

/// Nodes that join one after the other and then stay idle.
fn idle_nodes(program: &Program, prefix: &str, count: usize) -> Vec<RawNode> {
    (0..count).map(|number| RawNode::join(&program.address, &format!("{prefix}{number}"), &["f"])).collect()
}

#[test]
fn it_takes_more_connections_than_a_process_has_files_by_default() {
    let mut command = Command::new("sh");
    let script = "ulimit -Sn 64; exec \"$0\" --listen tcp://127.0.0.1:0";
    command.args(["-c", script, env!("CARGO_BIN_EXE_daffi-controller")]).stderr(Stdio::null());
    let program = Program::run(&mut command);
    let mut nodes = idle_nodes(&program, "node", 200);
    nodes[0].send(&Frame::Request(Request { node: "node199", ..pinned() }));
    nodes[199].request();
}

/// How much memory an idle node keeps resident: sockets belong to the kernel, so this is the controller's own
/// tables.
#[cfg(target_os = "linux")]
#[test]
fn an_idle_node_takes_less_than_12_kib() {
    const NODES: usize = 2_000;
    const BYTES_MAX: u64 = 12 * 1024;

    rlimit::increase_nofile_limit(NODES as u64 + 512).unwrap();
    let program = Program::start(&[]);
    // One-off costs, such as the read buffer, are included after some nodes.
    let some = idle_nodes(&program, "some", 100);
    let before = resident_bytes(&program);
    let nodes = idle_nodes(&program, "node", NODES);
    let each = resident_bytes(&program).saturating_sub(before) / NODES as u64;
    assert!(each <= BYTES_MAX, "{each} bytes for each node");
    drop((some, nodes));
}

#[cfg(target_os = "linux")]
fn resident_bytes(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    kib * 1024
}

fn pinned() -> Request<'static> {
    let Frame::Request(request) = request(1, "f", &Bytes::new()) else { unreachable!() };
    request
}

#[test]
fn an_address_in_use_has_its_own_exit_code() {
    let program = Program::start(&[]);
    let address = program.address.to_string();
    assert_eq!(wait(&mut command(&["--listen", &address]).spawn().unwrap()).code(), Some(3));
    assert_eq!(wait(&mut command(&["--listen", "unix:///dev/null/x"]).spawn().unwrap()).code(), Some(3));
}

#[test]
fn options_that_make_no_sense_have_their_own_exit_code() {
    for options in [
        &["--listen", "somewhere"][..],
        &["--grace", "5"],
        &["--queue-max", "1KiB"],
        &["--threads", "0"],
        &["--what"],
    ] {
        assert_eq!(wait(&mut command(options).spawn().unwrap()).code(), Some(2), "{options:?}");
    }
    let help = command(&["--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for words in ["--listen", "--strategy", "round-robin", "Exit codes", "  3  "] {
        assert!(help.contains(words), "{help}");
    }
}

#[test]
fn it_serves_on_with_nobody_reading_its_output() {
    let mut program = with_piped_log();
    // From here on, every line it logs fails.
    let mut stderr = program.child.stderr.take().unwrap();
    stderr.read_exact(&mut [0]).unwrap();
    drop(stderr);
    serves_and_stops(program, 3);
}

/// As with a log collector that has stalled: the pipe is open, and full.
#[test]
fn it_serves_on_and_stops_with_its_output_stuck() {
    let mut program = with_piped_log();
    let _stderr = program.child.stderr.take().unwrap();
    // Their lines are more than the 64 KiB that a pipe takes.
    serves_and_stops(program, 1000);
}

/// Runs the program with a log that is piped, and says a lot.
fn with_piped_log() -> Program {
    Program::run(command(&["--listen", "tcp://127.0.0.1:0"]).stderr(Stdio::piped()).env("RUST_LOG", "trace"))
}

/// Has so many strangers refused, each of which is a line in the log, then a node served, and stops.
fn serves_and_stops(mut program: Program, strangers: usize) {
    for _ in 0..strangers {
        let mut stranger = RawNode::connect(&program.address);
        stranger.send(&Frame::Cancel { id: 1 });
        stranger.expect(|frame| matches!(frame, Frame::Refuse(_)));
    }
    let mut node = RawNode::join(&program.address, "a", &[]);
    program.signal("-TERM");
    node.drain();
    drop(node);
    assert_eq!(program.wait().code(), Some(0));
}
