//! Expansions hold where nothing is as usual: see tests/hygiene/callbacks. And they are linked.

// A crate of callbacks that nothing names is not linked without this.
use daffi_test_callbacks as _;

use daffi::__private::linked;

#[test]
fn callbacks_of_another_crate_are_there() {
    let mut callbacks: Vec<_> = linked()
        .map(|callback| format!("{}{}", callback.name(), callback.signature()))
        .filter(|text| !text.starts_with("here"))
        .collect();
    callbacks.sort();
    assert_eq!(
        callbacks,
        [
            "fill() -> ()",
            "group.group(instance: u8) -> u8",
            "group.move() -> ()",
            "in_a_block(number: u8) -> u8",
            "invocation(argument_0: u8, value: u8, returned: u8) -> u8",
            "table(error: bool) -> ()",
            "type(fn: u8) -> u8",
        ]
    );
}

/// Callbacks of one name in two modules, and one made by a macro.
mod here {
    macro_rules! callbacks {
        ($($name:ident: $type:ty),*) => {$(
            #[daffi::callback]
            fn $name(a: $type, b: $type) -> $type {
                a + b
            }
        )*};
    }

    callbacks!(here_small: u8, here_large: u64);
}

#[test]
fn callbacks_come_out_of_macros_too() {
    let mut callbacks: Vec<_> = linked()
        .filter(|callback| callback.name().starts_with("here"))
        .map(|callback| callback.signature().text().to_owned())
        .collect();
    callbacks.sort();
    assert_eq!(callbacks, ["(a: u64, b: u64) -> u64", "(a: u8, b: u8) -> u8"]);
}
