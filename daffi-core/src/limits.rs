//! All limits in one place, with their units and reasons.

use std::time::Duration;

/// Size in bytes of a frame's fixed head.
pub const HEAD_BYTES: usize = 16;

/// The most body bytes that one frame carries: 64 KiB of user data and what a codec adds to it. Larger
/// payloads travel in slightly smaller chunks, so that a small call never waits behind more than one chunk
/// per transfer.
pub const CHUNK_BYTES: usize = (64 * 1024 + 256) / FUZZING_DIVISOR;

/// How much of a larger payload each frame carries. With its head, this fits into one TCP segment over
/// loopback, which holds 65,483 bytes; slightly more would travel as two.
pub const PIECE_BYTES: usize = CHUNK_BYTES - CHUNK_BYTES / 128;

/// The most bytes that may follow a frame's head: a chunk, with names and numbers around it.
pub const FRAME_BYTES_MAX: usize = 72 * 1024;

/// The most bytes that may follow a head before the handshake is done; a stranger gets no more memory than
/// this.
pub const HANDSHAKE_BYTES_MAX: usize = 8 * 1024;

/// How long a frame may take from its first byte to its last. The slowest link over which the largest frame
/// still arrives has 20 kbit/s.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a peer may accept none of the bytes that wait for it before it is closed as a slow consumer.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many body bytes of one call may be in transit before the receiver asks for more. This bounds what the
/// controller holds for a callee that is slower than its caller.
pub const STREAM_WINDOW_BYTES: usize = 16 * CHUNK_BYTES;

/// The most memory of large payloads that a node keeps for later ones: several times what is in transit on
/// one link at a time, since most payloads are used for longer than they are in transit.
pub const POOL_BYTES_MAX: usize = 256 * CHUNK_BYTES;

/// Makes chunks and windows proportionally smaller in this repository's fuzz targets, so that they try that
/// many more payloads a second.
const FUZZING_DIVISOR: usize = if cfg!(daffi_fuzzing) { 32 } else { 1 };

/// The most times that one `PERIOD.at_time` may name.
pub const AT_TIMES_MAX: usize = 1000;

/// The most bytes that the arguments and times of all of a controller's scheduled calls may take together.
pub const TASKS_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The shortest `PERIOD.period`.
pub const PERIOD_MIN: Duration = Duration::from_millis(1);

/// How late a scheduled call may be made if the controller was not running at its time. After that, it is
/// skipped and counted.
pub const CATCH_UP_MAX: Duration = Duration::from_secs(60);

/// How deep calls may be nested: A calls B calls A …
pub const HOPS_MAX: u8 = 32;

/// How many levels of options, sequences, maps, tuples, structs and variants with fields a payload may nest.
/// Decoding is recursive, so this limit keeps a peer from overflowing the stack: a thread of 2 MiB has 32 KiB
/// for each level, several times what large types take without optimization.
pub const PAYLOAD_DEPTH_MAX: usize = 64;

/// How many sequence elements in a whole payload may take no bytes, as those of `Vec<()>` do. Without bytes
/// to pay for them, a length alone could keep a decoder busy for years.
pub const PAYLOAD_EMPTY_ELEMENTS_MAX: usize = 64 * 1024;

/// How much memory elements of sequences and maps may take beyond [`PAYLOAD_GROWTH`] times their bytes, in a
/// whole payload. An element takes the size of its type, however few bytes encode it: a `None` is one byte,
/// for an `Option` of any size.
pub const PAYLOAD_GROWN_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How many times its encoded bytes any element may take in memory without being counted.
pub const PAYLOAD_GROWTH: usize = 4;

/// The longest duration that a limit may have: every clock can add it to the current time, several times
/// over.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The most bytes that the node names of one broadcast may take together. They travel in its first frame,
/// together with a whole chunk of arguments.
pub const ON_ALL_BYTES_MAX: usize = 7 * 1024;

