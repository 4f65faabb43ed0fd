//! What a callback takes and returns, as text for people and as a number for comparison.
//!
//! bincode is not self-describing: bytes of one type silently decode into garbage of another. So each call
//! carries the [fingerprint](Signature::fingerprint) of the caller's [`Signature`], and the callee compares
//! it with its own before it decodes anything.
//!
//! A fingerprint is 64 bits in three parts:
//!
//! ```text
//!  63                                  32 31             16 15              0
//! ┌──────────────────────────────────────┬─────────────────┬─────────────────┐
//! │ names of the types, never 0          │ arguments' shape│ result's shape  │
//! └──────────────────────────────────────┴─────────────────┴─────────────────┘
//! ```
//!
//! * **Names**: FNV-1a of the signature's text without the parameters' names, for example
//!   `(i64, String) -> bool` (the separator is a comma and a space; the result is always written, as `()` if
//!   there is none). Types are named as [`type_name`] does.
//! * **Shapes**: what the types consist of, so that two structs of the same name with different fields do not
//!   match. An unknown shape, such as that of the arguments of a call by name, is 0, which matches
//!   everything.
//!
//! Each part is the 64-bit FNV-1a hash (offset basis `0xcbf29ce484222325`, prime `0x100000001b3`), whose
//! halves are xor-ed until the width fits; a 0 is replaced by 1. A program in another language may compute
//! the names and leave the shapes 0, or leave the whole fingerprint 0: then nothing is compared.

use std::{cell::RefCell, collections::BTreeMap, fmt};

use foldhash::HashMap;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

mod hash;
use hash::Fnv;

mod shape;
pub use shape::is_tracing;

mod type_name;
pub use type_name::type_name;

/// The parameters and the result of a callback, as seen by its caller or its callee.
///
/// ```
/// use daffi_core::signature::{Signature, WireType};
///
/// let signature = Signature::new(
///     [("a", WireType::traced::<i64>()), ("text", WireType::named::<&str>())],
///     WireType::traced::<()>(),
/// );
/// assert_eq!(signature.text(), "(a: i64, text: String) -> ()");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    text: String,
    fingerprint: u64,
}

