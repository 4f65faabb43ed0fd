//! tarpc: direct, without a router, over its length-delimited bincode transport.

use harness::{Load, Options, Role, Workload, check, idle_nodes_async, payload, ready, run_async};
use serde_bytes::ByteBuf;
use tarpc::{
    client, context, serde_transport,
    server::{BaseChannel, Channel, Config},
    tokio_serde::formats::Bincode,
    tokio_util::codec::LengthDelimitedCodec,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

use futures::StreamExt;

#[tarpc::service]
trait Echo {
    async fn echo(bytes: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: context::Context, bytes: ByteBuf) -> ByteBuf {
        bytes
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
    if let Some(path) = address.strip_prefix("unix:") {
        let listener = UnixListener::bind(path).expect("an address");
        ready();
        loop {
            let (socket, _) = listener.accept().await.expect("a client");
            tokio::spawn(serve(socket));
        }
    }
    let listener = TcpListener::bind(address).await.expect("an address");
    ready();
    loop {
        let (socket, _) = listener.accept().await.expect("a client");
        socket.set_nodelay(true).expect("no delay");
        tokio::spawn(serve(socket));
    }
}

async fn serve(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let transport = serde_transport::new(codec().new_framed(socket), Bincode::default());
    let channel = BaseChannel::new(Config { pending_response_buffer: 8192 }, transport);
    let spawn = |response| async {
        tokio::spawn(response);
    };
    channel.execute(Server.serve()).for_each(spawn).await;
}

async fn connect(address: &str) -> EchoClient {
    if let Some(path) = address.strip_prefix("unix:") {
        return client(UnixStream::connect(path).await.expect("the callee"));
    }
    let socket = TcpStream::connect(address).await.expect("the callee");
    socket.set_nodelay(true).expect("no delay");
    client(socket)
}

fn client(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> EchoClient {
    let mut config = client::Config::default();
    config.max_in_flight_requests = 16 * 1024;
    config.pending_request_buffer = 8 * 1024;
    EchoClient::new(config, serde_transport::new(codec().new_framed(socket), Bincode::default())).spawn()
}

fn codec() -> tarpc::tokio_util::codec::length_delimited::Builder {
    let mut codec = LengthDelimitedCodec::builder();
    codec.max_frame_length(64 << 20);
    codec
}

async fn caller(load: &Load, client: EchoClient) {
    let size = load.size;
    let call = move |number| {
        let client = client.clone();
        async move {
            let bytes = ByteBuf::from(payload(size, number));
            let reply = client.echo(context::current(), bytes).await.map_err(|error| error.to_string())?;
            check(&reply, size, number)
        }
    };
    match load.workload {
        Workload::OneByOne => load.one_by_one_async(call).await,
        Workload::Outstanding(_) => load.tasks(call).await,
        Workload::Broadcast(_) => panic!("tarpc calls one callee"),
    }
}
