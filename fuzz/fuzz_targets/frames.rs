//! AWS's binary event stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| split::check(data, "application/vnd.amazon.eventstream", None));
