//! Answer formats as data: where a service's answers and requests say what is metered.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::counting::Counting;
use super::pointer::{PointerError, Tree, parse};
use super::usage::{Class, Merge, Shape};
use super::wanted::{Wanted, want};

/// A format as the config has it (`[formats.NAME]`). Every list holds JSON pointers (RFC 6901, and `*` for every
/// element or member); of several that have a value the first in the list counts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FormatConfig {
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
    /// What is set (not null, false or empty) when something went wrong. In an event that answers a message
    /// ([`FormatConfig::messages`]) it is that message's own trouble and not the stream's.
    pub error: Vec<String>,
    /// Pointers to a name, with those names that mean that something went wrong.
    pub error_when: BTreeMap<String, Vec<String>>,
    /// Text of the answer; in a stream, the next piece of it.
    pub text: Vec<String>,
    /// The whole text once more, at a stream's end: replaces the pieces.
    pub final_text: Vec<String>,
    /// How text is counted where nothing is reported.
    pub counting: Counting,
    /// What requests look like.
    pub request: RequestConfig,
}

impl Default for FormatConfig {
    fn default() -> Self {
        Self {
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
            error: Vec::new(),
            error_when: BTreeMap::new(),
            text: Vec::new(),
            final_text: Vec::new(),
            counting: Counting::Model,
            request: RequestConfig::default(),
        }
    }
}

/// The requests of a format (`[formats.NAME.request]`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
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

/// What a value of an answer is good for.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// A count: whose, of what, and how far down its list.
    Count {
        shape: u8,
        class: Class,
        order: u8,
    },
    Model {
        order: u8,
    },
    Message,
    Error,
    ErrorWhen(Arc<[String]>),
    Text,
    FinalText,
}

fn wants(action: &Action) -> u8 {
    match action {
        Action::Text | Action::FinalText => want::TEXT,
        Action::Count { .. } | Action::Model { .. } | Action::ErrorWhen(_) => want::SCALAR,
        Action::Error | Action::Message => want::SCALAR | want::CONTAINER,
    }
}

/// What a value of a request is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// An element of an array of messages, and the member that makes it one.
    Element,
    Member,
    Embeddings,
    Text,
    Model,
    Session,
}

/// The rules by which one service's answers are read: data, built in or from the config.
#[derive(Debug)]
pub struct Format {
    /// `auto`, `chat-service`, `openai-chat`, …
    pub name: String,
    /// How text is counted where nothing is reported.
    pub counting: Counting,
    pub(super) shapes: Vec<Shape>,
    pub(super) answer: Wanted<Action>,
    /// A text that is nothing but one string.
    pub(super) string: Wanted<Action>,
    pub(super) request: Tree<Ask>,
    /// Everything that is not JSON is text.
    pub(super) plain: bool,
}

impl Format {
    pub(super) fn new(name: &str, parts: &[&FormatConfig]) -> Result<Self, FormatError> {
        let fault = |key: &'static str| {
            move |error: PointerError| FormatError { format: name.to_owned(), key, reason: error.to_string() }
        };
        let mut answer: Vec<(Vec<String>, Action)> = Vec::new();
        let mut request: Vec<(Vec<String>, Ask)> = Vec::new();
        let mut shapes = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let shape = index as u8;
            shapes.push(Shape {
                merge: part.merge,
                input_includes_cached: part.input_includes_cached,
                output_includes_reasoning: part.output_includes_reasoning,
            });
            let counts = [
                ("input", Class::Input, &part.input),
                ("extra_input", Class::ExtraInput, &part.extra_input),
                ("cached_input", Class::CachedInput, &part.cached_input),
                ("cache_write_input", Class::CacheWrite, &part.cache_write_input),
                ("output", Class::Output, &part.output),
                ("reasoning", Class::Reasoning, &part.reasoning),
                ("total", Class::Total, &part.total),
                ("billed_input", Class::BilledInput, &part.billed_input),
                ("billed_output", Class::BilledOutput, &part.billed_output),
            ];
            for (key, class, pointers) in counts {
                for (order, pointer) in pointers.iter().enumerate() {
                    let order = order.min(255) as u8;
                    answer.push((parse(pointer).map_err(fault(key))?, Action::Count { shape, class, order }));
                }
            }
            for (order, pointer) in part.model.iter().enumerate() {
                let order = order.min(255) as u8;
                answer.push((parse(pointer).map_err(fault("model"))?, Action::Model { order }));
            }
            for (pointer, names) in &part.error_when {
                let names = names.clone().into();
                answer.push((parse(pointer).map_err(fault("error_when"))?, Action::ErrorWhen(names)));
            }
            for (key, action, pointers) in [
                ("messages", Action::Message, &part.messages),
                ("error", Action::Error, &part.error),
                ("text", Action::Text, &part.text),
                ("final_text", Action::FinalText, &part.final_text),
            ] {
                for pointer in pointers {
                    answer.push((parse(pointer).map_err(fault(key))?, action.clone()));
                }
            }
            let asks = &part.request;
            for (key, ask, pointers) in [
                ("request.embeddings", Ask::Embeddings, &asks.embeddings),
                ("request.text", Ask::Text, &asks.text),
                ("request.model", Ask::Model, &asks.model),
                ("request.session", Ask::Session, &asks.session),
                ("request.batches", Ask::Member, &asks.batches),
            ] {
                for pointer in pointers {
                    let tokens = parse(pointer).map_err(fault(key))?;
                    if ask == Ask::Member {
                        let [element @ .., _] = &tokens[..] else { continue };
                        if element.last().is_none_or(|token| token != "*") {
                            let reason =
                                format!("`{pointer}` must end in `/*/name`, such as `/messages/*/query`");
                            return Err(FormatError { format: name.to_owned(), key, reason });
                        }
                        request.push((element.to_vec(), Ask::Element));
                    }
                    request.push((tokens, ask));
                }
            }
        }
        dedup_texts(&mut answer);
        Ok(Self {
            name: name.to_owned(),
            counting: parts.first().map_or(Counting::Model, |part| part.counting),
            shapes,
            answer: Wanted::new(Tree::new(&answer).map_err(fault("input"))?, wants),
            string: Wanted::new(Tree::new(&[(Vec::new(), Action::Text)]).map_err(fault("text"))?, wants),
            request: Tree::new(&request).map_err(fault("request.text"))?,
            plain: parts.is_empty(),
        })
    }
}

/// Several formats may point at the same text: it is one text all the same. A pointer is final in a union only if
/// no format has it as a piece.
fn dedup_texts(answer: &mut Vec<(Vec<String>, Action)>) {
    let mut seen: Vec<Vec<String>> = Vec::new();
    answer.sort_by_key(|(_, action)| matches!(action, Action::FinalText));
    answer.retain(|(tokens, action)| match action {
        Action::Text | Action::FinalText if seen.contains(tokens) => false,
        Action::Text | Action::FinalText => {
            seen.push(tokens.clone());
            true
        }
        _ => true,
    });
}
