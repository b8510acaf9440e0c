//! What an event holds, brought within what its columns do: numbers, lengths of texts, and no U+0000.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::charged;

/// Longest text in a column that is indexed: a B-tree entry must fit a third of a page (2,704 bytes).
pub(super) const SHORT_BYTES: usize = 256;
/// Longest text elsewhere; a user agent, an error message and a model name are below it by far.
pub(super) const LONG_BYTES: usize = 8 * 1024;
/// Most that NUMERIC(14,8) holds once it is rounded: $999,999.99999999, in nano-dollars.
const MAX_NANOUSD: u64 = 999_999_999_999_990;

/// Numbers brought within their columns, and which of them had to be.
#[derive(Default)]
pub(super) struct Clamp(Vec<&'static str>);

impl Clamp {
    pub(super) fn int(&mut self, column: &'static str, value: u64) -> i32 {
        i32::try_from(value).unwrap_or_else(|_| {
            self.0.push(column);
            i32::MAX
        })
    }

    pub(super) fn bigint(&mut self, column: &'static str, value: Option<u64>) -> Option<i64> {
        value.map(|value| {
            i64::try_from(value).unwrap_or_else(|_| {
                self.0.push(column);
                i64::MAX
            })
        })
    }

    pub(super) fn nanousd(&mut self, value: u64) -> i64 {
        if value > MAX_NANOUSD {
            self.0.push("cost_usd");
        }
        value.min(MAX_NANOUSD) as i64
    }

    /// An event's metadata with the notes of what was clamped, and of what it was charged to.
    pub(super) fn onto(self, metadata: &Map<String, Value>, charged: Option<Value>) -> String {
        if self.0.is_empty() && metadata.is_empty() && charged.is_none() {
            return String::from("{}");
        }
        let mut metadata = Value::Object(metadata.clone());
        if let Some(charged) = charged {
            metadata[charged::KEY] = charged;
        }
        if !self.0.is_empty() {
            metadata["clamped"] = Value::from(self.0);
        }
        json(&metadata)
    }
}

/// Microseconds to milliseconds, rounded half up.
pub(super) fn ms(us: u64) -> u64 {
    us / 1000 + u64::from(us % 1000 >= 500)
}

/// `value` without U+0000, at most `bytes` long, cut between characters.
pub(super) fn text(value: &str, bytes: usize) -> Cow<'_, str> {
    let cut = (0..=bytes.min(value.len())).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
    let value = &value[..cut];
    match memchr::memchr(0, value.as_bytes()) {
        None => Cow::Borrowed(value),
        Some(_) => Cow::Owned(value.replace('\0', "")),
    }
}

/// JSON as text without U+0000. Only a text that shows the escape is looked at closely: `\\u0000`, an escaped
/// backslash before five plain characters, shows it too and is no NUL.
pub(super) fn json(value: &Value) -> String {
    let plain = value.to_string();
    if memchr::memmem::find(plain.as_bytes(), br"\u0000").is_none() {
        return plain;
    }
    without_nul(value).to_string()
}

fn without_nul(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('\0', "")),
        Value::Array(items) => items.iter().map(without_nul).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.replace('\0', ""), without_nul(value)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_30_nul_is_stripped_from_text_and_json() {
        assert_eq!(text("a\0b", 10), "ab");
        let value = serde_json::json!({"a\0": ["x\0y", {"b": "\0"}], "kept": r"\u0000"});
        let clean: Value = serde_json::from_str(&json(&value)).unwrap();
        assert_eq!(clean, serde_json::json!({"a": ["xy", {"b": ""}], "kept": r"\u0000"}));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(text("aä€", 3), "aä");
        assert_eq!(text("aä€", 4), "aä");
        assert_eq!(text("aä€", 6), "aä€");
    }

    #[test]
    fn what_a_column_can_not_hold_is_clamped_and_said() {
        let mut clamp = Clamp::default();
        assert_eq!(clamp.int("a", u64::MAX), i32::MAX);
        assert_eq!(clamp.bigint("b", Some(u64::MAX)), Some(i64::MAX));
        assert_eq!(clamp.bigint("c", Some(7)), Some(7));
        assert_eq!(clamp.nanousd(u64::MAX), 999_999_999_999_990);
        assert_eq!(clamp.onto(&Map::new(), None), r#"{"clamped":["a","b","cost_usd"]}"#);
    }

    #[test]
    fn milliseconds_are_rounded_half_up() {
        assert_eq!([0, 499, 500, 1499, 1500].map(ms), [0, 0, 1, 1, 2]);
    }
}
