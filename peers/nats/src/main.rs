//! NATS: a queue subscription answers requests that nats-server passes on. For a broadcast it is a plain one, so that
//! everybody gets the request, and one inbox gathers what they say.

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures::StreamExt;
use harness::{Load, Options, Role, Workload, check, idle_nodes_async, payload, ready, run_async};

const SUBJECT: &str = "echo";
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let options = Options::from_args();
    run_async(async {
        match options.role {
            Role::Router => panic!("the router is nats-server itself"),
            Role::Callee => callee(&options).await,
            Role::Caller => caller(&options.load(), connect(&options).await).await,
            Role::Nodes => {
                idle_nodes_async(&options, async |_| {
                    let client = connect(&options).await;
                    let subscriber = client.subscribe(SUBJECT).await.expect("a subscription");
                    client.flush().await.expect("the subscription sent");
                    (client, subscriber)
                })
                .await;
            }
        }
    });
}

async fn connect(options: &Options) -> Client {
    let limits = ConnectOptions::new().request_timeout(Some(PATIENCE)).subscription_capacity(1 << 16);
    limits.connect(options.address()).await.expect("nats-server")
}

async fn callee(options: &Options) {
    let client = connect(options).await;
    let mut requests = if options.text("broadcast") == "yes" {
        client.subscribe(SUBJECT).await
    } else {
        client.queue_subscribe(SUBJECT, "callees".into()).await
    }
    .expect("a subscription");
    client.flush().await.expect("the subscription sent");
    ready();
    while let Some(request) = requests.next().await {
        if let Some(inbox) = request.reply {
            client.publish(inbox, request.payload).await.expect("nats-server");
        }
    }
}

async fn caller(load: &Load, client: Client) {
    let size = load.size;
    let shared = client.clone();
    let call = move |number| {
        let client = shared.clone();
        async move {
            let reply = client.request(SUBJECT, Bytes::from(payload(size, number))).await;
            check(&reply.map_err(|error| error.to_string())?.payload, size, number)
        }
    };
    match load.workload {
        Workload::OneByOne => load.one_by_one_async(call).await,
        Workload::Outstanding(_) => load.tasks(call).await,
        Workload::Broadcast(callees) => broadcast(load, callees, &client).await,
    }
}

async fn broadcast(load: &Load, callees: usize, client: &Client) {
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(format!("{inbox}.*")).await.expect("an inbox");
    client.flush().await.expect("the inbox sent");
    let gather = async |number| {
        let payload = Bytes::from(payload(load.size, number));
        let sent = client.publish_with_reply(SUBJECT, format!("{inbox}.{number}"), payload).await;
        sent.map_err(|error| error.to_string())?;
        for _ in 0..callees {
            let reply = tokio::time::timeout(PATIENCE, replies.next()).await;
            let reply = reply.ok().flatten().ok_or("a callee did not answer")?;
            check(&reply.payload, load.size, number)?;
        }
        Ok(())
    };
    load.one_by_one_async(gather).await;
}