impl Signature {
    /// Creates the signature with these parameters and this result.
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, WireType)>, result: WireType) -> Self {
        let mut text = String::from("(");
        let mut names = Fnv::default();
        names.write("(");
        let mut shape = Some(Fnv::default());
        for (at, (name, parameter)) in parameters.into_iter().enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            text.push_str(separator);
            names.write(separator);
            if !name.is_empty() {
                text.push_str(name);
                text.push_str(": ");
            }
            text.push_str(&parameter.name);
            names.write(&parameter.name);
            shape = match (shape, parameter.shape) {
                (Some(mut shape), Some(part)) => {
                    shape.write_u64(part);
                    Some(shape)
                }
                _ => None,
            };
        }
        for part in [") -> ", &result.name] {
            text.push_str(part);
            names.write(part);
        }
        let arguments = shape.map_or(0, |shape| hash::fold_16(shape.finish()));
        let returned = result.shape.map_or(0, hash::fold_16);
        let fingerprint =
            u64::from(hash::fold_32(names.finish())) << 32 | u64::from(arguments) << 16 | u64::from(returned);
        Self { text, fingerprint }
    }

    /// Returns the signature of a call by name with the arguments `A`, a tuple, and the result `R`.
    ///
    /// It is computed once for each pair of types, and matches the signature of the typed form of the same
    /// call.
    pub fn of_call<A: ?Sized, R: DeserializeOwned>() -> &'static Self {
        // The key is the address of the function that creates the signature. Type names will not do, since
        // types of two blocks may have the same one; and if the linker merges two functions, they do the
        // same.
        let make: fn() -> Self = make_call::<A, R>;
        let key = make as usize;
        let seen = SEEN.try_with(|seen| seen.borrow().get(&key).copied()).ok().flatten();
        seen.unwrap_or_else(|| {
            let known = CALLS.lock().get(&key).copied();
            let signature = known.unwrap_or_else(|| {
                // Without the lock, because finding out a type's shape runs the user's code.
                let made = make();
                CALLS.lock().entry(key).or_insert_with(|| Box::leak(Box::new(made)))
            });
            // While the thread is ending, there is no need to remember it.
            let _ = SEEN.try_with(|seen| seen.borrow_mut().insert(key, signature));
            signature
        })
    }

    /// Returns the text for people: `(a: i64, b: i64) -> i64`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the number for comparison, as described in the [module documentation](self).
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Returns whether a call with one fingerprint may be decoded by a callback with the other.
    ///
    /// Whatever is unknown on either side matches.
    pub fn matches(ours: u64, theirs: u64) -> bool {
        let names = |fingerprint: u64| fingerprint >> 32;
        let arguments = |fingerprint: u64| fingerprint >> 16 & 0xffff;
        let result = |fingerprint: u64| fingerprint & 0xffff;
        let alike = |ours: u64, theirs: u64| ours == theirs || ours == 0 || theirs == 0;
        ours == 0
            || theirs == 0
            || names(ours) == names(theirs)
                && alike(arguments(ours), arguments(theirs))
                && alike(result(ours), result(theirs))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a signature knows of one type: its name, and its shape if that can be determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireType {
    name: String,
    shape: Option<u64>,
}

impl WireType {
    /// Creates a type of which only the name is known.
    pub fn named<T: ?Sized>() -> Self {
        Self { name: type_name::<T>(), shape: None }
    }

    /// Creates a type whose shape is determined from its `Deserialize`.
    ///
    /// This runs the implementation on made-up values, within limits of time and depth. With `panic = "abort"` the
    /// type is not run at all, since an implementation may panic on a value that no caller sends.
    pub fn traced<T: DeserializeOwned>() -> Self {
        let shape = (!cfg!(panic = "abort")).then(shape::shape_of::<T>);
        Self { name: type_name::<T>(), shape }
    }

    /// Returns the type's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn make_call<A: ?Sized, R: DeserializeOwned>() -> Signature {
    let arguments = type_name::elements::<A>().into_iter();
    Signature::new(arguments.map(|name| ("", WireType { name, shape: None })), WireType::traced::<R>())
}

/// Signatures of calls by name. They live as long as the program, which has a limited number of pairs of
/// types.
static CALLS: Mutex<BTreeMap<usize, &'static Signature>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// What this thread has already looked up in `CALLS`, so that calls of several threads share no lock.
    static SEEN: RefCell<HashMap<usize, &'static Signature>> = RefCell::default();
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    fn typed<T: DeserializeOwned>() -> WireType {
        WireType::traced::<T>()
    }

    #[test]
    fn text_is_for_people() {
        let signature =
            Signature::new([("a", typed::<i64>()), ("b", typed::<Vec<String>>())], typed::<Option<u8>>());
        assert_eq!(signature.text(), "(a: i64, b: Vec<String>) -> Option<u8>");
        assert_eq!(Signature::new([], typed::<()>()).to_string(), "() -> ()");
    }

    #[test]
    fn fingerprints_stay_what_they_are() {
        // Nodes of different versions compare these, and the names' half is documented for other languages.
        let signature = Signature::new([("a", typed::<i64>()), ("b", typed::<String>())], typed::<bool>());
        assert_eq!(signature.fingerprint(), GOLDEN, "{:#018x}", signature.fingerprint());
        let mut names = Fnv::default();
        names.write("(i64, String) -> bool");
        assert_eq!(GOLDEN >> 32, u64::from(hash::fold_32(names.finish())));
    }

    const GOLDEN: u64 = 0xf7da_3f3a_0d4b_2dfe;

    fn check(ours: &Signature, theirs: &Signature, expected: bool) {
        for (a, b) in [(ours, theirs), (theirs, ours)] {
            assert_eq!(Signature::matches(a.fingerprint, b.fingerprint), expected, "{a} and {b}");
        }
    }

    #[test]
    fn names_of_parameters_do_not_count_and_types_do() {
        let of = |name, parameter, result| Signature::new([(name, parameter)], result);
        let ours = of("a", typed::<i64>(), typed::<i64>());
        check(&ours, &of("b", typed::<i64>(), typed::<i64>()), true);
        check(&ours, &of("a", WireType::named::<&i64>(), typed::<i64>()), true);
        check(&ours, &of("a", typed::<i32>(), typed::<i64>()), false);
        check(&ours, &of("a", typed::<i64>(), typed::<()>()), false);
        check(&ours, &Signature::new([], typed::<i64>()), false);
        check(&ours, &Signature::new([("a", typed::<i64>()), ("b", typed::<i64>())], typed::<i64>()), false);
    }

    #[test]
    fn types_of_one_name_and_different_fields_do_not_match() {
        mod here {
            #[derive(serde::Deserialize)]
            pub(super) struct Point {
                #[allow(dead_code)]
                x: f64,
                #[allow(dead_code)]
                y: f64,
            }
        }
        mod there {
            #[derive(serde::Deserialize)]
            pub(super) struct Point {
                #[allow(dead_code)]
                y: f64,
                #[allow(dead_code)]
                x: f64,
            }
        }
        let of = |parameter, result| Signature::new([("point", parameter)], result);
        let ours = of(typed::<here::Point>(), typed::<()>());
        check(&ours, &of(typed::<there::Point>(), typed::<()>()), false);
        check(&ours, &of(WireType::named::<there::Point>(), typed::<()>()), true);
        let ours = of(typed::<()>(), typed::<here::Point>());
        check(&ours, &of(typed::<()>(), typed::<there::Point>()), false);
        check(&ours, &of(typed::<()>(), WireType::named::<there::Point>()), true);
    }

    #[test]
    fn bytes_of_any_type_match() {
        let of = |parameter, result| Signature::new([("bytes", parameter)], result);
        let ours = of(typed::<Vec<u8>>(), typed::<Option<Vec<u8>>>());
        check(&ours, &of(typed::<crate::payload::Bytes>(), typed::<Option<crate::payload::Bytes>>()), true);
        check(&ours, &of(typed::<bytes::Bytes>(), typed::<Option<bytes::Bytes>>()), true);
        check(&ours, &of(WireType::named::<&[u8]>(), typed::<Option<Vec<u8>>>()), true);
        check(&ours, &of(typed::<String>(), typed::<Option<Vec<u8>>>()), false);
        check(&ours, &of(typed::<Vec<i8>>(), typed::<Option<Vec<u8>>>()), false);
    }

    #[test]
    fn no_fingerprint_matches_every_fingerprint() {
        let ours = Signature::new([], typed::<()>());
        assert!(Signature::matches(ours.fingerprint, 0));
        assert!(Signature::matches(0, ours.fingerprint));
    }

    #[test]
    fn a_call_by_name_matches_the_typed_form() {
        let typed_form = Signature::new([("a", typed::<i64>()), ("b", typed::<String>())], typed::<bool>());
        let by_name = Signature::of_call::<(i64, &str), bool>();
        assert_eq!(by_name.text(), "(i64, String) -> bool");
        check(&typed_form, by_name, true);
        check(&typed_form, Signature::of_call::<(i64, &str), u8>(), false);
        check(&Signature::new([], typed::<()>()), Signature::of_call::<(), ()>(), true);
        check(
            &Signature::new([("a", typed::<(u8, u8)>())], typed::<()>()),
            Signature::of_call::<((u8, u8),), ()>(),
            true,
        );
    }

    #[test]
    fn a_call_by_name_is_looked_up_once() {
        let first = Signature::of_call::<(i64,), Vec<i64>>();
        assert!(std::ptr::eq(first, Signature::of_call::<(i64,), Vec<i64>>()));
        let elsewhere = std::thread::spawn(Signature::of_call::<(i64,), Vec<i64>>).join().unwrap();
        assert!(std::ptr::eq(first, elsewhere));
    }

    #[test]
    fn types_of_two_blocks_are_told_apart() {
        let first = {
            #[derive(Serialize, Deserialize)]
            struct Local(i64);
            let _ = Local(1).0;
            Signature::of_call::<(), Local>()
        };
        let second = {
            #[derive(Serialize, Deserialize)]
            struct Local {
                a: u8,
            }
            let _ = Local { a: 1 }.a;
            Signature::of_call::<(), Local>()
        };
        assert_eq!(first.text(), second.text());
        check(first, second, false);
    }
}
