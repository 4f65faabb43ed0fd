//! Bytes to values and back, of types that hold others of their kind.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use daffi_core::payload::Codec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

#[derive(Serialize, Deserialize)]
struct Tree {
    name: String,
    weight: f64,
    children: Vec<Self>,
}

#[derive(Serialize, Deserialize)]
struct List(u8, Option<Box<Self>>);

#[derive(Serialize, Deserialize)]
enum Json {
    Null,
    Bool(bool),
    Number(i64),
    Text(String),
    Array(Vec<Self>),
    Object(BTreeMap<String, Self>),
    Pair { left: Box<Self>, right: Option<Box<Self>> },
}

#[derive(Serialize, Deserialize, PartialEq, Eq, Hash)]
struct Nothing;

#[derive(Serialize, Deserialize)]
struct Mixed {
    unit: (),
    nothing: Vec<Nothing>,
    character: char,
    small: [i16; 3],
    big: (u128, i128, f32),
    bytes: Vec<u8>,
    queue: VecDeque<Option<Option<bool>>>,
    rows: Vec<Vec<Vec<u16>>>,
}

/// Any bytes as arguments or results. The first one says of which type.
pub fn payload(bytes: &[u8]) {
    let Some((what, bytes)) = bytes.split_first() else { return };
    let codec = if what & 1 == 0 { Codec::Bincode } else { Codec::Json };
    match what >> 1 & 15 {
        0 => check::<Tree>(codec, bytes),
        1 => check::<List>(codec, bytes),
        2 => check::<Json>(codec, bytes),
        3 => check::<Mixed>(codec, bytes),
        4 => check::<(i64, i64)>(codec, bytes),
        5 => check::<Vec<String>>(codec, bytes),
        6 => check::<Vec<()>>(codec, bytes),
        7 => check::<Vec<Vec<Vec<Vec<()>>>>>(codec, bytes),
        8 => check::<BTreeMap<String, Vec<Tree>>>(codec, bytes),
        9 => check::<(Option<Box<List>>, Result<String, u8>)>(codec, bytes),
        10 => check::<String>(codec, bytes),
        // In no order of their own, so they are not compared with what they are encoded to.
        11 => drop(codec.decode::<HashMap<u32, Json>>(bytes)),
        12 => drop(codec.decode::<HashSet<Nothing>>(bytes)),
        13 => check::<(Vec<u64>, Vec<f64>, Vec<[u8; 32]>)>(codec, bytes),
        14 => check::<Option<Option<Option<()>>>>(codec, bytes),
        _ => check::<Vec<(Nothing, Option<char>)>>(codec, bytes),
    }
}

/// Bytes are a value, which is encoded to bytes that decode to the same, or they are an error with a sentence.
fn check<T: Serialize + DeserializeOwned>(codec: Codec, bytes: &[u8]) {
    let value = match codec.decode::<T>(bytes) {
        Ok(value) => value,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    // JSON is read deeper than it is written.
    let Ok(encoded) = codec.encode(&value) else {
        return assert_eq!(codec, Codec::Json, "what was decoded can be encoded");
    };
    match codec.decode::<T>(&encoded) {
        Ok(again) => {
            let again = codec.encode(&again).expect("it was encoded before");
            assert_eq!(encoded, again, "the second time");
        }
        // JSON has no word for what is no number.
        Err(error) => assert_eq!(codec, Codec::Json, "{error}"),
    }
}
