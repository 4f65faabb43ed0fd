use std::os::fd::OwnedFd;

use harness::{Options, ready};

use crate::{
    frame::{self, ANY},
    socket::{connect, write_all},
};

/// Enough for a batch of small frames; larger ones make it grow.
const BUFFER_BYTES: usize = 256 * 1024;

/// A connection that the relay knows as a callee.
pub fn join(options: &Options) -> OwnedFd {
    let socket = connect(options.address());
    write_all(&socket, &frame::frame(ANY, b""));
    socket
}

/// Sends each frame back where it came from, all that came with one read by one write.
pub fn run(options: &Options) {
    let socket = join(options);
    ready();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    loop {
        match rustix::io::read(&socket, &mut buffer[filled..]).expect("the relay") {
            0 => return,
            bytes => filled += bytes,
        }
        let mut complete = 0;
        while let Some(bytes) = frame::frame_bytes(&buffer[complete..filled]) {
            if complete + bytes > filled {
                buffer.resize(buffer.len().max(bytes), 0);
                break;
            }
            let frame = &mut buffer[complete..complete + bytes];
            frame::set_to(frame, frame::from(frame));
            complete += bytes;
        }
        if complete > 0 {
            write_all(&socket, &buffer[..complete]);
            buffer.copy_within(complete..filled, 0);
            filled -= complete;
        }
    }
}
