//! Whether a body's declared coding of characters is one that we read.
//!
//! Services decode by the `charset` of the `Content-Type` before they parse, some in any coding that they have a table for
//! (Express takes UTF-7). To us such a body would say something else, or nothing.

use http::header::{self, HeaderMap};

/// Their names in small letters, without what stands between letters and digits: decoders pass over that. Of all of them
/// the characters that JSON is built of are the same bytes, or told by their zero bytes.
const READ: [&str; 13] = [
    "utf8",
    "utf16",
    "utf16le",
    "utf16be",
    "utf32",
    "utf32le",
    "utf32be",
    "ascii",
    "usascii",
    "iso88591",
    "latin1",
    "windows1252",
    "cp1252",
];

/// Whether every charset that is named is one that we read; parsers differ in which of several they go by, and in where a
/// parameter begins.
pub(crate) fn is_read(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).iter().all(|line| {
        let line = String::from_utf8_lossy(line.as_bytes()).to_ascii_lowercase();
        line.split("charset").skip(1).filter_map(value).all(|name| name.is_empty() || is_known(name))
    })
}

/// The value of a parameter, of what follows its name (`*` and numbers belong to that: RFC 2231). It ends where the
/// laxest parser ends it.
fn value(rest: &str) -> Option<&str> {
    let of_name = |char: char| char == '*' || char.is_ascii_digit() || char.is_ascii_whitespace();
    let value = rest.trim_start_matches(of_name).strip_prefix('=')?;
    value.split(';').next().map(str::trim)
}

fn is_known(name: &str) -> bool {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    READ.contains(&name.as_str())
}
