//! What an exchange is charged: pure rules over what happened.
//!
//! 1. Unknown is never free: where an answer has a body that was not understood, or a request has text that was not
//!    found and the answer does not report its input, the exchange is charged its reservation, or what is known of it
//!    if that is more.
//! 2. A row holds what was reported or counted, and its tokens are their sum. A floor is charged to the quota alone:
//!    an invoice is never held against it.
//! 3. The charge is never less than the tokens of the row.

use percent_encoding::percent_decode_str;

use super::pattern::{Piece, pieces};
use crate::meter::{Counted, Reading, Text, split_total};
use crate::model::event::{EventType, Outcome};
use crate::model::tokens::{TokenSource, TokenUsage};

/// What happened, as far as it decides the charge.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) outcome: Outcome,
    /// The status of the upstream's answer; `None` when it never answered.
    pub(crate) status: Option<u16>,
    pub(crate) reading: &'a Reading,
    /// Whether the answer was read to its end, whoever was there to see it.
    pub(crate) whole: bool,
    /// Whether the request has text that can be counted.
    pub(crate) request_text: bool,
    /// Whether the request has something that may be text and was not found or not read.
    pub(crate) request_unread: bool,
    /// Whether answers of this kind have text. Embeddings, searches and the like have none.
    pub(crate) expects_text: bool,
}

/// Where the number of tokens comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// No tokens: the upstream refused or failed before it said anything, or there is nothing to count.
    Free,
    /// The answer reports them.
    Reported(TokenSource),
    /// The text must be counted; the source is what the row will say.
    Text(TokenSource),
    /// Not known: charged what was reserved, or what is known if that is more.
    Reserved,
}

/// What could not be understood of an exchange, though there was something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) request: bool,
    pub(crate) answer: bool,
}

impl Unread {
    pub(crate) fn any(self) -> bool {
        self.request || self.answer
    }
}

/// Whether the upstream served the call: then its messages count. A redirect, an error, and a failure under a 200
/// give them back.
pub(crate) fn is_served(outcome: Outcome, status: Option<u16>, reading: &Reading) -> bool {
    match status {
        Some(status) => status < 300 && !is_failure(reading),
        // It left before an answer; the upstream was at work on it.
        None => outcome == Outcome::ClientAborted,
    }
}

/// Whether an answer says that it failed and has nothing else: no tokens, and no text at a place that a rule names. One
/// that has both (a batch of which one message failed, a reply with a warning beside it) is charged for what it has.
pub(crate) fn is_failure(reading: &Reading) -> bool {
    let said = reading.text.seen_bytes > 0 && !reading.guessed;
    reading.failed && !said && reading.usage.total().unwrap_or(0) == 0
}

/// Whether a call only asks how many tokens a text has. It is a call and uses none.
///
/// The last segment of the route's own path says so; where it is the client that names it, the segment does, as the route
/// has matched it: what else stands in the path is not looked at, since services drop it (`;v:tokenize`). A client's word
/// is not taken on routes of embeddings, whose answers could not contradict it (`is_a_count`).
pub(crate) fn only_counts(pattern: &str, segments: &[String], event: EventType) -> bool {
    match pieces(pattern).filter(|piece| *piece != Piece::Literal("")).last() {
        Some(Piece::Literal(text)) => names_a_count(text),
        Some(Piece::Named { suffix, .. }) if names_a_count(suffix) => true,
        Some(Piece::Named { suffix, .. }) if event != EventType::Embedding => {
            let named = segments.last().and_then(|segment| segment.split(';').next());
            named.is_some_and(|named| names_a_count(&format!("{named}{suffix}")))
        }
        _ => false,
    }
}

