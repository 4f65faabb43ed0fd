//! How callbacks fail, and how that reaches the caller.

use std::{
    error::Error as StdError,
    fmt,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use daffi::{BG, BROADCAST, Error, FG, Global, RemoteError, callback, fetcher};
use serde::{Deserialize, Serialize};

use crate::support::{Net, run};

/// Only `Display`, neither `Error` nor serde.
struct Plain(u8);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plain {}", self.0)
    }
}

/// A `std` error with a source.
#[derive(Debug)]
struct Chained {
    depth: u8,
    source: Option<Box<Self>>,
}

impl Chained {
    fn new(depth: u8) -> Self {
        Self { depth, source: depth.checked_sub(1).map(|depth| Box::new(Self::new(depth))) }
    }
}

impl fmt::Display for Chained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at depth {}", self.depth)
    }
}

impl StdError for Chained {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Travels as itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Typed {
    Code { code: u32, text: String },
    Other,
}

impl fmt::Display for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "typed: {self:?}")
    }
}

impl StdError for Typed {}

/// Looks like [`Typed`], and is another type.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Lookalike {
    Code { code: u32, text: String },
    Other,
}

#[callback]
fn it_errors_plain(ok: bool) -> Result<u8, Plain> {
    if ok { Ok(1) } else { Err(Plain(7)) }
}

#[callback]
async fn it_errors_chained(depth: u8) -> Result<u8, Chained> {
    Err(Chained::new(depth))
}

#[callback]
fn it_errors_typed(code: Option<u32>) -> Result<(), Typed> {
    Err(code.map_or(Typed::Other, |code| Typed::Code { code, text: "te xt".to_owned() }))
}

#[callback]
async fn it_errors_typed_async(code: u32) -> Result<(), Typed> {
    tokio::task::yield_now().await;
    Err(Typed::Code { code, text: String::new() })
}

#[callback]
fn it_errors_panic(number: u32) -> u8 {
    panic!("the number is {number}")
}

#[callback]
async fn it_errors_panic_async() -> u8 {
    tokio::task::yield_now().await;
    std::env::var_os("never set, as it has = in it").map(|_| 1).expect("something")
}

#[callback(inline)]
fn it_errors_panic_inline() {
    panic!("inline")
}

#[callback]
fn it_errors_panic_with_a_value() {
    std::panic::panic_any(5u8)
}

#[fetcher(prefix = "it_errors_")]
trait Failing {
    fn plain(ok: bool) -> u8;
    fn chained(depth: u8) -> u8;
    fn typed(code: Option<u32>);
    fn typed_async(code: u32);
    fn panic(number: u32) -> u8;
    fn panic_async() -> u8;
    fn panic_inline();
    fn panic_with_a_value();
}

struct Two {
    a: Global,
    _b: Global,
    _net: Net,
}

fn two() -> Two {
    let net = Net::new();
    let b = net.node("b").link_time_callbacks(true).callback("well", || "well");
    Two { a: net.caller(), _b: b.start().unwrap(), _net: net }
}

#[track_caller]
fn remote<T: fmt::Debug>(result: daffi::Result<T>) -> (Error, Box<RemoteError>) {
    let error = result.unwrap_err();
    assert!(error.may_have_executed() && !error.is_retryable());
    let Error::Remote(remote) = &error else { panic!("{error}") };
    assert_eq!(remote.node(), "b");
    (error.clone(), remote.clone())
}

