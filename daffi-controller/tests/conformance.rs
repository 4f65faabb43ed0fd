//! The default controller passes what every daffi controller must pass, with one thread and with several.

use std::sync::Arc;

use daffi_controller::DefaultController;
use daffi_core::{
    Result,
    controller::{Controller, ControllerConfig, RunningController},
    reactor::Reactor,
};

mod one_thread {
    daffi_conformance::conformance!(daffi_controller::DefaultController);
}

mod four_threads {
    daffi_conformance::conformance!(super::FourThreads);
}

struct FourThreads;

impl Controller for FourThreads {
    fn name(&self) -> &str {
        "four threads"
    }

    fn start(&self, config: ControllerConfig, reactor: &Reactor) -> Result<Arc<dyn RunningController>> {
        let mut config = config;
        config.threads = 4;
        DefaultController.start(config, reactor)
    }
}