/// Whether a segment is the name of such an operation.
///
/// Gemini's and Vertex AI's `:countTokens` (ai.google.dev/api/tokens), `:computeTokens`; Anthropic's
/// `/v1/messages/count_tokens` (docs.anthropic.com/en/api/messages-count-tokens) and `count-tokens:rawPredict` on Vertex;
/// Bedrock's `/model/{id}/count-tokens`; OpenAI's `/v1/responses/input_tokens`; `/tokenize` of vLLM,
/// llama.cpp, TGI and Cohere; xAI's `/v1/tokenize-text`.
fn names_a_count(segment: &str) -> bool {
    const NAMES: [&str; 6] =
        ["counttokens", "computetokens", "inputtokens", "tokenize", "tokenizetext", "estimatetokencount"];
    // Longer than any name: not worth decoding.
    if segment.len() > 512 {
        return false;
    }
    let segment = percent_decode_str(segment).decode_utf8_lossy();
    segment.split(':').any(|verb| {
        let plain = |c: &char| !matches!(c, '_' | '-');
        NAMES.iter().any(|name| verb.chars().filter(plain).map(|c| c.to_ascii_lowercase()).eq(name.chars()))
    })
}

/// Whether an answer may be that of a call that only counts: it says nothing, and reports no output.
pub(crate) fn is_a_count(reading: &Reading) -> bool {
    reading.text.is_empty() && reading.usage.output.unwrap_or(0) == 0
}

/// What was not understood of a call that was served.
///
/// A flag of the meter says that the answer could not be read (a coding, a bomb). Without one it is not understood when
/// it came whole, has bytes, and neither tokens nor text nor results were found in it.
pub(crate) fn unread(facts: &Facts<'_>) -> Unread {
    let reading = facts.reading;
    let usage = &reading.usage;
    let understood = usage.total().is_some()
        || (reading.found_text && reading.flag != Some(UNKNOWN_FORMAT))
        || reading.text.seen_bytes > 0
        || reading.results.is_some()
        || reading.billing.rerank_units.is_some();
    let nothing_to_find = !facts.expects_text && facts.request_text;
    let unreadable = reading.flag.is_some_and(|flag| flag != UNKNOWN_FORMAT);
    let answer = reading.has_body && !understood && (unreadable || (facts.whole && !nothing_to_find));
    let request = facts.request_unread && usage.input.is_none() && usage.total.is_none();
    Unread { request, answer }
}

/// The meter's flag of an answer whose format nobody knows.
pub(crate) const UNKNOWN_FORMAT: &str = "unknown_format";

/// Decides where the number of tokens comes from.
///
/// A whole answer is charged what it reports, else what its text counts. A broken one is charged what was seen of
/// it. What was not understood is charged its reservation.
pub(crate) fn basis(facts: &Facts<'_>) -> Basis {
    let Facts { outcome, status, reading, whole, request_text, .. } = facts;
    if *outcome == Outcome::Refused || !is_served(*outcome, *status, reading) {
        return Basis::Free;
    }
    if unread(facts).any() {
        return Basis::Reserved;
    }
    // One side alone (Ollama leaves out a cached prompt) is no total: the other is counted where there is text for it.
    // Where there is none (an embedding has no output) there is nothing more to know.
    let usage = &reading.usage;
    let answer_text = reading.text.seen_bytes > 0;
    let all_known = usage.total.is_some() || (usage.input.is_some() && usage.output.is_some());
    let to_count = (usage.input.is_none() && *request_text) || (usage.output.is_none() && answer_text);
    if all_known || (usage.total().is_some() && !to_count) {
        return Basis::Reported(if *whole { TokenSource::Reported } else { TokenSource::Partial });
    }
    if answer_text || (*request_text && status.is_some()) {
        return Basis::Text(if *whole { TokenSource::Counted } else { TokenSource::Partial });
    }
    // It left before anything was seen, or the answer broke off before anything of it could be understood.
    let cut_short = !whole && (*outcome == Outcome::ClientAborted || reading.has_body);
    if cut_short { Basis::Reserved } else { Basis::Free }
}

/// What the number of tokens is made of.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    pub(crate) outcome: Outcome,
    pub(crate) reading: &'a Reading,
    /// The request's text, where it was not handed to the counter.
    pub(crate) request: &'a Text,
    /// The count, where there is one.
    pub(crate) counted: Option<&'a Counted>,
    /// Tokens held by the reservation now: it may have grown.
    pub(crate) held: u64,
    /// Tokens reserved at admission, for all messages: what a client that leaves is charged at least.
    pub(crate) floor: u64,
    /// Whether the request has text that can be counted.
    pub(crate) request_text: bool,
    /// Whether answers of this kind have text.
    pub(crate) expects_text: bool,
}

