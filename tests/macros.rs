//! What the attributes make of functions, structs and traits, without a controller: handlers are called directly.

#![allow(
    unreachable_pub,
    unused_qualifications,
    clippy::needless_arbitrary_self_type,
    clippy::needless_lifetimes,
    clippy::result_large_err,
    reason = "callbacks are written as users write them, and faults are looked at"
)]

use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use daffi::{
    __private::{Callback, Handler, Invocation, linked},
    Context, Error, callback, fetcher,
};
use daffi_core::{
    fault::{Fault, FaultKind},
    payload::{Codec, Encoded},
    signature::Signature,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

fn find(name: &str) -> Callback {
    let mut found: Vec<_> = linked().filter(|callback| callback.name() == name).collect();
    assert_eq!(found.len(), 1, "callbacks named {name}");
    found.remove(0)
}

fn invoke(callback: &Callback, codec: Codec, body: Bytes) -> Result<Bytes, Box<Fault>> {
    let invocation = Invocation { body, codec };
    let outcome = match callback.handler() {
        Handler::Sync(function) => function.call(invocation, Context::detached),
        Handler::Async(function) => {
            let future = function.call(invocation, Context::detached);
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
        }
    };
    outcome.map(Encoded::into_bytes)
}

fn call<T: DeserializeOwned>(name: &str, arguments: impl Serialize) -> Result<T, Box<Fault>> {
    let codec = Codec::Bincode;
    let body = codec.encode(&arguments).unwrap();
    invoke(&find(name), codec, body).map(|bytes| codec.decode(&bytes).unwrap())
}

fn call_json(name: &str, arguments: &'static str) -> Result<String, Box<Fault>> {
    invoke(&find(name), Codec::Json, Bytes::from_static(arguments.as_bytes()))
        .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

fn text(name: &str) -> String {
    find(name).signature().text().to_owned()
}

mod functions {
    use super::*;

    /// Add 2 numbers and return sum
    #[callback]
    fn add(a: i64, b: i64) -> i64 {
        a + b
    }

    #[callback]
    async fn subtract(a: i64, b: i64) -> i64 {
        tokio::task::yield_now().await;
        a - b
    }

    #[callback]
    fn nothing() {}

    #[callback(name = "other_name", inline, max_concurrency = 3)]
    fn renamed(#[allow(unused)] mut text: String, (a, _): (u8, u8), _: Option<bool>) -> String {
        text.push_str(&a.to_string());
        text
    }

    #[callback]
    fn context_anywhere(a: u8, context: &Context, b: u8, _: &daffi::Context) -> u8 {
        let _ = context;
        a + b
    }

    #[callback]
    async fn context_async<'a>(a: u8, _context: &'a Context) -> u8 {
        a
    }

    #[callback]
    fn lent_result() -> &'static str {
        "lent"
    }

    #[test]
    fn arguments_go_in_and_results_come_out() {
        assert_eq!(call::<i64>("add", (1i64, 2i64)).unwrap(), 3);
        assert_eq!(call::<i64>("subtract", (1i64, 2i64)).unwrap(), -1);
        call::<()>("nothing", ()).unwrap();
        assert_eq!(call::<String>("other_name", ("a", (1u8, 2u8), None::<bool>)).unwrap(), "a1");
        assert_eq!(call::<u8>("context_anywhere", (1u8, 2u8)).unwrap(), 3);
        assert_eq!(call::<u8>("context_async", (1u8,)).unwrap(), 1);
        assert_eq!(call::<String>("lent_result", ()).unwrap(), "lent");
        assert!(matches!(find("add").handler(), Handler::Sync(_)));
        assert!(matches!(find("subtract").handler(), Handler::Async(_)));
        // The function itself is as it was.
        assert_eq!(add(1, 2), 3);
    }

    #[test]
    fn json_arguments_are_an_array() {
        assert_eq!(call_json("add", "[1, 2]").unwrap(), "3");
        assert_eq!(call_json("context_async", "[7]").unwrap(), "7");
        for none in ["[]", "null", " [ ] "] {
            assert_eq!(call_json("nothing", none).unwrap(), "null");
        }
        for (name, wrong) in
            [("add", "[1]"), ("add", "[1, 2, 3]"), ("add", "1"), ("nothing", "[1]"), ("nothing", "")]
        {
            assert_eq!(call_json(name, wrong).unwrap_err().kind, FaultKind::BadArguments, "{name} {wrong}");
        }
    }

    #[test]
    fn wrong_bytes_are_bad_arguments() {
        for wrong in [&[][..], &[0; 15], &[0; 17]] {
            let fault = invoke(&find("add"), Codec::Bincode, Bytes::copy_from_slice(wrong)).unwrap_err();
            assert_eq!(fault.kind, FaultKind::BadArguments);
        }
        let fault = invoke(&find("nothing"), Codec::Bincode, Bytes::from_static(&[0])).unwrap_err();
        assert_eq!(fault.kind, FaultKind::BadArguments);
    }

    #[test]
    fn a_callback_describes_itself() {
        let add = find("add");
        assert_eq!(add.signature().text(), "(a: i64, b: i64) -> i64");
        assert_eq!(add.doc_text(), "Add 2 numbers and return sum");
        let line = include_str!("macros.rs").lines().position(|line| line.contains("fn add(")).unwrap() + 1;
        assert_eq!(add.source(), format!("tests/macros.rs:{line}"));
        assert!(!add.options().inline && add.options().max_concurrency.is_none());
        assert!(add.is_callable() && add.singleton().is_none());

        let renamed = find("other_name");
        assert_eq!(renamed.signature().text(), "(text: String, _: (u8, u8), _: Option<bool>) -> String");
        assert!(renamed.options().inline);
        assert_eq!(renamed.options().max_concurrency.unwrap().get(), 3);
        assert_eq!(text("context_anywhere"), "(a: u8, b: u8) -> u8");
        assert_eq!(text("nothing"), "() -> ()");
        assert_eq!(text("lent_result"), "() -> String");
    }
}

