//! Token counts, and how they came to be known.

use serde::{Deserialize, Serialize};

/// What an answer says (or what we counted) of its tokens. `None` is unknown, which is not zero.
///
/// `cached_input` and `cache_write_input` are parts of `input`; `reasoning` is a part of `output`: parts, never added on top,
/// whatever the provider's own fields count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUsage {
    /// All input, cache reads and writes included.
    pub input: Option<u64>,
    /// The part of the input that was read from a cache.
    pub cached_input: Option<u64>,
    /// The part of the input that was written to a cache.
    pub cache_write_input: Option<u64>,
    /// All output, reasoning included.
    pub output: Option<u64>,
    /// The part of the output that was spent on thinking.
    pub reasoning: Option<u64>,
    /// The sum, where only a sum is known; otherwise derived: see [`TokenUsage::total`].
    pub total: Option<u64>,
}

impl TokenUsage {
    /// Input plus output where both are known, else the reported sum, else the one that is known.
    pub fn total(&self) -> Option<u64> {
        match (self.input, self.output) {
            (Some(input), Some(output)) => Some(input.saturating_add(output)),
            (input, output) => self.total.or(input).or(output),
        }
    }
}

/// How an event's token count came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// The upstream's answer says so.
    Reported,
    /// The answer was cut short: what was reported or counted up to there.
    Partial,
    /// Counted here, from the text of question and answer.
    Counted,
    /// Not known, or not yet: what was reserved, or what is known if that is more. An amendment may follow.
    Reserved,
    /// No tokens are charged: refused, failed, or nothing to count.
    None,
}

impl TokenSource {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenSource::Reported => "reported",
            TokenSource::Partial => "partial",
            TokenSource::Counted => "counted",
            TokenSource::Reserved => "reserved",
            TokenSource::None => "none",
        }
    }
}
