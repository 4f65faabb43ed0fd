use std::{
    any::type_name,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt::{self, Debug},
    marker::PhantomData,
    net::IpAddr,
    num::{NonZeroU32, Wrapping},
    ops::Range,
    thread,
    time::Duration,
};

use ::bincode::config::{Configuration, Fixint, LittleEndian, NoLimit};
use serde::{Deserialize, Deserializer, Serializer, de::Visitor, ser::SerializeSeq};

use bytes::Bytes;

use super::{Bytes as Uncopied, *};
use crate::limits::{PAYLOAD_DEPTH_MAX, PAYLOAD_EMPTY_ELEMENTS_MAX, PAYLOAD_GROWN_BYTES_MAX, PAYLOAD_GROWTH};

const REFERENCE: Configuration<LittleEndian, Fixint, NoLimit> =
    ::bincode::config::standard().with_fixed_int_encoding().with_no_limit();

fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    Codec::Bincode.encode(value).unwrap().to_vec()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Codec::Bincode.decode(bytes)
}

fn decode_error<T: DeserializeOwned>(bytes: &[u8]) -> String {
    match decode::<T>(bytes) {
        Ok(_) => panic!("{} was decoded from {} bytes", type_name::<T>(), bytes.len()),
        Err(error) => error.to_string(),
    }
}

