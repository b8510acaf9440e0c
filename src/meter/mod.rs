//! Bytes in, token usage out. No I/O, no async.
//!
//! 1. The meter looks at an answer's bytes in passing: it never holds a frame back, never changes one.
//! 2. Its memory has a bound that does not depend on the body: see [`Config`].
//! 3. Any split of a body into chunks gives the same [`Reading`] as the whole.
//! 4. A document (a whole answer, an event, a line) counts as a whole or not at all.
//!
//! The way of a chunk: the body's coding is undone on the side (`decoding`), the form of the answer cuts it into
//! documents (`answer`, `events`, `frames`), each document is skimmed for what the format's pointers want (`skim`, `pointer`),
//! and what is found is committed when the document ends (`capture`, `counts`). Counts belong to one of the answer's
//! model calls (`calls`), and each call's become classes that overlap nowhere (`usage`). What each format's pointers are is data (`format`, `builtin`, `formats`).
//!
//! Where nothing is reported there is text to count (`counting`): by threads of their own, never by the reactor's.

mod answer;
mod brotli_decoder;
mod builtin;
mod calls;
mod capture;
mod counting;
mod counts;
mod decoding;
mod events;
mod form;
mod format;
mod formats;
mod frames;
mod glean;
mod growth;
mod image;
mod inspect;
mod key;
mod last_resort;
mod markup;
mod mend;
mod passing;
mod pointer;
mod prompt;
mod skim;
mod text;
mod texts;
mod tokenizer;
mod tools;
mod unescape;
mod unknown;
mod usage;
mod wanted;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

pub use capture::Running;
pub use counting::{CountJob, Counted, Counter, count, estimate, split_total};
pub use decoding::{DecodeError, decode_request};
pub use events::StreamKind;
pub use format::{
    BillingConfig, CallsConfig, Format, FormatConfig, FormatError, HeadersConfig, RequestConfig,
};
pub use formats::Formats;
pub use glean::{Pointers, glean};
pub use inspect::{Inspected, NotJson};
pub use pointer::PointerError;

pub use text::{Cut, Prompt, Text};
pub use tokenizer::{Counting, Encoding, With};
pub use usage::Merge;

use crate::model::billing::Billing;
use crate::model::tokens::TokenUsage;
use answer::{Answer, Trouble};
use decoding::Body;
use usage::Doubt;

/// Bounds of what a meter may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Text kept for counting; the rest is extrapolated.
    pub max_text_bytes: usize,
    /// How long the end of an answer may wait for a count.
    pub count_wait: Duration,
    /// One model call uses at most so many tokens: a larger count is not believed.
    pub max_call_tokens: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_text_bytes: 256 << 10, count_wait: Duration::from_millis(5), max_call_tokens: 10_000_000 }
    }
}

/// Reads a request's body by the rules of `format`, and the values at `pointers` (RFC 6901).
///
/// # Errors
/// The body is no JSON, or JSON that the service's parser and ours could read differently.
pub fn inspect(
    format: &Format,
    config: &Config,
    body: &[u8],
    pointers: &[&str],
) -> Result<Inspected, NotJson> {
    inspect::inspect(format, config.max_text_bytes, body, pointers)
}

/// The same for a body that its sender may have written for a parser that takes more than ours. Also gives the JSON that
/// was read: the body, or what it means. Its characters must be in a Unicode coding, or one that is ASCII where JSON is.
///
/// # Errors
/// The body is no JSON to a parser that we know of, or none that we can read.
pub fn inspect_leniently<'a>(
    format: &Format,
    config: &Config,
    body: &'a [u8],
    pointers: &[&str],
) -> Result<(Inspected, Cow<'a, [u8]>), NotJson> {
    if let Ok(inspected) = inspect(format, config, body, pointers) {
        return Ok((inspected, Cow::Borrowed(body)));
    }
    let mended = mend::mend(body);
    Ok((inspect(format, config, &mended, pointers)?, Cow::Owned(mended)))
}

/// Reads one answer in passing.
pub struct Meter {
    body: Body,
    error_status: bool,
    has_bytes: bool,
}

/// What the meter made of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Tokens as the answer reports them.
    pub usage: TokenUsage,
    /// Tokens as the provider bills them, where it says that it bills other units than it counts (Cohere).
    pub billed: Option<TokenUsage>,
    /// What it reports beside the token classes that has a price of its own.
    pub billing: Billing,
    /// The model that it names.
    pub model: Option<String>,
    /// Its text, for counting; empty where usage was reported.
    pub text: Text,
    /// There was a place for text, though it may have been empty.
    pub found_text: bool,
    /// The text was found by the last resort, under keys that commonly hold text: no rule of the format names its place.
    pub guessed: bool,
    /// The names of the keys of an answer in which nothing was found, no values, bounded: what a rule is written from.
    pub shape: Option<String>,
    /// Chat messages answered, where the answer tells.
    pub messages: Option<u64>,
    /// Results found, where the format says what is one.
    pub results: Option<u64>,
    /// The values of a JSON answer at the pointers of [`Meter::glean`], whatever its status; empty where none were
    /// asked for.
    pub gleaned: Vec<Option<serde_json::Value>>,
    /// Why the count is not known or not whole: `bomb`, `corrupt_encoding`, `unknown_encoding`,
    /// `malformed`, `unreadable_text` (UTF-16), `bad_usage`, `implausible_usage`, `zero_usage`, `unknown_format` (there is
    /// something, and no rule finds usage or text in it); the gravest, where there are several.
    pub flag: Option<&'static str>,
    /// Whether the answer was an event stream (AWS's binary one too), NDJSON or an AI SDK data stream.
    pub streamed: bool,
    /// It was a stream, and its last event said that nothing follows: who has seen it has seen the whole answer.
    pub ended: bool,
    /// An error event stood in a stream under a 200, or an error in the body of an answer with an error's status.
    pub error_event: bool,
    /// The answer says that it failed, and nothing in it says otherwise. Of a stream, or of an answer that has text or
    /// tokens as well, see what it has.
    pub failed: bool,
    /// The body is more than white space: there was something to be understood.
    pub has_body: bool,
}