mod results {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    enum Travelling {
        Code(i32),
    }

    impl fmt::Display for Travelling {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("travelling")
        }
    }

    impl std::error::Error for Travelling {}

    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("outer")
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    /// Only `Display`.
    struct Plain;

    impl fmt::Display for Plain {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("plain")
        }
    }

    type Aliased<T> = Result<T, Outer>;

    fn inner() -> io::Error {
        io::Error::other("inner")
    }

    #[callback]
    fn travelling(fail: bool) -> Result<u8, Travelling> {
        if fail { Err(Travelling::Code(7)) } else { Ok(1) }
    }

    #[callback]
    fn aliased() -> Aliased<u8> {
        Err(Outer(inner()))
    }

    #[callback]
    async fn plain() -> Result<(), Plain> {
        Err(Plain)
    }

    #[callback]
    fn boxed() -> Result<u8, Box<dyn std::error::Error + Send + Sync>> {
        Err(Outer(inner()).into())
    }

    #[callback]
    fn boxed_here() -> Result<u8, Box<dyn std::error::Error>> {
        Err(Outer(inner()).into())
    }

    #[callback]
    fn texts() -> io::Result<Vec<String>> {
        Err(inner())
    }

    #[callback]
    fn lent_both(fail: bool) -> Result<&'static str, &'static str> {
        if fail { Err("fail") } else { Ok("good") }
    }

    #[callback]
    fn nested() -> Result<Result<u8, String>, Plain> {
        Ok(Err("inside".to_owned()))
    }

    #[test]
    fn what_travels_is_the_value() {
        assert_eq!(call::<u8>("travelling", (false,)).unwrap(), 1);
        assert_eq!(call::<String>("lent_both", (false,)).unwrap(), "good");
        assert_eq!(call::<Result<u8, String>>("nested", ()).unwrap(), Err("inside".to_owned()));
        assert_eq!(text("travelling"), "(fail: bool) -> u8");
        assert_eq!(text("aliased"), "() -> u8");
        assert_eq!(text("texts"), "() -> Vec<String>");
        assert_eq!(text("lent_both"), "(fail: bool) -> String");
        assert_eq!(text("nested"), "() -> Result<u8, String>");
    }

    #[test]
    fn an_error_travels_with_all_that_it_has() {
        let fault = call::<u8>("travelling", (true,)).unwrap_err();
        assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Failed, "travelling"));
        assert_eq!(fault.type_name, "Travelling");
        let error = Error::from_fault(*fault, "travelling", "");
        assert_eq!(error.downcast::<Travelling>(), Some(Travelling::Code(7)));

        for name in ["aliased", "boxed", "boxed_here"] {
            let fault = call::<u8>(name, ()).unwrap_err();
            assert_eq!(
                (fault.message.as_str(), &fault.details[..]),
                ("outer", &["inner".to_owned()][..]),
                "{name}"
            );
            assert!(fault.payload.is_empty());
        }
        let fault = call::<()>("plain", ()).unwrap_err();
        assert_eq!((fault.message.as_str(), fault.type_name.as_str()), ("plain", "Plain"));
        assert_eq!(call::<Vec<String>>("texts", ()).unwrap_err().message, "inner");
        let error = Error::from_fault(*call::<String>("lent_both", (true,)).unwrap_err(), "lent_both", "");
        assert_eq!(error.downcast::<String>().unwrap(), "fail");
    }
}

mod singletons {
    use super::*;

    /// Counts.
    #[callback]
    pub struct Counter {
        count: AtomicI64,
    }

    impl Counter {
        pub fn new(start: i64) -> Self {
            Self { count: AtomicI64::new(start) }
        }
    }