/// Concatenates `parts`.
fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Newtype(u16);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pair(i8, String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Named {
    id: u64,
    name: String,
    #[serde(skip)]
    cache: Option<u64>,
    kinds: Vec<Kind>,
    place: (f64, f64),
    children: Vec<Self>,
    extra: BTreeMap<String, Option<Newtype>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Kind {
    Plain,
    Wrapped(Pair),
    Pair(u8, Unit),
    Fields { first: Option<Box<Self>>, second: char },
}

fn named() -> Named {
    let child = Named {
        id: 1,
        name: "größer 木 🦀".into(),
        cache: None,
        kinds: vec![
            Kind::Plain,
            Kind::Wrapped(Pair(-1, "p".into())),
            Kind::Pair(7, Unit),
            Kind::Fields { first: Some(Box::new(Kind::Plain)), second: '🦀' },
        ],
        place: (1.5, f64::NEG_INFINITY),
        children: Vec::new(),
        extra: BTreeMap::from([("some".into(), Some(Newtype(3))), ("none".into(), None)]),
    };
    Named { children: vec![child.clone(), child.clone()], ..child }
}

/// Calls `check` with values of all shapes.
macro_rules! for_all_values {
    ($check:ident) => {
        $check(&());
        $check(&true);
        $check(&(i8::MIN, i16::MIN, i32::MIN, i64::MIN, i128::MIN, isize::MIN));
        $check(&(u8::MAX, u16::MAX, u32::MAX, u64::MAX, u128::MAX, usize::MAX));
        $check(&(f32::MAX, f64::MIN_POSITIVE, -0.0f32));
        $check(&['a', 'ß', '木', '🦀', '\0', char::MAX]);
        $check(&String::new());
        $check(&"größer 木 🦀".to_owned());
        $check(&vec![1u8, 2, 3]);
        $check(&Bytes::from_static(b"\x00bytes\xff"));
        $check(&Some(Some(5u8)));
        $check(&Some(None::<u8>));
        $check(&None::<Option<u8>>);
        $check(&vec![(); 3]);
        $check(&[[1u16; 3]; 2]);
        $check(&Unit);
        $check(&Newtype(9));
        $check(&Pair(-4, "pair".into()));
        $check(&named());
        $check(&(1u8, (2u8, (3u8, "four".to_owned()))));
        $check(&HashMap::from([(1u32, "one".to_owned())]));
        $check(&BTreeMap::from([((1u8, 'x'), vec![1.5f32]), ((2, 'y'), vec![])]));
        $check(&BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        $check(&VecDeque::from([Ok::<u8, String>(1), Err("no".into())]));
        $check(&Box::new(Wrapping(3u8)));
        $check(&(NonZeroU32::MIN, PhantomData::<u8>, Range { start: 1u8, end: 2 }));
        $check(&Duration::from_millis(1500));
        $check(&IpAddr::from([127, 0, 0, 1]));
    };
}

#[test]
fn bincode_writes_and_reads_the_same_bytes() {
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
        let bytes = encode(value);
        assert_eq!(bytes, ::bincode::serde::encode_to_vec(value, REFERENCE).unwrap(), "{value:?}");
        assert_eq!(decode::<T>(&bytes).as_ref(), Ok(value));
        let (theirs, read) = ::bincode::serde::decode_from_slice::<T, _>(&bytes, REFERENCE).unwrap();
        assert_eq!((&theirs, read), (value, bytes.len()));
    }
    for_all_values!(check);
}

#[test]
fn json_takes_the_same_values() {
    fn check<T: Serialize + DeserializeOwned + Debug>(value: &T) {
        let bytes = Codec::Json.encode(value).unwrap();
        assert_eq!(bytes, serde_json::to_vec(value).unwrap(), "{value:?}");
    }
    fn check_both<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
        check(value);
        let bytes = Codec::Json.encode(value).unwrap();
        assert_eq!(Codec::Json.decode::<T>(&bytes).as_ref(), Ok(value));
    }
    check(&named());
    check(&(i128::MIN, u128::MAX, f32::NAN, Unit, Some(Some(1))));
    check_both(&(7i64, "text".to_owned(), Some(vec![1.5f64])));
    check_both(&vec![Kind::Plain, Kind::Pair(1, Unit), Kind::Fields { first: None, second: 'ß' }]);
    check_both(&(BTreeMap::from([(1u8, Newtype(2))]), IpAddr::from([127, 0, 0, 1])));
    assert!(Codec::Json.encode(&BTreeMap::from([((1, 2), 3)])).is_err(), "keys of JSON are text");
}

#[test]
fn numbers_are_the_same_to_the_last_bit() {
    let numbers = [7_888_888_888_888_887.0, 8.888_888_888_888_89e106, 0.1 + 0.2, f64::MIN_POSITIVE, f64::MAX];
    for number in numbers {
        for codec in [Codec::Bincode, Codec::Json] {
            let again: f64 = codec.decode(&codec.encode(&number).unwrap()).unwrap();
            assert_eq!(again.to_bits(), number.to_bits(), "{number:?}");
        }
    }
}

#[test]
fn not_a_number_keeps_its_bits() {
    let bits = (0x7FC0_1234u32, 0xFFF8_0000_0000_5678u64);
    let bytes = encode(&(f32::from_bits(bits.0), f64::from_bits(bits.1)));
    let (single, double) = decode::<(f32, f64)>(&bytes).unwrap();
    assert_eq!((single.to_bits(), double.to_bits()), bits);
}

/// The table at the top of the module, in bytes.
#[test]
fn the_layout_is_the_documented_one() {
    assert_eq!(encode(&(0x0102_0304u32, -2i16, true)), [4, 3, 2, 1, 0xFE, 0xFF, 1]);
    assert_eq!(encode(&1.0f32), [0, 0, 0x80, 0x3F]);
    assert_eq!(encode(&'ß'), [0xC3, 0x9F]);
    assert_eq!(encode("ab"), [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
    assert_eq!(encode(&[None, Some(7u8)]), [0, 1, 7]);
    assert_eq!(encode(&vec![7u16]), [1, 0, 0, 0, 0, 0, 0, 0, 7, 0]);
    assert_eq!(encode(&BTreeMap::from([(1u8, 2u8)])), [1, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(encode(&Kind::Pair(9, Unit)), [2, 0, 0, 0, 9]);
    assert!(encode(&(Unit, ())).is_empty());
}

#[test]
fn encode_into_appends_and_takes_back_what_fails() {
    for codec in [Codec::Bincode, Codec::Json] {
        let mut out = b"kept".to_vec();
        codec.encode_into(&(1u8, 2u8), &mut out).unwrap();
        assert_eq!(&out[4..], codec.encode(&(1u8, 2u8)).unwrap(), "{codec:?}");
        out.truncate(4);
        codec.encode_into(&("text", chain(100)), &mut out).unwrap_err();
        assert_eq!(out, b"kept", "{codec:?}");
    }
}

#[test]
fn left_over_bytes_are_an_error() {
    for codec in [Codec::Bincode, Codec::Json] {
        let mut bytes = codec.encode(&(1u32,)).unwrap().to_vec();
        bytes.push(b'7');
        assert!(codec.decode::<(u32,)>(&bytes).is_err(), "{codec:?}");
    }
    assert_eq!(decode_error::<u8>(&[1, 2, 3]), "at byte 1: 2 bytes are left over after the value");
}

#[test]
fn values_cut_off_anywhere_are_an_error() {
    fn check<T: Serialize + DeserializeOwned>(value: &T) {
        let bytes = encode(value);
        for end in 0..bytes.len() {
            let error = decode::<T>(&bytes[..end]).err().unwrap_or_else(|| {
                panic!("{} was decoded from {end} of {} bytes", type_name::<T>(), bytes.len())
            });
            assert!(error.offset().is_some_and(|offset| offset <= end), "{error}");
        }
    }
    for_all_values!(check);
}

#[test]
fn each_fault_has_its_sentence() {
    fn check<T: DeserializeOwned>(bytes: &[u8], sentence: &str) {
        assert_eq!(decode_error::<T>(bytes), sentence);
    }
    let two = 2u64.to_le_bytes();
    check::<(u8, u32)>(&[1, 2, 3], "at byte 1: 4 more bytes are needed, 2 are left");
    check::<(u8, bool)>(&[1, 2], "at byte 1: 2 is not a bool");
    check::<(u8, Option<u8>)>(&[1, 3], "at byte 1: 3 is not the tag of an Option");
    check::<String>(&join(&[&two, b"a\xff"]), "at byte 9: the text is not UTF-8");
    check::<String>(&join(&[&two, b"a"]), "at byte 8: a length of 2 is announced, 1 bytes are left for it");
    for bytes in [&[0xFF][..], &[0x80], &[0xC0, 0x80], &[0xC3, b'a'], &[0xED, 0xA0, 0x80]] {
        check::<char>(bytes, "at byte 0: this is not a char in UTF-8");
    }
    check::<char>(&[0xE2, 0x82], "at byte 0: 3 more bytes are needed, 2 are left");
    check::<(u8, Kind)>(
        &[0, 9, 0, 0, 0],
        "at byte 1: invalid value: integer `9`, expected variant index 0 <= i < 4",
    );
    check::<NonZeroU32>(&[0; 4], "at byte 4: invalid value: integer `0`, expected a nonzero u32");
}

#[derive(Debug, Serialize, Deserialize)]
struct Flat {
    id: u8,
    #[serde(flatten)]
    rest: BTreeMap<String, u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "tag")]
enum Tagged {
    Fields { id: u8 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "tag", content = "content")]
enum Adjacent {
    Number(u8),
}

#[derive(Debug, Serialize, Deserialize)]
struct Sparse {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<u8>,
    second: u8,
}

#[test]
fn types_that_need_names_say_so() {
    let zeros = [0; 64];
    let ones = join(&[&1u64.to_le_bytes(), &zeros]);
    for error in [
        decode_error::<Flat>(&ones),
        decode_error::<Untagged>(&zeros),
        decode_error::<Tagged>(&zeros),
        decode_error::<Adjacent>(&zeros),
        decode_error::<serde_json::Value>(&zeros),
        decode_error::<serde::de::IgnoredAny>(&zeros),
    ] {
        assert!(error.contains("bincode is not self-describing"), "{error}");
    }

    let flat = Flat { id: 1, rest: BTreeMap::new() };
    let error = Codec::Bincode.encode(&flat).unwrap_err().to_string();
    assert!(error.contains("flatten"), "{error}");
    assert!(Codec::Json.encode(&flat).is_ok());

    let sparse = Sparse { first: None, second: 2 };
    let error = Codec::Bincode.encode(&sparse).unwrap_err().to_string();
    assert!(error.contains("\"first\"") && error.contains("skip_serializing_if"), "{error}");
    assert_eq!(Codec::Json.encode(&sparse).unwrap(), r#"{"second":2}"#);
    assert_eq!(encode(&Sparse { first: Some(1), second: 2 }), [1, 1, 2]);
}

#[test]
fn a_sequence_need_not_know_its_length() {
    struct Odd(Option<usize>);
    impl Serialize for Odd {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut seq = serializer.serialize_seq(self.0)?;
            for number in [1u8, 3, 5] {
                seq.serialize_element(&number)?;
            }
            seq.end()
        }
    }
    for announced in [None, Some(0), Some(3), Some(7), Some(usize::MAX)] {
        assert_eq!(encode(&Odd(announced)), encode(&vec![1u8, 3, 5]), "{announced:?}");
    }
}

#[test]
fn elements_that_a_type_does_not_take_are_an_error() {
    #[derive(Debug)]
    struct First;
    impl<'de> Deserialize<'de> for First {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct One;
            impl<'de> Visitor<'de> for One {
                type Value = First;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a sequence")
                }

                fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<First, A::Error> {
                    seq.next_element::<u8>().map(|_| First)
                }
            }
            deserializer.deserialize_seq(One)
        }
    }
    assert!(decode::<(First, u8)>(&encode(&(vec![1u8], 2u8))).is_ok());
    assert_eq!(
        decode_error::<(First, u8)>(&encode(&(vec![1u8, 2, 3], 2u8))),
        "at byte 9: the type takes 2 elements fewer than there are"
    );
}

#[test]
fn announced_lengths_meet_the_bytes_that_are_there() {
    fn check<T: DeserializeOwned>() {
        let more_than_empty_ones = PAYLOAD_EMPTY_ELEMENTS_MAX as u64 + 25;
        for announced in [more_than_empty_ones, u64::from(u32::MAX), 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX]
        {
            let bytes = join(&[&announced.to_le_bytes(), &[0; 24]]);
            assert_eq!(
                decode_error::<T>(&bytes),
                format!("at byte 8: a length of {announced} is announced, 24 bytes are left for it")
            );
        }
        assert!(decode::<T>(&join(&[&25u64.to_le_bytes(), &[0; 24]])).is_err());
    }
    check::<String>();
    check::<Box<str>>();
    check::<Bytes>();
    check::<Vec<u8>>();
    check::<Vec<u64>>();
    check::<Vec<Option<u64>>>();
    check::<Vec<String>>();
    check::<VecDeque<Vec<u8>>>();
    check::<HashMap<u8, u8>>();
    check::<BTreeMap<String, String>>();
    check::<Vec<Vec<()>>>();
}

#[test]
fn sequences_in_a_sequence_share_its_bytes() {
    /// How many elements a sequence would allocate for initially.
    #[derive(Debug, PartialEq)]
    struct Hint(usize);
    impl<'de> Deserialize<'de> for Hint {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Empty;
            impl<'de> Visitor<'de> for Empty {
                type Value = Hint;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a sequence")
                }

                fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Hint, A::Error> {
                    let hint = seq.size_hint().unwrap();
                    while seq.next_element::<()>()?.is_some() {}
                    Ok(Hint(hint))
                }
            }
            deserializer.deserialize_seq(Empty)
        }
    }
    // The first length is followed by 16 bytes, of which each of the other two sequences needs at least one.
    let bytes = encode(&[vec![(); 1000], vec![], vec![(); 3]].as_slice());
    assert_eq!(decode::<Vec<Hint>>(&bytes), Ok(vec![Hint(14), Hint(0), Hint(0)]));
}

