//! The single error type of the public API.

use std::{fmt, io, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use crate::{
    Address,
    fault::{Fault, FaultKind},
    limits::CHUNK_BYTES,
    payload::Codec,
};

/// The result of every fallible operation in daffi.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, to which callback and node, and what to do about it.
///
/// Two questions decide what a program does next, and every variant answers both:
/// [`may_have_executed`](Self::may_have_executed) says whether the callback may have run, so that calling
/// again could run it twice, and [`is_retryable`](Self::is_retryable) whether calling again makes sense at
/// all.
///
/// Errors are cheap to clone: losing one link fails every call in flight on it.
///
/// ```
/// # use daffi_core as daffi;
/// use daffi::Error;
///
/// let error = Error::NoProcess { name: "proc2".into() };
/// assert!(!error.may_have_executed());
/// assert!(error.is_retryable());
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- building and starting a Global
    /// The builder's options contradict each other, or one of them makes no sense.
    #[error("{problem}")]
    Configuration {
        /// Which options conflict or make no sense, and what to write instead.
        problem: String,
    },

    /// `init_controller(true)` was set, but no controller crate is linked into this program.
    #[error(
        "no controller is linked into this program: use the `controller` feature of daffi (on by default), or add a \
         controller crate and name it once, for example with `use my_controller as _;`"
    )]
    NoController,

    /// Another process is listening on this address.
    #[error(
        "{address} is already in use by another process: choose another address, or connect to that controller without init_controller"
    )]
    AddressInUse {
        /// The address that the controller tried to listen on.
        address: Address,
    },

    /// The address cannot be listened on; if it is a socket file, it cannot be taken over either.
    #[error("cannot use the address {address}: {source}")]
    AddressUnusable {
        /// The address.
        address: Address,
        /// What the operating system reported.
        #[source]
        source: Arc<io::Error>,
    },

    /// No controller could be reached within `connect_timeout`.
    #[error(
        "no controller reached at {address} within {waited:?} ({reason}): start one there, or wait longer with connect_timeout"
    )]
    Unreachable {
        /// Where the controller was expected.
        address: Address,
        /// How long the node waited.
        waited: Duration,
        /// Why the last attempt failed.
        reason: String,
    },

    /// A live node of this name is already connected to the controller.
    #[error(
        "the process name {name:?} is taken by a node that is alive: give each process its own process_name"
    )]
    NameTaken {
        /// The name.
        name: String,
    },

    /// The controller and the node have no protocol version in common, or the node asks for something that
    /// the controller does not support.
    #[error("the controller refused: {reason}")]
    Refused {
        /// The reason, as worded by the controller.
        reason: String,
    },

    /// Two callbacks of one process have the same name.
    #[error(
        "two callbacks are named {name:?}: one at {first}, the other at {second}; rename one, or use #[callback(name = \"…\")]"
    )]
    DuplicateCallback {
        /// The name.
        name: String,
        /// Source location of the first.
        first: String,
        /// Source location of the second.
        second: String,
    },

    /// A callback or process name that is not allowed on the wire.
    #[error("{name:?} is not a valid name: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A second instance of a `#[callback] struct` was registered.
    #[error(
        "{name} is a singleton and already has an instance: use {name}::instance() instead of registering another"
    )]
    SingletonExists {
        /// The struct.
        name: String,
    },

    // ---- calls that were refused and did not run
    /// No other node offers the callback, or the one that was named does not.
    #[error("{reason}")]
    NoCandidate {
        /// The callback's name.
        callback: String,
        /// Why there is none, and what to do about it.
        reason: String,
        /// Similar names that are offered.
        similar: Vec<String>,
    },

    /// No process of this name is connected.
    #[error("no process named {name:?} is connected to the controller")]
    NoProcess {
        /// The requested name.
        name: String,
    },

    /// A method of a singleton struct was called before its instance existed.
    #[error(
        "{callback:?} on {node:?} has no instance yet: register one there with `.register()` before it is called"
    )]
    NoInstance {
        /// The callback's name.
        callback: String,
        /// The node that was asked.
        node: String,
    },

    /// Caller and callee disagree on the callback's types. Nothing was decoded.
    #[error(
        "caller and callee disagree on {callback:?}: the caller has {caller}, the callee on {node:?} has {callee}; {}", remedy(.caller, .callee)
    )]
    SignatureMismatch {
        /// The callback's name.
        callback: String,
        /// The node that offers the callback.
        node: String,
        /// The caller's signature.
        caller: String,
        /// The callee's signature.
        callee: String,
    },

    /// The node, or the path to it, already has as much work as its limits allow.
    #[error("{node:?} is overloaded: as much waits there as its limits allow; call later or less")]
    Overloaded {
        /// The node.
        node: String,
    },

    /// Calls are nested deeper than the limit, usually because callbacks call each other in an endless cycle.
    #[error(
        "{callback:?} was not called: calls are nested more than {limit} deep; look for callbacks that call each other in a ring"
    )]
    HopLimit {
        /// The callback whose call would have exceeded the limit.
        callback: String,
        /// The limit.
        limit: u8,
    },

    /// A payload is larger than the limit.
    #[error(
        "{size} bytes of {what} for {callback:?} exceed the limit of {limit} bytes: send less{}", remedy_of_size(*limit)
    )]
    TooLarge {
        /// "arguments" or "result".
        what: &'static str,
        /// The callback's name.
        callback: String,
        /// The size of the payload in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },

    /// A value could not be encoded.
    #[error("cannot encode the {what} of {callback:?}: {reason}")]
    Encode {
        /// "arguments" or "result".
        what: &'static str,
        /// The callback's name.
        callback: String,
        /// What the codec reported.
        reason: String,
    },

    /// Bytes could not be decoded into a value.
    #[error("cannot decode the {what} of {callback:?}: {reason}")]
    Decode {
        /// "arguments" or "result".
        what: &'static str,
        /// The callback's name.
        callback: String,
        /// What the codec reported.
        reason: String,
    },

    /// A time for `PERIOD` that can never come, or a duration that makes no sense.
    #[error("{problem}")]
    InvalidTime {
        /// What is wrong with it.
        problem: String,
    },

    /// The controller does not know this scheduled task: it ended long ago, or the controller was restarted.
    #[error(
        "the controller knows no scheduled task {id}: it ended long ago, or the controller was restarted since"
    )]
    NoTask {
        /// The task's id.
        id: u64,
    },

    /// A blocking call was made where it would block an async runtime.
    #[error("{blocking} would block this thread's async runtime: use {twin} instead")]
    BlockingInAsync {
        /// The blocking call.
        blocking: &'static str,
        /// What to write instead.
        twin: &'static str,
    },

    /// This `Global` has been stopped.
    #[error("{callback:?} was not called: this Global is stopped")]
    Stopped {
        /// The callback or operation.
        callback: String,
    },

    // ---- calls that may have run
    /// The time limit expired.
    #[error("no answer from {callback:?} within {after:?}")]
    Timeout {
        /// The callback's name, or what was being waited for.
        callback: String,
        /// The time limit.
        after: Duration,
        /// Whether the request had been sent by then.
        sent: bool,
    },

    /// The caller cancelled the call.
    #[error("the call of {callback:?} was cancelled")]
    Cancelled {
        /// The callback's name.
        callback: String,
        /// Whether the request had been sent.
        sent: bool,
    },

    /// The node that ran the callback is gone: it was killed, crashed, froze or lost its link.
    #[error("the process {node:?} stopped before it answered; the callback may have run")]
    RemoteStopped {
        /// The node.
        node: String,
    },

    /// The link to the controller was lost while the call was in flight. The node reconnects by itself.
    #[error(
        "the link to the controller was lost before {callback:?} was answered; the callback may have run"
    )]
    ControllerLost {
        /// The callback's name.
        callback: String,
    },

    /// The callback ran and failed: it returned an error or panicked.
    #[error("{0}")]
    Remote(Box<RemoteError>),
}

