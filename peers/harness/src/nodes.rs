use std::{future::pending, thread};

use crate::{Options, ready};

/// Connects nodes, and keeps them until this process is ended.
pub fn idle_nodes<N>(options: &Options, connect: impl FnMut(usize) -> N) {
    let _nodes: Vec<N> = options.nodes().map(connect).collect();
    ready();
    loop {
        thread::park();
    }
}

/// As [`idle_nodes`], in an asynchronous program, which goes on meanwhile.
pub async fn idle_nodes_async<N>(options: &Options, mut connect: impl AsyncFnMut(usize) -> N) {
    let mut nodes = Vec::new();
    for number in options.nodes() {
        nodes.push(connect(number).await);
    }
    ready();
    pending().await
}
