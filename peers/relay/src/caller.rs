use std::os::fd::OwnedFd;

use harness::{Load, Options, Workload, check, payload};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::retry_on_intr,
};

use crate::{
    frame::{self, ALL, ANY, HEAD_BYTES},
    socket::{connect, ready, write_all},
};

/// What one read or one write moves at most.
const BATCH_BYTES: usize = 256 * 1024;
/// The head of a frame, and what tells its payload from another.
const CHECKED_BYTES: usize = HEAD_BYTES + 8;

pub fn run(options: &Options) {
    let load = options.load();
    let socket = connect(options.address());
    match load.workload {
        Workload::OneByOne => one_by_one(&load, &socket, ANY, 1),
        Workload::Broadcast(callees) => one_by_one(&load, &socket, ALL, callees),
        Workload::Outstanding(outstanding) => keep(&load, &socket, outstanding as u64),
    }
}

fn one_by_one(load: &Load, socket: &OwnedFd, to: u32, callees: usize) {
    let mut replies = vec![0; (HEAD_BYTES + load.size) * callees];
    load.one_by_one(|number| {
        write_all(socket, &frame::frame(to, &payload(load.size, number)));
        let mut filled = 0;
        while filled < replies.len() {
            match rustix::io::read(socket, &mut replies[filled..]).map_err(|error| error.to_string())? {
                0 => return Err("the relay is gone".to_owned()),
                bytes => filled += bytes,
            }
        }
        for reply in replies.chunks(HEAD_BYTES + load.size) {
            check(&reply[HEAD_BYTES..], load.size, number)?;
        }
        Ok(())
    });
}

/// Keeps the window full. All frames are alike, so they are made once and sent as often as needed.
fn keep(load: &Load, socket: &OwnedFd, outstanding: u64) {
    rustix::io::ioctl_fionbio(socket, true).expect("a socket that does not block");
    let frame = frame::frame(ANY, &payload(load.size, 0));
    let frame_bytes = frame.len() as u64;
    let frames = frame.repeat((BATCH_BYTES / frame.len()).max(1));
    let mut buffer = vec![0; BATCH_BYTES];
    let mut replies = Replies::new(&frame);
    let mut window = load.window();
    let (mut sent, mut completed) = (0, 0);
    loop {
        let mut blocked = false;
        while sent < (completed + outstanding) * frame_bytes {
            let rest = &frames[sent as usize % frames.len()..];
            let allowed = (completed + outstanding) * frame_bytes - sent;
            let rest = &rest[..rest.len().min(allowed as usize)];
            match ready(rustix::io::write(socket, rest)) {
                Some(0) => panic!("the relay is gone"),
                Some(bytes) => sent += bytes as u64,
                None => {
                    blocked = true;
                    break;
                }
            }
        }
        match ready(rustix::io::read(socket, &mut buffer)) {
            Some(0) => panic!("the relay is gone"),
            Some(bytes) => {
                let new = replies.take(&buffer[..bytes]).expect("each call has its reply");
                completed += new;
                if !window.completed(new) {
                    return;
                }
            }
            None => {
                let wanted = if blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                retry_on_intr(|| poll(&mut [PollFd::new(socket, wanted)], None)).expect("events");
            }
        }
    }
}

/// Replies in a stream of bytes. All of them have to be the frame that was sent, at least at their beginning.
struct Replies {
    frame_bytes: usize,
    expected: [u8; CHECKED_BYTES],
    /// Where in a frame the stream is.
    position: usize,
    begin: [u8; CHECKED_BYTES],
}

impl Replies {
    fn new(frame: &[u8]) -> Self {
        let expected = frame[..CHECKED_BYTES].try_into().expect("a payload with a number");
        Self { frame_bytes: frame.len(), expected, position: 0, begin: [0; CHECKED_BYTES] }
    }

    /// Checks the beginning of each frame, and says how many came to their end.
    fn take(&mut self, mut bytes: &[u8]) -> Result<u64, String> {
        let mut completed = 0;
        while !bytes.is_empty() {
            if self.position == 0 && bytes.len() >= self.frame_bytes {
                let (frame, later) = bytes.split_at(self.frame_bytes);
                self.check(frame[..CHECKED_BYTES].try_into().expect("so many"))?;
                completed += 1;
                bytes = later;
                continue;
            }
            let wanted = if self.position < CHECKED_BYTES { CHECKED_BYTES } else { self.frame_bytes };
            let (now, later) = bytes.split_at(bytes.len().min(wanted - self.position));
            if wanted == CHECKED_BYTES {
                self.begin[self.position..self.position + now.len()].copy_from_slice(now);
            }
            self.position += now.len();
            bytes = later;
            if self.position == CHECKED_BYTES {
                self.check(self.begin)?;
            }
            if self.position == self.frame_bytes {
                self.position = 0;
                completed += 1;
            }
        }
        Ok(completed)
    }

    fn check(&self, begin: [u8; CHECKED_BYTES]) -> Result<(), String> {
        // The relay and the callee fill in where it went and where it came from.
        let same = |range: std::ops::Range<usize>| begin[range.clone()] == self.expected[range];
        if same(0..frame::ADDRESSES.start) && same(frame::ADDRESSES.end..CHECKED_BYTES) {
            return Ok(());
        }
        Err("a reply is not what was sent".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_however_they_are_cut() {
        let frame = frame::frame(ANY, &payload(32, 0));
        let stream = frame.repeat(10);
        for cut in 1..stream.len() {
            let mut replies = Replies::new(&frame);
            let counted: u64 = stream.chunks(cut).map(|part| replies.take(part).unwrap()).sum();
            assert_eq!((counted, replies.position), (10, 0), "cut every {cut} bytes");
        }
        let mut wrong = stream;
        wrong[HEAD_BYTES] ^= 1;
        assert!(Replies::new(&frame).take(&wrong).is_err());
    }
}
