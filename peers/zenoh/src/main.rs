//! Zenoh: a queryable answers queries that a router passes on. The router is a session in router mode, with what the
//! program zenohd does apart from its plugins.

use std::{future::pending, time::Duration};

use harness::{Load, Options, Role, Workload, check, idle_nodes_async, payload, ready};
use zenoh::{
    Config, Session, Wait,
    handlers::FifoChannel,
    query::{ConsolidationMode, Querier, Query, QueryTarget},
};

const KEY: &str = "echo";
const PATIENCE: Duration = Duration::from_secs(10);
/// A query that is made before the router has told of the queryable finds nobody.
const DECLARATIONS_SETTLE: Duration = Duration::from_millis(500);

// Zenoh does not run on a runtime of one thread.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let options = Options::from_args();
    match options.role {
        Role::Router => {
            let _router = open("router", &options).await;
            ready();
            pending().await
        }
        Role::Callee => {
            let session = open("client", &options).await;
            let _queryable = session.declare_queryable(KEY).callback(answer).await.expect("a queryable");
            ready();
            pending().await
        }
        Role::Caller => caller(&options.load(), open("client", &options).await).await,
        Role::Nodes => {
            idle_nodes_async(&options, async |_| {
                let session = open("client", &options).await;
                let queryable = session.declare_queryable(KEY).callback(answer).await.expect("a queryable");
                (session, queryable)
            })
            .await;
        }
    }
}

async fn open(mode: &str, options: &Options) -> Session {
    let mut config = Config::default();
    let address = format!("[\"{}\"]", options.address());
    let (listen, connect) =
        if mode == "router" { (address.as_str(), "[]") } else { ("[]", address.as_str()) };
    for (key, value) in [
        ("mode", format!("\"{mode}\"").as_str()),
        ("listen/endpoints", listen),
        ("connect/endpoints", connect),
        ("scouting/multicast/enabled", "false"),
        ("scouting/gossip/enabled", "false"),
        ("transport/unicast/max_sessions", "10000"),
        ("transport/unicast/accept_pending", "10000"),
    ] {
        config.insert_json5(key, value).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    zenoh::open(config).await.expect("a session")
}

fn answer(query: Query) {
    let payload = query.payload().cloned().unwrap_or_default();
    if let Err(error) = query.reply(KEY, payload).wait() {
        eprintln!("cannot answer: {error}");
    }
}

async fn caller(load: &Load, session: Session) {
    let mut querier = session.declare_querier(KEY).timeout(PATIENCE);
    if let Workload::Broadcast(_) = load.workload {
        querier = querier.target(QueryTarget::All).consolidation(ConsolidationMode::None);
    }
    // The tasks have to share it.
    let querier: &'static Querier<'static> = Box::leak(Box::new(querier.await.expect("a querier")));
    tokio::time::sleep(DECLARATIONS_SETTLE).await;
    let size = load.size;
    match load.workload {
        Workload::OneByOne => load.one_by_one_async(|number| query(querier, 1, size, number)).await,
        Workload::Broadcast(callees) => {
            load.one_by_one_async(|number| query(querier, callees, size, number)).await
        }
        Workload::Outstanding(_) => load.tasks(move |number| query(querier, 1, size, number)).await,
    }
}

async fn query(querier: &Querier<'_>, replies: usize, size: usize, number: u64) -> Result<(), String> {
    let query = querier.get().payload(payload(size, number)).with(FifoChannel::new(replies + 1));
    let gathered = query.await.map_err(|error| error.to_string())?;
    for _ in 0..replies {
        let reply = gathered.recv_async().await.map_err(|error| error.to_string())?;
        let sample = reply.into_result().map_err(|error| error.to_string())?;
        check(&sample.payload().to_bytes(), size, number)?;
    }
    Ok(())
}
