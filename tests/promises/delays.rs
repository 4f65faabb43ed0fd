//! Packets that are held back at random, so that they arrive late and in another order. The kernel hands them over in its
//! NFQUEUE, which needs root.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use daffi_chaos::Dice;
use nfq::{Queue, Verdict};

/// Holds back each packet of queue 0 for 50 to 150 ms. The dice have the same seed each time.
pub fn run() {
    let mut queue = Queue::open().unwrap();
    queue.bind(0).unwrap();
    queue.set_nonblocking(true);
    println!("ready");
    let mut dice = Dice::new(1);
    let mut held = BTreeMap::new();
    for number in 0_u64.. {
        match queue.recv() {
            Ok(packet) => {
                let wait = dice.time(Duration::from_millis(50), Duration::from_millis(150));
                held.insert((Instant::now() + wait, number), packet);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
        while held.first_key_value().is_some_and(|((due, _), _)| *due <= Instant::now()) {
            let (_, mut packet) = held.pop_first().unwrap();
            packet.set_verdict(Verdict::Accept);
            queue.verdict(packet).unwrap();
        }
    }
}
