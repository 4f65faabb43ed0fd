//! Panics: daffi survives many of its own, so that one might be mistaken for the end of a connection.

use std::{cell::RefCell, sync::Once};

use crate::{callbacks, tamper, world::Sim};

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Records each panic in a simulated world, except deliberate ones, which are not printed either.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() == Some(callbacks::PANIC) {
                return;
            }
            if Sim::is_entered() {
                PANICS.with_borrow_mut(|panics| panics.push(format!("a panic: {info}")));
            }
            if info.payload_as_str() != Some(tamper::PANIC) {
                hook(info);
            }
        }));
    });
}

/// Takes what was recorded on this thread.
pub(crate) fn take() -> Vec<String> {
    PANICS.take()
}