impl Meter {
    /// A meter for an answer with these headers.
    pub fn new(
        format: &Arc<Format>,
        config: &Config,
        status: u16,
        content_type: Option<&[u8]>,
        content_encoding: Option<&[u8]>,
    ) -> Self {
        let Config { max_text_bytes, max_call_tokens, .. } = *config;
        let answer = Answer::new(format, max_text_bytes, max_call_tokens, status, content_type);
        Self {
            body: Body::new(Box::new(answer), content_encoding),
            error_status: status >= 400,
            has_bytes: false,
        }
    }

    /// Also takes the values at `pointers`, where the answer is one JSON text. To be asked before the first bytes.
    pub fn glean(&mut self, pointers: &Arc<Pointers>) {
        if let Some(answer) = self.body.answer_mut() {
            answer.glean(pointers);
        }
    }

    /// Also takes the counts of the answer's headers, where the format names some; `value` is that of a header by its
    /// name in small letters. To be asked before the first bytes.
    pub fn headers<'a>(&mut self, value: impl Fn(&str) -> Option<&'a [u8]>) {
        if let Some(answer) = self.body.answer_mut() {
            answer.headers(value);
        }
    }

    /// Whether the answer is known to be a stream by now: see [`Reading::streamed`]. Where its headers don't tell, its
    /// first bytes do.
    pub fn is_stream(&self) -> bool {
        self.body.answer().is_some_and(Answer::is_stream)
    }

    /// Whether what was seen so far reports all tokens, so that nothing needs counting.
    pub fn reported(&self) -> bool {
        !self.error_status && self.body.answer().is_some_and(Answer::reported)
    }

    /// Whether the stream's last event is here: see [`Reading::ended`].
    pub fn ended(&self) -> bool {
        self.body.answer().is_some_and(Answer::ended)
    }

    /// How a stream that can be looked into as it comes (not compressed) is cut into events. `None` is no such stream,
    /// or one whose headers don't say so.
    pub fn stream_kind(&self) -> Option<StreamKind> {
        self.body.plain().and_then(Answer::stream_kind)
    }

    /// The tokens of a stream up to here, if its last event was one of text: what a limit is held against.
    pub fn running(&self) -> Option<Running> {
        self.body.plain().and_then(Answer::running)
    }

    /// Whether a document ends here though its event doesn't: in a stream that has several in one, where the ends of
    /// events are no measure (GLM and Kimi part theirs by one line end).
    pub fn between_documents(&self) -> bool {
        self.body.plain().is_some_and(Answer::between_documents)
    }

    /// Looks at the next bytes of the body, all of them. Of a few KB it may decode some MB: see [`Meter::step`].
    pub fn observe(&mut self, mut chunk: &[u8]) {
        while let Some(taken) = self.step(chunk) {
            chunk = &chunk[taken..];
        }
    }

    /// Looks at the next bytes of the body, as far as is little work: about 64 KiB of what they decode to, or those of a
    /// body that has no coding. `None` when all was read; else how many bytes were taken, and the rest is to be shown
    /// next, even where nothing is left of it.
    #[inline]
    pub fn step(&mut self, chunk: &[u8]) -> Option<usize> {
        self.has_bytes |= !chunk.is_empty();
        self.body.step(chunk)
    }

    /// What was learnt; the body ended, or broke off.
    pub fn finish(self) -> Reading {
        let (answer, encoding_trouble) = self.body.finish();
        let Some(mut answer) = answer else { return Reading::default() };
        let gleaned = answer.gleaned();
        let typed_stream = answer.is_typed_stream();
        let (learnt, trouble, streamed) = answer.finish();
        if let Some(trouble) = encoding_trouble {
            // Of a body that could not be read to its end the last count may be missing: none is better. How far it
            // was read depends on how it came, so that only its type tells what it was.
            // An empty body is not in any coding, whatever its head says.
            let flag = self.has_bytes.then_some(trouble.as_str());
            let has_body = self.has_bytes;
            return Reading { flag, gleaned, streamed: typed_stream, has_body, ..Reading::default() };
        }
        let has_body = learnt.has_body;
        let failed = learnt.failed || (learnt.any_error && !learnt.has_content());
        if self.error_status {
            return Reading {
                error_event: learnt.any_error,
                gleaned,
                streamed,
                has_body,
                ..Reading::default()
            };
        }
        Reading {
            usage: learnt.resolved.usage,
            billed: learnt.resolved.billed,
            billing: learnt.resolved.billing,
            model: learnt.model,
            text: learnt.text,
            found_text: learnt.found_text,
            guessed: learnt.guessed,
            shape: learnt.shape,
            messages: learnt.messages,
            results: learnt.results,
            gleaned,
            flag: trouble.map(Trouble::as_str).or(learnt.resolved.doubt.map(Doubt::as_str)),
            streamed,
            ended: streamed && learnt.ended,
            error_event: streamed && learnt.failed,
            failed,
            has_body,
        }
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter")
            .field("stream", &self.is_stream())
            .field("reported", &self.reported())
            .finish()
    }
}

#[cfg(test)]
mod tests;
