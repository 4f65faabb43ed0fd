use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{Address, frame::Frame};

use crate::common::*;

/// The program, killed if a test ends early.
struct Program {
    child: Child,
    address: Address,
}

impl Program {
    fn start(options: &[&str]) -> Self {
        let mut child =
            command(&["--listen", "tcp://127.0.0.1:0"]).args(options).stdout(Stdio::piped()).spawn().unwrap();
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
fn an_address_in_use_has_its_own_exit_code() {
    let program = Program::start(&[]);
    let address = program.address.to_string();
    assert_eq!(wait(&mut command(&["--listen", &address]).spawn().unwrap()).code(), Some(3));
    assert_eq!(wait(&mut command(&["--listen", "unix:///dev/null/x"]).spawn().unwrap()).code(), Some(3));
}

#[test]
fn options_that_make_no_sense_have_their_own_exit_code() {
    for options in [&["--listen", "somewhere"][..], &["--grace", "5"], &["--queue-max", "1KiB"], &["--what"]]
    {
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
    let mut child = command(&["--listen", "tcp://127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("RUST_LOG", "trace")
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap();
    // From here on every line that it logs fails.
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_exact(&mut [0]).unwrap();
    drop((stdout, stderr));
    let mut program = Program { child, address };
    for _ in 0..3 {
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
