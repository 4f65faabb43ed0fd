//! A node built only from `docs/PROTOCOL.md` works with the controller.

#![cfg(unix)]

use std::{
    path::Path,
    process::{self, Command},
    time::Duration,
};

use daffi_controller::Server;
use daffi_core::{Address, Limits, controller::ControllerConfig};

#[test]
fn a_node_written_from_the_protocol_page_is_served() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/protocol/raw_node.py");
    let has_python = Command::new("python3").arg("--version").output().is_ok_and(|run| run.status.success());
    if !script.exists() || !has_python {
        eprintln!("left out: it takes python3 and the whole repository");
        return;
    }
    let directory = std::env::temp_dir().join(format!("daffi-raw-node-{}", process::id()));
    let mut config = ControllerConfig::new(vec![
        Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
        Address::Unix(directory.join("sock")),
    ]);
    // Frequent pings, so that the script soon shows that it answers them.
    config.limits = Limits { heartbeat: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start(config).unwrap();
    let [tcp, unix] = server.addresses() else { panic!("it listens on both") };
    for [first, second] in [[tcp, unix], [unix, tcp], [tcp, tcp]] {
        let run = Command::new("python3")
            .arg(&script)
            .args([first.to_string(), second.to_string()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
        assert!(said.contains("all of it held"), "{said}");
    }
    drop(server);
    let _ = std::fs::remove_dir_all(directory);
}
