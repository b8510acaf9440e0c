//! An answer under any type and coding, and any status: what its headers say and what its bytes are need not agree.
#![no_main]

const TYPES: [&str; 8] = [
    "",
    "application/json",
    "text/event-stream",
    "application/x-ndjson",
    "text/plain",
    "text/html",
    "application/octet-stream",
    "application/vnd.amazon.eventstream",
];
const CODINGS: [Option<&str>; 7] =
    [None, Some("gzip"), Some("deflate"), Some("br"), Some("zstd"), Some("utf-8"), Some("gzip, br")];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [content_type, coding, rest @ ..] = data else { return };
    let content_type = TYPES[usize::from(*content_type) % TYPES.len()];
    split::check(rest, content_type, CODINGS[usize::from(*coding) % CODINGS.len()]);
});
