//! A JSON answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| split::check(data, "application/json", None));
