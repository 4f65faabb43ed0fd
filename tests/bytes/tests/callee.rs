//! Arguments made to blow the decoder, sent as raw frames to a real callee: each is an error, and the callee lives on.

use daffi::{Global, callback};
use daffi_conformance::{Call, Node};
use daffi_core::{Address, fault::FaultKind, payload::Codec};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
enum Chain {
    End,
    Next(Box<Self>),
}

/// How many links a chain has.
#[callback]
fn links(mut chain: Chain) -> usize {
    let mut links = 0;
    while let Chain::Next(next) = chain {
        chain = *next;
        links += 1;
    }
    links
}

/// How many elements there are.
#[callback]
async fn count(rows: Vec<Vec<u64>>, nothing: Vec<()>, name: String) -> usize {
    rows.len() + nothing.len() + name.len()
}

fn number(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

/// What is wrong, the callback, the codec, and the arguments.
fn bombs() -> Vec<(&'static str, &'static str, Codec, Vec<u8>)> {
    let (bincode, json) = (Codec::Bincode, Codec::Json);
    let deep = |levels| [1u8, 0, 0, 0].repeat(levels);
    let deep_json =
        |levels| format!("[{}\"End\"{}]", "{\"Next\":".repeat(levels), "}".repeat(levels)).into_bytes();
    let empty = [number(0), number(0), number(0)].concat();
    vec![
        ("100,000 levels", "links", bincode, [deep(100_000), vec![0; 4]].concat()),
        ("levels without an end", "links", bincode, deep(200_000)),
        ("one level more than may be", "links", bincode, [deep(65), vec![0; 4]].concat()),
        ("100,000 levels of JSON", "links", json, deep_json(90_000)),
        ("arrays without an end", "links", json, vec![b'['; 500_000]),
        ("objects without an end", "count", json, b"[{\"a\":".repeat(100_000)),
        ("all the rows there can be", "count", bincode, number(u64::MAX)),
        ("more rows than memory", "count", bincode, [number(1 << 40), vec![0; 1000]].concat()),
        ("rows that announce more rows", "count", bincode, number(60_000).repeat(60_000)),
        ("nothing for ever", "count", bincode, [number(0), number(u64::MAX), number(0)].concat()),
        ("much of nothing", "count", bincode, [number(0), number(1 << 32), number(0)].concat()),
        ("a text longer than memory", "count", bincode, [number(0), number(0), number(u64::MAX)].concat()),
        ("a text that is none", "count", bincode, [number(0), number(0), number(1), vec![0xff]].concat()),
        ("more than there is", "count", bincode, [empty, vec![0]].concat()),
        ("no arguments", "count", bincode, Vec::new()),
        ("no JSON", "count", json, vec![0; 100]),
        ("a variant that is none", "links", bincode, vec![0xff; 4]),
        ("numbers that are none", "count", json, b"[[[1e999]],[],\"\"]".to_vec()),
    ]
}

#[test]
fn a_payload_made_to_blow_the_decoder_is_an_error_and_the_callee_lives_on() {
    let directory = std::env::temp_dir().join(format!("daffi-bytes-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let callee = Global::builder().process_name("callee").init_controller(true).unix_sock_path(&path);
    let callee = callee.start().unwrap();
    let mut caller = Node::join(&Address::Unix(path), "caller", &[]);

    for (what, callback, codec, arguments) in bombs() {
        // Twice each: the second one meets a callback that may run in place.
        for _ in 0..2 {
            let call = Call::new(callback).on("callee").codec(codec.to_byte()).body(&arguments);
            let id = caller.call(&call);
            let fault = caller.expect_fault(id, FaultKind::BadArguments);
            assert!(!fault.message.is_empty(), "{what}");
        }
        let good = [1u32, 1, 0].map(u32::to_le_bytes).concat();
        let id = caller.call(&Call::new("links").on("callee").body(&good));
        assert_eq!(caller.expect_value(id), &number(2)[..], "after {what}");
    }

    drop(caller);
    callee.stop().unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}