    #[callback]
    impl Counter {
        pub const STEP: i64 = 1;

        /// One more.
        pub fn increment(&self, by: i64) -> i64 {
            self.secret::<i64>(by)
        }

        pub async fn current(self: Arc<Self>, _context: &Context) -> i64 {
            self.count.load(Relaxed)
        }

        pub fn lent(self: &Self) -> &str {
            "lent"
        }

        pub fn kind() -> String {
            "counter".to_owned()
        }

        #[cfg(any())]
        pub fn left_out(&self) -> DoesNotExist {}

        pub fn _hidden(&self) {}

        pub(crate) fn ours(&mut self) {}

        fn secret<T: Into<i64>>(&self, by: T) -> i64 {
            let by = by.into() * Self::STEP;
            self.count.fetch_add(by, Relaxed) + by
        }
    }

    // Another block, with a prefix.
    #[callback(prefix = "counter.", inline)]
    impl Counter {
        pub fn reset(self: &Arc<Self>) {
            self.count.store(0, Relaxed);
        }
    }

    // Without `#[callback]` on the struct, there are no methods with a receiver.
    struct Functions;

    #[callback]
    impl Functions {
        pub fn double(a: i64) -> i64 {
            a * 2
        }
    }

    #[test]
    fn methods_are_callable_once_the_instance_is_registered() {
        assert!(Counter::instance().is_none());
        assert!(find("kind").is_callable());
        assert_eq!(call::<String>("kind", ()).unwrap(), "counter");
        let increment = find("increment");
        assert!(!increment.is_callable());
        assert_eq!(increment.singleton(), Some("Counter"));
        assert_eq!(increment.doc_text(), "One more.");
        assert_eq!(increment.signature().text(), "(by: i64) -> i64");
        let fault = call::<i64>("increment", (1i64,)).unwrap_err();
        assert_eq!(
            (fault.kind, fault.message.as_str()),
            (FaultKind::NoInstance, "Counter has no instance yet")
        );

        let counter = Counter::new(10).register().unwrap();
        assert!(
            matches!(Counter::new(10).register(), Err(Error::SingletonExists { name, .. }) if name == "Counter")
        );
        assert!(Arc::ptr_eq(&counter, &Counter::instance().unwrap()));
        assert!(increment.is_callable());
        assert_eq!(call::<i64>("increment", (5i64,)).unwrap(), 15);
        assert_eq!(call::<i64>("current", ()).unwrap(), 15);
        assert_eq!(call::<String>("lent", ("unused",)).unwrap_err().kind, FaultKind::BadArguments);
        call::<()>("counter.reset", ()).unwrap();
        assert_eq!(counter.count.load(Relaxed), 0);
        assert!(find("counter.reset").options().inline);
        assert_eq!(call::<i64>("double", (2i64,)).unwrap(), 4);
        counter._hidden();
    }

    #[test]
    fn what_is_not_public_is_not_offered() {
        let names: Vec<_> = linked().map(|callback| callback.name().to_owned()).collect();
        for name in ["_hidden", "ours", "secret", "new", "left_out"] {
            assert!(!names.iter().any(|other| other == name), "{name}");
        }
        let _ = Counter::ours;
    }
}

mod fetchers {
    use daffi::{Call, Caller};

    use super::*;

    #[derive(Serialize, Deserialize)]
    pub struct Point {
        pub x: f64,
        pub y: f64,
    }

    /// What this process calls on others.
    #[fetcher(prefix = "geo.")]
    pub trait Geo {
        /// The sum of coordinates.
        fn sum(point: &Point, names: &[&str], label: &str) -> HashMap<String, f64>;
        #[fetcher(name = "elsewhere")]
        #[deprecated]
        fn renamed(_: i64);
        #[cfg(any())]
        fn left_out(a: DoesNotExist);
    }

    #[fetcher]
    pub fn single(a: i64, b: i64) -> i64;

    mod importing {
        // A lone fetcher is imported under the function's name.
        use super::{Call, Caller, single};

        pub(super) fn makes(caller: &Caller) -> Call<i64> {
            caller.single(1, 2)
        }
    }

    #[callback(name = "geo.sum")]
    fn sum(point: Point, names: Vec<String>, label: String) -> HashMap<String, f64> {
        let _ = (names, label);
        HashMap::from([("sum".to_owned(), point.x + point.y)])
    }

    #[expect(dead_code)]
    fn typed(caller: &Caller) {
        let _: Call<HashMap<String, f64>> = caller.sum(&Point { x: 1.0, y: 2.0 }, &["a"], "label");
        #[expect(deprecated)]
        let _: Call<()> = caller.renamed(1);
        let _ = importing::makes(caller);
        let text = String::from("owned");
        let call = caller.sum(&Point { x: 1.0, y: 2.0 }, &[], &text);
        drop(text);
        drop(call);
    }

