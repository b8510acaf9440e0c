//! Audit rules as the config has them (`[[audit]]`, `[[routes.audit]]`).

use std::ops::RangeInclusive;

use crate::model::event::Actor;

/// What one kind of event in the audit trail says, and when there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRule {
    /// What happened.
    pub event_type: String,
    /// Of what sort that is.
    pub category: String,
    /// What kind of thing it happened to.
    pub entity_type: String,
    /// Which one. Where that is not to be found, it is the request that it happened to.
    pub entity: AuditEntity,
    /// What was done to it.
    pub action: String,
    /// Which exchanges make the event.
    pub when: AuditWhen,
    /// Who did it; `None` is the tenant where a bearer token named it, else a visitor.
    pub actor: Option<Actor>,
    /// What is now, by name.
    pub new_values: Vec<(String, AuditValue)>,
    /// Whether the event belongs to the history of its entity, and tells what was before.
    pub old_values: bool,
    /// One sentence for people, with new values in braces.
    pub summary: Option<String>,
}

/// What an audit event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEntity {
    /// The request itself.
    Request,
    /// The chat session that the request names.
    Session,
    /// The tenant.
    Tenant,
    /// What a value names.
    Value(AuditSource),
}

/// Which exchanges make an audit event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditWhen {
    /// The service had the call, whatever came of it.
    Received,
    /// It was answered well, and the answer reached its end.
    Success,
    /// It was not, or the service could not be reached.
    Failure,
    /// It was refused for quota.
    Refused,
    /// It was answered with one of these statuses; below 400, to the end.
    Statuses(Vec<RangeInclusive<u16>>),
}

/// A value of an audit event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditValue {
    /// Where it comes from.
    pub from: AuditSource,
    /// Whether addresses, numbers and keys in it are masked.
    pub mask: bool,
}

/// Where a value of an audit event comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditSource {
    /// A value in the request's JSON (RFC 6901).
    Request(String),
    /// A value in the answer's JSON (RFC 6901).
    Answer(String),
    /// A segment of the route's path, by its name there.
    Path(String),
    /// What the gateway knows itself.
    Known(Known),
}

/// What the gateway knows itself of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Tokens charged.
    Tokens,
    /// Characters of the request's messages.
    MessageLength,
    /// The declared length of the request's body, in bytes.
    ContentLength,
    /// The route's path, as configured.
    Endpoint,
    /// The request's method.
    Method,
    /// The status that the client was sent.
    Status,
    /// How the exchange ended.
    Outcome,
    /// Of a refusal: the dimension.
    QuotaType,
    /// Of a refusal: its limit.
    Limit,
    /// Of a refusal: what was used of it.
    Used,
    /// Of a refusal: what the request would have needed.
    Needed,
    /// Of a refusal: by how much that is too much.
    ExceededBy,
}

impl Known {
    /// All, as the config spells them.
    pub const NAMES: [(&'static str, Known); 12] = [
        ("tokens", Known::Tokens),
        ("message_length", Known::MessageLength),
        ("content_length", Known::ContentLength),
        ("endpoint", Known::Endpoint),
        ("method", Known::Method),
        ("status", Known::Status),
        ("outcome", Known::Outcome),
        ("quota_type", Known::QuotaType),
        ("limit", Known::Limit),
        ("used", Known::Used),
        ("needed", Known::Needed),
        ("exceeded_by", Known::ExceededBy),
    ];
}
