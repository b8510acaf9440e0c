//! Audit rules, compiled for one route.
//!
//! What they take from a request or an answer is found by two lists of pointers, one for each; the exchange brings
//! what was found there ([`Trail::request`], [`End::answer`]). A route whose rules take nothing has no lists.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{AuditEntity, AuditRule, AuditSource, AuditWhen, Known};
use super::masking::masked;
use super::summary::Summary;
use super::trail::{End, Trail};
use crate::meter::Pointers;
use crate::model::event::{Actor, AuditEvent, AuditResult};
use crate::model::tenant::TenantId;

/// The rules of a route.
#[derive(Debug)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    request: Option<Arc<Pointers>>,
    answer: Option<Arc<Pointers>>,
    /// Which of the answer's values names the tenant.
    tenant: Option<usize>,
}

#[derive(Debug)]
struct Rule {
    config: AuditRule,
    entity: Option<Source>,
    values: Vec<Source>,
    summary: Option<Summary>,
}

/// Where a value is found: a place in one of the lists.
#[derive(Clone, Copy, Debug)]
enum Source {
    Request(usize),
    Answer(usize),
    Path(usize),
    Known(Known),
}

/// The lists in the making.
#[derive(Default)]
struct Lists<'a> {
    request: Vec<&'a str>,
    answer: Vec<&'a str>,
    segments: &'a [String],
}

impl Rules {
    /// Compiles the rules of a route whose path has names for `segments`, and whose answers name the tenant at
    /// `tenant`. An error is one sentence.
    pub(crate) fn new(
        rules: &[AuditRule],
        segments: &[String],
        tenant: Option<&str>,
    ) -> Result<Self, String> {
        let mut lists = Lists { segments, ..Lists::default() };
        let compiled = rules.iter().map(|rule| {
            let of = |why: String| format!("audit rule {}: {why}", rule.event_type);
            let entity = match &rule.entity {
                AuditEntity::Value(source) => Some(lists.source(source).map_err(of)?),
                AuditEntity::Request | AuditEntity::Session | AuditEntity::Tenant => None,
            };
            let values = rule.new_values.iter().map(|(_, value)| lists.source(&value.from).map_err(of));
            let values = values.collect::<Result<_, String>>()?;
            let names = rule.new_values.iter().map(|(name, _)| name.as_str());
            let summary = rule.summary.as_deref().map(|template| Summary::parse(template, names));
            let summary = summary.transpose().map_err(|why| of(format!("the summary {why}")))?;
            Ok(Rule { config: rule.clone(), entity, values, summary })
        });
        let compiled = compiled.collect::<Result<_, String>>()?;
        let tenant = tenant.map(|pointer| place(&mut lists.answer, pointer));
        let pointers = |list: Vec<&str>| match list.is_empty() {
            true => Ok(None),
            false => Pointers::new(list).map(|list| Some(Arc::new(list))).map_err(|error| error.to_string()),
        };
        let (request, answer) = (pointers(lists.request)?, pointers(lists.answer)?);
        Ok(Self { rules: compiled, request, answer, tenant })
    }

    /// What is to be taken from requests.
    pub(crate) fn request(&self) -> Option<&Arc<Pointers>> {
        self.request.as_ref()
    }

    /// What is to be taken from answers.
    pub(crate) fn answer(&self) -> Option<&Arc<Pointers>> {
        self.answer.as_ref()
    }

    /// The tenant that an answer names.
    pub(crate) fn tenant(&self, answer: &[Option<Value>]) -> Option<TenantId> {
        match answer.get(self.tenant?)?.as_ref()? {
            Value::String(id) => TenantId::parse(id).ok(),
            Value::Number(id) => TenantId::parse(&id.to_string()).ok(),
            _ => None,
        }
    }

    /// The events that an exchange leaves, each with its rule's place.
    pub(crate) fn events<'a>(
        &'a self,
        trail: &'a Trail<'a>,
        end: &'a End<'a>,
    ) -> impl Iterator<Item = (usize, AuditEvent)> + 'a {
        let applicable = self.rules.iter().enumerate().filter(|(_, rule)| rule.applies(end));
        applicable.map(|(place, rule)| (place, rule.event(trail, end)))
    }

    /// Whether the rule at `place` tells the tokens, and so may have to wait for them.
    pub(crate) fn tells_tokens(&self, place: usize) -> bool {
        self.rules.get(place).is_some_and(|rule| rule.token_names().next().is_some())
    }

    /// An event of the rule at `place`, with a count that came later.
    pub(crate) fn with_tokens(&self, place: usize, mut event: AuditEvent, tokens: u64) -> AuditEvent {
        let Some(rule) = self.rules.get(place) else { return event };
        if let Some(Value::Object(values)) = &mut event.new_values {
            for name in rule.token_names() {
                values.insert(name.to_owned(), tokens.into());
            }
            event.summary = rule.summary.as_ref().map(|summary| summary.render(Some(values)));
        }
        event
    }
}