#[test]
fn an_error_that_can_only_be_shown_travels_as_text() {
    let Two { a, .. } = &two();
    assert_eq!((a.call.plain(true) & FG).unwrap(), 1);
    let (error, remote) = remote(a.call.plain(false) & FG);
    assert_eq!(error.to_string(), r#""it_errors_plain" on "b" failed: plain 7"#);
    assert_eq!((remote.message(), remote.callback()), ("plain 7", "it_errors_plain"));
    assert!(remote.type_name().ends_with("Plain"), "{}", remote.type_name());
    assert_eq!((remote.chain(), remote.location(), remote.is_panic()), (&[][..], "", false));
    assert_eq!(error.downcast::<String>(), None);
    assert_eq!(error.downcast::<Typed>(), None);
}

#[test]
fn an_error_brings_its_sources() {
    let Two { a, .. } = &two();
    let (_, error) = remote(a.call.chained(0) & FG);
    assert!(error.chain().is_empty());
    let (_, error) = remote(a.call.chained(3) & FG);
    assert_eq!(error.message(), "at depth 3");
    assert_eq!(error.chain(), ["at depth 2", "at depth 1", "at depth 0"]);
    assert!(error.type_name().ends_with("Chained"), "{}", error.type_name());
}

#[test]
fn an_error_that_can_travel_comes_back_as_it_was() {
    let Two { a, .. } = &two();
    let expected = Typed::Code { code: 5, text: "te xt".to_owned() };
    let results = [
        a.call.typed(Some(5)) & FG,
        (a.call.typed(Some(5)) & BG).get(),
        run(a.call.typed(Some(5)).into_future()),
        (a.call.typed(Some(5)) & BROADCAST.return_result()).unwrap().remove("b").unwrap(),
    ];
    for result in results {
        let (error, remote) = remote(result);
        assert_eq!(remote.message(), format!("typed: {expected:?}"));
        assert_eq!(error.downcast::<Typed>().unwrap(), expected);
        assert_eq!(error.downcast::<Typed>().unwrap(), expected, "as often as one likes");
        assert_eq!(remote.downcast::<Typed>().unwrap(), expected);
        assert_eq!(error.downcast::<Lookalike>(), None);
        assert_eq!(error.downcast::<u32>(), None);
    }
    let (error, _) = remote(a.call.typed(None) & FG);
    assert_eq!(error.downcast::<Typed>().unwrap(), Typed::Other);
    let (error, _) = remote(a.call.typed_async(9) & FG);
    assert_eq!(error.downcast::<Typed>().unwrap(), Typed::Code { code: 9, text: String::new() });
    assert_eq!(Error::NoProcess { name: "b".to_owned() }.downcast::<Typed>(), None);
}

#[test]
fn closures_fail_too() {
    let net = Net::new();
    let _b = net
        .node("b")
        .try_callback("text", |ok: bool| if ok { Ok(1u8) } else { Err("no luck") })
        .try_callback("chained", || Err::<(), _>(Chained::new(1)))
        .try_async_callback("async", || async { Err::<(), _>(Chained::new(2)) })
        .callback("as it is", || Err::<u8, String>("a value".to_owned()))
        .start()
        .unwrap();
    let a = net.caller();
    assert_eq!((a.call.by_name::<u8, _>("text", (true,)) & FG).unwrap(), 1);
    let (_, error) = remote(a.call.by_name::<u8, _>("text", (false,)) & FG);
    assert_eq!(error.message(), "no luck");
    let (_, error) = remote(a.call.by_name::<(), _>("chained", ()) & FG);
    assert_eq!((error.message(), error.chain()), ("at depth 1", &["at depth 0".to_owned()][..]));
    let (_, error) = remote(a.call.by_name::<(), _>("async", ()) & FG);
    assert_eq!(error.chain().len(), 2);
    let value: Result<u8, String> = (a.call.by_name("as it is", ()) & FG).unwrap();
    assert_eq!(value, Err("a value".to_owned()));
}

#[test]
fn a_panic_is_a_failed_call_and_the_node_lives_on() {
    let Two { a, .. } = &two();
    for round in 0..3 {
        let (error, remote) = remote(a.call.panic(round) & FG);
        assert!(remote.is_panic());
        assert_eq!(remote.message(), format!("the number is {round}"));
        assert!(remote.location().starts_with("tests/it/errors.rs:"), "{}", remote.location());
        assert!(error.to_string().contains("panicked: the number is"), "{error}");
        assert!(error.to_string().contains(remote.location()), "{error}");
        assert_eq!(error.downcast::<String>(), None);
    }
    let (_, error) = remote(a.call.panic_async() & FG);
    assert!(error.is_panic() && error.location().starts_with("tests/it/errors.rs:"), "{error}");
    assert_eq!(error.message(), "something");
    let (_, error) = remote(a.call.panic_inline() & FG);
    assert!(error.is_panic() && error.location().starts_with("tests/it/errors.rs:"), "{error}");
    let (_, error) = remote(a.call.panic_with_a_value() & FG);
    assert!(error.is_panic());
    assert_eq!(error.message(), "a value that is not text");
    let many: Vec<_> = (0..50).map(|number| a.call.panic(number) & BG).collect();
    for result in many {
        remote(result.get());
    }
    assert_eq!((a.call.by_name::<String, _>("well", ()) & FG).unwrap(), "well");
    assert_eq!(a.processes().unwrap().len(), 2);
}

static RAN: AtomicU32 = AtomicU32::new(0);

#[callback]
fn it_mismatch(a: i64, text: String) -> i64 {
    RAN.fetch_add(1, SeqCst);
    a + text.len() as i64
}

mod wrong {
    use daffi::fetcher;

    #[fetcher]
    pub(super) trait Wrong {
        fn it_mismatch(a: i64, b: i64) -> i64;
    }
}

#[test]
fn a_mismatch_shows_both_sides_and_nothing_runs() {
    use wrong::Wrong as _;
    let Two { a, .. } = &two();
    let typed = (a.call.it_mismatch(1, 2) & FG).unwrap_err();
    let by_name = |error: daffi::Result<i64>| error.unwrap_err();
    let result = (a.call.by_name::<String, _>("it_mismatch", (1i64, "x")) & FG).unwrap_err();
    let cases = [
        (typed, "(a: i64, b: i64) -> i64"),
        (by_name(a.call.by_name("it_mismatch", (1i64, 2i64)) & FG), "(i64, i64) -> i64"),
        (by_name(a.call.by_name("it_mismatch", (1i64,)) & FG), "(i64) -> i64"),
        (by_name(a.call.by_name("it_mismatch", (1u32, "x")) & FG), "(u32, String) -> i64"),
        (by_name(a.call.by_name("it_mismatch", ()).bg().get()), "() -> i64"),
        (by_name(a.call.by_name("it_mismatch", (1i64, "x", 1u8)).fg()), "(i64, String, u8) -> i64"),
        (result, "(i64, String) -> String"),
    ];
    for (error, expected) in cases {
        let Error::SignatureMismatch { callback, node, caller, callee } = &error else { panic!("{error}") };
        assert_eq!((callback.as_str(), node.as_str()), ("it_mismatch", "b"));
        assert_eq!(callee, "(a: i64, text: String) -> i64");
        assert_eq!(caller, expected);
        assert!(error.to_string().contains(caller) && error.to_string().contains(callee), "{error}");
        assert!(!error.may_have_executed() && !error.is_retryable());
    }
    assert_eq!(RAN.load(SeqCst), 0);
    assert_eq!((a.call.by_name::<i64, _>("it_mismatch", (1i64, "xyz")) & FG).unwrap(), 4);
    assert_eq!(RAN.load(SeqCst), 1);
}

#[test]
fn nobody_to_call_has_its_own_errors() {
    let Two { a, .. } = &two();
    let own = a.call.by_name::<(), _>("wel", ());
    let Err(Error::NoCandidate { callback, similar, .. }) = own & FG else { panic!("nobody offers it") };
    assert_eq!((callback.as_str(), similar), ("wel", vec!["well".to_owned()]));
    let gone = (a.call.by_name::<String, _>("well", ()) & FG.on("gone")).unwrap_err();
    assert!(matches!(&gone, Error::NoProcess { name } if name == "gone"), "{gone}");
    // A node is no candidate for itself.
    let selfish = (a.call.by_name::<String, _>("well", ()) & FG.on("caller")).unwrap_err();
    assert!(!selfish.may_have_executed(), "{selfish}");
    assert!(selfish.to_string().contains("\"caller\" is the calling process itself"), "{selfish}");
}
