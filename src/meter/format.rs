//! Answer formats as data: where a service's answers and requests say what is metered.

mod action;
mod config;
mod pointers;

use std::collections::{BTreeMap, BTreeSet};

use super::pointer::{PointerError, Tree};
use super::tokenizer::Counting;
use super::usage::Shape;
use super::wanted::Wanted;
use crate::model::event::EventType;
use action::{HeaderCount, wants};
use pointers::{KeyError, Pointers, tokens};

pub(super) use action::{Action, Ask, Count};
pub use config::{BillingConfig, CallsConfig, FormatConfig, FormatError, HeadersConfig, RequestConfig};
pub(super) use pointers::MAX_DEPTH;

/// The rules by which one service's answers are read: data, built in or from the config.
#[derive(Debug)]
pub struct Format {
    /// `auto`, `chat-service`, `openai-chat`, …
    pub name: String,
    /// How text is counted where nothing is reported.
    pub counting: Counting,
    pub(super) shapes: Vec<Shape>,
    pub(super) headers: Vec<HeaderCount>,
    /// The depths at which a list's objects may turn out to be an earlier answer's.
    pub(super) turns: [bool; MAX_DEPTH + 1],
    pub(super) answer: Wanted<Action>,
    /// A text that is nothing but one string.
    pub(super) string: Wanted<Action>,
    /// A document in base64 within another.
    pub(super) wrapped: Wanted<Action>,
    pub(super) request: Tree<Ask>,
    /// Everything that is not JSON is text.
    pub(super) plain: bool,
    tokens: bool,
    embeds: bool,
}

impl Format {
    /// Whether its requests or answers have anything to do with tokens.
    pub fn has_tokens(&self) -> bool {
        self.tokens
    }

    /// Whether it is one of embeddings: its requests have texts to embed, and its answers no text.
    pub fn embeds(&self) -> bool {
        self.embeds
    }

    /// Whether the member `key` of a request, whatever the case of its letters, holds what calls of `event` count: messages,
    /// or texts to embed.
    pub fn holds_items(&self, key: &str, event: EventType) -> bool {
        let (node, own) = self.request.member_in_any_case(Tree::<Ask>::ROOT, key);
        let counted = |ask: &Ask| match ask {
            Ask::Element => event == EventType::ChatMessage,
            Ask::Embeddings => event == EventType::Embedding,
            _ => false,
        };
        own.is_some() && self.request.subtree(node).any(|node| self.request.actions(node).iter().any(counted))
    }

    pub(super) fn new(name: &str, parts: &[&FormatConfig]) -> Result<Self, FormatError> {
        Self::build(name, parts).map_err(|(key, reason)| FormatError { format: name.to_owned(), key, reason })
    }

    fn build(name: &str, parts: &[&FormatConfig]) -> Result<Self, KeyError> {
        let mut answer = Vec::new();
        let mut request = Vec::new();
        let mut reporting: Vec<FormatConfig> = Vec::new();
        let mut headers = Vec::new();
        for part in parts {
            part.request.pointers(&mut request)?;
            for envelope in &part.envelopes {
                tokens("envelopes", envelope)?;
            }
            let wrapped = part.wrapped();
            let part = wrapped.as_ref().unwrap_or(part);
            part.other_pointers(&mut answer)?;
            // Formats that report alike and differ in the rest have one shape.
            if !reporting.iter().any(|other| other.reports_like(part)) {
                let shape =
                    u8::try_from(reporting.len()).map_err(|_| ("name", "too many formats".to_owned()))?;
                part.count_pointers(shape, &mut answer)?;
                let bad = |name: &&String| http::HeaderName::try_from(name.as_str()).is_err();
                if let Some(name) = part.header_counts().iter().flat_map(|(_, names)| *names).find(bad) {
                    return Err(("headers", format!("`{name}` is not the name of a header")));
                }
                for (class, names) in part.header_counts() {
                    let names = names.iter().map(|name| name.to_ascii_lowercase());
                    headers.extend(names.map(|name| HeaderCount { name, shape, class }));
                }
                reporting.push(part.clone());
            }
        }
        unite(&mut answer);
        let mut turns = [false; MAX_DEPTH + 1];
        for (_, action) in &answer {
            if let Action::TurnWhen { depth, .. } = action {
                turns[usize::from(*depth)] = true;
            }
        }
        let tree = |error: PointerError| ("text", error.to_string());
        Ok(Self {
            name: name.to_owned(),
            counting: parts.first().map_or(Counting::Model, |part| part.counting),
            shapes: reporting.iter().map(FormatConfig::shape).collect(),
            headers,
            turns,
            answer: Wanted::new(Tree::new(&answer).map_err(tree)?, wants),
            string: Wanted::new(Tree::new(&[(Vec::new(), Action::Text)]).map_err(tree)?, wants),
            wrapped: Wanted::new(
                Tree::new(&[(vec!["bytes".to_owned()], Action::Text)]).map_err(tree)?,
                wants,
            ),
            request: Tree::new(&request).map_err(tree)?,
            plain: parts.is_empty(),
            tokens: parts.is_empty() || parts.iter().any(|part| part.tells_tokens()),
            embeds: !parts.is_empty() && parts.iter().all(|part| part.embeds()),
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
    unite_names(answer);
    let mut seen = BTreeSet::new();
    answer.retain(|(tokens, action)| {
        let kind = match action {
            Action::Count(_)
            | Action::CountWhen { .. }
            | Action::PartName(_)
            | Action::CallId { .. }
            | Action::CallEnd { .. }
            | Action::WholeWhen { .. }
            | Action::TurnWhen { .. }
            | Action::ErrorWhen(_)
            | Action::ErrorUnless(_)
            | Action::EndWhen(_) => return true,
            Action::Named => "named",
            Action::Name => "name",
            Action::NamedCount => "named count",
            Action::Tier => "tier",
            Action::NoCost => "no cost",
            Action::Call { .. } => "call",
            Action::Text | Action::FinalText => "text",
            Action::Model { .. } => "model",
            Action::Message => "message",
            Action::Results => "results",
            Action::Result => "result",
            Action::Error => "error",
            Action::End => "end",
            Action::Choice => "choice",
        };
        seen.insert((tokens.clone(), kind))
    });
}

/// Names that mean the same at one place are one list.
fn unite_names(answer: &mut Pointers<Action>) {
    let mut lists: BTreeMap<(Vec<String>, bool), BTreeSet<String>> = BTreeMap::new();
    answer.retain(|(tokens, action)| {
        let (ends, names) = match action {
            Action::EndWhen(names) => (true, names),
            Action::ErrorWhen(names) => (false, names),
            _ => return true,
        };
        lists.entry((tokens.clone(), ends)).or_default().extend(names.iter().cloned());
        false
    });
    answer.extend(lists.into_iter().map(|((tokens, ends), names)| {
        let names = names.into_iter().collect();
        (tokens, if ends { Action::EndWhen(names) } else { Action::ErrorWhen(names) })
    }));
}
