//! A singleton's instance that is registered just when the node is: the controller hears of it all the same.

#![allow(unreachable_pub, reason = "methods have to be `pub` to be callbacks")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use daffi::{Global, callback};

#[callback]
struct Late;

#[callback]
impl Late {
    pub fn late(&self) -> u64 {
        7
    }
}

const WELCOME: u8 = 2;
const REGISTER: u8 = 4;
const REGISTERED: u8 = 5;

/// The kind, the id and the content of the next frame.
fn read(stream: &mut TcpStream) -> (u8, u64, Vec<u8>) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).expect("a frame comes");
    let mut content = vec![0; u32::from_le_bytes(head[..4].try_into().unwrap()) as usize];
    stream.read_exact(&mut content).unwrap();
    (head[4], u64::from_le_bytes(head[8..].try_into().unwrap()), content)
}

fn write(stream: &mut TcpStream, kind: u8, id: u64, content: &[u8]) {
    let mut frame = (content.len() as u32).to_le_bytes().to_vec();
    frame.extend([kind, 0, 0, 0]);
    frame.extend(id.to_le_bytes());
    frame.extend(content);
    stream.write_all(&frame).unwrap();
}

/// Where an offer says whether it can be called: behind its index and its fingerprint.
const READY_AT: usize = 12;

#[test]
fn an_instance_that_comes_while_the_node_is_registered_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let node = thread::spawn(move || Global::builder().host("127.0.0.1").port(port).start().unwrap());
    let (mut controller, _) = listener.accept().unwrap();
    controller.set_read_timeout(Some(Duration::from_secs(3))).unwrap();

    read(&mut controller);
    let mut welcome = Vec::new();
    welcome.extend(1u16.to_le_bytes());
    welcome.extend(0u32.to_le_bytes());
    welcome.extend(1u32.to_le_bytes());
    welcome.extend(5000u32.to_le_bytes());
    welcome.extend((64u64 << 20).to_le_bytes());
    write(&mut controller, WELCOME, 0, &welcome);
    let (kind, id, offers) = read(&mut controller);
    assert_eq!((kind, offers[READY_AT]), (REGISTER, 0));

    // The registration that says "not yet" is on its way, and its answer is not there.
    Late.register().unwrap();
    write(&mut controller, REGISTERED, id, &[]);

    let (kind, _, offers) = read(&mut controller);
    assert_eq!((kind, offers[READY_AT]), (REGISTER, 1), "the controller is told that it can be called now");
    drop(controller);
    drop(node.join().unwrap());
}
