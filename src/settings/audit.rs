//! `[[audit]]` and `[[routes.audit]]`: what exchanges leave in the audit trail.

use std::ops::RangeInclusive;

use super::reader::{Slot, Table, all};
use super::units;
use crate::model::event::{Actor, EventType};
use crate::proxy::{AuditEntity, AuditRule, AuditSource, AuditValue, AuditWhen, Known};

/// A rule for every route that records one of `events`; for every route at all, where none are named.
#[derive(Clone, Debug)]
pub(super) struct SharedRule {
    events: Vec<EventType>,
    rule: AuditRule,
}

impl SharedRule {
    /// The rule, where it holds for `event`.
    pub(super) fn of(&self, event: EventType) -> Option<AuditRule> {
        (self.events.is_empty() || self.events.contains(&event)).then(|| self.rule.clone())
    }
}

/// What a rule may take its values from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach<'a> {
    /// The path's own names for its segments; `None` where the rule is for any path.
    pub(super) segments: Option<&'a [String]>,
    /// Whether the request's body is read.
    pub(super) reads_body: bool,
}

const CATEGORIES: [&str; 6] =
    ["trial_event", "kb_operation", "chat_activity", "configuration_change", "error", "security"];
const ACTIONS: [&str; 5] = ["create", "read", "update", "delete", "execute"];
const ACTORS: [(&str, Option<Actor>); 5] = [
    ("auto", None),
    ("visitor", Some(Actor::Visitor)),
    ("tenant", Some(Actor::Tenant)),
    ("admin", Some(Actor::Admin)),
    ("system", Some(Actor::System)),
];

/// `[[audit]]`.
pub(super) fn shared(root: &Table<'_>) -> Option<Vec<SharedRule>> {
    let rules = root.key("audit").list()?;
    all(rules.iter().map(|slot| {
        let table = slot.table()?;
        let events = table.optional("events").map_or(Some(Vec::new()), |slot| slot.strings(event));
        // A body may or may not be read, by the route: where it is not, there is no such value.
        let rule = rule(&table, &Reach { segments: None, reads_body: true });
        Some(SharedRule { events: events?, rule: rule? })
    }))
}

/// `[[routes.audit]]`.
pub(super) fn of_route(slot: &Slot<'_>, reach: &Reach<'_>) -> Option<Vec<AuditRule>> {
    all(slot.list()?.iter().map(|slot| rule(&slot.table()?, reach)))
}

fn event(text: &str) -> Result<EventType, String> {
    EventType::ALL.into_iter().find(|event| event.as_str() == text).ok_or_else(|| {
        let names = EventType::ALL.map(EventType::as_str);
        format!("{text:?} is no event: write {}{}", names.join(", "), units::suggestion(text, names))
    })
}

fn rule(table: &Table<'_>, reach: &Reach<'_>) -> Option<AuditRule> {
    let event_type = table.key("event_type").parse("a string", name);
    let category = table.key("category").choice(&CATEGORIES.map(|name| (name, name)));
    let entity_type = table.key("entity_type").parse("a string", name);
    let entity = table.optional("entity").map_or(Some(AuditEntity::Request), |slot| entity(&slot, reach));
    let action = table.key("action").choice(&ACTIONS.map(|name| (name, name)));
    let when = when(&table.key("when"));
    let actor = table.optional("actor").map_or(Some(None), |slot| slot.choice(&ACTORS));
    let new_values = table.optional("new_values").map_or(Some(Vec::new()), |slot| values(&slot, reach));
    let old_values = table.optional("old_values").map_or(Some(false), |slot| slot.boolean());
    let summary = table
        .optional("summary")
        .map(|slot| slot.parse("a string", |text| summary(text, new_values.as_deref())));
    let summary = match summary {
        Some(None) => None,
        given => Some(given.flatten()),
    };
    Some(AuditRule {
        event_type: event_type?,
        category: category?.to_owned(),
        entity_type: entity_type?,
        entity: entity?,
        action: action?.to_owned(),
        when: when?,
        actor: actor?,
        new_values: new_values?,
        old_values: old_values?,
        summary: summary?,
    })
}

/// What the trail is searched by.
fn name(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
        return Err(format!("{text:?} is no name: 1 to 64 of a-z 0-9 _ . -, such as \"plan_changed\""));
    }
    Ok(text.to_owned())
}

/// `values` is `None` where they have faults of their own; then no name is held against them.
fn summary(text: &str, values: Option<&[(String, AuditValue)]>) -> Result<String, String> {
    let mut rest = text;
    while let Some((_, more)) = rest.split_once('{') {
        let Some((name, more)) = more.split_once('}') else {
            return Err(format!("{text:?} has a {{ without its }}"));
        };
        if let Some(values) = values.filter(|values| !values.iter().any(|(known, _)| known == name)) {
            let known = units::suggestion(name, values.iter().map(|(name, _)| name.as_str()));
            return Err(format!("{{{name}}} is none of the rule's new_values{known}"));
        }
        rest = more;
    }
    Ok(text.to_owned())
}

