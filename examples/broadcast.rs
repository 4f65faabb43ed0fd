//! Asks every node that offers a callback the same question and gets each node's own answer.

use std::{sync::mpsc::channel, thread, time::Duration};

use daffi::{BROADCAST, Global, fetcher};

/// What every room offers.
#[fetcher]
trait Room {
    fn temperature() -> i32;
    fn announce(text: &str);
}

fn main() -> daffi::Result<()> {
    let house = Global::builder().process_name("house").init_controller(true).host("localhost").start()?;

    // Three rooms. Once `start` returns, the controller knows their callbacks.
    let (heard_in, heard) = channel();
    let room = |name: &'static str, temperature: fn() -> Result<i32, String>| {
        let heard_in = heard_in.clone();
        Global::builder()
            .process_name(name)
            .address(house.address().clone())
            .try_callback("temperature", temperature)
            .callback("announce", move |text: String| {
                let _ = heard_in.send(format!("{name} heard {text:?}"));
            })
            .start()
    };
    let kitchen = room("kitchen", || Ok(24))?;
    let cellar = room("cellar", || {
        thread::sleep(Duration::from_secs(2));
        Ok(12)
    })?;
    let attic = room("attic", || Err("the sensor is broken".to_owned()))?;

    // Every node's result, by the node's name. A node that fails or is too slow has an error here and does
    // not affect the others.
    let timeout = Duration::from_secs(1);
    for (room, temperature) in (house.call.temperature() & BROADCAST.return_result().timeout(timeout))? {
        match temperature {
            Ok(temperature) => println!("{room}: {temperature} °C"),
            Err(error) => println!("{room}: {error}"),
        }
    }

    // Only certain nodes.
    let some = (house.call.temperature() & BROADCAST.return_result().on_all(["kitchen"]))?;
    println!("asked: {:?}", some.keys().collect::<Vec<_>>());

    // Without results: done as soon as the controller has passed it on.
    (house.call.announce("dinner is ready") & BROADCAST)?;
    let mut heard: Vec<_> = heard.iter().take(3).collect();
    heard.sort();
    println!("{}", heard.join("\n"));

    // No node offers this.
    match house.call.by_name::<(), _>("announced", ("?",)) & BROADCAST {
        Err(error) => println!("{error}"),
        Ok(()) => println!("unexpected"),
    }

    for node in [attic, cellar, kitchen, house] {
        node.stop()?;
    }
    Ok(())
}