#[test]
fn elements_that_take_no_bytes_are_counted() {
    let full = vec![(); PAYLOAD_EMPTY_ELEMENTS_MAX];
    assert_eq!(decode::<Vec<()>>(&encode(&full)).unwrap().len(), full.len());

    let sentence = "more than 65536 elements of sequences take no bytes";
    let error = Codec::Bincode.encode(&(&full, [()].as_slice())).unwrap_err();
    assert_eq!(error.to_string(), sentence);

    // Many sequences, each within the limit, and one that hides among the bytes of what follows.
    let inner = 1000u64.to_le_bytes();
    let bytes = join(&[&1000u64.to_le_bytes(), &inner.repeat(1000)]);
    assert!(decode_error::<Vec<Vec<()>>>(&bytes).ends_with(sentence));
    let bytes = join(&[&1_000_000u64.to_le_bytes(), &[0; 1_000_000]]);
    assert!(decode_error::<(Vec<Unit>, u8)>(&bytes).ends_with(sentence));
    assert!(decode_error::<HashMap<(), ()>>(&bytes).ends_with(sentence));

    // Fields do not count: the type determines their number.
    let pairs = vec![(1u8, [(); 2]); PAYLOAD_EMPTY_ELEMENTS_MAX];
    assert_eq!(decode::<Vec<(u8, [(); 2])>>(&encode(&pairs)).unwrap(), pairs);
}

