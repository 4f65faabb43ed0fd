use std::io;

use crate::Options;

/// Connects as many nodes as each step wants, and keeps them until the driver has seen enough.
pub fn idle_nodes<N>(options: &Options, mut connect: impl FnMut(usize) -> N) {
    let mut nodes = Vec::new();
    for count in options.counts() {
        nodes.extend((nodes.len()..count).map(&mut connect));
        println!("{count}");
        wait_for_driver();
    }
}

/// As [`idle_nodes`], in an asynchronous program, which goes on meanwhile.
pub async fn idle_nodes_async<N>(options: &Options, mut connect: impl AsyncFnMut(usize) -> N) {
    let mut nodes = Vec::new();
    for count in options.counts() {
        for number in nodes.len()..count {
            nodes.push(connect(number).await);
        }
        println!("{count}");
        tokio::task::spawn_blocking(wait_for_driver).await.expect("the driver's line");
    }
}

fn wait_for_driver() {
    io::stdin().read_line(&mut String::new()).expect("a line from the driver");
}
