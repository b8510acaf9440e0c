//! An event stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| split::check(data, "text/event-stream", None));