/// A peer could otherwise turn a megabyte into gigabytes.
#[test]
fn elements_that_take_more_memory_than_bytes_are_counted() {
    type Large = Option<[u64; 32]>;
    /// How many elements of type `T` there were; they are not kept.
    struct Dropped<T>(usize, PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Deserialize<'de> for Dropped<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Drops<T>(PhantomData<T>);
            impl<'de, T: Deserialize<'de>> Visitor<'de> for Drops<T> {
                type Value = usize;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a sequence")
                }

                fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<usize, A::Error> {
                    let mut count = 0;
                    while seq.next_element::<T>()?.is_some() {
                        count += 1;
                    }
                    Ok(count)
                }
            }
            Ok(Self(deserializer.deserialize_seq(Drops::<T>(PhantomData))?, PhantomData))
        }
    }
    let nothing = |count: usize| join(&[&(count as u64).to_le_bytes(), &vec![0; count]]);
    let most = PAYLOAD_GROWN_BYTES_MAX / (size_of::<Large>() - PAYLOAD_GROWTH);
    assert_eq!(decode::<Dropped<Large>>(&nothing(most)).unwrap().0, most);
    let sentence = "elements of sequences take more than 268435456 bytes of memory beyond 4 times their own bytes: send \
                    fewer at a time, or box what is large and often missing";
    assert!(decode_error::<Dropped<Large>>(&nothing(most + 1)).ends_with(sentence));
    assert_eq!(decode::<Dropped<Option<Box<[u64; 32]>>>>(&nothing(most + 1)).unwrap().0, most + 1);

    // Many sequences, each within the limit.
    let inner = nothing(most / 1000);
    let outer = |count: u64| join(&[&count.to_le_bytes(), &inner.repeat(count as usize)]);
    assert!(decode::<Vec<Dropped<Large>>>(&outer(1000)).is_ok());
    assert!(decode_error::<Vec<Dropped<Large>>>(&outer(1002)).ends_with(sentence));

    // Elements whose bytes make up for their memory do not count.
    let brings = encode(&vec![Some([7u64; 32]); 1000]);
    let bytes = join(&[&((most + 1000) as u64).to_le_bytes(), &vec![0; most], &brings[8..]]);
    assert_eq!(decode::<Dropped<Large>>(&bytes).unwrap().0, most + 1000);
}

