//! Makes JSON that only some parsers take into JSON that all of them read alike, for reading; what is forwarded stays as
//! it came.
//!
//! Services read more than RFC 8259 has. `JSON.parse` and Python's `json` take half a surrogate pair and a number that is
//! too large for a double, Python also `NaN` and `Infinity`; a body in UTF-16 or UTF-32 or with a byte order mark is read by
//! Python, Jackson and .NET; bytes that are not UTF-8 are replaced by everything that decodes them as the WHATWG says; and
//! all nest deeper than our own parser. Whoever could write a request so that we can't read it, and the service can, would
//! have it for nothing.

use std::borrow::Cow;

/// How deep objects and arrays are looked into. Below that no rule of any format points anywhere.
const MAX_DEPTH: usize = 100;

/// The body as strict JSON in UTF-8, where it is only one of those. Whether the result is JSON is for the parser to say.
///
/// Bytes that are not UTF-8 are replaced: a coding in which they may be quotes is none that is read.
pub(super) fn mend(body: &[u8]) -> Vec<u8> {
    Mender::new(&text(body)).run()
}

fn text(body: &[u8]) -> Cow<'_, str> {
    match Wide::of(body) {
        Some(wide) => Cow::Owned(wide.decode(body)),
        None => String::from_utf8_lossy(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)),
    }
}

/// UTF-16 or UTF-32, told by a byte order mark or by where the zero bytes of its first characters are, which are ASCII in
/// any JSON text (RFC 4627, section 3).
#[derive(Clone, Copy)]
struct Wide {
    bytes: usize,
    big_endian: bool,
}

impl Wide {
    fn of(body: &[u8]) -> Option<Self> {
        let (bytes, big_endian) = match body {
            [0xff, 0xfe, 0, 0, ..] => (4, false),
            [0, 0, 0xfe, 0xff, ..] => (4, true),
            [0xff, 0xfe, ..] => (2, false),
            [0xfe, 0xff, ..] => (2, true),
            [0, 0, 0, _, ..] => (4, true),
            [_, 0, 0, 0, ..] => (4, false),
            [0, _, ..] => (2, true),
            [_, 0, ..] => (2, false),
            _ => return None,
        };
        Some(Self { bytes, big_endian })
    }

    fn decode(self, body: &[u8]) -> String {
        let unit = |bytes: &[u8]| {
            let shift = |sum: u32, byte: &u8| sum << 8 | u32::from(*byte);
            if self.big_endian { bytes.iter().fold(0, shift) } else { bytes.iter().rev().fold(0, shift) }
        };
        let units = body.chunks_exact(self.bytes).map(unit);
        let text: String = match self.bytes {
            4 => units.map(|unit| char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)).collect(),
            _ => char::decode_utf16(units.map(|unit| unit as u16))
                .map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
        };
        text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)
    }
}

/// One walk over the text, with what all read alike in place of what they don't.
struct Mender<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    mended: Vec<u8>,
}

