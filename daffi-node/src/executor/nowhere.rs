//! A home for the requests of tests in which nothing runs.

use std::{sync::Arc, time::Instant};

use daffi_core::payload::Codec;

use super::{Executor, Home, Origin};
use crate::{callback::Outcome, caller::Caller};

/// A home in which nothing runs, and outcomes go nowhere.
pub(crate) struct Nowhere;

impl Nowhere {
    /// Returns the origin of a request that came on this connection.
    pub(crate) fn origin(connection: u64) -> Arc<Origin> {
        Arc::new(Origin { home: Arc::new(Self), caller: "caller".into(), connection })
    }
}

impl Home for Nowhere {
    fn executor(&self) -> &Arc<Executor> {
        unreachable!()
    }

    fn outcome(&self, _: &Origin, _: u64, _: Codec, _: Outcome) {}

    fn forget(&self, _: &Origin, _: u64) {}

    fn caller(self: Arc<Self>, _: u8, _: Option<Instant>) -> Caller {
        Caller::detached()
    }
}