/// Returns bytes that tell where they belong.
fn numbered(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}

#[test]
fn bytes_in_any_sequence_are_those_of_the_reference() {
    fn check<T: Serialize>(value: &T) {
        assert_eq!(encode(value), ::bincode::serde::encode_to_vec(value, REFERENCE).unwrap());
    }
    /// A sequence that does not know its length.
    struct Odd(Vec<u8>);
    impl Serialize for Odd {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(self.0.iter().copied().filter(|byte| byte % 2 == 1))
        }
    }
    for size in [0, 1, 255, 70_000] {
        let bytes = numbered(size);
        check(&bytes);
        check(&bytes.as_slice());
        check(&(1u16, &bytes, "text", Some(&bytes), [&bytes, &bytes]));
        check(&VecDeque::from(bytes.clone()));
        check(&bytes.iter().collect::<BTreeSet<_>>());
        check(&Uncopied::from(bytes.clone()));
        check(&(&Uncopied::from(bytes.clone()), 7));
        let odd = bytes.iter().copied().filter(|byte| byte % 2 == 1).collect::<Vec<_>>();
        assert_eq!(encode(&Odd(bytes)), encode(&odd));
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct File {
    name: String,
    content: Uncopied,
    parts: Vec<Uncopied>,
    length: u64,
}

fn file() -> File {
    let part = |size| Uncopied::from(numbered(size));
    File {
        name: "name".to_owned(),
        content: part(100_000),
        parts: vec![part(10), part(50_000), part(0), part(5_000)],
        length: 7,
    }
}

fn is_within(inner: &[u8], outer: &[u8]) -> bool {
    let (inner, outer) = (inner.as_ptr_range(), outer.as_ptr_range());
    outer.start <= inner.start && inner.end <= outer.end
}

#[test]
fn large_bytes_are_encoded_where_they_lie() {
    let file = file();
    let mut encoded = Codec::Bincode.encode_apart(&(1u8, &file)).unwrap();
    let pieces = encoded.parts().unwrap_err();
    let pieces: Vec<_> = [pieces.first()].into_iter().chain(pieces.rest()).cloned().collect();
    let lies_in = |bytes: &Uncopied| pieces.iter().filter(|piece| is_within(piece, bytes)).count();
    assert_eq!(lies_in(&file.content), 1);
    assert_eq!(file.parts.iter().map(lies_in).collect::<Vec<_>>(), [0, 1, 0, 1]);
    let whole = encode(&(1u8, &file));
    assert_eq!(pieces.concat(), whole);
    assert_eq!((encoded.len(), encoded.is_empty()), (whole.len(), false));

    // Regardless of how it is cut.
    for step in [1_000, 65_536, 100_000, whole.len()] {
        let mut rest = encoded.clone();
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let part = rest.split_to(step);
            assert!(part.len() == step || rest.is_empty());
            parts.push(part.into_bytes());
        }
        assert_eq!(parts.concat(), whole);
    }
    assert_eq!(encoded.split_to(0).len(), 0);
    assert_eq!(encoded.into_bytes(), whole);
    // A lent buffer that was not taken is not found by a later value.
    let _ = serde_json::to_vec(&file).unwrap();
    let pieces = |encoded: Encoded| encoded.parts().map_or_else(|pieces| pieces.rest().len() + 1, |_| 0);
    assert_eq!(pieces(Codec::Bincode.encode_apart(&file.content.to_vec()).unwrap()), 1);
    assert_eq!(pieces(Codec::Json.encode_apart(&file).unwrap()), 1);
}

