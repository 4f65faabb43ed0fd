//! A wire between one node and the controller that can be cut, and on which bytes can get stuck.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use daffi::Address;

/// A TCP address that leads to the UNIX socket of a controller.
pub struct Proxy {
    pub address: Address,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    cut: AtomicBool,
    ended: AtomicBool,
    /// Towards the controller, and from there.
    stuck: [AtomicBool; 2],
    ends: Mutex<Vec<(TcpStream, UnixStream)>>,
}

/// Which way.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    ToController = 0,
    FromController = 1,
}

impl Proxy {
    pub fn new(controller: &Address) -> Self {
        let Address::Unix(controller) = controller.clone() else { panic!("{controller} is no UNIX socket") };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Arc::new(Wire::default());
        let shared = wire.clone();
        thread::spawn(move || accept(&listener, &controller, &shared));
        Self { address: Address::Tcp { host: "127.0.0.1".to_owned(), port }, wire }
    }

    /// Ends the connections, and lets nobody through from now on.
    pub fn cut(&self) {
        self.wire.cut.store(true, Ordering::SeqCst);
        self.wire.end();
    }

    /// Lets everybody through again.
    pub fn mend(&self) {
        self.wire.cut.store(false, Ordering::SeqCst);
    }

    /// Nothing goes this way any more, and nobody is told.
    pub fn jam(&self, way: Way) {
        self.wire.stuck[way as usize].store(true, Ordering::SeqCst);
    }

    /// What got stuck goes on.
    pub fn clear(&self) {
        for stuck in &self.wire.stuck {
            stuck.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.wire.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Whoever accepts looks again.
        if let Address::Tcp { host, port } = &self.address {
            let _ = TcpStream::connect((host.as_str(), *port));
        }
    }
}

impl Wire {
    fn end(&self) {
        for (node, controller) in self.ends.lock().unwrap().drain(..) {
            let _ = node.shutdown(Shutdown::Both);
            let _ = controller.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, controller: &PathBuf, wire: &Arc<Wire>) {
    for node in listener.incoming().map_while(Result::ok) {
        if wire.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(controller) = UnixStream::connect(controller) else { continue };
        let _ = node.set_nodelay(true);
        let pumps = [(node.try_clone(), controller.try_clone()), (node.try_clone(), controller.try_clone())];
        wire.ends.lock().unwrap().push((node, controller));
        if wire.cut.load(Ordering::SeqCst) {
            wire.end();
            continue;
        }
        for (way, (node, controller)) in pumps.into_iter().enumerate() {
            let (node, controller, wire) = (node.unwrap(), controller.unwrap(), wire.clone());
            thread::spawn(move || match way {
                0 => pump(&node, &controller, &wire, way),
                _ => pump(&controller, &node, &wire, way),
            });
        }
    }
}

fn pump<A, B>(mut from: &A, mut to: &B, wire: &Wire, way: usize)
where
    for<'a> &'a A: Read,
    for<'a> &'a B: Write,
{
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        while wire.stuck[way].load(Ordering::SeqCst) && !wire.ended.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    wire.end();
}