impl<'a> Lists<'a> {
    fn source(&mut self, source: &'a AuditSource) -> Result<Source, String> {
        Ok(match source {
            AuditSource::Request(pointer) => Source::Request(place(&mut self.request, pointer)),
            AuditSource::Answer(pointer) => Source::Answer(place(&mut self.answer, pointer)),
            AuditSource::Known(known) => Source::Known(*known),
            AuditSource::Path(name) => {
                let place = self.segments.iter().position(|segment| segment == name);
                Source::Path(place.ok_or_else(|| format!("the route's path has no {{{name}}}"))?)
            }
        })
    }
}

fn place<'a>(list: &mut Vec<&'a str>, pointer: &'a str) -> usize {
    list.iter().position(|known| *known == pointer).unwrap_or_else(|| {
        list.push(pointer);
        list.len() - 1
    })
}

impl Rule {
    fn applies(&self, end: &End<'_>) -> bool {
        let refused = end.refusal.is_some();
        match &self.config.when {
            AuditWhen::Received => end.received,
            AuditWhen::Success => end.went_well(),
            AuditWhen::Failure => !refused && !end.went_well(),
            AuditWhen::Refused => refused,
            AuditWhen::Statuses(ranges) => end.status.is_some_and(|status| {
                let ended = status >= 400 || end.went_well();
                !refused && ended && ranges.iter().any(|range| range.contains(&status))
            }),
        }
    }

    fn token_names(&self) -> impl Iterator<Item = &str> {
        let names = self.config.new_values.iter().map(|(name, _)| name.as_str()).zip(&self.values);
        names.filter(|(_, source)| matches!(source, Source::Known(Known::Tokens))).map(|(name, _)| name)
    }

    fn event(&self, trail: &Trail<'_>, end: &End<'_>) -> AuditEvent {
        let AuditRule { event_type, category, action, entity_type, when, .. } = &self.config;
        let received = *when == AuditWhen::Received;
        let at = if received { trail.arrived } else { trail.ended() };
        let mut event = trail.event(event_type, category, action, at);
        trail.about(&mut event, entity_type, self.entity_id(trail, end));
        if !received && !end.went_well() {
            event.result = AuditResult::Failure;
            event.error_message = end.refusal.is_none().then(|| end.why_not());
        }
        event.actor = match self.config.actor {
            Some(actor) => actor,
            None if trail.bearer.is_some() => Actor::Tenant,
            None => Actor::Visitor,
        };
        if event.actor == Actor::Tenant {
            event.actor_id = trail.bearer.and_then(|bearer| bearer.subject.clone());
        }
        let values = self.values(trail, end);
        event.summary = self.summary.as_ref().map(|summary| summary.render(values.as_ref()));
        event.new_values = values.map(Value::Object);
        event.in_history = self.config.old_values;
        event
    }

    fn entity_id(&self, trail: &Trail<'_>, end: &End<'_>) -> Option<String> {
        match &self.config.entity {
            AuditEntity::Request => None,
            AuditEntity::Session => trail.session.map(str::to_owned),
            AuditEntity::Tenant => trail.tenant.map(|tenant| tenant.as_str().to_owned()),
            AuditEntity::Value(_) => match find(self.entity?, trail, end)? {
                Value::String(id) if !id.is_empty() => Some(id),
                Value::Number(id) => Some(id.to_string()),
                _ => None,
            },
        }
    }

    fn values(&self, trail: &Trail<'_>, end: &End<'_>) -> Option<Map<String, Value>> {
        if self.values.is_empty() {
            return None;
        }
        let mut values = Map::new();
        for ((name, value), source) in self.config.new_values.iter().zip(&self.values) {
            let Some(found) = find(*source, trail, end) else { continue };
            // What the gateway itself knows is numbers and words of its own.
            let ours = matches!(source, Source::Known(_));
            values.insert(name.clone(), if value.mask && !ours { masked(name, found) } else { found });
        }
        Some(values)
    }
}

/// The value, if there is one. What the gateway should know and does not is null.
fn find(source: Source, trail: &Trail<'_>, end: &End<'_>) -> Option<Value> {
    let standing = end.refusal.map(|refusal| &refusal.standing);
    let shown =
        |amount: Option<u64>| Value::from(standing.zip(amount).map(|(s, n)| s.dimension.unit.shown(n)));
    Some(match source {
        Source::Request(place) => return trail.request.get(place)?.clone(),
        Source::Answer(place) => return end.answer.get(place)?.clone(),
        Source::Path(place) => Value::from(trail.segments.get(place)?.as_str()),
        Source::Known(known) => match known {
            Known::Tokens => Value::from(end.tokens),
            Known::MessageLength => Value::from(trail.message_chars),
            Known::ContentLength => Value::from(trail.content_length),
            Known::Endpoint => Value::from(trail.endpoint),
            Known::Method => Value::from(trail.method),
            Known::Status => Value::from(end.status),
            Known::Outcome => Value::from(end.outcome.as_str()),
            Known::QuotaType => Value::from(standing.map(|standing| standing.dimension.to_string())),
            Known::Limit => shown(standing.and_then(|standing| standing.limit)),
            Known::Used => shown(standing.map(|standing| standing.used)),
            Known::Needed => shown(end.refusal.map(|refusal| refusal.needed)),
            Known::ExceededBy => shown(end.refusal.and_then(|refusal| {
                let needed = refusal.standing.used.saturating_add(refusal.needed);
                refusal.standing.limit.map(|limit| needed.saturating_sub(limit))
            })),
        },
    })
}
