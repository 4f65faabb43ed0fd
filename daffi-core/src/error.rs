//! The one error type of the public API.

use std::{fmt, io, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use crate::{
    Address,
    fault::{Fault, FaultKind},
    limits::CHUNK_BYTES,
    payload::Codec,
};

/// The result of everything in daffi that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, to which callback and node, and what to do about it.
///
/// Two questions decide what a program does next, and both have an answer for every variant:
/// [`may_have_executed`](Self::may_have_executed) says whether the callback may have run, so whether calling
/// again could run it twice, and [`is_retryable`](Self::is_retryable) whether calling again makes sense at all.
///
/// Errors are cheap to clone: one lost link answers every call that was in flight on it.
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
    // ---- how a Global is built and started
    /// The options of the builder contradict each other, or one has no possible meaning.
    #[error("{problem}")]
    Configuration {
        /// What contradicts what, and what to write instead.
        problem: String,
    },

    /// `init_controller(true)`, but no controller crate is linked into this program.
    #[error(
        "no controller is linked into this program: use the `controller` feature of daffi (on by default), or add a \
         controller crate and name it once, for example with `use my_controller as _;`"
    )]
    NoController,

    /// Another process listens on this address.
    #[error(
        "{address} is already in use by another process: choose another address, or connect to that controller without init_controller"
    )]
    AddressInUse {
        /// The address that the controller was to listen on.
        address: Address,
    },

    /// The address can neither be listened on nor, if it is a socket file, be taken over.
    #[error("cannot use the address {address}: {source}")]
    AddressUnusable {
        /// The address.
        address: Address,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },

    /// No controller was reached within `connect_timeout`.
    #[error(
        "no controller reached at {address} within {waited:?} ({reason}): start one there, or wait longer with connect_timeout"
    )]
    Unreachable {
        /// Where the controller was expected.
        address: Address,
        /// How long was waited.
        waited: Duration,
        /// Why the last attempt failed.
        reason: String,
    },

    /// A living node of this name is already connected to the controller.
    #[error(
        "the process name {name:?} is taken by a node that is alive: give each process its own process_name"
    )]
    NameTaken {
        /// The name.
        name: String,
    },

    /// Controller and node have no protocol version in common, or the node asks for something that the controller does not support.
    #[error("the controller refused: {reason}")]
    Refused {
        /// The controller's words.
        reason: String,
    },

    /// Two callbacks of one process have the same name.
    #[error(
        "two callbacks are named {name:?}: one at {first}, the other at {second}; rename one, or use #[callback(name = \"…\")]"
    )]
    DuplicateCallback {
        /// The name.
        name: String,
        /// Source place of the one.
        first: String,
        /// Source place of the other.
        second: String,
    },

    /// A callback or process name that the wire does not carry.
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

    // ---- where a call was refused, and did not run
    /// No other node offers the callback, or the one that was named does not.
    #[error("{callback:?} was not called: {reason}")]
    NoCandidate {
        /// The callback's name.
        callback: String,
        /// Why there is none, and what to do about it.
        reason: String,
        /// Names that are offered and look alike.
        similar: Vec<String>,
    },

    /// No process of this name is connected.
    #[error("no process named {name:?} is connected to the controller")]
    NoProcess {
        /// The name that was asked for.
        name: String,
    },

    /// A method of a singleton struct was called before its instance exists.
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
        /// The node whose callback was to be called.
        node: String,
        /// The signature as the caller has it.
        caller: String,
        /// The signature as the callee has it.
        callee: String,
    },

    /// The node, or the way to it, has as much to do as its limits allow.
    #[error("{node:?} is overloaded: as much waits there as its limits allow; call later or less")]
    Overloaded {
        /// The node.
        node: String,
    },

    /// Calls called calls, deeper than the limit: usually a ring that never ends.
    #[error(
        "{callback:?} was not called: calls are nested more than {limit} deep; look for callbacks that call each other in a ring"
    )]
    HopLimit {
        /// The callback that would have been one too deep.
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

    /// A value could not be turned into bytes.
    #[error("cannot encode the {what} of {callback:?}: {reason}")]
    Encode {
        /// "arguments" or "result".
        what: &'static str,
        /// The callback's name.
        callback: String,
        /// What the codec said.
        reason: String,
    },

    /// Bytes could not be turned into a value.
    #[error("cannot decode the {what} of {callback:?}: {reason}")]
    Decode {
        /// "arguments" or "result".
        what: &'static str,
        /// The callback's name.
        callback: String,
        /// What the codec said.
        reason: String,
    },

    /// A time for `PERIOD` that can never come, or a duration that makes no sense.
    #[error("{problem}")]
    InvalidTime {
        /// What is wrong with it.
        problem: String,
    },

    /// A scheduled task that the controller does not know: it ended long ago, or the controller was restarted.
    #[error(
        "the controller knows no scheduled task {id}: it ended long ago, or the controller was restarted since"
    )]
    NoTask {
        /// The task's id.
        id: u64,
    },

    /// A blocking form was used where it would block an async runtime.
    #[error("{blocking} would block this thread's async runtime: use {twin} instead")]
    BlockingInAsync {
        /// The blocking form.
        blocking: &'static str,
        /// What to write instead.
        twin: &'static str,
    },

    /// This `Global` was stopped.
    #[error("{callback:?} was not called: this Global is stopped")]
    Stopped {
        /// The callback or operation.
        callback: String,
    },

    // ---- where a call may have run
    /// The time ran out.
    #[error("no answer from {callback:?} within {after:?}")]
    Timeout {
        /// The callback's name, or what was waited for.
        callback: String,
        /// The time that was given.
        after: Duration,
        /// Whether the request had been sent when the time ran out.
        sent: bool,
    },

    /// The call was cancelled by its caller.
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

    /// The link to the controller was lost with the call in flight. The node reconnects by itself.
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
    /// Whether the callback may have been executed.
    ///
    /// `false` is a promise: calling again cannot run it twice.
    pub fn may_have_executed(&self) -> bool {
        match self {
            Self::Remote(_) | Self::RemoteStopped { .. } | Self::ControllerLost { .. } => true,
            // The result came back and did not suit.
            Self::Decode { what, .. } | Self::Encode { what, .. } | Self::TooLarge { what, .. } => {
                *what == "result"
            }
            Self::Timeout { sent, .. } | Self::Cancelled { sent, .. } => *sent,
            _ => false,
        }
    }

    /// Whether the same call may succeed later with nothing changed in the program.
    ///
    /// Look at [`may_have_executed`](Self::may_have_executed) too, unless the callback may run twice.
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

    /// Whether a time limit ran out.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// The callback's own error, if the callback returned `Err(E)` and `E` is `Serialize + Deserialize`.
    ///
    /// `None` where the callback's error is of another type, did not travel, or this is another error.
    pub fn downcast<E: DeserializeOwned>(&self) -> Option<E> {
        let Self::Remote(remote) = self else { return None };
        remote.downcast()
    }

    /// The error that a [`Fault`] from the wire stands for, as the caller of `callback` sees it.
    ///
    /// `caller_signature` is the caller's view, which does not travel. An unknown kind of fault is
    /// kept as a remote error with its text, since a newer peer may know more kinds than this one.
    pub fn from_fault(fault: Fault, callback: &str, caller_signature: &str) -> Self {
        let callback = callback.to_owned();
        match fault.kind {
            FaultKind::NoCandidate => {
                Self::NoCandidate { callback, reason: nobody(&fault), similar: fault.details }
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
                // With a node it is about what came from there.
                what: if fault.node.is_empty() { "arguments" } else { "result" },
                callback,
                size: fault.number,
                limit: fault.limit,
            },
            // The callee's own limit, which is none for what the controller refuses.
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

/// What a callback that failed left behind: its message, chain of sources, type and place.
///
/// Reached through [`Error::Remote`].
#[derive(Debug, Clone)]
pub struct RemoteError {
    fault: Fault,
    callback: String,
}

impl RemoteError {
    /// The callback that failed.
    pub fn callback(&self) -> &str {
        &self.callback
    }

    /// The node that it ran on.
    pub fn node(&self) -> &str {
        &self.fault.node
    }

    /// What the error's `Display`, or the panic, said.
    pub fn message(&self) -> &str {
        &self.fault.message
    }

    /// What the error's sources said, nearest first.
    pub fn chain(&self) -> &[String] {
        &self.fault.details
    }

    /// The error's type as the callee names it; empty for a panic.
    pub fn type_name(&self) -> &str {
        &self.fault.type_name
    }

    /// Where the panic happened, as `file:line:column`; empty for a returned error.
    pub fn location(&self) -> &str {
        &self.fault.location
    }

    /// Whether the callback panicked instead of returning an error.
    pub fn is_panic(&self) -> bool {
        self.fault.kind == FaultKind::Panicked
    }

    /// The callback's own error, as in [`Error::downcast`].
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

/// What to do about a disagreement. The text has no fields, so two types of one name look alike in it.
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
fn nobody(fault: &Fault) -> String {
    let reason = if fault.message.is_empty() { "no other process offers it" } else { &fault.message };
    match &fault.details[..] {
        // One that is named is there, and another one may be the right one to name.
        [] if !fault.node.is_empty() => reason.to_owned(),
        [] => format!("{reason}; start a process that registers it, or wait for it with wait_function"),
        similar => format!("{reason}; did you mean {}?", similar.join(" or ")),
    }
}
