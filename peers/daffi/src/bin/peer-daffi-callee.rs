//! What is called: once for each way in which daffi runs callbacks, with text for small calls and bytes for large ones.

use std::thread;

use daffi::{Bytes, callback};
use harness::{Options, Role, idle_nodes, ready};
use peer_daffi::{embedded, node};

#[callback]
async fn async_text(text: String) -> String {
    text
}

#[callback]
fn sync_text(text: String) -> String {
    text
}

#[callback(inline)]
fn inline_text(text: String) -> String {
    text
}

#[callback]
async fn async_bytes(bytes: Bytes) -> Bytes {
    bytes
}

#[callback]
fn sync_bytes(bytes: Bytes) -> Bytes {
    bytes
}

#[callback(inline)]
fn inline_bytes(bytes: Bytes) -> Bytes {
    bytes
}

fn main() {
    let options = Options::from_args();
    match options.role {
        Role::Callee => callee(&options),
        Role::Nodes => {
            idle_nodes(&options, |number| node(&options, &format!("idle {number}")).start().expect("a node"));
        }
        Role::Router | Role::Caller => panic!("that is another program"),
    }
}

fn callee(options: &Options) {
    let name = options.text("name");
    if embedded(options, "caller") {
        // The caller has not been started yet: the node waits for its controller.
        ready();
    }
    let _g = node(options, name).init_controller(embedded(options, "callee")).start().expect("a node");
    if !embedded(options, "caller") {
        ready();
    }
    loop {
        thread::park();
    }
}
