//! ZeroMQ: DEALER, a proxy of ROUTER and DEALER, and a DEALER that sends each envelope back. The caller is one thread,
//! as its sockets want it.

use harness::{Load, Options, Role, Window, Workload, check, idle_nodes, payload, ready};
use zmq::{Context, Message, SNDMORE, Socket, SocketType};

/// A context has up to 1,023 sockets.
const SOCKETS_OF_CONTEXT: usize = 500;

fn main() {
    let options = Options::from_args();
    let context = Context::new();
    match options.role {
        Role::Router => router(&context, &options),
        Role::Callee => callee(&connect(&context, options.text("back"))),
        Role::Caller => caller(&options.load(), &connect(&context, options.address())),
        Role::Nodes => {
            let mut context = context;
            idle_nodes(&options, |number| {
                if number % SOCKETS_OF_CONTEXT == 0 {
                    context = Context::new();
                }
                connect(&context, options.text("back"))
            });
        }
    }
}

/// Without limits to what waits: a limit drops messages.
fn socket(context: &Context, kind: SocketType) -> Socket {
    let socket = context.socket(kind).expect("a socket");
    socket.set_sndhwm(0).expect("no limit");
    socket.set_rcvhwm(0).expect("no limit");
    socket.set_linger(0).expect("no linger");
    socket
}

fn connect(context: &Context, address: &str) -> Socket {
    let socket = socket(context, zmq::DEALER);
    socket.connect(address).expect("an address");
    socket
}

fn router(context: &Context, options: &Options) {
    let callers = socket(context, zmq::ROUTER);
    callers.bind(options.address()).expect("an address");
    let callees = socket(context, zmq::DEALER);
    callees.bind(options.text("back")).expect("an address");
    ready();
    zmq::proxy(&callers, &callees).expect("a proxy");
}

fn callee(socket: &Socket) {
    ready();
    let mut part = Message::new();
    loop {
        socket.recv(&mut part, 0).expect("a part");
        let flags = if part.get_more() { SNDMORE } else { 0 };
        socket.send(std::mem::replace(&mut part, Message::new()), flags).expect("a part sent");
    }
}

fn caller(load: &Load, socket: &Socket) {
    match load.workload {
        Workload::OneByOne => load.one_by_one(|number| {
            socket.send(payload(load.size, number), 0).map_err(|error| error.to_string())?;
            receive(load, socket, &mut Message::new(), number)
        }),
        Workload::Outstanding(outstanding) => keep(load.window(), load, outstanding as u64, socket),
        Workload::Broadcast(_) => panic!("a proxy passes a message on to one callee"),
    }
}

/// Replies of one callee come in the order of the calls.
fn keep(mut window: Window<'_>, load: &Load, outstanding: u64, socket: &Socket) {
    let send = |number| socket.send(payload(load.size, number), 0).expect("a call sent");
    (0..outstanding).for_each(send);
    let mut reply = Message::new();
    for number in 0.. {
        receive(load, socket, &mut reply, number).expect("each call has its reply");
        if !window.completed(1) {
            break;
        }
        send(number + outstanding);
    }
}

fn receive(load: &Load, socket: &Socket, reply: &mut Message, number: u64) -> Result<(), String> {
    socket.recv(reply, 0).map_err(|error| error.to_string())?;
    check(reply, load.size, number)
}
