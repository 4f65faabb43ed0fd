//! What a type consists of, determined by running its `Deserialize`.
//!
//! A [`Tracer`] is a deserializer without any bytes: it records what it is asked for and answers with made-up
//! values. One run sees one variant of each enum, so the type is run again until every variant has been seen.
//! If going on fails, because the type is recursive or refuses the made-up value, places where something may
//! be absent (an `Option`, a sequence, a map) are left empty.
//!
//! Both sides of a call do exactly the same for the same type. All that matters is that they get the same
//! result, and very likely a different one for a different type; so if this stops early, it stops at the same
//! place on both.

use std::{
    cell::Cell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use foldhash::HashMap;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use super::hash::Fnv;

thread_local! {
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread is determining the shape of a type. A panic is not worth reporting then.
pub fn is_tracing() -> bool {
    TRACING.try_with(Cell::get).unwrap_or(false)
}

/// Returns the hash of everything that the type asks for.
pub(super) fn shape_of<T: DeserializeOwned>() -> u64 {
    struct Tracing;
    impl Drop for Tracing {
        fn drop(&mut self) {
            let _ = TRACING.try_with(|tracing| tracing.set(false));
        }
    }
    let _ = TRACING.try_with(|tracing| tracing.set(true));
    let _tracing = Tracing;
    let mut trace = Trace::default();
    loop {
        trace.open = 0;
        trace.stack.clear();
        let tracer = Tracer { trace: &mut trace, path: 0, depth: 0 };
        // An implementation that panics on an unusual value is wrong, but that is for a call to report; a
        // registration must not die of it.
        match catch_unwind(AssertUnwindSafe(|| T::deserialize(tracer))) {
            Ok(Ok(_)) => {}
            Ok(Err(Stop)) => trace.note("stop"),
            Err(_) => {
                trace.note("panic");
                break;
            }
        }
        if trace.open == 0 || trace.steps >= STEPS_MAX {
            break;
        }
    }
    trace.hash.finish()
}

/// How many of a type's questions are answered in all runs together. A type of this size takes about a
/// millisecond, when the program starts.
const STEPS_MAX: u32 = 20_000;

/// How deeply values may be nested; each level costs a few stack frames.
const DEPTH_MAX: u32 = 64;

/// How often a struct or enum may contain itself before it is considered recursive. More than once, so that a
/// generic type around itself, `Page<Page<T>>`, is seen completely.
const NESTED_MAX: usize = 2;

/// What is known of the type so far.
#[derive(Default)]
struct Trace {
    hash: Fnv,
    steps: u32,
    /// The places where there is more than one way to continue, by path.
    choices: HashMap<u64, Choice>,
    /// How many of them have a way left to try after this run.
    open: u32,
    /// The structs and enums around the current place.
    stack: Vec<u64>,
}

impl Trace {
    fn note(&mut self, text: &str) {
        self.hash.write(text);
        // Distinguishes `ab` `c` from `a` `bc`. UTF-8 never contains this byte.
        self.hash.write_bytes(&[0xff]);
    }
}

/// A place with several ways to continue: the variants of an enum, or "one" and "none".
#[derive(Clone, Copy, Default)]
struct Choice {
    /// The way to try in the next run.
    current: u32,
    /// Whether no more ways are to be tried.
    finished: bool,
    /// The first way that led to a value.
    usable: Option<u32>,
}

/// The deserializer at one place in the type.
struct Tracer<'t> {
    trace: &'t mut Trace,
    /// The place, as a hash of the path from the root.
    path: u64,
    depth: u32,
}

impl Tracer<'_> {
    /// Records a question, or stops if there were too many.
    fn step(&mut self, what: &str) -> Result<(), Stop> {
        self.trace.steps += 1;
        if self.trace.steps > STEPS_MAX || self.depth > DEPTH_MAX {
            return Err(Stop);
        }
        self.trace.note(what);
        Ok(())
    }

    /// Returns the tracer of part number `at`.
    fn part(&mut self, at: u64) -> Tracer<'_> {
        let mut path = Fnv::default();
        path.write_u64(self.path);
        path.write_u64(at);
        Tracer { trace: self.trace, path: path.finish(), depth: self.depth + 1 }
    }

    /// Enters a type that has a name, unless it is already nested inside itself too often.
    fn named<V>(
        mut self,
        what: &str,
        name: &str,
        parts: &[&str],
        inside: impl FnOnce(Tracer<'_>) -> Result<V, Stop>,
    ) -> Result<V, Stop> {
        self.step(what)?;
        let mut id = Fnv::default();
        for text in [name].iter().chain(parts) {
            self.trace.note(text);
            id.write(text);
            id.write_bytes(&[0xff]);
        }
        let id = id.finish();
        if self.trace.stack.iter().filter(|outer| **outer == id).count() >= NESTED_MAX {
            self.trace.note("recursive");
            return Err(Stop);
        }
        let depth = self.trace.stack.len();
        self.trace.stack.push(id);
        let tracer = Tracer { trace: &mut *self.trace, ..self };
        // If this run panics, the next one cuts the stack back.
        let result = inside(tracer);
        self.trace.stack.truncate(depth);
        result
    }

    /// Takes one of `ways` ways: the next one not yet tried, or one that is known to lead to a value.
    fn choose<V>(
        self,
        ways: u32,
        try_all: bool,
        go: impl FnOnce(u32, Tracer<'_>) -> Result<V, Stop>,
    ) -> Result<V, Stop> {
        let Self { trace, path, depth } = self;
        let mut choice = trace.choices.get(&path).copied().unwrap_or_default();
        if choice.finished {
            let way = choice.usable.ok_or(Stop)?;
            return go(way, Tracer { trace, path, depth });
        }
        let open = trace.open;
        let way = choice.current;
        let result = go(way, Tracer { trace: &mut *trace, path, depth });
        if trace.open > open {
            // Something further inside has ways left; stay here until it has none.
            return result;
        }
        if result.is_ok() {
            choice.usable.get_or_insert(way);
        }
        choice.current += 1;
        choice.finished = choice.current >= ways || choice.usable.is_some() && !try_all;
        if !choice.finished || result.is_err() && choice.usable.is_some() {
            trace.open += 1;
        }
        trace.choices.insert(path, choice);
        result
    }

    /// Chooses between one part and none.
    fn one_or_none<V>(self, go: impl FnOnce(bool, Tracer<'_>) -> Result<V, Stop>) -> Result<V, Stop> {
        self.choose(2, false, |way, tracer| go(way == 0, tracer))
    }
}

macro_rules! primitives {
    ($($method:ident $visit:ident $value:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
            self.step(stringify!($visit))?;
            visitor.$visit($value)
        }
    )*};
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Stop;

    // Numbers are 1, since types that refuse 0 are more common than types that refuse 1.
    primitives! {
        deserialize_bool visit_bool false;
        deserialize_i8 visit_i8 1;
        deserialize_i16 visit_i16 1;
        deserialize_i32 visit_i32 1;
        deserialize_i64 visit_i64 1;
        deserialize_i128 visit_i128 1;
        deserialize_u8 visit_u8 1;
        deserialize_u16 visit_u16 1;
        deserialize_u32 visit_u32 1;
        deserialize_u64 visit_u64 1;
        deserialize_u128 visit_u128 1;
        deserialize_f32 visit_f32 1.0;
        deserialize_f64 visit_f64 1.0;
        deserialize_char visit_char 'a';
        deserialize_str visit_str "a";
        deserialize_string visit_str "a";
        deserialize_identifier visit_str "a";
    }

    // Like a `Vec<u8>`, which has the same bytes on the wire.
    fn deserialize_bytes<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.step("seq")?;
        self.step("visit_u8")?;
        visitor.visit_bytes(b"a")
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.step("any")?;
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.step("unit")?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.named("unit struct", name, &[], |_| visitor.visit_unit())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.named("newtype struct", name, &[], |mut tracer| visitor.visit_newtype_struct(tracer.part(0)))
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.step("option")?;
        self.one_or_none(
            |some, mut tracer| {
                if some { visitor.visit_some(tracer.part(0)) } else { visitor.visit_none() }
            },
        )
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.step("seq")?;
        self.one_or_none(|one, tracer| visitor.visit_seq(Parts::new(tracer, usize::from(one))))
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.step("map")?;
        self.one_or_none(|one, tracer| visitor.visit_map(Parts::new(tracer, 2 * usize::from(one))))
    }

    fn deserialize_tuple<V: Visitor<'de>>(mut self, len: usize, visitor: V) -> Result<V::Value, Stop> {
        self.step("tuple")?;
        self.trace.hash.write_u64(len as u64);
        visitor.visit_seq(Parts::new(self, len))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.named("tuple struct", name, &[], |tracer| {
            tracer.trace.hash.write_u64(len as u64);
            visitor.visit_seq(Parts::new(tracer, len))
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.named("struct", name, fields, |tracer| visitor.visit_seq(Parts::new(tracer, fields.len())))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let ways = u32::try_from(variants.len()).unwrap_or(u32::MAX);
        self.named("enum", name, variants, |tracer| {
            tracer.choose(ways, true, |way, mut tracer| {
                tracer.trace.hash.write_u64(u64::from(way));
                visitor.visit_enum(Variant { tracer: tracer.part(u64::from(way)), way })
            })
        })
    }

    // As in bincode.
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The parts of a sequence, tuple, struct or map (alternating keys and values).
struct Parts<'t> {
    tracer: Tracer<'t>,
    next: usize,
    len: usize,
}

impl<'t> Parts<'t> {
    fn new(tracer: Tracer<'t>, len: usize) -> Self {
        Self { tracer, next: 0, len }
    }

    fn next(&mut self) -> Option<Tracer<'_>> {
        if self.next == self.len {
            return None;
        }
        self.next += 1;
        Some(self.tracer.part(self.next as u64))
    }
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        self.next().map(|tracer| seed.deserialize(tracer)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.len - self.next)
    }
}

