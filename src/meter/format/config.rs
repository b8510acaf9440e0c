//! Formats as the config has them (`[formats.NAME]`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::tokenizer::Counting;
use super::super::usage::Merge;

/// A format as the config has it (`[formats.NAME]`). Every list holds JSON pointers (RFC 6901, and `*` for every
/// element or member); of several that have a value the first in the list counts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FormatConfig {
    /// Whether the format `auto` looks for this one too.
    pub auto: bool,
    /// Input tokens.
    pub input: Vec<String>,
    /// Input tokens that the provider counts apart, added to the input.
    pub extra_input: Vec<String>,
    /// Input tokens read from a cache.
    pub cached_input: Vec<String>,
    /// Input tokens written to a cache.
    pub cache_write_input: Vec<String>,
    /// Output tokens.
    pub output: Vec<String>,
    /// Output tokens spent on thinking.
    pub reasoning: Vec<String>,
    /// The sum of all tokens.
    pub total: Vec<String>,
    /// Input tokens billed, where the provider bills other units than it counts.
    pub billed_input: Vec<String>,
    /// Output tokens billed, likewise.
    pub billed_output: Vec<String>,
    /// Whether the input count includes what was read from and written to a cache.
    pub input_includes_cached: bool,
    /// Whether the output count includes reasoning. Where a sum is reported it has the last word.
    pub output_includes_reasoning: bool,
    /// How the counts of a stream's events, or of several places matched by a `*`, become one.
    pub merge: Merge,
    /// The model's name.
    pub model: Vec<String>,
    /// What stands once for each message answered.
    pub messages: Vec<String>,
    /// Arrays of search results, as `/results/*`: their elements are counted.
    pub results: Vec<String>,
    /// What is set (not null, false or empty) when something went wrong. In an event that answers a message
    /// ([`FormatConfig::messages`]) it is that message's own trouble and not the stream's.
    pub error: Vec<String>,
    /// Pointers to a name, with those names that mean that something went wrong.
    pub error_when: BTreeMap<String, Vec<String>>,
    /// Pointers to a value, with what it is where all went well, as `/success` and `["true"]`. Anything else but null is
    /// as if an [`FormatConfig::error`] were set.
    pub error_unless: BTreeMap<String, Vec<String>>,
    /// What is set (not null, false or empty) in a stream's last event: a client that leaves after it has seen the
    /// whole answer. `data: [DONE]` is one in every format, and so is one named `end`. Where another event follows it was
    /// not the last.
    pub end: Vec<String>,
    /// Pointers to a name, with those names that a stream's last event has, likewise.
    pub end_when: BTreeMap<String, Vec<String>>,
    /// Text of the answer; in a stream, the next piece of it.
    pub text: Vec<String>,
    /// The whole text once more, at a stream's end: replaces the pieces.
    pub final_text: Vec<String>,
    /// What an answer may be wrapped in (`/result`, `/data`): all other pointers also hold below these.
    pub envelopes: Vec<String>,
    /// Lists that split the usage beside them into parts, as `/usage/iterations/*/type`, each with the names of parts
    /// that the usage already includes. Where a part has another name, the sum of all parts counts instead.
    pub parts: BTreeMap<String, Vec<String>>,
    /// Pointers to a name in objects that each hold a name and a count, with the names of the members that may hold the
    /// count, as `/usage/details/*/modality` and `["tokenCount"]`: read as if the object had a member of that name, so that a
    /// count is `/usage/details/*/AUDIO`.
    pub named: BTreeMap<String, Vec<String>>,
    /// What has a price of its own.
    pub billing: BillingConfig,
    /// How the model calls of one answer are told apart.
    pub calls: CallsConfig,
    /// Counts in the answer's headers.
    pub headers: HeadersConfig,
    /// Which of several alternative answers a piece of a stream belongs to, as `/choices/*/index`: they are counted one by
    /// one.
    pub choices: Vec<String>,
    /// How text is counted where nothing is reported.
    pub counting: Counting,
    /// What requests look like.
    pub request: RequestConfig,
}

impl Default for FormatConfig {
    fn default() -> Self {
        Self {
            auto: false,
            input: Vec::new(),
            extra_input: Vec::new(),
            cached_input: Vec::new(),
            cache_write_input: Vec::new(),
            output: Vec::new(),
            reasoning: Vec::new(),
            total: Vec::new(),
            billed_input: Vec::new(),
            billed_output: Vec::new(),
            input_includes_cached: true,
            output_includes_reasoning: true,
            merge: Merge::Last,
            model: Vec::new(),
            messages: Vec::new(),
            results: Vec::new(),
            error: Vec::new(),
            error_when: BTreeMap::new(),
            error_unless: BTreeMap::new(),
            end: Vec::new(),
            end_when: BTreeMap::new(),
            text: Vec::new(),
            final_text: Vec::new(),
            envelopes: Vec::new(),
            parts: BTreeMap::new(),
            named: BTreeMap::new(),
            billing: BillingConfig::default(),
            calls: CallsConfig::default(),
            headers: HeadersConfig::default(),
            choices: Vec::new(),
            counting: Counting::Model,
            request: RequestConfig::default(),
        }
    }
}

