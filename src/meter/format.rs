//! Answer formats as data: where a service's answers and requests say what is metered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pointer::{PointerError, Tree, parse};
use super::tokenizer::Counting;
use super::usage::{Class, Merge, Shape};
use super::wanted::{Wanted, want};

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

/// What a value of an answer is good for.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Count(Count),
    /// One more of something.
    CountWhen {
        shape: u8,
        class: Class,
        names: Arc<[String]>,
    },
    /// A part of a usage has this name; the names are those of parts that the usage includes.
    PartName(Arc<[String]>),
    Tier,
    /// The cost is not the whole cost.
    NoCost,
    /// An object that is one call, and how deep such objects are nested here.
    Call {
        depth: u8,
    },
    CallId {
        shape: u8,
        depth: u8,
        /// Whether a new one always begins a new call.
        strong: bool,
    },
    CallEnd {
        shape: u8,
    },
    WholeWhen {
        depth: u8,
        names: Arc<[String]>,
    },
    TurnWhen {
        depth: u8,
        names: Arc<[String]>,
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
    ErrorUnless(Arc<[String]>),
    End,
    EndWhen(Arc<[String]>),
    Text,
    FinalText,
    Choice,
}

/// A count: whose, of what, and how far down its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) shape: u8,
    pub(super) class: Class,
    pub(super) order: u8,
    /// In how many nested [`Action::Call`] objects it stands: 0 is none, the answer as a whole.
    pub(super) depth: u8,
    /// It counts only where the parts of a usage are more than the usage.
    pub(super) part: bool,
}

/// A count in a header.
#[derive(Debug)]
pub(super) struct HeaderCount {
    pub(super) name: String,
    pub(super) shape: u8,
    pub(super) class: Class,
}

