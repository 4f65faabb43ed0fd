//! The node side of [daffi](https://docs.rs/daffi): `Global`, calls and modifiers, callbacks and where they
//! run.
//!
//! Pure, tested without I/O: `in_flight`, `registry`, `backoff`, `streams`, `assembly`, `pending`. I/O and
//! threads: `connection`, `link`, `executor`, `blocking`. The API: `global`, `builder`, `call`, `modifier`,
//! `async_result`, `scheduled_task`.

mod admission;
mod alarm;
mod assembly;

mod async_result;
pub use async_result::{AsyncResult, ResultFuture};

mod backoff;
mod blocking;

mod builder;
pub use builder::GlobalBuilder;

mod call;
pub use call::{Call, CallFuture, Multicast, Unicast};

mod callback;

mod caller;
pub use caller::Caller;

mod closure;
pub use closure::Closure;

mod connection;

mod context;
pub use context::Context;

mod executor;
mod flight;
mod flusher;

mod global;
pub use global::Global;

mod held_bytes;
mod in_flight;
mod inbound;
mod kept;
mod latch;
mod link;

pub mod modifier;
pub use modifier::{BG, BROADCAST, FG, NO_RETURN, PERIOD};

mod node;
mod outgoing;
mod payload_pool;
mod pending;
mod question;
mod registration;
mod registry;
mod remains;

mod scheduled_task;
pub use scheduled_task::{ScheduledTask, TaskState, TaskStatus};

mod settling;

#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;

mod singleton;
mod sleepers;
mod streams;
mod sync;

pub use daffi_core::{Error, RemoteError, Result};

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

#[doc(hidden)]
pub mod private;
