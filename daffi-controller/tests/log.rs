//! A subscriber to the log may query the controller that writes it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Condvar, Mutex, OnceLock},
    time::Duration,
};

use daffi_controller::{ControllerConfig, Server};
use daffi_core::{
    Address,
    frame::{Body, Frame, Hello, Offers, Register, Request, VERSION},
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

static SERVER: OnceLock<Server> = OnceLock::new();
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static SAID: Condvar = Condvar::new();

/// Queries the controller, which takes its lock, for every line.
struct Nosy;

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Nosy {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        SERVER.get().map(Server::sizes);
        true
    }

    fn event(&self, event: &Event<'_>) {
        SERVER.get().map(Server::sizes);
        let mut message = Message(String::new());
        event.record(&mut message);
        LINES.lock().unwrap().push(message.0);
        SAID.notify_all();
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn expect_line(line: &str) {
    let lines = LINES.lock().unwrap();
    let missing = |lines: &mut Vec<String>| !lines.iter().any(|said| said == line);
    let (lines, waited) = SAID.wait_timeout_while(lines, Duration::from_secs(10), missing).unwrap();
    assert!(!waited.timed_out(), "{line:?} is not said, only {lines:?}");
}

#[test]
fn no_line_is_written_with_the_lock_held() {
    tracing::subscriber::set_global_default(Nosy).unwrap();
    let any_port = Address::Tcp { host: "127.0.0.1".into(), port: 0 };
    let mut config = ControllerConfig::new(vec![any_port]);
    config.limits.handshakes_max = 4;
    let server = SERVER.get_or_init(|| Server::start(config).unwrap());
    let Address::Tcp { port, .. } = server.addresses()[0] else { unreachable!() };
    let join = |name: &str, instance: u64| {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (version_min, version_max) = (VERSION, VERSION);
        let hello = Hello { version_min, version_max, capabilities: 0, instance, name, credentials: &[] };
        socket.write_all(&Frame::Hello(hello).to_bytes()).unwrap();
        // WELCOME has 16 + 22 bytes.
        socket.read_exact(&mut [0; 38]).unwrap();
        let offers = Offers::parse(&[]).unwrap();
        socket.write_all(&Frame::Register(Register { id: 1, more: false, offers }).to_bytes()).unwrap();
        socket.read_exact(&mut [0; 16]).unwrap();
        socket
    };
    let mut a = join("a", 1);
    expect_line("a node joined");
    let request = Request { one_way: true, ..Request::new(1, "nobody", Body::default()) };
    a.write_all(&Frame::Request(request).to_bytes()).unwrap();
    expect_line("a call without an answer was not delivered");
    let mut again = join("a", 1);
    expect_line("a node has connected anew");
    again.write_all(&Frame::Goodbye { reason: "" }.to_bytes()).unwrap();
    expect_line("a node is leaving");
    drop(again);
    expect_line("a connection ended");
    drop(join("b", 2));
    expect_line("a node is lost");
    let mut bad = join("c", 3);
    bad.write_all(&Frame::Registered { id: 1 }.to_bytes()).unwrap();
    expect_line("closing a connection");
    let _silent = [(); 5].map(|()| TcpStream::connect(("127.0.0.1", port)).unwrap());
    expect_line("refusing a connection");
    assert_eq!(server.stop(Duration::ZERO), 0);
}
