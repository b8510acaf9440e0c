//! The pointers of a format of the config, each with what to do with the value that it points at.

use super::super::pointer::parse;
use super::super::usage::{Class, Shape};
use super::action::{Action, Ask, Count};
use super::config::{FormatConfig, RequestConfig};

pub(super) type Pointers<A> = Vec<(Vec<String>, A)>;

impl FormatConfig {
    pub(super) fn shape(&self) -> Shape {
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

    pub(super) fn header_counts(&self) -> [(Class, &[String]); 6] {
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
    pub(super) fn wrapped(&self) -> Option<Self> {
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
            &mut all.choices,
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
            &mut all.error_unless,
            &mut all.end_when,
            &mut all.parts,
            &mut all.named,
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
    pub(super) fn reports_like(&self, other: &Self) -> bool {
        self.counts() == other.counts()
            && self.shape() == other.shape()
            && (&self.envelopes, &self.parts, &self.named, &self.billing, &self.calls, &self.headers)
                == (
                    &other.envelopes,
                    &other.parts,
                    &other.named,
                    &other.billing,
                    &other.calls,
                    &other.headers,
                )
    }

    /// The keys of the counts that it has pointers for.
    pub fn reports(&self) -> impl Iterator<Item = &'static str> {
        self.counts().into_iter().filter(|(_, _, pointers)| !pointers.is_empty()).map(|(key, _, _)| key)
    }

    pub(super) fn embeds(&self) -> bool {
        !self.request.embeddings.is_empty() && self.text.is_empty() && self.final_text.is_empty()
    }

    pub(super) fn tells_tokens(&self) -> bool {
        let told = self.counts().iter().any(|(_, _, pointers)| !pointers.is_empty());
        let in_headers = self.header_counts().iter().any(|(_, names)| !names.is_empty());
        told || in_headers
            || [&self.text, &self.final_text, &self.request.text].iter().any(|pointers| !pointers.is_empty())
    }

    /// The counts of one shape: at their places, and before those, where a usage is told in parts, in the parts.
    pub(super) fn count_pointers(&self, shape: u8, into: &mut Pointers<Action>) -> Result<(), KeyError> {
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
        for (pointer, counts) in &self.named {
            let name = tokens("named", pointer)?;
            let [object @ .., _] = &name[..] else { continue };
            into.push((object.to_vec(), Action::Named));
            for count in counts {
                into.push(([object, std::slice::from_ref(count)].concat(), Action::NamedCount));
            }
            into.push((name, Action::Name));
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

    pub(super) fn other_pointers(&self, into: &mut Pointers<Action>) -> Result<(), KeyError> {
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
    pub(super) fn pointers(&self, into: &mut Pointers<Ask>) -> Result<(), KeyError> {
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
pub(in crate::meter) const MAX_DEPTH: usize = 7;

fn depth_of(place: &[String]) -> u8 {
    u8::try_from(place.len()).unwrap_or(u8::MAX)
}

fn no_parts(pointer: &str) -> KeyError {
    ("parts", format!("`{pointer}` must end in `/*/name`, such as `/usage/iterations/*/type`"))
}

/// The key at fault, and what is wrong with it.
pub(super) type KeyError = (&'static str, String);

pub(super) fn tokens(key: &'static str, pointer: &str) -> Result<Vec<String>, KeyError> {
    parse(pointer).map_err(|error| (key, error.to_string()))
}