#[test]
fn a_few_bytes_are_as_good_as_many() {
    let few = 4 * 1024 - size_of::<u64>();
    for size in [0, 1, few - 1, few, few + 1, 10 * few] {
        let text = "a".repeat(size);
        let whole = encode(&text);
        let mut encoded = Codec::Bincode.encode_apart(&text).unwrap();
        assert_eq!(encoded.len(), whole.len());
        assert_eq!(encoded.parts().is_ok(), size <= few, "{size} bytes of text");
        assert_eq!(encoded.clone().into_bytes(), whole);
        assert_eq!(encoded.split_to(3).into_bytes(), &whole[..3]);
        assert_eq!(encoded.into_bytes(), &whole[3..]);
    }
    assert!(Encoded::default().is_empty());
}

#[test]
fn few_bytes_lie_where_those_lay_that_are_not_needed_any_more() {
    let place = |encoded: &Encoded| encoded.parts().map_or(std::ptr::null(), <[u8]>::as_ptr);
    let first = Codec::Bincode.encode_apart("first").unwrap();
    let second = Codec::Bincode.encode_apart("second").unwrap();
    let (at, clone) = (place(&first), first.clone());
    assert!(at != place(&second) && at != place(&clone));
    drop(first);
    let third = Codec::Json.encode_apart("third").unwrap();
    assert_eq!(place(&third), at);
    assert_eq!([second, third].map(|encoded| encoded.into_bytes().len()), [8 + 6, 2 + 5]);
    assert_eq!(clone.into_bytes(), encode("first"));
}

/// As a user's value may do if its thread ends and it then makes a call.
#[test]
fn a_thread_that_ends_encodes_still() {
    struct Last;
    impl Drop for Last {
        fn drop(&mut self) {
            assert_eq!(encode("last").len(), 8 + 4);
        }
    }
    // What is used first is dropped last. A panic there would end the process.
    thread_local!(static LAST: Last = const { Last });
    let thread = thread::spawn(|| {
        LAST.with(|_| ());
        encode("first")
    });
    assert_eq!(thread.join().unwrap().len(), 8 + 5);
}

/// A value that takes a lot of memory, and encodes another one.
struct Outer([u64; 10_000]);

impl Serialize for Outer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let inner = Codec::Bincode.encode_apart("inner").map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&format!("{} and {}", self.0.len(), inner.len()))
    }
}

#[test]
fn a_value_may_encode_another_one() {
    for codec in [Codec::Bincode, Codec::Json] {
        let encoded = codec.encode_apart(&Outer([7; 10_000])).unwrap();
        let text: String = codec.decode(&encoded.into_bytes()).unwrap();
        assert_eq!(text, "10000 and 13");
    }
}

#[test]
fn large_bytes_are_decoded_where_they_lie() {
    let file = file();
    let payload = Bytes::from(encode(&file));
    let decoded: File = Codec::Bincode.decode_from(&payload).unwrap();
    assert_eq!(decoded, file);
    assert!(is_within(&decoded.content, &payload));
    let lies_in = |bytes: &Uncopied| is_within(bytes, &payload);
    // A small slice would keep far more than itself alive.
    assert_eq!(decoded.parts.iter().map(lies_in).collect::<Vec<_>>(), [false, true, false, false]);

    // There is no buffer to refer to.
    let copied: File = Codec::Bincode.decode(&payload).unwrap();
    assert!(copied == file && !is_within(&copied.content, &payload));
    /// Decodes another payload before its own.
    #[derive(Debug)]
    struct Nested(Uncopied);
    impl<'de> Deserialize<'de> for Nested {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let inner = Bytes::from(encode(&numbered(40_000)));
            let decoded: Uncopied = Codec::Bincode.decode_from(&inner).unwrap();
            assert!(is_within(&decoded, &inner));
            Uncopied::deserialize(deserializer).map(Self)
        }
    }
    let payload = Bytes::from(encode(&numbered(40_000)));
    let nested: Nested = Codec::Bincode.decode_from(&payload).unwrap();
    assert!(is_within(&nested.0, &payload));
}

