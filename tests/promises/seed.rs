//! The two programs of the README, started in either order.

use std::{fs, process::Command, sync::OnceLock, time::Duration};

use daffi::Address;

use crate::{
    roles,
    support::{Directory, Process, build, until},
};

/// One of the two, with its log and default socket in `directory`.
fn program(role: &str, directory: &Directory, address: Option<&Address>) -> Process {
    let log = directory.0.join("log");
    let mut command = roles::command(role, role, Duration::from_secs(5), &log);
    command.env("TMPDIR", &directory.0);
    if let Some(address) = address {
        command.env(roles::ADDRESS, address.to_string());
    }
    Process::spawn(role, &mut command)
}

#[track_caller]
fn both_do_their_work(first: &Process, second: &Process) {
    first.line("done");
    second.line("done");
    let count =
        |process: &Process, line: &str| process.printed().iter().filter(|said| said.contains(line)).count();
    assert_eq!(count(first, "Calculated delta = 7"), 3);
    assert_eq!(count(second, "Calculated sum is 10"), 3);
    until("what nobody waits for has run", || count(second, "Func2 has been triggered!") == 3);
}

/// Over the default UNIX socket, the one with the controller first.
#[test]
fn the_controller_comes_first() {
    let directory = Directory::new();
    let first = program("seed1", &directory, None);
    let line = first.line("listening on");
    assert!(line.ends_with(&format!("{}/daffi/.sock", directory.0.display())), "{line}");
    let second = program("seed2", &directory, None);
    both_do_their_work(&first, &second);
}

/// Over the default UNIX socket, the one with the controller last.
#[test]
fn the_controller_comes_last() {
    let directory = Directory::new();
    let second = program("seed2", &directory, None);
    second.line("waiting for the controller");
    let first = program("seed1", &directory, None);
    both_do_their_work(&first, &second);
}

/// A killed controller leaves its socket file behind, which its successor takes over.
#[test]
fn a_socket_file_that_was_left_behind_is_no_obstacle() {
    let directory = Directory::new();
    let mut killed = program("seed1", &directory, None);
    killed.line("listening on");
    killed.kill();
    assert!(fs::exists(directory.0.join("daffi/.sock")).unwrap());
    let second = program("seed2", &directory, None);
    second.line("waiting for the controller");
    let first = program("seed1", &directory, None);
    both_do_their_work(&first, &second);
}

/// Over TCP, with the port that the controller found.
#[test]
fn over_tcp() {
    let directory = Directory::new();
    let any = Address::Tcp { host: "localhost".to_owned(), port: 0 };
    let first = program("seed1", &directory, Some(&any));
    let line = first.line("listening on");
    let address: Address = line.split_once("listening on ").unwrap().1.parse().unwrap();
    let second = program("seed2", &directory, Some(&address));
    both_do_their_work(&first, &second);
}

/// The examples as they stand, which have a fixed port: each pair in a network of its own, if this system gives it.
#[test]
fn the_examples_as_they_stand() {
    if !Command::new("unshare").args(["-n", "true"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP(no network namespaces here)");
        return;
    }
    static PROGRAMS: OnceLock<()> = OnceLock::new();
    PROGRAMS
        .get_or_init(|| drop(build(&["-p", "daffi", "--example", "process1", "--example", "process2"], "")));
    for order in ["process1 process2", "process2 process1"] {
        let [early, late] = order.split(' ').collect::<Vec<_>>()[..] else { unreachable!() };
        let path = |name: &str| build_directory().join("examples").join(name).display().to_string();
        // The network comes up, then one, then the other; both end with this shell.
        let script = format!(
            "ip link set lo up && {{ {} & early=$!; sleep 0.3; {} & late=$!; read _; kill $early $late; }}",
            path(early),
            path(late)
        );
        let mut command = Command::new("unshare");
        command.args(["-n", "--kill-child", "--fork", "--pid", "sh", "-c", &script]);
        let both = Process::spawn(order, &mut command);
        both.line("Calculated delta = 7");
        both.line("Func2 has been triggered!");
        both.line("Calculated sum is 10");
    }
}

fn build_directory() -> std::path::PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}