impl Error {
    /// Returns whether the callback may have been executed.
    ///
    /// `false` is a guarantee: calling again cannot run it twice.
    pub fn may_have_executed(&self) -> bool {
        match self {
            Self::Remote(_) | Self::RemoteStopped { .. } | Self::ControllerLost { .. } => true,
            // The result came back but could not be used.
            Self::Decode { what, .. } | Self::Encode { what, .. } | Self::TooLarge { what, .. } => {
                *what == "result"
            }
            Self::Timeout { sent, .. } | Self::Cancelled { sent, .. } => *sent,
            _ => false,
        }
    }

    /// Returns whether the same call may succeed later without any change to the program.
    ///
    /// Check [`may_have_executed`](Self::may_have_executed) too, unless the callback may safely run twice.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::NoCandidate { .. }
                | Self::NoProcess { .. }
                | Self::NoInstance { .. }
                | Self::Overloaded { .. }
                | Self::Timeout { .. }
                | Self::RemoteStopped { .. }
                | Self::ControllerLost { .. }
        )
    }

    /// Returns whether a time limit expired.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// Returns the callback's own error, if it returned `Err(E)` and `E` is `Serialize + Deserialize`.
    ///
    /// Returns `None` if the callback's error has another type or was not sent, or if this is not a
    /// callback's error. Types are told apart by their names alone, without modules.
    pub fn downcast<E: DeserializeOwned>(&self) -> Option<E> {
        let Self::Remote(remote) = self else { return None };
        remote.downcast()
    }

    /// Converts a [`Fault`] received from the wire into the error that the caller of `callback` sees.
    ///
    /// `caller_signature` is the caller's view, which is not sent over the wire. An unknown kind of fault
    /// becomes a remote error that keeps its text, since a newer peer may know more kinds than this one.
    pub fn from_fault(fault: Fault, callback: &str, caller_signature: &str) -> Self {
        let callback = callback.to_owned();
        match fault.kind {
            FaultKind::NoCandidate => {
                Self::NoCandidate { reason: nobody(&fault, &callback), callback, similar: fault.details }
            }
            FaultKind::NoProcess => Self::NoProcess { name: fault.node },
            FaultKind::NoInstance => Self::NoInstance { callback, node: fault.node },
            FaultKind::SignatureMismatch => Self::SignatureMismatch {
                callback,
                node: fault.node,
                caller: caller_signature.to_owned(),
                callee: fault.message,
            },
            FaultKind::Overloaded => Self::Overloaded { node: fault.node },
            FaultKind::HopLimit => {
                Self::HopLimit { callback, limit: fault.number.try_into().unwrap_or(u8::MAX) }
            }
            FaultKind::TooLarge => Self::TooLarge {
                // A node is given only if the payload came from there.
                what: if fault.node.is_empty() { "arguments" } else { "result" },
                callback,
                size: fault.number,
                limit: fault.limit,
            },
            // The limit is the callee's own; the controller's refusals have none.
            FaultKind::BadArguments if fault.limit > 0 => {
                Self::TooLarge { what: "arguments", callback, size: fault.number, limit: fault.limit }
            }
            FaultKind::BadArguments => Self::Decode { what: "arguments", callback, reason: fault.message },
            FaultKind::BadResult => Self::Encode { what: "result", callback, reason: fault.message },
            FaultKind::InvalidTime => Self::InvalidTime { problem: fault.message },
            FaultKind::NoTask => Self::NoTask { id: fault.number },
            FaultKind::Expired => {
                Self::Timeout { callback, after: Duration::from_micros(fault.number), sent: false }
            }
            FaultKind::Cancelled => Self::Cancelled { callback, sent: true },
            FaultKind::RemoteStopped => Self::RemoteStopped { node: fault.node },
            FaultKind::Refused => Self::Refused { reason: fault.message },
            FaultKind::Failed | FaultKind::Panicked | FaultKind::Unknown(_) => {
                Self::Remote(Box::new(RemoteError { fault, callback }))
            }
        }
    }
}

