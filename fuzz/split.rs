//! What every target holds the meter to: no input makes it fail, and no split of it into chunks makes a difference.

use std::sync::{Arc, LazyLock};

use tollgate::meter::{Config, Format, Formats, Meter, Reading};

/// All formats at once.
pub static AUTO: LazyLock<Arc<Format>> =
    LazyLock::new(|| Formats::builtin().format("auto").expect("built in"));

/// Small bounds, so that small inputs reach them.
pub fn config() -> Config {
    Config { max_text_bytes: 64, ..Config::default() }
}

fn read<'a>(chunks: impl Iterator<Item = &'a [u8]>, content_type: &str, encoding: Option<&str>) -> Reading {
    let (content_type, encoding) = (content_type.as_bytes(), encoding.map(str::as_bytes));
    let mut meter = Meter::new(&AUTO, &config(), 200, Some(content_type), encoding);
    chunks.for_each(|chunk| meter.observe(chunk));
    meter.finish()
}

/// Reads `data` whole, in bytes, and in chunks whose lengths its first byte gives.
pub fn check(data: &[u8], content_type: &str, encoding: Option<&str>) {
    let Some((length, body)) = data.split_first() else { return };
    let whole = read(std::iter::once(body), content_type, encoding);
    for length in [1, usize::from(*length).max(2)] {
        let split = read(body.chunks(length), content_type, encoding);
        // Where a bomb is noticed depends on how much of it had come.
        if whole.flag != Some("bomb") && split.flag != Some("bomb") {
            assert_eq!(split, whole);
        }
    }
    let usage = whole.usage;
    if let Some(input) = usage.input {
        assert!(usage.cached_input.unwrap_or(0) + usage.cache_write_input.unwrap_or(0) <= input);
    }
    if let Some(output) = usage.output {
        assert!(usage.reasoning.unwrap_or(0) <= output);
    }
    assert!(whole.text.kept.len() as u64 <= whole.text.seen_bytes.max(64 * 3));
}