#[test]
fn bytes_are_an_array_in_json() {
    for size in [3, 50_000] {
        let bytes = Uncopied::from(numbered(size));
        let json = Codec::Json.encode(&bytes).unwrap();
        assert_eq!(json, Codec::Json.encode(&bytes.to_vec()).unwrap());
        assert_eq!(Codec::Json.decode_from::<Uncopied>(&json).unwrap(), bytes);
        let Whole(vector) = Codec::Json.decode_from::<Whole<Vec<u8>>>(&json).unwrap();
        assert_eq!(vector, *bytes);
    }
    assert!(Codec::Json.decode::<Whole<Vec<u8>>>(b"\"text\"").is_err(), "as it is for serde");
}

#[test]
fn a_vector_is_decoded_as_bytes_and_all_else_as_it_is() {
    let bytes = numbered(1000);
    let payload = encode(&(&bytes, "text", 7i64));
    type Arguments = (Whole<Vec<u8>>, Whole<String>, Whole<i64>);
    let (Whole(vector), Whole(text), Whole(number)) = decode::<Arguments>(&payload).unwrap();
    assert_eq!((vector, text.as_str(), number), (bytes, "text", 7));
    assert_eq!(
        decode_error::<Whole<Vec<u8>>>(&join(&[&9u64.to_le_bytes(), &[0; 8]])),
        "at byte 8: a length of 9 is announced, 8 bytes are left for it"
    );
}

