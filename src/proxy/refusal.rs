//! The body of a refusal for quota in a route's own words: a template, and what it is filled with.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::cut::{escaped, placeholders};
use crate::model::quota::{Dimension, Standing};
use crate::model::window::Window;

/// What a template can hold: each name in braces stands for a value, without quotes of its own.
const NAMES: [&str; 10] = [
    "error",
    "code",
    "request_id",
    "dimension",
    "limit",
    "used",
    "remaining",
    "quota_remaining",
    "resets_at",
    "retry_after",
];

/// A checked template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalText(String);

/// What a template is filled with.
#[derive(Debug)]
pub(crate) struct RefusalFacts<'a> {
    pub(crate) error: &'a str,
    pub(crate) code: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) standing: &'a Standing,
    /// Seconds.
    pub(crate) retry_after: i64,
}

impl RefusalText {
    /// Checks a template: JSON once its names stand for their values. Numbers stand bare, texts between quotes.
    ///
    /// # Errors
    /// One sentence that completes "the template …".
    pub fn new(text: &str) -> Result<Self, String> {
        if let Some(name) = placeholders(text).find_map(|(_, name)| (!NAMES.contains(&name)).then_some(name))
        {
            let names = NAMES.map(|name| format!("{{{name}}}")).join(", ");
            return Err(format!("holds {{{name}}}, which stands for nothing: there are {names}"));
        }
        let template = Self(text.trim().to_owned());
        let span = Window::Minute.span(&TimeZone::UTC, Timestamp::UNIX_EPOCH);
        let standing =
            Standing { dimension: Dimension::STANDARD[0], limit: Some(10), used: 3, span, soft: false };
        let sample = RefusalFacts {
            // No text that could stand without quotes.
            error: "a \"b\"",
            code: "quota_exceeded",
            request_id: "a-\"b\"",
            standing: &standing,
            retry_after: 60,
        };
        match serde_json::from_slice::<Value>(&template.fill(&sample)) {
            Ok(_) => Ok(template),
            Err(error) => {
                Err(format!("is no JSON once it is filled: {error}; write names of text between quotes"))
            }
        }
    }

    /// The body. Texts are escaped as JSON strings are.
    pub(crate) fn fill(&self, facts: &RefusalFacts<'_>) -> Vec<u8> {
        let RefusalText(text) = self;
        let standing = facts.standing;
        let amount = |amount: Option<u64>| {
            amount.map_or(Value::Null, |n| standing.dimension.unit.shown(n)).to_string()
        };
        let mut filled = String::with_capacity(text.len() + 128);
        let mut from = 0;
        for (at, name) in placeholders(text) {
            let value = match name {
                "error" => escaped(facts.error),
                "code" => escaped(facts.code),
                "request_id" => escaped(facts.request_id),
                "dimension" => escaped(&standing.dimension.to_string()),
                "limit" => amount(standing.limit),
                "used" => amount(Some(standing.used)),
                "remaining" | "quota_remaining" => amount(standing.remaining()),
                "resets_at" => escaped(&standing.span.end.to_string()),
                "retry_after" => facts.retry_after.to_string(),
                _ => continue,
            };
            filled.push_str(&text[from..at]);
            filled.push_str(&value);
            from = at + name.len() + 2;
        }
        filled.push_str(&text[from..]);
        filled.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::window::Span;

    #[test]
    fn a_template_is_json_whatever_it_is_filled_with() {
        let text =
            r#"{"message": "{error}", "id": "{request_id}", "left": {remaining}, "in": {retry_after}}"#;
        let template = RefusalText::new(text).unwrap();
        let span = Span { start: Timestamp::UNIX_EPOCH, end: Timestamp::UNIX_EPOCH };
        let dimension = "cost_usd_per_day".parse().unwrap();
        let standing =
            Standing { dimension, limit: Some(2_500_000_000), used: 2_250_000_000, span, soft: false };
        let facts = RefusalFacts {
            error: "Slow\n\"down\"",
            code: "quota_exceeded",
            request_id: "\\{limit}",
            standing: &standing,
            retry_after: 9,
        };
        let filled: Value = serde_json::from_slice(&template.fill(&facts)).unwrap();
        let expected = serde_json::json!({
            "message": "Slow\n\"down\"", "id": "\\{limit}", "left": 0.25, "in": 9,
        });
        assert_eq!(filled, expected);
    }

    #[test]
    fn what_would_be_no_json_is_no_template() {
        for bad in ["", "Too much", r#"{"error": {error}}"#, r#"{"a": "{nothing}"}"#, r#"{"a": 1"#] {
            assert!(RefusalText::new(bad).is_err(), "{bad}");
        }
        assert!(RefusalText::new(r#"{"error": "Too much", "limit": {limit}}"#).is_ok());
    }
}
