//! Structs of which a process has one instance, and the options of their blocks.

#![allow(unreachable_pub, reason = "methods that are offered are `pub`")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use daffi::{BG, BROADCAST, Context, Error, FG, callback, fetcher};

use crate::support::{BOUND, Net, run};

#[callback]
struct Group {
    name: String,
    calls: AtomicU32,
}

#[callback]
impl Group {
    /// Callable once there is an instance.
    pub fn it_group_name(&self, suffix: String) -> String {
        self.calls.fetch_add(1, SeqCst);
        format!("{}{suffix}", self.name)
    }

    pub async fn it_group_calls(self: Arc<Self>, context: &Context) -> (u32, String) {
        tokio::task::yield_now().await;
        (self.calls.load(SeqCst), context.caller().to_owned())
    }

    pub fn it_group_fails(&self) -> Result<u8, String> {
        Err(format!("{} fails", self.name))
    }

    /// Callable at once.
    pub fn it_group_unit() -> &'static str {
        "pieces"
    }

    pub fn _it_group_hidden(&self) {}

    #[expect(dead_code, reason = "it is not to be offered")]
    fn it_group_private(&self) {}
}

#[fetcher(prefix = "it_group_")]
trait PeerGroup {
    fn name(suffix: &str) -> String;
    fn calls() -> (u32, String);
    fn fails() -> u8;
    fn unit() -> String;
}

#[test]
fn methods_are_callable_once_there_is_an_instance() {
    let net = Net::new();
    let _b = net.node("b").link_time_callbacks(true).start().unwrap();
    let _other = net.node("other").link_time_callbacks(true).start().unwrap();
    let a = net.caller();
    assert!(Group::instance().is_none());
    assert_eq!((a.call.unit() & FG).unwrap(), "pieces");
    for error in [
        (a.call.name("!") & FG).unwrap_err(),
        (a.call.name("!") & FG.on("b")).unwrap_err(),
        (a.call.fails() & BG).get().unwrap_err(),
    ] {
        let Error::NoInstance { callback, node } = &error else { panic!("{error}") };
        assert!(callback.starts_with("it_group_") && ["b", "other"].contains(&node.as_str()), "{error}");
        assert!(error.to_string().contains(".register()"), "{error}");
        assert!(!error.may_have_executed() && error.is_retryable());
    }
    let early = a.wait_function_timeout("it_group_name", Duration::from_millis(50)).unwrap_err();
    assert!(matches!(early, Error::Timeout { .. }), "{early}");
    let offered = |name: &str| a.callbacks().unwrap().into_iter().find(|callback| callback.name == name);
    assert!(!offered("it_group_name").unwrap().ready);
    assert!(offered("it_group_unit").unwrap().ready);
    assert!(offered("it_group_private").is_none() && offered("_it_group_hidden").is_none());

    thread::scope(|scope| {
        let waiting = scope.spawn(|| a.wait_function_timeout("it_group_name", BOUND));
        let waiting_async = scope.spawn(|| run(a.wait_function_timeout_async("it_group_calls", BOUND)));
        let group = Group { name: "one".to_owned(), calls: AtomicU32::new(0) }.register().unwrap();
        assert_eq!(group.name, "one");
        waiting.join().unwrap().unwrap();
        waiting_async.join().unwrap().unwrap();
    });
    for node in ["b", "other"] {
        // Each node tells the controller for itself.
        while matches!(a.call.name("!") & FG.on(node), Err(Error::NoInstance { .. })) {}
        assert_eq!((a.call.name("!") & FG.on(node)).unwrap(), "one!");
    }
    assert_eq!(
        (a.call.calls() & FG).unwrap(),
        (Group::instance().unwrap().calls.load(SeqCst), "caller".to_owned())
    );
    let Err(Error::Remote(error)) = a.call.fails() & FG else { panic!("it fails") };
    assert_eq!(error.message(), "one fails");
    assert!(offered("it_group_name").unwrap().ready);
    assert_eq!((a.call.name("?") & BROADCAST.return_result()).unwrap().len(), 2);

    let second = Group { name: "two".to_owned(), calls: AtomicU32::new(0) }.register();
    assert!(matches!(second.map(drop), Err(Error::SingletonExists { name }) if name == "Group"));
    assert_eq!(Group::instance().unwrap().name, "one");
    // Nodes that start later have it at once.
    let _late = net.node("late").link_time_callbacks(true).start().unwrap();
    assert_eq!((a.call.name("") & FG.on("late")).unwrap(), "one");
}

#[callback]
struct Scales;

#[callback(prefix = "it.scales/", max_concurrency = 1, inline)]
impl Scales {
    pub fn weigh(&self, grams: u32) -> String {
        format!("{grams} g on {:?}", thread::current().name())
    }

    pub fn unit() -> char {
        'g'
    }
}

#[callback]
impl Scales {
    /// Another block, without options.
    pub async fn it_scales_tare(&self) -> u32 {
        0
    }
}

#[test]
fn options_of_a_block_are_those_of_its_methods() {
    Scales.register().unwrap();
    let net = Net::new();
    let _b = net.node("b").link_time_callbacks(true).start().unwrap();
    let a = net.caller();
    let weight: String = (a.call.by_name("it.scales/weigh", (5u32,)) & FG).unwrap();
    assert_eq!(weight, "5 g on Some(\"daffi-io\")");
    assert_eq!((a.call.by_name::<char, _>("it.scales/unit", ()) & FG).unwrap(), 'g');
    assert_eq!((a.call.by_name::<u32, _>("it_scales_tare", ()) & FG).unwrap(), 0);
    assert!(matches!(a.call.by_name::<char, _>("unit", ()) & FG, Err(Error::NoCandidate { .. })));
}
