//! What the nodes offer: callbacks of each kind that record that they run, and then do as they are told.

use std::time::Duration;

use daffi::{Context, callback};

use crate::{
    history::{Out, text_of},
    workload,
    world::{self, sim},
};

/// A call's arguments: its number, how it ends, how long it takes in microseconds, how many bytes come back,
/// what it calls in turn, as `callback@node` or as a ring, and meaningless bytes.
pub(crate) type Arguments = (u64, u32, u64, u32, String, String);

/// How a callback ends.
pub(crate) mod how {
    /// With a value.
    pub(crate) const VALUE: u32 = 0;
    /// With an error.
    pub(crate) const ERROR: u32 = 1;
    /// With a panic.
    pub(crate) const PANIC: u32 = 2;
}

/// The message of deliberate panics, so that they are not printed.
pub(crate) const PANIC: &str = "simulated panic";

/// The callbacks that keep no order.
pub(crate) const ANY: [&str; 3] = ["work", "quick", "inline"];

/// The callback that keeps the order of each caller's calls.
pub(crate) const SERIAL: &str = "serial";

#[callback]
async fn work(
    ctx: &Context,
    nonce: u64,
    how: u32,
    takes_us: u64,
    back: u32,
    next: String,
    pad: String,
) -> Result<Out, String> {
    begin(nonce, &pad, false);
    if takes_us > 0 {
        world::sleep(Duration::from_micros(takes_us)).await;
    }
    workload::onwards(ctx, nonce, &next).await;
    end(nonce, how, back)
}

#[callback]
fn quick(nonce: u64, how: u32, _takes_us: u64, back: u32, _next: String, pad: String) -> Result<Out, String> {
    begin(nonce, &pad, false);
    end(nonce, how, back)
}

#[callback(inline)]
fn inline(
    nonce: u64,
    how: u32,
    _takes_us: u64,
    back: u32,
    _next: String,
    pad: String,
) -> Result<Out, String> {
    begin(nonce, &pad, false);
    end(nonce, how, back)
}

#[callback(max_concurrency = 1)]
async fn serial(
    ctx: &Context,
    nonce: u64,
    how: u32,
    takes_us: u64,
    back: u32,
    next: String,
    pad: String,
) -> Result<Out, String> {
    begin(nonce, &pad, true);
    if takes_us > 0 {
        world::sleep(Duration::from_micros(takes_us)).await;
    }
    workload::onwards(ctx, nonce, &next).await;
    end(nonce, how, back)
}

fn begin(nonce: u64, pad: &str, serial: bool) {
    let sim = sim();
    let host = sim.current();
    let now = sim.now();
    sim.note(|| format!("process {host} runs {nonce:#x} with {} bytes", pad.len()));
    if !sim.has_died(host) {
        let mut history = sim.history.borrow_mut();
        history.ran(nonce, host, now, serial);
        history.brought(nonce, pad);
    }
}

fn end(nonce: u64, how: u32, back: u32) -> Result<Out, String> {
    match how {
        how::ERROR => Err(format!("error of {nonce:#x}")),
        how::PANIC => panic!("{PANIC}"),
        _ => Ok((nonce, sim().current() as u64, text_of(nonce, back as usize))),
    }
}
