//! Faults at random times, from a seed.

use std::{
    fmt,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    dice::Dice,
    proxy::{Proxy, Way},
};

/// Something that is done to a wire, and ends by itself or by [`Proxy::mend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connections end, and the next ones get through.
    Snap,
    /// The connections are reset.
    Reset,
    /// Nobody gets through.
    Cut,
    /// One direction ends.
    HalfClose(Way),
    /// Nothing moves in one direction.
    Jam(Way),
    /// Nothing moves at all.
    JamBoth,
    /// Each piece takes this long.
    Delay(Way, Duration),
    /// No more than so many bytes at once.
    Slice(Way, usize),
}

impl Fault {
    /// Any of them.
    pub fn any(dice: &mut Dice) -> Self {
        let way = *dice.pick(&[Way::ToController, Way::FromController]);
        match dice.below(10) {
            0 => Self::Snap,
            1 | 2 => Self::Reset,
            3 => Self::Cut,
            4 => Self::HalfClose(way),
            5 => Self::Jam(way),
            6 => Self::JamBoth,
            7 | 8 => Self::Delay(way, dice.time(Duration::from_millis(1), Duration::from_millis(50))),
            _ => Self::Slice(way, *dice.pick(&[1, 1, 7, 100, 1000])),
        }
    }

    /// Does it.
    pub fn strike(self, proxy: &Proxy) {
        match self {
            Self::Snap => proxy.snap(),
            Self::Reset => proxy.reset(),
            Self::Cut => proxy.cut(),
            Self::HalfClose(way) => proxy.half_close(way),
            Self::Jam(way) => proxy.jam(way),
            Self::JamBoth => {
                proxy.jam(Way::ToController);
                proxy.jam(Way::FromController);
            }
            Self::Delay(way, delay) => proxy.delay(way, delay),
            Self::Slice(way, bytes) => proxy.slice(way, bytes),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Faults, one after the other, until it is dropped; the wire is mended then.
#[derive(Debug)]
pub struct Weather {
    calm: Option<Sender<()>>,
    thread: Option<JoinHandle<Vec<Fault>>>,
}

impl Weather {
    /// Each fault lasts up to `spell`, and so does the calm after it.
    pub fn over(proxy: std::sync::Arc<Proxy>, seed: u64, spell: Duration) -> Self {
        let (calm, calmed) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let mut dice = Dice::new(seed);
            let mut struck = Vec::new();
            let wait = |time| matches!(calmed.recv_timeout(time), Err(RecvTimeoutError::Timeout));
            loop {
                let fault = Fault::any(&mut dice);
                struck.push(fault);
                fault.strike(&proxy);
                let goes_on = wait(dice.time(spell / 10, spell));
                proxy.mend();
                if !goes_on || !wait(dice.time(spell / 10, spell)) {
                    return struck;
                }
            }
        });
        Self { calm: Some(calm), thread: Some(thread) }
    }

    /// Ends it, and says what there was.
    pub fn calm(mut self) -> Vec<Fault> {
        self.end()
    }

    fn end(&mut self) -> Vec<Fault> {
        self.calm.take();
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        self.end();
    }
}