fn wants(action: &Action) -> u8 {
    match action {
        Action::Text | Action::FinalText => want::TEXT,
        Action::Count(_)
        | Action::CountWhen { .. }
        | Action::PartName(_)
        | Action::Tier
        | Action::CallId { .. }
        | Action::WholeWhen { .. }
        | Action::TurnWhen { .. }
        | Action::Model { .. }
        | Action::ErrorWhen(_)
        | Action::ErrorUnless(_)
        | Action::EndWhen(_)
        | Action::Choice => want::SCALAR,
        Action::Error
        | Action::End
        | Action::CallEnd { .. }
        | Action::NoCost
        | Action::Message
        | Action::Result => want::SCALAR | want::CONTAINER,
        Action::Results | Action::Call { .. } => want::CONTAINER,
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
    Role,
    Name,
    Call,
    Aside,
    Tools,
    /// An image, and where it has one, its member that holds it, and the one that says how closely it is looked at.
    Image,
    ImageSource,
    ImageDetail,
}

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

type Pointers<A> = Vec<(Vec<String>, A)>;

impl FormatConfig {
    fn shape(&self) -> Shape {
        Shape {
            merge: self.merge,
            input_includes_cached: self.input_includes_cached,
            output_includes_reasoning: self.output_includes_reasoning,
        }
    }

    fn counts(&self) -> Vec<(&'static str, Class, &[String])> {
        let billing = &self.billing;
        vec![
            ("input", Class::Input, &self.input),
            ("extra_input", Class::ExtraInput, &self.extra_input),
            ("cached_input", Class::CachedInput, &self.cached_input),
            ("cache_write_input", Class::CacheWrite, &self.cache_write_input),
            ("output", Class::Output, &self.output),
            ("reasoning", Class::Reasoning, &self.reasoning),
            ("total", Class::Total, &self.total),
            ("billed_input", Class::BilledInput, &self.billed_input),
            ("billed_output", Class::BilledOutput, &self.billed_output),
            ("billing.cache_write_1h", Class::CacheWrite1h, &billing.cache_write_1h),
            ("billing.audio_input", Class::AudioInput, &billing.audio_input),
            ("billing.audio_output", Class::AudioOutput, &billing.audio_output),
            ("billing.image_input", Class::ImageInput, &billing.image_input),
            ("billing.image_output", Class::ImageOutput, &billing.image_output),
            ("billing.web_searches", Class::WebSearches, &billing.web_searches),
            ("billing.rerank_units", Class::RerankUnits, &billing.rerank_units),
            ("billing.reported_cost", Class::Cost, &billing.reported_cost),
        ]
    }

    fn header_counts(&self) -> [(Class, &[String]); 6] {
        let headers = &self.headers;
        [
            (Class::Input, &headers.input),
            (Class::CachedInput, &headers.cached_input),
            (Class::CacheWrite, &headers.cache_write_input),
            (Class::Output, &headers.output),
            (Class::Total, &headers.total),
            (Class::Cost, &headers.reported_cost),
        ]
    }

    /// The same rules below each of the format's envelopes too. `None` where it has none.
    fn wrapped(&self) -> Option<Self> {
        if self.envelopes.is_empty() {
            return None;
        }
        let mut all = self.clone();
        let envelopes = &self.envelopes;
        let (billing, calls) = (&mut all.billing, &mut all.calls);
        for list in [
            &mut all.input,
            &mut all.extra_input,
            &mut all.cached_input,
            &mut all.cache_write_input,
            &mut all.output,
            &mut all.reasoning,
            &mut all.total,
            &mut all.billed_input,
            &mut all.billed_output,
            &mut all.model,
            &mut all.messages,
            &mut all.results,
            &mut all.error,
            &mut all.end,
            &mut all.text,
            &mut all.final_text,
            &mut billing.tier,
            &mut billing.cache_write_1h,
            &mut billing.audio_input,
            &mut billing.audio_output,
            &mut billing.image_input,
            &mut billing.image_output,
            &mut billing.web_searches,
            &mut billing.rerank_units,
            &mut billing.reported_cost,
            &mut billing.reported_cost_unless,
            &mut calls.each,
            &mut calls.id,
            &mut calls.event_id,
            &mut calls.end,
        ] {
            let below: Vec<_> = envelopes
                .iter()
                .flat_map(|envelope| list.iter().map(move |pointer| format!("{envelope}{pointer}")))
                .collect();
            list.extend(below);
        }
        for names in [
            &mut all.error_when,
            &mut all.end_when,
            &mut all.parts,
            &mut billing.web_searches_when,
            &mut calls.whole_when,
            &mut calls.turn_when,
        ] {
            let below: Vec<_> = envelopes
                .iter()
                .flat_map(|envelope| {
                    names.iter().map(move |(pointer, names)| (format!("{envelope}{pointer}"), names.clone()))
                })
                .collect();
            names.extend(below);
        }
        Some(all)
    }

    /// Whether both report alike, and so have one shape.
    fn reports_like(&self, other: &Self) -> bool {
        self.counts() == other.counts()
            && self.shape() == other.shape()
            && (&self.envelopes, &self.parts, &self.billing, &self.calls, &self.headers)
                == (&other.envelopes, &other.parts, &other.billing, &other.calls, &other.headers)
    }

    /// The keys of the counts that it has pointers for.
    pub fn reports(&self) -> impl Iterator<Item = &'static str> {
        self.counts().into_iter().filter(|(_, _, pointers)| !pointers.is_empty()).map(|(key, _, _)| key)
    }

    fn embeds(&self) -> bool {
        !self.request.embeddings.is_empty() && self.text.is_empty() && self.final_text.is_empty()
    }

    fn tells_tokens(&self) -> bool {
        let told = self.counts().iter().any(|(_, _, pointers)| !pointers.is_empty());
        let in_headers = self.header_counts().iter().any(|(_, names)| !names.is_empty());
        told || in_headers
            || [&self.text, &self.final_text, &self.request.text].iter().any(|pointers| !pointers.is_empty())
    }

    /// The counts of one shape: at their places, and before those, where a usage is told in parts, in the parts.
    fn count_pointers(&self, shape: u8, into: &mut Pointers<Action>) -> Result<(), KeyError> {
        let calls = Nested::new(&self.calls.each)?;
        let mut parts = Vec::new();
        for (pointer, names) in &self.parts {
            let name = tokens("parts", pointer)?;
            let [usage @ .., _, star, _] = &name[..] else { return Err(no_parts(pointer)) };
            if star != "*" {
                return Err(no_parts(pointer));
            }
            let list = name[..name.len() - 1].to_vec();
            parts.push((usage.to_vec(), list));
            into.push((name, Action::PartName(names.clone().into())));
        }
        for (key, class, pointers) in self.counts() {
            for (order, pointer) in (1..=u8::MAX).zip(pointers) {
                let place = tokens(key, pointer)?;
                let depth = calls.depth(&place);
                let count = Count { shape, class, order, depth, part: false };
                for (usage, list) in &parts {
                    let Some(rest) = place.strip_prefix(&usage[..]) else { continue };
                    let part = Count { order: 0, part: true, ..count };
                    into.push(([&list[..], rest].concat(), Action::Count(part)));
                }
                into.push((place, Action::Count(count)));
            }
        }
        for (pointer, names) in &self.billing.web_searches_when {
            let names = names.clone().into();
            let action = Action::CountWhen { shape, class: Class::WebSearches, names };
            into.push((tokens("billing.web_searches_when", pointer)?, action));
        }
        self.call_pointers(shape, &calls, into)
    }

    fn call_pointers(&self, shape: u8, calls: &Nested, into: &mut Pointers<Action>) -> Result<(), KeyError> {
        for place in &calls.places {
            into.push((place.clone(), Action::Call { depth: depth_of(place) }));
        }
        for (key, strong, pointers) in
            [("calls.id", true, &self.calls.id), ("calls.event_id", false, &self.calls.event_id)]
        {
            for pointer in pointers {
                let place = tokens(key, pointer)?;
                let depth = calls.depth_within(&place);
                into.push((place, Action::CallId { shape, depth, strong }));
            }
        }
        for pointer in &self.calls.end {
            into.push((tokens("calls.end", pointer)?, Action::CallEnd { shape }));
        }
        for (pointer, names) in &self.calls.whole_when {
            let place = tokens("calls.whole_when", pointer)?;
            let depth = calls.depth_within(&place);
            into.push((place, Action::WholeWhen { depth, names: names.clone().into() }));
        }
        for (pointer, names) in &self.calls.turn_when {
            let place = tokens("calls.turn_when", pointer)?;
            let depth = calls.depth_within(&place);
            if depth == 0 {
                let reason = format!("`{pointer}` must stand below one of calls.each, such as `/messages/*`");
                return Err(("calls.turn_when", reason));
            }
            into.push((place, Action::TurnWhen { depth, names: names.clone().into() }));
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
        for (pointer, values) in &self.error_unless {
            into.push((tokens("error_unless", pointer)?, Action::ErrorUnless(values.clone().into())));
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
            ("billing.tier", Action::Tier, &self.billing.tier),
            ("billing.reported_cost_unless", Action::NoCost, &self.billing.reported_cost_unless),
            ("messages", Action::Message, &self.messages),
            ("error", Action::Error, &self.error),
            ("end", Action::End, &self.end),
            ("text", Action::Text, &self.text),
            ("final_text", Action::FinalText, &self.final_text),
            ("choices", Action::Choice, &self.choices),
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
            ("request.roles", Ask::Role, &self.roles),
            ("request.names", Ask::Name, &self.names),
            ("request.calls", Ask::Call, &self.calls),
            ("request.aside", Ask::Aside, &self.aside),
            ("request.tools", Ask::Tools, &self.tools),
        ] {
            for pointer in pointers {
                into.push((tokens(key, pointer)?, ask));
            }
        }
        for pointer in &self.images {
            let image = tokens("request.images", pointer)?;
            for (member, ask) in
                [("url", Ask::ImageSource), ("data", Ask::ImageSource), ("detail", Ask::ImageDetail)]
            {
                into.push(([&image[..], &[member.to_owned()]].concat(), ask));
            }
            into.push((image, Ask::Image));
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

/// The objects of a format that are one call each.
struct Nested {
    places: Vec<Vec<String>>,
}

impl Nested {
    fn new(pointers: &[String]) -> Result<Self, KeyError> {
        let places: Result<Vec<_>, _> =
            pointers.iter().map(|pointer| tokens("calls.each", pointer)).collect();
        let places = places?;
        if places.iter().any(|place| place.len() > MAX_DEPTH) {
            return Err(("calls.each", format!("more than {MAX_DEPTH} levels")));
        }
        Ok(Self { places })
    }

    /// Of the objects that are named as the beginning of `place`, the innermost one's depth; 0 is none.
    fn depth(&self, place: &[String]) -> u8 {
        let within = |object: &&Vec<String>| object.len() < place.len() && place.starts_with(object);
        self.places.iter().filter(within).map(|object| depth_of(object)).max().unwrap_or(0)
    }

    /// Likewise, with a `*` of theirs for any name.
    fn depth_within(&self, place: &[String]) -> u8 {
        let fits = |(one, other): (&String, &String)| one == "*" || one == other;
        let within = |object: &&Vec<String>| object.len() < place.len() && object.iter().zip(place).all(fits);
        self.places.iter().filter(within).map(|object| depth_of(object)).max().unwrap_or(0)
    }
}

/// How deep an object that is a call may stand.
pub(super) const MAX_DEPTH: usize = 7;

fn depth_of(place: &[String]) -> u8 {
    u8::try_from(place.len()).unwrap_or(u8::MAX)
}

fn no_parts(pointer: &str) -> KeyError {
    ("parts", format!("`{pointer}` must end in `/*/name`, such as `/usage/iterations/*/type`"))
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

    /// Whether it is one of embeddings: its requests have texts to embed, and its answers no text.
    pub fn embeds(&self) -> bool {
        self.embeds
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