const _: () = assert!(CHUNK_BYTES + ON_ALL_BYTES_MAX + 512 <= FRAME_BYTES_MAX);
const _: () = assert!(HANDSHAKE_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(AT_TIMES_MAX * 8 + 2 * 1024 <= FRAME_BYTES_MAX);
const _: () = assert!(CHUNK_BYTES <= STREAM_WINDOW_BYTES);

/// How much a node or controller accepts before it refuses.
///
/// The defaults suit a machine of any size. Each field says whether it applies to nodes or controllers; a
/// process that has both uses one `Limits` for the two.
///
/// ```
/// # use daffi_core as daffi;
/// use daffi::Limits;
///
/// let limits = Limits { payload_bytes_max: 1 << 20, ..Limits::default() };
/// assert!(limits.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Both: the largest arguments or result of one call, in bytes. Default 64 MiB. Checked where a payload
    /// is created, forwarded and received; a larger one is `Error::TooLarge`.
    pub payload_bytes_max: u64,
    /// Both: the most bytes that may wait for one peer's socket. Default 8 MiB. Too low a value refuses
    /// bursts; too high a value lets one frozen peer hold that much memory. A call that does not fit is
    /// `Error::Overloaded`.
    pub queue_bytes_max: usize,
    /// Controller: the most bytes that may wait for all peers together. Default 256 MiB. A call that does not
    /// fit is `Error::Overloaded`. Replies, which cannot be sent again, may exceed it by a quarter, at the
    /// expense of connections whose peers do not read.
    pub queue_total_bytes_max: usize,
    /// Both: the most calls that one node may have in flight. Default 65,536, at most 16,777,216. At the
    /// limit, async callers wait and blocking callers block. The same number of background calls is kept, and
    /// the same number of calls with an `eta`; one more of either is `Error::Overloaded`. Calls made by
    /// callbacks wait like any others: if the limit is so low that calls which call back occupy all places
    /// of their own node, only a deadline ends them.
    pub calls_in_flight_max: usize,
    /// Node: the most argument bytes held for calls that nobody waits for: background calls, those with an
    /// `eta`, `NO_RETURN` calls and scheduled ones. Arguments up to 4 KiB are not counted. Bytes count until
    /// they are sent; above 64 KiB, until they have been received. A `Bytes` shared by several calls counts
    /// once for each. Default 1 GiB; beyond that, a call is `Error::Overloaded`, unless it is the only one.
    pub calls_waiting_bytes_max: usize,
    /// Node: the most requests that it holds, running or queued. Default 65,536. One more is
    /// `Error::Overloaded`.
    pub requests_held_max: usize,
    /// Node: the most argument bytes that it holds for requests. Arguments up to 4 KiB are not counted; those
    /// still arriving count in full. Default 1 GiB. One more is `Error::Overloaded`, unless it is the only
    /// one.
    pub requests_held_bytes_max: usize,
    /// Node: the most threads that run `fn` callbacks, not counting those that wait inside daffi. Default
    /// 512. With fewer, calls of blocking callbacks wait longer; each thread takes the memory of its stack.
    pub threads_max: usize,
    /// Controller: the most callbacks that one node may register. Default 65,536. If a node registers more,
    /// its connection is closed.
    pub callbacks_max: usize,
    /// Controller: the most scheduled tasks that it keeps. Default 100,000. One more is `Error::Overloaded`.
    pub tasks_max: usize,
    /// Controller: the most connections. Default 65,536, but no more than the number of files that the
    /// process may open. One more is refused, and its node tries again.
    pub connections_max: usize,
    /// Controller: the most connections whose handshake is not done. Default 1,024. One more is refused, and
    /// its node tries again.
    pub handshakes_max: usize,
    /// Controller: how long a handshake may take before the connection is closed. Default 5 s.
    pub handshake_timeout: Duration,
    /// Both: how often each side asks the other for a sign of life. Default 5 s. A peer that does not answer
    /// for three such intervals is lost: with the default, 10 to 15 s after it stopped.
    pub heartbeat: Duration,
    /// Both: how long `stop` gives running callbacks and calls in flight to finish. Default 10 s.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 64 * 1024 * 1024,
            queue_bytes_max: 8 * 1024 * 1024,
            queue_total_bytes_max: 256 * 1024 * 1024,
            calls_in_flight_max: 65_536,
            calls_waiting_bytes_max: 1 << 30,
            requests_held_max: 65_536,
            requests_held_bytes_max: 1 << 30,
            threads_max: 512,
            callbacks_max: 65_536,
            tasks_max: 100_000,
            connections_max: 65_536,
            handshakes_max: 1_024,
            handshake_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(5),
            grace: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// After how many unanswered heartbeats a peer is lost.
    pub const HEARTBEATS_MISSED_MAX: u32 = 3;

    /// Checks that the limits make sense, and reports all problems at once.
    ///
    /// # Errors
    /// One sentence for each field whose value cannot work.
    pub fn check(&self) -> Result<(), String> {
        let mut problems = Vec::new();
        let mut need = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        need(self.payload_bytes_max >= 1, "payload_bytes_max has to be at least 1");
        need(
            self.payload_bytes_max <= u64::from(u32::MAX),
            "payload_bytes_max has to be below 4 GiB: a payload's size travels in 32 bits",
        );
        need(
            self.queue_bytes_max >= 2 * FRAME_BYTES_MAX,
            "queue_bytes_max has to be at least 144 KiB: room for two frames",
        );
        need(
            self.queue_total_bytes_max >= self.queue_bytes_max,
            "queue_total_bytes_max has to be at least queue_bytes_max",
        );
        need(self.calls_in_flight_max >= 1, "calls_in_flight_max has to be at least 1");
        need(self.calls_in_flight_max <= 1 << 24, "calls_in_flight_max has to be at most 16,777,216");
        need(self.requests_held_max >= 1, "requests_held_max has to be at least 1");
        need(self.threads_max >= 1, "threads_max has to be at least 1");
        need(self.connections_max >= 1, "connections_max has to be at least 1");
        need(self.handshakes_max >= 1, "handshakes_max has to be at least 1");
        need(!self.handshake_timeout.is_zero(), "handshake_timeout has to be above zero");
        need(self.handshake_timeout <= DURATION_MAX, "handshake_timeout has to be at most a year");
        need(self.heartbeat >= Duration::from_millis(10), "heartbeat has to be at least 10 ms");
        need(self.heartbeat <= DURATION_MAX, "heartbeat has to be at most a year");
        need(self.grace <= DURATION_MAX, "grace has to be at most a year");
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let limits =
            Limits { payload_bytes_max: 0, heartbeat: Duration::ZERO, threads_max: 0, ..Limits::default() };
        let problems = limits.check().unwrap_err();
        for name in ["payload_bytes_max", "heartbeat", "threads_max"] {
            assert!(problems.contains(name), "{problems}");
        }
    }
}