impl<'de> MapAccess<'de> for Parts<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        self.next().map(|tracer| seed.deserialize(tracer)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        seed.deserialize(self.next().ok_or(Stop)?)
    }
}

/// One variant of an enum.
struct Variant<'t> {
    tracer: Tracer<'t>,
    way: u32,
}

impl<'de, 't> EnumAccess<'de> for Variant<'t> {
    type Error = Stop;
    type Variant = Tracer<'t>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Tracer<'t>), Stop> {
        let variant = seed.deserialize(IntoDeserializer::<Stop>::into_deserializer(self.way))?;
        Ok((variant, self.tracer))
    }
}

impl<'de> VariantAccess<'de> for Tracer<'_> {
    type Error = Stop;

    fn unit_variant(mut self) -> Result<(), Stop> {
        self.step("unit variant")
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(mut self, seed: T) -> Result<T::Value, Stop> {
        self.step("newtype variant")?;
        seed.deserialize(self.part(0))
    }

    fn tuple_variant<V: Visitor<'de>>(mut self, len: usize, visitor: V) -> Result<V::Value, Stop> {
        self.step("tuple variant")?;
        self.trace.hash.write_u64(len as u64);
        visitor.visit_seq(Parts::new(self, len))
    }

    fn struct_variant<V: Visitor<'de>>(
        mut self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.step("struct variant")?;
        for field in fields {
            self.trace.note(field);
        }
        visitor.visit_seq(Parts::new(self, fields.len()))
    }
}