/// What a failed callback reported: its message, chain of sources, type and location.
///
/// Reached through [`Error::Remote`].
#[derive(Debug, Clone)]
pub struct RemoteError {
    fault: Fault,
    callback: String,
}

impl RemoteError {
    /// Returns the name of the callback that failed.
    pub fn callback(&self) -> &str {
        &self.callback
    }

    /// Returns the node that it ran on.
    pub fn node(&self) -> &str {
        &self.fault.node
    }

    /// Returns the error's `Display` text or the panic message.
    pub fn message(&self) -> &str {
        &self.fault.message
    }

    /// Returns the messages of the error's sources, nearest first.
    pub fn chain(&self) -> &[String] {
        &self.fault.details
    }

    /// Returns the error's type as named by the callee; empty for a panic.
    pub fn type_name(&self) -> &str {
        &self.fault.type_name
    }

    /// Returns where the panic happened, as `file:line:column`; empty for a returned error.
    pub fn location(&self) -> &str {
        &self.fault.location
    }

    /// Returns whether the callback panicked instead of returning an error.
    pub fn is_panic(&self) -> bool {
        self.fault.kind == FaultKind::Panicked
    }

    /// Returns the callback's own error, as in [`Error::downcast`].
    pub fn downcast<E: DeserializeOwned>(&self) -> Option<E> {
        let expected = crate::signature::type_name::<E>();
        if self.fault.payload.is_empty() || self.fault.type_name != expected {
            return None;
        }
        Codec::Bincode.decode(&self.fault.payload).ok()
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { node, message, location, .. } = &self.fault;
        let callback = &self.callback;
        if self.is_panic() {
            write!(f, "{callback:?} on {node:?} panicked: {message}")?;
            if !location.is_empty() {
                write!(f, " (at {location})")?;
            }
            Ok(())
        } else {
            write!(f, "{callback:?} on {node:?} failed: {message}")
        }
    }
}

impl std::error::Error for RemoteError {}

/// Says how to resolve a mismatch. Signatures as text do not list fields, so different types of the same name
/// look alike in them.
fn remedy(caller: &str, callee: &str) -> &'static str {
    if caller == callee {
        "the names agree, so a struct or enum of that name has other fields or variants on either side: bring them together"
    } else {
        "bring the two to the same types"
    }
}

/// What is kept for scheduled calls has a limit of its own.
fn remedy_of_size(limit: u64) -> &'static str {
    if limit == CHUNK_BYTES as u64 { "" } else { ", or raise payload_bytes_max on both sides" }
}

/// Why nobody can be called, and what to do about it.
fn nobody(fault: &Fault, callback: &str) -> String {
    let unsaid = || format!("no other process offers {callback:?}");
    let reason = if fault.message.is_empty() { unsaid() } else { fault.message.clone() };
    match &fault.details[..] {
        // One that is named is there, and another one may be the right one to name.
        [] if !fault.node.is_empty() => reason,
        [] => format!("{reason}; start a process that registers it, or wait for it with wait_function"),
        similar => format!("{reason}; did you mean {}?", similar.join(" or ")),
    }
}
