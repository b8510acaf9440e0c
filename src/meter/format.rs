//! Answer formats as data: where a service's answers and requests say what is metered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::counting::Counting;
use super::pointer::{PointerError, Tree, parse};
use super::usage::{CLASSES, Class, Merge, Shape};
use super::wanted::{Wanted, want};

/// A format as the config has it (`[formats.NAME]`). Every list holds JSON pointers (RFC 6901, and `*` for every
/// element or member); of several that have a value the first in the list counts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
            end: Vec::new(),
            end_when: BTreeMap::new(),
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
    /// An array of results, and one of them.
    Results,
    Result,
    Error,
    ErrorWhen(Arc<[String]>),
    End,
    EndWhen(Arc<[String]>),
    Text,
    FinalText,
}

fn wants(action: &Action) -> u8 {
    match action {
        Action::Text | Action::FinalText => want::TEXT,
        Action::Count { .. } | Action::Model { .. } | Action::ErrorWhen(_) | Action::EndWhen(_) => {
            want::SCALAR
        }
        Action::Error | Action::End | Action::Message | Action::Result => want::SCALAR | want::CONTAINER,
        Action::Results => want::CONTAINER,
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
    /// A document in base64 within another.
    pub(super) wrapped: Wanted<Action>,
    pub(super) request: Tree<Ask>,
    /// Everything that is not JSON is text.
    pub(super) plain: bool,
    tokens: bool,
}

type Pointers<A> = Vec<(Vec<String>, A)>;

impl FormatConfig {
    fn shape(&self) -> Shape {
        Shape {
            merge: self.merge,
            input_includes_cached: self.input_includes_cached,
            output_includes_reasoning: self.output_includes_reasoning,
        }
    }

    fn counts(&self) -> [(&'static str, Class, &[String]); CLASSES] {
        [
            ("input", Class::Input, &self.input),
            ("extra_input", Class::ExtraInput, &self.extra_input),
            ("cached_input", Class::CachedInput, &self.cached_input),
            ("cache_write_input", Class::CacheWrite, &self.cache_write_input),
            ("output", Class::Output, &self.output),
            ("reasoning", Class::Reasoning, &self.reasoning),
            ("total", Class::Total, &self.total),
            ("billed_input", Class::BilledInput, &self.billed_input),
            ("billed_output", Class::BilledOutput, &self.billed_output),
        ]
    }

    fn tells_tokens(&self) -> bool {
        let told = self.counts().iter().any(|(_, _, pointers)| !pointers.is_empty());
        told || [&self.text, &self.final_text, &self.request.text].iter().any(|pointers| !pointers.is_empty())
    }

    fn count_pointers(&self, shape: u8, into: &mut Pointers<Action>) -> Result<(), KeyError> {
        for (key, class, pointers) in self.counts() {
            for (order, pointer) in (0..=u8::MAX).zip(pointers) {
                into.push((tokens(key, pointer)?, Action::Count { shape, class, order }));
            }
        }
        Ok(())
    }

    fn other_pointers(&self, into: &mut Pointers<Action>) -> Result<(), KeyError> {
        for (order, pointer) in (0..=u8::MAX).zip(&self.model) {
            into.push((tokens("model", pointer)?, Action::Model { order }));
        }
        for (pointer, names) in &self.error_when {
            into.push((tokens("error_when", pointer)?, Action::ErrorWhen(names.clone().into())));
        }
        for (pointer, names) in &self.end_when {
            into.push((tokens("end_when", pointer)?, Action::EndWhen(names.clone().into())));
        }
        for pointer in &self.results {
            let result = tokens("results", pointer)?;
            let [array @ .., star] = &result[..] else { continue };
            if star != "*" {
                return Err(("results", format!("`{pointer}` must end in `/*`, such as `/results/*`")));
            }
            into.push((array.to_vec(), Action::Results));
            into.push((result, Action::Result));
        }
        for (key, action, pointers) in [
            ("messages", Action::Message, &self.messages),
            ("error", Action::Error, &self.error),
            ("end", Action::End, &self.end),
            ("text", Action::Text, &self.text),
            ("final_text", Action::FinalText, &self.final_text),
        ] {
            for pointer in pointers {
                into.push((tokens(key, pointer)?, action.clone()));
            }
        }
        Ok(())
    }
}

impl RequestConfig {
    fn pointers(&self, into: &mut Pointers<Ask>) -> Result<(), KeyError> {
        for (key, ask, pointers) in [
            ("request.embeddings", Ask::Embeddings, &self.embeddings),
            ("request.text", Ask::Text, &self.text),
            ("request.model", Ask::Model, &self.model),
            ("request.session", Ask::Session, &self.session),
        ] {
            for pointer in pointers {
                into.push((tokens(key, pointer)?, ask));
            }
        }
        for pointer in &self.batches {
            let key = "request.batches";
            let member = tokens(key, pointer)?;
            let element = &member[..member.len() - 1];
            if element.last().is_none_or(|token| token != "*") {
                return Err((key, format!("`{pointer}` must end in `/*/name`, such as `/messages/*/query`")));
            }
            into.push((element.to_vec(), Ask::Element));
            into.push((member, Ask::Member));
        }
        Ok(())
    }
}

/// The key at fault, and what is wrong with it.
type KeyError = (&'static str, String);

fn tokens(key: &'static str, pointer: &str) -> Result<Vec<String>, KeyError> {
    parse(pointer).map_err(|error| (key, error.to_string()))
}

impl Format {
    /// Whether its requests or answers have anything to do with tokens.
    pub fn has_tokens(&self) -> bool {
        self.tokens
    }

    pub(super) fn new(name: &str, parts: &[&FormatConfig]) -> Result<Self, FormatError> {
        Self::build(name, parts).map_err(|(key, reason)| FormatError { format: name.to_owned(), key, reason })
    }

    fn build(name: &str, parts: &[&FormatConfig]) -> Result<Self, KeyError> {
        let mut answer = Vec::new();
        let mut request = Vec::new();
        let mut reporting: Vec<&FormatConfig> = Vec::new();
        for part in parts {
            part.other_pointers(&mut answer)?;
            part.request.pointers(&mut request)?;
            // Formats that report alike and differ in the rest have one shape.
            let alike =
                |other: &&FormatConfig| other.counts() == part.counts() && other.shape() == part.shape();
            if !reporting.iter().any(alike) {
                let shape =
                    u8::try_from(reporting.len()).map_err(|_| ("name", "too many formats".to_owned()))?;
                part.count_pointers(shape, &mut answer)?;
                reporting.push(part);
            }
        }
        unite(&mut answer);
        let tree = |error: PointerError| ("text", error.to_string());
        Ok(Self {
            name: name.to_owned(),
            counting: parts.first().map_or(Counting::Model, |part| part.counting),
            shapes: reporting.iter().map(|part| part.shape()).collect(),
            answer: Wanted::new(Tree::new(&answer).map_err(tree)?, wants),
            string: Wanted::new(Tree::new(&[(Vec::new(), Action::Text)]).map_err(tree)?, wants),
            wrapped: Wanted::new(
                Tree::new(&[(vec!["bytes".to_owned()], Action::Text)]).map_err(tree)?,
                wants,
            ),
            request: Tree::new(&request).map_err(tree)?,
            plain: parts.is_empty(),
            tokens: parts.is_empty() || parts.iter().any(|part| part.tells_tokens()),
        })
    }
}

/// Several formats may point at the same place for the same thing: it is one thing all the same. A text is final in
/// a union only if no format has it as a piece, and a model's name has its best place.
fn unite(answer: &mut Pointers<Action>) {
    let rank = |action: &Action| match action {
        Action::FinalText => 256,
        Action::Model { order } => u16::from(*order),
        _ => 0,
    };
    answer.sort_by_key(|(_, action)| rank(action));
    let mut seen = BTreeSet::new();
    answer.retain(|(tokens, action)| {
        let kind = match action {
            Action::Count { .. } | Action::ErrorWhen(_) | Action::EndWhen(_) => return true,
            Action::Text | Action::FinalText => "text",
            Action::Model { .. } => "model",
            Action::Message => "message",
            Action::Results => "results",
            Action::Result => "result",
            Action::Error => "error",
            Action::End => "end",
        };
        seen.insert((tokens.clone(), kind))
    });
}
