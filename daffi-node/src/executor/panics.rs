//! A callback that panics is one failed call. This module makes its fault: what the panic said, and where.

use std::{
    any::Any,
    cell::RefCell,
    mem,
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::Once,
};

use daffi_core::{
    fault::{Fault, FaultKind},
    signature::is_tracing,
};

thread_local! {
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes the panic hook remember the location of every panic, which only the hook learns. The previous hook
/// still runs, except for panics while the shape of a type is determined.
pub(crate) fn remember_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // While the thread is ending, there is nowhere to remember it, and nobody to tell.
            let _ = PLACE.try_with(|place| {
                *place.borrow_mut() = info.location().map(ToString::to_string).unwrap_or_default();
            });
            if !is_tracing() {
                before(info);
            }
        }));
    });
}

/// Turns a caught panic into the fault for its caller.
pub(super) fn fault(panic: Box<dyn Any + Send>) -> Box<Fault> {
    // `panic!("{}", 7)` gives a `&str` or a `String`, at the compiler's discretion.
    let message = (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is not text");
    let mut fault = Fault::new(FaultKind::Panicked, message);
    fault.location = PLACE.take();
    // A value that is not text may panic when dropped, and this thread still has to answer the caller.
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(another);
        PLACE.take();
    }
    Box::new(fault)
}
