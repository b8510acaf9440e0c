//! Bytes in, token usage out. No I/O, no async.
//!
//! The meter looks at an answer's bytes in passing: it never holds a frame back, never changes one, and its memory
//! has a bound that does not depend on the body.

use std::sync::Arc;
use std::time::Duration;

use crate::model::tokens::TokenUsage;

/// Bounds of what a meter may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// One event-stream event, or one JSON answer, beyond which metering gives up (the answer passes all the same).
    pub max_event_bytes: usize,
    /// Text kept for counting; the rest is extrapolated.
    pub max_text_bytes: usize,
    /// How long the end of an answer may wait for a count.
    pub count_wait: Duration,
}

/// The rules by which one service's answers are read: data, built in or from the config.
#[derive(Debug)]
pub struct Format {
    /// `auto`, `chat-service`, `openai-chat`, …
    pub name: String,
}

/// All formats by name.
#[derive(Clone, Debug, Default)]
pub struct Formats;

impl Formats {
    /// The built-in formats.
    pub fn builtin() -> Self {
        unimplemented!()
    }

    /// The format of that name.
    pub fn format(&self, _name: &str) -> Option<Arc<Format>> {
        unimplemented!()
    }
}

/// What a metered request's body says, read once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspected {
    /// The values found at the pointers asked for, in their order. Strings as they are, numbers as written; else `None`.
    pub values: Vec<Option<String>>,
    /// Messages in the request, at least 1.
    pub messages: u64,
    /// Texts to embed (`texts`, or OpenAI's `input`), else 0.
    pub embeddings: u64,
    /// The model asked for.
    pub model: Option<String>,
    /// The text of its messages, for counting, bounded by `max_text_bytes`.
    pub text: Text,
    /// `/sessionId`, when the format has one.
    pub session: Option<String>,
}

/// Text kept for counting: what was kept, and how many bytes there were in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The kept part.
    pub kept: String,
    /// Bytes of text seen, kept or not.
    pub seen_bytes: u64,
}

/// The body is not JSON that the service's parser and ours must read alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not valid JSON")]
pub struct NotJson;

/// Reads a request's body by the rules of `format`, and the values at `pointers` (RFC 6901).
pub fn inspect(
    _format: &Format,
    _config: &Config,
    _body: &[u8],
    _pointers: &[&str],
) -> Result<Inspected, NotJson> {
    unimplemented!()
}

/// Reads one answer in passing.
#[derive(Debug)]
pub struct Meter;

/// What the meter made of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Tokens as the answer reports them.
    pub usage: TokenUsage,
    /// The model that it names.
    pub model: Option<String>,
    /// Its text, for counting; empty where usage was reported.
    pub text: Text,
    /// Chat messages answered, where the answer tells.
    pub messages: Option<u64>,
    /// Why the count is not known or not whole: `bomb`, `oversized_event`, `bad_usage`, `corrupt_encoding`, …
    pub flag: Option<&'static str>,
    /// An error event stood in a stream under a 200.
    pub error_event: bool,
}

impl Meter {
    /// A meter for an answer with these headers.
    pub fn new(
        _format: &Arc<Format>,
        _config: &Config,
        _status: u16,
        _content_type: Option<&[u8]>,
        _content_encoding: Option<&[u8]>,
    ) -> Self {
        unimplemented!()
    }

    /// Whether the answer is an event stream or NDJSON.
    pub fn is_stream(&self) -> bool {
        unimplemented!()
    }

    /// Looks at the next bytes of the body.
    pub fn observe(&mut self, _chunk: &[u8]) {
        unimplemented!()
    }

    /// What was learnt; the body ended, or broke off.
    pub fn finish(self) -> Reading {
        unimplemented!()
    }
}
