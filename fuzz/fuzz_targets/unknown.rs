//! An answer whose first bytes must show what it is.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| split::check(data, "text/plain", None));
