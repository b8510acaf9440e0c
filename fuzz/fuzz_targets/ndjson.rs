//! Lines of JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| split::check(data, "application/x-ndjson", None));
