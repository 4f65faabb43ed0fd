#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daffi_test_bytes::content(bytes));