impl<'a> Mender<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0, depth: 0, mended: Vec::with_capacity(text.len()) }
    }

    fn run(mut self) -> Vec<u8> {
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' if self.depth == MAX_DEPTH => self.too_deep(),
                b'{' | b'[' => {
                    self.depth += 1;
                    self.keep(1);
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.keep(1);
                }
                b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => self.scalar(),
                _ => self.keep(1),
            }
        }
        self.mended
    }

    fn keep(&mut self, count: usize) {
        let end = (self.at + count).min(self.bytes.len());
        self.mended.extend_from_slice(&self.bytes[self.at..end]);
        self.at = end;
    }

    /// A string, with a replacement character for each half of a surrogate pair that has no other half.
    fn string(&mut self) {
        self.keep(1);
        loop {
            let rest = &self.bytes[self.at..];
            let Some(run) = memchr::memchr2(b'"', b'\\', rest) else { return self.keep(rest.len()) };
            self.keep(run);
            if self.bytes[self.at] == b'"' {
                return self.keep(1);
            }
            let rest = &self.bytes[self.at..];
            match unit(rest) {
                Some(0xd800..=0xdbff)
                    if unit(&rest[6..]).is_some_and(|low| (0xdc00..=0xdfff).contains(&low)) =>
                {
                    self.keep(12);
                }
                Some(0xd800..=0xdfff) => {
                    self.mended.extend_from_slice(b"\\ufffd");
                    self.at += 6;
                }
                _ => self.keep(2),
            }
        }
    }

    /// A number or a word. What a double can't hold, and what is no number at all, is nothing: `null`.
    fn scalar(&mut self) {
        let rest = &self.bytes[self.at..];
        let in_scalar = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
        let length = rest.iter().position(|byte| !in_scalar(byte)).unwrap_or(rest.len());
        let word = &self.text[self.at..self.at + length];
        let is_number = || word.bytes().next_back().is_some_and(|byte| byte.is_ascii_digit());
        let infinite = || word.parse::<f64>().is_ok_and(f64::is_infinite);
        if matches!(word, "NaN" | "Infinity" | "-Infinity") || is_number() && infinite() {
            self.mended.extend_from_slice(b"null");
            self.at += length;
        } else {
            self.keep(length);
        }
    }

    /// Passes over an object or array that is too deep, whole: `null`.
    fn too_deep(&mut self) {
        let mut depth = 0_usize;
        let mut in_string = false;
        self.mended.extend_from_slice(b"null");
        while let Some(&byte) = self.bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'\\' if in_string => self.at += 1,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => {
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}

/// The code unit of an escape such as `\ud83d` at the beginning of `text`.
fn unit(text: &[u8]) -> Option<u32> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(text: &str) -> String {
        String::from_utf8(mend(text.as_bytes())).unwrap()
    }

    fn wide(text: &str, bytes: usize, big_endian: bool) -> Vec<u8> {
        let unit = |unit: u32| match big_endian {
            true => unit.to_be_bytes()[4 - bytes..].to_vec(),
            false => unit.to_le_bytes()[..bytes].to_vec(),
        };
        match bytes {
            2 => text.encode_utf16().flat_map(|utf16| unit(utf16.into())).collect(),
            _ => text.chars().flat_map(|char| unit(char.into())).collect(),
        }
    }

    #[test]
    fn halves_of_pairs_are_replaced_and_pairs_stay() {
        assert_eq!(mended(r#"{"a":"\ud800","b":"\ud83d\ude42","c":"\ude42\ud83d"}"#), {
            r#"{"a":"\ufffd","b":"\ud83d\ude42","c":"\ufffd\ufffd"}"#
        });
        assert_eq!(mended(r#""\\ud800 \"\uD83D\uD83D\uDE42""#), r#""\\ud800 \"\ufffd\uD83D\uDE42""#);
        assert_eq!(mended(r#""\ud83"#), r#""\ud83"#);
    }

    #[test]
    fn numbers_that_no_double_holds_are_nothing() {
        assert_eq!(
            mended("[1e999, -1E+400, 1e-999, 12, NaN, -Infinity, true]"),
            "[null, null, 1e-999, 12, null, null, true]"
        );
        assert_eq!(mended(&"9".repeat(400)), "null");
        assert_eq!(mended(r#""1e999 NaN""#), r#""1e999 NaN""#);
    }

    #[test]
    fn what_is_too_deep_is_nothing_and_what_is_beside_it_stays() {
        let deep = format!("{{\"a\":{}1{},\"b\":\"x\"}}", "[".repeat(130), "]".repeat(130));
        let expected = format!("{{\"a\":{}null{},\"b\":\"x\"}}", "[".repeat(99), "]".repeat(99));
        assert_eq!(mended(&deep), expected);
        let odd = format!("{}{}{}", "[".repeat(100), r#"{"]\"":"}"}"#, "]".repeat(100));
        assert_eq!(mended(&odd), format!("{}null{}", "[".repeat(100), "]".repeat(100)));
        assert_eq!(mended(&"[".repeat(300)), format!("{}null", "[".repeat(100)));
    }

    #[test]
    fn every_unicode_coding_is_read_with_and_without_a_mark() {
        let text = r#"{"ä":"🙂"}"#;
        assert_eq!(mended(&format!("\u{feff}{text}")), text);
        for (bytes, big_endian) in [(2, false), (2, true), (4, false), (4, true)] {
            for marked in [text.to_owned(), format!("\u{feff}{text}")] {
                let body = wide(&marked, bytes, big_endian);
                assert_eq!(mend(&body), text.as_bytes(), "{bytes} {big_endian}");
            }
        }
        assert_eq!(mend(&wide("{}", 2, false)), b"{}");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_replaced() {
        let body = b"{\"a\":\"\x83\\\"\"}";
        assert_eq!(mend(body), "{\"a\":\"\u{fffd}\\\"\"}".as_bytes());
    }
}
