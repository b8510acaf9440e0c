//! An answer in one of the codings.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((coding, rest)) = data.split_first() else { return };
    let coding = ["gzip", "deflate", "br", "zstd"][usize::from(coding % 4)];
    split::check(rest, "application/json", Some(coding));
});
