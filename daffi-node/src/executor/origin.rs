//! Where requests come from.

use std::{fmt, hash::BuildHasher as _, sync::Arc};

use foldhash::fast::FixedState;

use super::Home;

/// Where a request came from, shared by the requests of one caller.
pub(crate) struct Origin {
    /// The node that it came to.
    pub(crate) home: Arc<dyn Home>,
    /// The name of the calling node.
    pub(crate) caller: Arc<str>,
    /// The connection that it came on, and that its answer goes back on: on another one the ids mean
    /// something else.
    pub(crate) connection: u64,
}

/// The recent callers, so that not every request has to allocate its origin.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    /// Each is at the place determined by its name, from which it displaces any other.
    recent: Box<[Option<Arc<Origin>>; RECENT]>,
    /// The place of the last caller, who is most likely the next one, too.
    last: usize,
    connection: u64,
}

const RECENT: usize = 32;

impl Origins {
    /// Returns the origins of requests that come on this connection.
    pub(crate) fn new(connection: u64) -> Self {
        Self { connection, ..Self::default() }
    }

    /// Returns the origin of a request by `caller` to `home`, which is always the same.
    pub(crate) fn of<H: Home>(&mut self, caller: &str, home: &Arc<H>) -> Arc<Origin> {
        let is_of = |origin: &&Arc<Origin>| *origin.caller == *caller;
        if let Some(origin) = self.recent[self.last].as_ref().filter(is_of) {
            return origin.clone();
        }
        self.last = FixedState::default().hash_one(caller) as usize % RECENT;
        let place = &mut self.recent[self.last];
        if let Some(origin) = place.as_ref().filter(is_of) {
            return origin.clone();
        }
        let connection = self.connection;
        place.insert(Arc::new(Origin { home: home.clone(), caller: caller.into(), connection })).clone()
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("caller", &self.caller).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::nowhere::Nowhere;

    #[test]
    fn each_request_has_its_caller_however_many_there_are() {
        let home = Arc::new(Nowhere);
        let mut origins = Origins::default();
        let first = origins.of("caller 0", &home);
        assert!(Arc::ptr_eq(&first, &origins.of("caller 0", &home)));
        for round in 0..3 {
            for number in 0..2 * RECENT {
                let name = format!("caller {}", number * (round + 1));
                assert_eq!(*origins.of(&name, &home).caller, *name);
            }
        }
    }
}