/// A payload type like those of real programs, recursive in every way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Tree {
    Leaf,
    Wrapped(Box<Self>),
    Pair(Box<Self>, u8),
    Fields { id: u64, name: String, next: Box<Self>, tags: BTreeMap<String, String>, place: (f64, f64) },
    List(Vec<Self>),
    Optional(Option<Box<Self>>),
    Keyed(BTreeMap<String, Self>),
    Struct(Box<Holder>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Holder {
    ids: [u64; 16],
    names: Vec<String>,
    kinds: Vec<Kind>,
    first: Option<String>,
    second: Option<Named>,
    third: Result<u8, String>,
    next: Tree,
    keep: Duration,
    address: Option<IpAddr>,
    numbers: (u8, u16, u32, u64, i8, i16, i32, i64),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Chain(Option<Box<Self>>);

/// Returns `links` levels of options and as many of newtypes, with a newtype on the outside.
fn chain(links: usize) -> Chain {
    (0..links).fold(Chain(None), |chain, _| Chain(Some(Box::new(chain))))
}

type Wrap = fn(Tree) -> Tree;

/// The ways to wrap a tree, with the levels that each adds.
const WRAPS: [(Wrap, usize); 7] = [
    (|tree| Tree::Wrapped(Box::new(tree)), 1),
    (|tree| Tree::Pair(Box::new(tree), 1), 1),
    (
        |tree| Tree::Fields {
            id: 1,
            name: "name".into(),
            next: Box::new(tree),
            tags: BTreeMap::new(),
            place: (0.0, 1.0),
        },
        1,
    ),
    (|tree| Tree::List(vec![tree]), 2),
    (|tree| Tree::Optional(Some(Box::new(tree))), 2),
    (|tree| Tree::Keyed(BTreeMap::from([("key".into(), tree)])), 2),
    (
        |tree| {
            Tree::Struct(Box::new(Holder {
                ids: [1; 16],
                names: vec!["name".into()],
                kinds: vec![Kind::Plain],
                first: None,
                second: None,
                third: Ok(1),
                next: tree,
                keep: Duration::ZERO,
                address: None,
                numbers: (1, 2, 3, 4, 5, 6, 7, 8),
            }))
        },
        2,
    ),
];

/// Runs `test` with the stack size that threads of the standard library and of tokio have.
fn on_a_stack_of_2_mib(test: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(test).unwrap().join().unwrap();
}

#[test]
fn depth_is_limited_both_ways() {
    on_a_stack_of_2_mib(|| {
        for codec in [Codec::Bincode, Codec::Json] {
            for (wrap, levels) in WRAPS {
                let mut tree = Tree::Leaf;
                for _ in 0..(PAYLOAD_DEPTH_MAX - 2) / levels {
                    tree = wrap(tree);
                }
                let bytes = codec.encode(&tree).unwrap();
                assert_eq!(codec.decode::<Tree>(&bytes).as_ref(), Ok(&tree), "{codec:?}");

                for _ in 0..1000 {
                    tree = wrap(tree);
                }
                let error = codec.encode(&tree).unwrap_err().to_string();
                assert!(error.contains("nested more than 64 levels deep"), "{error}");
            }
            assert!(codec.encode(&chain(31)).is_ok());
            assert!(codec.encode(&chain(32)).is_err());
        }
    });
}

#[test]
fn depth_bombs_are_an_error() {
    on_a_stack_of_2_mib(|| {
        let one = 1u64.to_le_bytes();
        let keyed = join(&[&one, &1u64.to_le_bytes(), b"k"]);
        // One level of each kind, without its tag.
        for (tag, level) in [
            (1u32, &[][..]),
            (2, &[]),
            (3, &join(&[&[0; 8], &[0; 8]])),
            (4, &one),
            (5, &[1]),
            (6, &keyed),
            (7, &join(&[&[0; 128], &[0; 8], &[0; 8], &[0], &[0], &[0; 5]])),
        ] {
            let bytes = join(&[&tag.to_le_bytes(), level]).repeat(100_000);
            let error = decode_error::<Tree>(&bytes);
            assert!(error.ends_with("the value is nested more than 64 levels deep"), "{tag}: {error}");
        }
        assert!(decode_error::<Chain>(&[1; 200_000]).contains("nested more than"));
        assert_eq!(decode::<Chain>(&[&[1; 31][..], &[0]].concat()).unwrap(), chain(31));

        // A type without a form in JSON: whatever the text is, it is inside one more option and one more
        // newtype.
        #[derive(Debug, Deserialize)]
        struct Endless(#[expect(dead_code, reason = "it is never made")] Option<Box<Self>>);
        assert!(Codec::Json.decode::<Endless>(b"null").is_ok());
        let error = Codec::Json.decode::<Endless>(b"1").unwrap_err().to_string();
        assert!(error.contains("nested more than 64 levels deep"), "{error}");

        for level in [r#"{"List":["#, r#"{"Fields":{"id":1,"name":"","next":"#, r#"{"Optional":"#] {
            Codec::Json.decode::<Tree>(level.repeat(100_000).as_bytes()).unwrap_err();
        }
    });
}

#[test]
fn any_bytes_are_a_value_or_an_error() {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    on_a_stack_of_2_mib(move || {
        let models = [encode(&named()), encode(&WRAPS[6].0(WRAPS[2].0(Tree::Leaf)))];
        for round in 0..100_000 {
            let mut bytes = models[round % 2].clone();
            if round % 3 == 0 {
                // Small numbers are plausible lengths and tags.
                bytes = (0..random() % 64).map(|_| random() as u8 >> (random() % 8)).collect();
            } else {
                for _ in 0..=random() % 3 {
                    let place = random() as usize % bytes.len();
                    bytes[place] = random() as u8 >> (random() % 8);
                }
            }
            check::<Named>(&bytes);
            check::<Tree>(&bytes);
            check::<(Vec<Kind>, Option<String>, char)>(&bytes);
        }
    });

    /// Whatever decodes is the value that bincode decodes, and encodes to the same bytes.
    fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        match decode::<T>(bytes) {
            Ok(value) => {
                let (theirs, read) = ::bincode::serde::decode_from_slice::<T, _>(bytes, REFERENCE).unwrap();
                assert_eq!(read, bytes.len());
                assert_eq!(encode(&value), encode(&theirs));
            }
            Err(error) => assert!(error.offset().is_some_and(|offset| offset <= bytes.len()), "{error}"),
        }
    }
}

#[test]
fn large_sequences_of_bytes_have_their_room_at_once() {
    let value = vec![7u8; 3 << 20];
    for bytes in [&value[..], &value[..1_500_000]] {
        let mut out = Vec::new();
        Codec::Bincode.encode_into(&bytes, &mut out).unwrap();
        assert_eq!(out.len(), 8 + bytes.len());
        assert!(out.capacity() <= out.len() + 64, "{} bytes have room for {}", out.len(), out.capacity());
    }
}
