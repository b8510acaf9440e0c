//! What fuzzing found: inputs of `fuzz/fuzz_targets`, kept in `tests/cases/fuzz` by the name of their target.

use super::*;

/// As `fuzz/fuzz_targets/answer.rs` has them.
const TYPES: [&str; 8] = [
    "",
    JSON,
    SSE,
    "application/x-ndjson",
    "text/plain",
    "text/html",
    "application/octet-stream",
    "application/vnd.amazon.eventstream",
];
const CODINGS: [Option<&str>; 7] =
    [None, Some("gzip"), Some("deflate"), Some("br"), Some("zstd"), Some("utf-8"), Some("gzip, br")];

#[test]
fn what_once_depended_on_how_it_came_or_failed_does_no_more() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/fuzz");
    // So small that small inputs reach them, as in the targets.
    let config = Config { max_text_bytes: 64, ..Config::default() };
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let data = std::fs::read(&path).unwrap();
        let (content_type, coding, data) = match name.split('-').next().unwrap() {
            "answer" => (TYPES[usize::from(data[0]) % 8], CODINGS[usize::from(data[1]) % 7], &data[2..]),
            "json" => (JSON, None, &data[..]),
            "events" => (SSE, None, &data[..]),
            "ndjson" => ("application/x-ndjson", None, &data[..]),
            "frames" => ("application/vnd.amazon.eventstream", None, &data[..]),
            "unknown" => ("text/plain", None, &data[..]),
            other => panic!("no target is named {other}"),
        };
        let (length, body) = data.split_first().unwrap();
        let read = |length: usize| {
            let content_type = Some(content_type.as_bytes());
            let mut meter = Meter::new(&auto(), &config, 200, content_type, coding.map(str::as_bytes));
            body.chunks(length).for_each(|chunk| meter.observe(chunk));
            meter.finish()
        };
        for length in [1, usize::from(*length).max(2)] {
            assert_eq!(read(length), read(body.len()), "{name} in pieces of {length}");
        }
        count += 1;
    }
    assert!(count >= 6, "{count}");
}