fn entity(slot: &Slot<'_>, reach: &Reach<'_>) -> Option<AuditEntity> {
    if slot.is_table() {
        return source(&slot.clone().in_one_line().table()?, reach).map(AuditEntity::Value);
    }
    slot.parse("\"request\", \"session\", \"tenant\", or a table such as { path = \"tenant\" }", |text| {
        match text {
            "request" => Ok(AuditEntity::Request),
            "session" => Ok(AuditEntity::Session),
            "tenant" => Ok(AuditEntity::Tenant),
            _ => Err(format!(
                "{text:?} is nothing that an event can be about: write \"request\", \"session\", \"tenant\", \
                 {{ request = \"/pointer\" }}, {{ answer = \"/pointer\" }} or {{ path = \"segment\" }}"
            )),
        }
    })
}

fn when(slot: &Slot<'_>) -> Option<AuditWhen> {
    if slot.is_list() {
        let ranges = slot.strings(statuses)?;
        if ranges.is_empty() {
            slot.fault("is empty, so there is never such an event: name a status, such as \"201\"");
            return None;
        }
        return Some(AuditWhen::Statuses(ranges));
    }
    let words = [
        ("received", AuditWhen::Received),
        ("success", AuditWhen::Success),
        ("failure", AuditWhen::Failure),
        ("refused", AuditWhen::Refused),
    ];
    slot.parse("a string, or a list of statuses", |text| {
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, when)| when.clone());
        found.ok_or_else(|| {
            let known = units::suggestion(text, words.iter().map(|(word, _)| *word));
            format!(
                "{text:?} is no such time: write \"received\", \"success\", \"failure\", \"refused\", or a list of \
                 statuses, such as [\"201\", \"4xx\"]{known}"
            )
        })
    })
}

/// `201`, or `4xx`.
fn statuses(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is no status: write one such as \"201\", or a class such as \"4xx\"");
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().map_err(|_| wrong())?;
        return if (2..=5).contains(&class) { Ok(class * 100..=class * 100 + 99) } else { Err(wrong()) };
    }
    let status = text.parse().ok().filter(|status| (200..=599).contains(status)).ok_or_else(wrong)?;
    Ok(status..=status)
}

fn values(slot: &Slot<'_>, reach: &Reach<'_>) -> Option<Vec<(String, AuditValue)>> {
    let named = slot.clone().in_one_line().table()?.named();
    all(named.iter().map(|(name, slot)| {
        if name.is_empty()
            || name.len() > 64
            || name.contains(['{', '}'])
            || name.chars().any(char::is_control)
        {
            slot.fault("is no value's name: 1 to 64 printable characters, without braces");
            return None;
        }
        Some((name.clone(), value(slot, reach)?))
    }))
}

fn value(slot: &Slot<'_>, reach: &Reach<'_>) -> Option<AuditValue> {
    if !slot.is_table() {
        let wanted =
            "what the gateway knows, such as \"status\", or a table such as { request = \"/pointer\" }";
        let known = slot.parse(wanted, known)?;
        return Some(AuditValue { from: AuditSource::Known(known), mask: true });
    }
    let table = slot.table()?;
    let mask = table.optional("mask").map_or(Some(true), |slot| slot.boolean());
    let from = source(&table, reach);
    Some(AuditValue { from: from?, mask: mask? })
}

fn known(text: &str) -> Result<Known, String> {
    let found = Known::NAMES.iter().find(|(name, _)| *name == text).map(|(_, known)| *known);
    found.ok_or_else(|| {
        let names = Known::NAMES.map(|(name, _)| name);
        format!(
            "{text:?} is nothing that the gateway knows: write {}, or take it from the request or the answer, as \
             {{ request = \"/pointer\" }}{}",
            names.join(", "),
            units::suggestion(text, names)
        )
    })
}

fn source(table: &Table<'_>, reach: &Reach<'_>) -> Option<AuditSource> {
    let (request, answer, path) =
        (table.optional("request"), table.optional("answer"), table.optional("path"));
    match (request, answer, path) {
        (Some(slot), None, None) => {
            if !reach.reads_body {
                slot.fault("is never there: the route's body is \"opaque\", so its requests are not read");
                return None;
            }
            slot.parse("a string", units::pointer).map(AuditSource::Request)
        }
        (None, Some(slot), None) => slot.parse("a string", units::pointer).map(AuditSource::Answer),
        (None, None, Some(slot)) => {
            let Some(segments) = reach.segments else {
                slot.fault("is for [[routes.audit]] alone: here the rule is for any path");
                return None;
            };
            slot.parse("a string", |name| segment(name, segments)).map(AuditSource::Path)
        }
        _ => {
            table.fault("must be one of { request = … }, { answer = … }, { path = … }");
            None
        }
    }
}

/// The name of a segment of the route's path.
pub(super) fn segment(name: &str, segments: &[String]) -> Result<String, String> {
    if segments.iter().any(|segment| segment == name) {
        return Ok(name.to_owned());
    }
    Err(format!("the route's path has no {{{name}}}: write it there, for the segment that is meant"))
}
