//! A custom controller for daffi, as an example of how to write one.
//!
//! It needs only `daffi-core`, passes the whole conformance suite, and favours clarity over speed: it has one
//! lock around one `State`, and scans its tables where a busy controller would keep an index. The real
//! controller is the crate `daffi-controller`.
//!
//! [`submit_controller!`](daffi_core::submit_controller) at the end of this file is what makes
//! `init_controller(true)` start it in a program that links this crate instead of `daffi-controller`.

// Faults are large, and rare enough to be passed by value where that reads better.
#![allow(clippy::result_large_err)]

use std::{sync::Arc, time::Duration};

use daffi_core::{
    Address, Result,
    controller::{Controller, ControllerConfig, RunningController},
    reactor::Reactor,
};

mod calls;
mod hub;
mod nodes;
mod questions;
mod state;
mod tasks;

/// The controller, before it is started.
#[derive(Debug, Clone, Copy)]
pub struct OwnController;

impl Controller for OwnController {
    fn name(&self) -> &str {
        "own"
    }

    fn start(&self, config: ControllerConfig, reactor: &Reactor) -> Result<Arc<dyn RunningController>> {
        config.check()?;
        Ok(Arc::new(Running(hub::Hub::start(config, reactor.handle())?)))
    }
}

daffi_core::submit_controller!(OwnController);

struct Running(hub::Hub);

impl RunningController for Running {
    fn addresses(&self) -> Vec<Address> {
        self.0.addresses().to_vec()
    }

    fn stop(&self, grace: Duration) {
        self.0.stop(grace);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop(Duration::ZERO);
    }
}