/// The run ends here. The reason does not matter, since nobody reads it.
#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the trace of a type ends here")
    }
}

impl std::error::Error for Stop {}

impl Error for Stop {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

#[cfg(test)]
#[allow(dead_code, clippy::use_self, reason = "types that are looked at and never made, each a line")]
mod tests {
    use std::{
        collections::{BTreeMap, HashMap, HashSet},
        net::SocketAddr,
        num::NonZeroU8,
        time::{Duration, SystemTime},
    };

    use serde::Deserialize;

    use super::*;

    fn runs<T: DeserializeOwned>() -> u64 {
        let shape = shape_of::<T>();
        assert_eq!(shape, shape_of::<T>(), "not the same twice: {}", std::any::type_name::<T>());
        shape
    }

    /// Each declaration is a type of the same name `It`; all their shapes differ.
    macro_rules! all_differ {
        ($({ $($declaration:item)* })*) => {{
            let mut shapes = HashMap::new();
            $({
                $($declaration)*
                let text = stringify!($($declaration)*);
                if let Some(other) = shapes.insert(runs::<It>(), text) {
                    panic!("alike:\n{other}\n{text}");
                }
            })*
        }};
    }

    #[test]
    fn types_with_different_fields_differ() {
        all_differ! {
            { #[derive(Deserialize)] struct It; }
            { #[derive(Deserialize)] struct It {} }
            { #[derive(Deserialize)] struct It(u8); }
            { #[derive(Deserialize)] struct It(i8); }
            { #[derive(Deserialize)] struct It(u8, u8); }
            { #[derive(Deserialize)] struct It { a: u8 } }
            { #[derive(Deserialize)] struct It { b: u8 } }
            { #[derive(Deserialize)] struct It { a: u8, b: u8 } }
            { #[derive(Deserialize)] struct It { b: u8, a: u8 } }
            { #[derive(Deserialize)] struct It { a: Option<u8> } }
            { #[derive(Deserialize)] struct It { a: Option<u16> } }
            { #[derive(Deserialize)] struct It { a: Vec<u8> } }
            { #[derive(Deserialize)] struct It { a: Vec<Vec<u8>> } }
            { #[derive(Deserialize)] struct It { a: [u8; 2] } }
            { #[derive(Deserialize)] struct It { a: [u8; 3] } }
            { #[derive(Deserialize)] struct It { a: BTreeMap<u8, String> } }
            { #[derive(Deserialize)] struct It { a: BTreeMap<u8, char> } }
            { #[derive(Deserialize)] enum It { A } }
            { #[derive(Deserialize)] enum It { B } }
            { #[derive(Deserialize)] enum It { A, B } }
            { #[derive(Deserialize)] enum It { B, A } }
            { #[derive(Deserialize)] enum It { A, B(u8) } }
            { #[derive(Deserialize)] enum It { A, B(u16) } }
            { #[derive(Deserialize)] enum It { A, B(u8, u8) } }
            { #[derive(Deserialize)] enum It { A, B { a: u8 } } }
            { #[derive(Deserialize)] enum It { A, B { b: u8 } } }
            { #[derive(Deserialize)] enum It { A(Option<u8>), B { b: u8 } } }
        }
    }

    #[test]
    fn what_stands_behind_enums_is_seen() {
        all_differ! {
            { #[derive(Deserialize)] enum In { A(u8), B(u8) } #[derive(Deserialize)] struct It(In, In, u8); }
            { #[derive(Deserialize)] enum In { A(u8), B(i8) } #[derive(Deserialize)] struct It(In, In, u8); }
            { #[derive(Deserialize)] enum In { A(u8), B(i8) } #[derive(Deserialize)] struct It(In, In, i8); }
            { #[derive(Deserialize)] enum In { A(u8), B(i8) } #[derive(Deserialize)] enum It { A(In), B(In, u8) } }
            { #[derive(Deserialize)] enum In { A(u8), B(u8) } #[derive(Deserialize)] enum It { A(In), B(In, u8) } }
            { #[derive(Deserialize)] enum It { A(Result<u8, u8>), B(Result<u8, u16>) } }
            { #[derive(Deserialize)] enum It { A(Result<u8, u16>), B(Result<u8, u8>) } }
            { #[derive(Deserialize)] enum It { A(Result<u8, u8>), B(Result<u8, u8>) } }
        }
    }

    #[test]
    fn recursive_types_end_and_what_follows_is_seen() {
        all_differ! {
            { #[derive(Deserialize)] struct It { next: Option<Box<It>>, last: u8 } }
            { #[derive(Deserialize)] struct It { next: Option<Box<It>>, last: i8 } }
            { #[derive(Deserialize)] struct It { next: Vec<It>, last: u8 } }
            { #[derive(Deserialize)] struct It { next: BTreeMap<u8, It>, last: u8 } }
            { #[derive(Deserialize)] struct It { left: Option<Box<It>>, right: Option<Box<It>>, last: u8 } }
            { #[derive(Deserialize)] struct It { left: Option<Box<It>>, right: Option<Box<It>>, last: i8 } }
            { #[derive(Deserialize)] enum It { Node(Box<It>, Box<It>), Leaf(u8) } }
            { #[derive(Deserialize)] enum It { Node(Box<It>, Box<It>), Leaf(i8) } }
            { #[derive(Deserialize)] enum It { Leaf(u8), Node(Box<It>, Box<It>) } }
            { #[derive(Deserialize)] enum It { Leaf(u8), Node(Box<It>, Box<It>), More(Vec<It>) } }
            // Types without a value, which nobody sends.
            { #[derive(Deserialize)] struct It { next: Box<It>, last: u8 } }
            { #[derive(Deserialize)] enum It {} }
        }
    }

    #[test]
    fn types_that_refuse_made_up_values_still_have_a_shape() {
        #[derive(Debug)]
        struct Even;
        impl<'de> Deserialize<'de> for Even {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let number = u8::deserialize(deserializer)?;
                if number % 2 == 0 { Ok(Self) } else { Err(D::Error::custom("odd")) }
            }
        }
        all_differ! {
            { #[derive(Deserialize)] struct It { a: Even, b: u8 } }
            { #[derive(Deserialize)] struct It { a: Option<Even>, b: u8 } }
            { #[derive(Deserialize)] struct It { a: Option<Even>, b: i8 } }
            { #[derive(Deserialize)] struct It { a: Vec<Even>, b: i8 } }
            { #[derive(Deserialize)] enum It { A(Even), B(u8) } }
            { #[derive(Deserialize)] enum It { A(Even), B(i8) } }
            { #[derive(Deserialize)] enum It { A(u8), B(Even) } }
        }
    }

    #[test]
    fn hostile_implementations_end() {
        struct Panics;
        impl<'de> Deserialize<'de> for Panics {
            fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                panic!("this panic belongs to the test")
            }
        }
        struct Endless;
        impl<'de> Deserialize<'de> for Endless {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // Without a name, so that only the depth reveals the recursion.
                let _: (Box<Self>, Box<Self>) = Deserialize::deserialize(deserializer)?;
                Ok(Self)
            }
        }
        struct Bush;
        impl<'de> Deserialize<'de> for Bush {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let _: [Option<Box<Self>>; 8] = Deserialize::deserialize(deserializer)?;
                Ok(Self)
            }
        }
        runs::<Panics>();
        runs::<Endless>();
        runs::<Bush>();
        runs::<(Panics, Bush)>();
    }

    #[test]
    fn everyday_types_are_seen_to_their_end() {
        /// Checks that a type after `T` is seen, which requires that `T` was given a value.
        fn ends<T: DeserializeOwned>() {
            assert_ne!(runs::<(T, u8)>(), runs::<(T, i8)>(), "{}", std::any::type_name::<T>());
        }
        ends::<()>();
        ends::<(bool, char, String, f32, f64, i128, u128, usize)>();
        ends::<NonZeroU8>();
        ends::<Duration>();
        ends::<SystemTime>();
        ends::<SocketAddr>();
        ends::<HashSet<String>>();
        ends::<std::path::PathBuf>();
        ends::<Result<Option<Option<u8>>, String>>();
        ends::<std::ops::Range<u8>>();
        ends::<serde_json::Value>();
    }

    #[test]
    fn generic_types_around_themselves_are_seen() {
        #[derive(Deserialize)]
        struct Page<T> {
            inside: T,
        }
        assert_ne!(runs::<Page<Page<u8>>>(), runs::<Page<Page<i8>>>());
    }

    /// Its panics are told to nobody.
    #[test]
    fn while_a_type_is_asked_that_is_known() {
        struct Panics;
        impl<'de> Deserialize<'de> for Panics {
            fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                assert!(is_tracing());
                panic!("as this test wants it");
            }
        }
        assert_eq!(shape_of::<Panics>(), shape_of::<Panics>());
        assert!(!is_tracing());
    }
}