    /// A `Caller` that keeps what fetchers give it.
    mod kept {
        pub mod __private {
            use std::marker::PhantomData;

            pub use daffi::__private::*;

            pub struct Caller;

            pub struct Call<R> {
                pub callback: &'static str,
                pub signature: &'static Signature,
                pub body: bytes::Bytes,
                pub result: PhantomData<R>,
            }

            impl Caller {
                pub fn __daffi_call<R, A: serde::Serialize>(
                    &self,
                    callback: &'static str,
                    signature: &'static Signature,
                    arguments: A,
                ) -> Call<R> {
                    let body = daffi_core::payload::Codec::Bincode.encode(&arguments).unwrap();
                    Call { callback, signature, body, result: PhantomData }
                }
            }
        }
    }

    #[fetcher(crate = self::kept)]
    trait Kept {
        #[fetcher(name = "geo.sum")]
        fn sum_lent(point: &Point, names: &[&str], label: &str) -> HashMap<String, f64>;
        #[fetcher(name = "geo.sum")]
        fn sum_owned(point: Point, names: Vec<String>, label: Box<str>) -> HashMap<String, f64>;
        #[fetcher(name = "geo.sum")]
        fn sum_wrong(point: elsewhere::Point, names: Vec<String>, label: String) -> HashMap<String, f64>;
        fn add(a: i64, other: i64) -> i64;
        fn subtract(a: i64, b: i64) -> i64;
        fn nothing();
        fn travelling(fail: bool) -> u8;
        fn lent_both(fail: bool) -> String;
    }

    mod elsewhere {
        /// Of the same name as the callback's.
        #[derive(serde::Serialize, serde::Deserialize)]
        pub struct Point {
            pub y: f64,
            pub x: f64,
        }
    }

    fn execute<R: DeserializeOwned>(call: kept::__private::Call<R>) -> R {
        let callback = find(call.callback);
        let (caller, callee) = (call.signature.fingerprint(), callback.signature().fingerprint());
        assert!(Signature::matches(caller, callee), "{} and {}", call.signature, callback.signature());
        let bytes = invoke(&callback, Codec::Bincode, call.body).unwrap();
        Codec::Bincode.decode(&bytes).unwrap()
    }

    #[test]
    fn fetchers_and_callbacks_understand_each_other() {
        let caller = kept::__private::Caller;
        assert_eq!(execute(caller.sum_lent(&Point { x: 1.0, y: 2.0 }, &["a"], "b"))["sum"], 3.0);
        assert_eq!(execute(caller.sum_owned(Point { x: 1.0, y: 2.0 }, vec![], "b".into()))["sum"], 3.0);
        assert_eq!(execute(caller.add(1, 2)), 3);
        assert_eq!(execute(caller.subtract(1, 2)), -1);
        execute(caller.nothing());
        assert_eq!(execute(caller.travelling(false)), 1);
        assert_eq!(execute(caller.lent_both(false)), "good");
        assert_eq!(caller.add(1, 2).signature.text(), "(a: i64, other: i64) -> i64");
        assert_eq!(
            caller.sum_lent(&Point { x: 1.0, y: 2.0 }, &[], "").signature.text(),
            "(point: Point, names: Vec<String>, label: String) -> HashMap<String, f64>"
        );
        // Both sides know the whole of it, and not only as much as matches anything.
        let [caller, callee] =
            [caller.add(1, 2).signature.fingerprint(), find("add").signature().fingerprint()];
        assert_eq!(caller, callee);
    }

    #[test]
    fn types_of_one_name_are_told_apart() {
        let call =
            kept::__private::Caller.sum_wrong(elsewhere::Point { y: 1.0, x: 2.0 }, vec![], String::new());
        let callee = find("geo.sum");
        let matching = Signature::matches(call.signature.fingerprint(), callee.signature().fingerprint());
        assert!(!matching, "{} and {}", call.signature, callee.signature());
    }

    #[test]
    fn a_call_by_name_matches_the_callback() {
        let check = |callback: &str, caller: &Signature, expected: bool| {
            let callee = find(callback);
            let callee = callee.signature();
            let found = Signature::matches(caller.fingerprint(), callee.fingerprint());
            assert_eq!(found, expected, "{caller} and {callee}");
        };
        check("geo.sum", Signature::of_call::<(&Point, &[&str], &str), HashMap<String, f64>>(), true);
        check("geo.sum", Signature::of_call::<(&Point, &[&str], u8), HashMap<String, f64>>(), false);
        check("add", Signature::of_call::<(i64, i64), i64>(), true);
        check("add", Signature::of_call::<(i64, i64), ()>(), false);
        check("nothing", Signature::of_call::<(), ()>(), true);
        check("travelling", Signature::of_call::<(bool,), u8>(), true);
    }
}