/// What has a price of its own beside the tokens (`[formats.NAME.billing]`). It has no say in which of the formats of
/// `auto` fits an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BillingConfig {
    /// The processing tier's name (`flex`, `priority`, `batch`).
    pub tier: Vec<String>,
    /// The part of the cache writes that is kept for an hour.
    pub cache_write_1h: Vec<String>,
    /// The part of the input that is audio.
    pub audio_input: Vec<String>,
    /// The part of the output that is audio.
    pub audio_output: Vec<String>,
    /// The part of the input that is images.
    pub image_input: Vec<String>,
    /// The part of the output that is images.
    pub image_output: Vec<String>,
    /// Web searches made.
    pub web_searches: Vec<String>,
    /// Pointers to a name, with those names that each stand for one web search made.
    pub web_searches_when: BTreeMap<String, Vec<String>>,
    /// Units of reranking.
    pub rerank_units: Vec<String>,
    /// The cost in US dollars. A zero is not taken as a cost.
    pub reported_cost: Vec<String>,
    /// What is set (not null, false or empty) where the reported cost is not the whole cost.
    pub reported_cost_unless: Vec<String>,
}

/// How the model calls of one answer are told apart (`[formats.NAME.calls]`): of each call the counts are merged as
/// the format says, and the calls are added up. Without an id all counts are one call's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallsConfig {
    /// Objects that hold one call each, as `/messages/*`.
    pub each: Vec<String>,
    /// A call's id; below one of [`CallsConfig::each`] it is that object's. A new one begins a new call.
    pub id: Vec<String>,
    /// An id that some services change with every event of one call. A new one begins a new call only where the input
    /// differs from the call's before, or text follows that call's end.
    pub event_id: Vec<String>,
    /// What is set (not null, false or empty) at a call's end, for [`CallsConfig::event_id`].
    pub end: Vec<String>,
    /// Pointers to a name, with those names that say that the counts are of the whole call up to here, and replace
    /// what was counted of it, whatever [`FormatConfig::merge`] says.
    pub whole_when: BTreeMap<String, Vec<String>>,
    /// Pointers to a name within [`CallsConfig::each`], with those names that begin a turn: what stands before the last
    /// of them in a list belongs to an earlier answer.
    pub turn_when: BTreeMap<String, Vec<String>>,
}

/// Names of answer headers that hold counts (`[formats.NAME.headers]`). What the body reports has precedence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadersConfig {
    /// Input tokens.
    pub input: Vec<String>,
    /// Input tokens read from a cache.
    pub cached_input: Vec<String>,
    /// Input tokens written to a cache.
    pub cache_write_input: Vec<String>,
    /// Output tokens.
    pub output: Vec<String>,
    /// The sum of all tokens.
    pub total: Vec<String>,
    /// The cost in US dollars.
    pub reported_cost: Vec<String>,
}

/// The requests of a format (`[formats.NAME.request]`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestConfig {
    /// Arrays that hold a message in each element, as `/messages/*/query`: the array's length counts as soon as
    /// one element has the member. Anything else is one message.
    pub batches: Vec<String>,
    /// Texts to embed: a string, or an array of strings or token lists.
    pub embeddings: Vec<String>,
    /// The text that goes to the model.
    pub text: Vec<String>,
    /// The model asked for.
    pub model: Vec<String>,
    /// The chat session.
    pub session: Vec<String>,
    /// The role of each message of a chat: every message costs some tokens beside its words, and so does the answer's
    /// beginning.
    pub roles: Vec<String>,
    /// Names of those who wrote a message.
    pub names: Vec<String>,
    /// Names of the tools that earlier answers called.
    pub calls: Vec<String>,
    /// What goes to the model beside what was said: the arguments of such calls.
    pub aside: Vec<String>,
    /// Definitions of tools: lists of them, as `/tools`.
    pub tools: Vec<String>,
    /// Images in messages: a string (a URL, or base64), or an object with such a string as `url` or `data`, and perhaps
    /// its `detail`.
    pub images: Vec<String>,
}

/// What is wrong with a format of the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("formats.{format}.{key}: {reason}")]
pub struct FormatError {
    /// The format's name.
    pub format: String,
    /// The key within it.
    pub key: &'static str,
    /// What is wrong, and what to do.
    pub reason: String,
}
