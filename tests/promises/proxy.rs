//! A wire between nodes and the controller of a world, to which things can be done.

use std::{ops::Deref, sync::Arc};

use daffi::Address;
pub use daffi_chaos::Way;
use daffi_chaos::{Proxy as Wire, Target};

/// A TCP address that leads to the UNIX socket of a controller.
pub struct Proxy {
    pub address: Address,
    wire: Arc<Wire>,
}

impl Proxy {
    pub fn new(controller: &Address) -> Self {
        let Address::Unix(controller) = controller.clone() else { panic!("{controller} is no UNIX socket") };
        let wire = Wire::new(Target::Unix(controller)).unwrap();
        Self {
            address: Address::Tcp { host: "127.0.0.1".to_owned(), port: wire.port() },
            wire: Arc::new(wire),
        }
    }

    /// The wire itself, for what happens to it from another thread.
    pub fn wire(&self) -> Arc<Wire> {
        self.wire.clone()
    }
}

impl Deref for Proxy {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.wire
    }
}
