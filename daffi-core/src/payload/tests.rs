use super::*;

#[test]
fn values_survive_both_codecs() {
    for codec in [Codec::Bincode, Codec::Json] {
        let value = (7i64, "text".to_owned(), Some(vec![1.5f64]));
        let bytes = codec.encode(&value).unwrap();
        assert_eq!(codec.decode::<(i64, String, Option<Vec<f64>>)>(&bytes).unwrap(), value);
    }
}

#[test]
fn left_over_bytes_are_an_error() {
    for codec in [Codec::Bincode, Codec::Json] {
        let mut bytes = codec.encode(&(1u32,)).unwrap().to_vec();
        bytes.push(b'7');
        assert!(codec.decode::<(u32,)>(&bytes).is_err(), "{codec:?}");
    }
}
