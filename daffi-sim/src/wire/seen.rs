//! What is known about one connection.

use std::{collections::BTreeMap, time::Duration};

use crate::{history::Nonce, network::HostId};

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) node: HostId,
    pub(super) controller: HostId,
    pub(super) name: String,
    pub(super) welcomed: bool,
    /// Whether callbacks were sent.
    pub(super) registering: bool,
    /// Whether the controller confirmed them.
    pub(super) registered: bool,
    pub(super) leaving: bool,
    /// Since when the controller no longer has this connection, or is about to lose it.
    pub(super) over: Option<Duration>,
    pub(super) asked: BTreeMap<u64, Asked>,
    /// Large calls whose number is not yet known, and when they came.
    pub(super) unnamed: BTreeMap<u64, u64>,
    /// The last call that the node sent for the first time.
    pub(super) sent_last: Nonce,
    pub(super) given: BTreeMap<u64, Outcome>,
    /// When a lane that had been full could take more again.
    pub(super) unblocked: [Option<Duration>; 2],
    pub(super) blocked: [bool; 2],
    /// Whether the controller has more to say than there is room for, perhaps that the connection is over.
    pub(super) full: bool,
}

/// What a node wants to know.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) nonce: Option<Nonce>,
    pub(super) what: What,
    pub(super) outcomes: BTreeMap<u32, Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Call,
    Broadcast,
    Schedule,
    Cancel(u64),
    Other,
}

/// How far an outcome has progressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Open,
    /// A large one, with more to follow.
    Coming,
    There,
}

impl Outcome {
    /// Records a result or failure. Returns whether it is allowed.
    pub(super) fn answer(&mut self, failure: bool, more: bool) -> bool {
        let may = match *self {
            Self::Open => true,
            // A result that cannot be sent completely becomes a failure.
            Self::Coming => failure,
            Self::There => false,
        };
        *self = if more { Self::Coming } else { Self::There };
        may
    }

    pub(super) fn chunk(&mut self, more: bool) {
        if *self == Self::Coming && !more {
            *self = Self::There;
        }
    }
}

impl Seen {
    /// Whether what the controller writes now may have waited for room, so that it is unknown when it was
    /// decided.
    pub(super) fn waited(&self, now: Duration) -> bool {
        self.unblocked[1] == Some(now)
    }
}
