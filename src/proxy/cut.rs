//! The last event of a stream that is cut at the tenant's limit: a template, and what it is filled with.

use bytes::Bytes;
use serde_json::Value;

use crate::meter::StreamKind;

/// What a template can hold: each name in braces stands for a value, without quotes of its own.
const NAMES: [&str; 5] = ["request_id", "dimension", "limit", "resets_at", "tokens"];

/// The end that the chat service's widget waits for, with what its refusals hold, and without the text once more.
const DEFAULT: &str = r#"{"done": true, "metadata": {"quota_exceeded": true, "error": "Quota exceeded. Please upgrade your plan.", "code": "quota_exceeded", "quota_remaining": 0, "dimension": "{dimension}", "limit": {limit}, "resets_at": "{resets_at}", "request_id": "{request_id}"}}"#;

/// A checked template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutEvent {
    text: String,
    kind: StreamKind,
}

/// What a template is filled with.
#[derive(Debug)]
pub(crate) struct CutFacts<'a> {
    pub(crate) request_id: &'a str,
    /// The dimension that is used up.
    pub(crate) dimension: String,
    pub(crate) limit: u64,
    /// When it resets (RFC 3339).
    pub(crate) resets_at: String,
    /// Tokens of this exchange so far, as estimated.
    pub(crate) tokens: u64,
}

impl CutEvent {
    /// Checks a template: one or more events of an event stream, or lines. What its last event lacks of its end (an
    /// empty line, or the line's own end) is added.
    ///
    /// # Errors
    /// One sentence that completes "the template …".
    pub fn new(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("is empty: write the last event of the stream".to_owned());
        }
        if let Some(name) = placeholders(text).find_map(|(_, name)| (!NAMES.contains(&name)).then_some(name))
        {
            let names = NAMES.map(|name| format!("{{{name}}}")).join(", ");
            return Err(format!("holds {{{name}}}, which stands for nothing: there are {names}"));
        }
        let field =
            |line: &str| ["data:", "event:", "id:", "retry:", ":"].iter().any(|f| line.starts_with(f));
        let kind = if text.lines().any(field) { StreamKind::Events } else { StreamKind::Lines };
        if kind == StreamKind::Events && !text.lines().any(|line| line.starts_with("data:")) {
            return Err("is an event without data: write a line that begins with data:".to_owned());
        }
        let end = if kind == StreamKind::Events { "\n\n" } else { "\n" };
        Ok(Self { text: format!("{}{end}", text.trim_end_matches(['\n', '\r'])), kind })
    }

    /// The built-in one for such a stream.
    pub(crate) fn default_of(kind: StreamKind) -> Self {
        let text = match kind {
            StreamKind::Events => format!("data: {DEFAULT}\n\n"),
            StreamKind::Lines => format!("{DEFAULT}\n"),
        };
        Self { text, kind }
    }

    /// The streams that it can end.
    pub(crate) fn kind(&self) -> StreamKind {
        self.kind
    }

    /// The event. Values are escaped as JSON strings are.
    pub(crate) fn fill(&self, facts: &CutFacts<'_>) -> Bytes {
        let mut filled = String::with_capacity(self.text.len() + 128);
        let mut from = 0;
        for (at, name) in placeholders(&self.text) {
            let value = match name {
                "request_id" => escaped(facts.request_id),
                "dimension" => escaped(&facts.dimension),
                "limit" => facts.limit.to_string(),
                "resets_at" => escaped(&facts.resets_at),
                "tokens" => facts.tokens.to_string(),
                _ => continue,
            };
            filled.push_str(&self.text[from..at]);
            filled.push_str(&value);
            from = at + name.len() + 2;
        }
        filled.push_str(&self.text[from..]);
        filled.into()
    }
}

/// Names in braces, with the places of their opening braces. JSON has no such thing outside of its strings.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices('{').filter_map(move |(at, _)| {
        let name = text[at + 1..].split('}').next().filter(|name| name.len() + at + 1 < text.len())?;
        let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        named.then_some((at, name))
    })
}

pub(super) fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> CutFacts<'static> {
        CutFacts {
            request_id: "a\"b\\\n{limit}",
            dimension: "tokens_per_day".into(),
            limit: 10_000,
            resets_at: "2026-11-25T00:00:00Z".into(),
            tokens: 77,
        }
    }

    fn filled(event: &CutEvent) -> String {
        String::from_utf8(event.fill(&facts()).to_vec()).unwrap()
    }

    #[test]
    fn the_default_is_json_whatever_a_client_calls_its_request() {
        for (kind, start, end) in [(StreamKind::Events, "data: ", "\n\n"), (StreamKind::Lines, "", "\n")] {
            let text = filled(&CutEvent::default_of(kind));
            let json = text.strip_prefix(start).unwrap().strip_suffix(end).unwrap();
            assert!(!json.contains('\n'));
            let event: Value = serde_json::from_str(json).unwrap();
            assert_eq!(event["done"], true);
            let metadata = &event["metadata"];
            assert_eq!(
                (&metadata["quota_exceeded"], &metadata["quota_remaining"]),
                (&true.into(), &0.into())
            );
            assert_eq!(
                (&metadata["limit"], &metadata["dimension"]),
                (&10_000.into(), &"tokens_per_day".into())
            );
            assert_eq!(metadata["request_id"], facts().request_id);
        }
    }

    #[test]
    fn a_template_is_filled_by_name_and_ends_as_its_stream_does() {
        let event = CutEvent::new("event: end\ndata: {\"n\":{tokens},\"a\":{}}\n\ndata: [DONE]\n").unwrap();
        assert_eq!(event.kind(), StreamKind::Events);
        assert_eq!(filled(&event), "event: end\ndata: {\"n\":77,\"a\":{}}\n\ndata: [DONE]\n\n");
        let line = CutEvent::new("{\"done\":true,\"at\":\"{resets_at}\"}").unwrap();
        assert_eq!(line.kind(), StreamKind::Lines);
        assert_eq!(filled(&line), "{\"done\":true,\"at\":\"2026-11-25T00:00:00Z\"}\n");
    }

    #[test]
    fn a_name_that_stands_for_nothing_and_an_event_without_data_are_faults() {
        assert!(CutEvent::new("data: {user}\n\n").unwrap_err().contains("{user}"));
        assert!(CutEvent::new("event: end\n\n").unwrap_err().contains("without data"));
        assert!(CutEvent::new("\n").is_err());
        assert!(CutEvent::new("data: {\n\n").is_ok());
    }
}
