//! tonic: gRPC, direct, without a router, with one channel and the defaults of HTTP/2.

use bytes::Bytes;
use harness::{Load, Options, Role, Workload, check, idle_nodes_async, payload, ready, run_async};
use service::{echo_client::EchoClient, echo_server};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};

mod service {
    include!(concat!(env!("OUT_DIR"), "/peers.Echo.rs"));
}

const MESSAGE_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    #[prost(bytes = "bytes", tag = "1")]
    bytes: Bytes,
}

struct Echo;

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    async fn echo(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

fn main() {
    let options = Options::from_args();
    run_async(async {
        match options.role {
            Role::Router => panic!("there is none"),
            Role::Callee => callee(options.address()).await,
            Role::Caller => caller(&options.load(), connect(options.address()).await).await,
            Role::Nodes => idle_nodes_async(&options, async |_| connect(options.address()).await).await,
        }
    });
}

async fn callee(address: &str) {
    let listener = TcpListener::bind(address).await.expect("an address");
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let echo = echo_server::EchoServer::new(Echo).max_decoding_message_size(MESSAGE_BYTES_MAX);
    ready();
    Server::builder().add_service(echo).serve_with_incoming(incoming).await.expect("a server");
}

async fn connect(address: &str) -> EchoClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("the callee");
    EchoClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

async fn caller(load: &Load, client: EchoClient<Channel>) {
    let size = load.size;
    let call = move |number| {
        let mut client = client.clone();
        async move {
            let bytes = Bytes::from(payload(size, number));
            let reply = client.echo(Payload { bytes }).await.map_err(|status| status.to_string())?;
            check(&reply.into_inner().bytes, size, number)
        }
    };
    match load.workload {
        Workload::OneByOne => load.one_by_one_async(call).await,
        Workload::Outstanding(_) => load.tasks(call).await,
        Workload::Broadcast(_) => panic!("gRPC calls one callee"),
    }
}