/// Tokens with their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Priced {
    pub(crate) usage: TokenUsage,
    /// Of the row.
    pub(crate) tokens: u64,
    pub(crate) source: TokenSource,
    /// What the quota is charged: more than `tokens` where there is a floor.
    pub(crate) charged: u64,
    /// The sides are estimated: only their sum was reported.
    pub(crate) split: bool,
}

/// The number of tokens of the row and of the charge. Where a count is needed and not there (yet), it is what is held.
pub(crate) fn price(basis: Basis, known: &Known<'_>) -> Priced {
    let reading = known.reading;
    let floor = if known.outcome == Outcome::ClientAborted { known.floor } else { 0 };
    let of = |usage: TokenUsage, source| {
        let tokens = usage.total().unwrap_or(0);
        Priced { usage, tokens, source, charged: tokens.max(floor), split: false }
    };
    let reserved = |usage: TokenUsage, least: u64| {
        let tokens = usage.total().unwrap_or(0).max(least);
        Priced { usage, tokens, source: TokenSource::Reserved, charged: tokens, split: false }
    };
    match (basis, known.counted) {
        (Basis::Free, _) => Priced { charged: 0, ..of(TokenUsage::default(), TokenSource::None) },
        (Basis::Reserved, counted) => reserved(sides_of(known, counted), known.floor),
        (Basis::Reported(source), _) => {
            let (usage, split) = in_sides(known);
            Priced { split, ..of(usage, source) }
        }
        (Basis::Text(source), Some(counted)) => of(usage_of(&reading.usage, counted), source),
        // At least one, so that there is a charge for the amendment to correct.
        (Basis::Text(_), None) => reserved(TokenUsage::default(), known.held.max(floor).max(1)),
    }
}

/// What was reported, with a count for the side that was not.
pub(crate) fn usage_of(reported: &TokenUsage, counted: &Counted) -> TokenUsage {
    let (input, output) = (reported.input.or(Some(counted.input)), reported.output.or(Some(counted.output)));
    TokenUsage { input, output, ..*reported }
}

/// The same for the sides that have text; the other stays unknown.
fn sides_of(known: &Known<'_>, counted: Option<&Counted>) -> TokenUsage {
    let reported = &known.reading.usage;
    let answer_text = known.reading.text.seen_bytes > 0;
    let input = reported.input.or(counted.filter(|_| known.request_text).map(|counted| counted.input));
    let output = reported.output.or(counted.filter(|_| answer_text).map(|counted| counted.output));
    TokenUsage { input, output, ..*reported }
}

/// The sides of what was reported. Where only the sum of them was, it is split by the text of both; `true` then. The sum
/// stays what it is, and no side is less than its parts.
fn in_sides(known: &Known<'_>) -> (TokenUsage, bool) {
    let usage = known.reading.usage;
    let Some(total) = usage.total else { return (usage, false) };
    if usage.input.is_some() && usage.output.is_some() {
        return (usage, false);
    }
    let (input, output, estimated) = match (usage.input, usage.output) {
        (Some(input), _) => (input, total.saturating_sub(input), true),
        (None, Some(output)) => (total.saturating_sub(output), output, true),
        // An embedding's sum is its input.
        (None, None) if !known.expects_text && known.reading.text.is_empty() => (total, 0, false),
        (None, None) => {
            let (input, _) = split_total(total, known.request, &known.reading.text);
            let parts = usage.cached_input.unwrap_or(0).saturating_add(usage.cache_write_input.unwrap_or(0));
            let most = total.saturating_sub(usage.reasoning.unwrap_or(0));
            let input = input.min(most).max(parts.min(total));
            (input, total - input, true)
        }
    };
    (TokenUsage { input: Some(input), output: Some(output), total: None, ..usage }, estimated)
}

#[cfg(test)]
mod tests;
