//! What is known of an exchange when its audit events are made.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::event::{Actor, AuditEvent, AuditResult, Outcome};
use crate::model::quota::Standing;
use crate::model::tenant::TenantId;
use crate::quota::Refusal;

/// What all audit events of one exchange have in common.
#[derive(Debug)]
pub(crate) struct Trail<'a> {
    /// `None`: the answer should have named it, and did not.
    pub(crate) tenant: Option<&'a TenantId>,
    /// The bearer token, where it named the tenant.
    pub(crate) bearer: Option<&'a Bearer>,
    pub(crate) session: Option<&'a str>,
    pub(crate) endpoint: &'a str,
    pub(crate) method: &'a str,
    pub(crate) client: IpAddr,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) request_id: &'a str,
    pub(crate) arrived: Timestamp,
    pub(crate) elapsed: Duration,
    /// Characters of the request's messages.
    pub(crate) message_chars: u64,
    /// The declared length of the request's body.
    pub(crate) content_length: Option<u64>,
    /// The segments of the path that the route has names for.
    pub(crate) segments: &'a [String],
    /// What the rules' pointers found in the request.
    pub(crate) request: &'a [Option<Value>],
}

/// A bearer token that named the tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bearer {
    /// Its subject (RFC 7519, `sub`).
    pub(crate) subject: Option<String>,
}

/// How an exchange went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) outcome: Outcome,
    /// The status that the client was sent.
    pub(crate) status: Option<u16>,
    pub(crate) tokens: Option<u64>,
    /// Whether the service had the call, as far as can be known.
    pub(crate) received: bool,
    /// What the rules' pointers found in the answer.
    pub(crate) answer: &'a [Option<Value>],
    pub(crate) refusal: Option<&'a Refusal>,
}

impl End<'_> {
    /// The gateway itself answered.
    pub(crate) fn unserved(outcome: Outcome, status: u16) -> Self {
        Self { outcome, status: Some(status), tokens: None, received: false, answer: &[], refusal: None }
    }

    pub(super) fn went_well(&self) -> bool {
        self.received && self.outcome == Outcome::Completed && self.status.is_some_and(|status| status < 400)
    }

    pub(super) fn why_not(&self) -> String {
        match (self.outcome, self.status) {
            (Outcome::Completed, Some(status)) => format!("the service answered {status}"),
            (outcome, _) => format!("the exchange ended as {}", outcome.as_str()),
        }
    }
}

impl Trail<'_> {
    pub(super) fn ended(&self) -> Timestamp {
        self.arrived.checked_add(self.elapsed).unwrap_or(self.arrived)
    }

    /// An event about the request itself, done by a visitor, that went well.
    pub(super) fn event(&self, event_type: &str, category: &str, action: &str, at: Timestamp) -> AuditEvent {
        AuditEvent {
            tenant_id: self.tenant.cloned(),
            actor: Actor::Visitor,
            ip_address: Some(self.client),
            user_agent: self.user_agent.map(str::to_owned),
            request_id: Some(self.request_id.to_owned()),
            ..AuditEvent::new(Uuid::now_v7(), at, event_type, category, action)
        }
    }

    /// Says what an event is about; the request itself, where `id` is not known.
    pub(super) fn about(&self, event: &mut AuditEvent, entity_type: &str, id: Option<String>) {
        event.entity_type = if id.is_some() { entity_type } else { "request" }.to_owned();
        event.entity_id = id.or_else(|| Some(self.request_id.to_owned()));
    }
}

/// A call of a tenant that an operator has blocked.
pub(crate) fn tenant_blocked(trail: &Trail<'_>) -> AuditEvent {
    let mut event = trail.event("tenant_blocked", "error", "execute", trail.ended());
    trail.about(&mut event, "chat_session", trail.session.map(str::to_owned));
    event.new_values = Some(json!({"endpoint": trail.endpoint, "reason": "blocked"}));
    event.result = AuditResult::Failure;
    event
}

/// The first call of a tenant over a soft limit in its window.
pub(crate) fn quota_soft_exceeded(trail: &Trail<'_>, standing: &Standing) -> AuditEvent {
    let mut event = trail.event("quota_soft_exceeded", "error", "execute", trail.ended());
    let dimension = standing.dimension.to_string();
    let unit = standing.dimension.unit;
    event.new_values = Some(json!({
        "quota_type": dimension,
        "limit": standing.limit.map(|limit| unit.shown(limit)),
        "used": unit.shown(standing.used),
        "window_start": standing.span.start.to_string(),
        "resets_at": standing.span.end.to_string(),
    }));
    trail.about(&mut event, "chat_session", trail.session.map(str::to_owned));
    event.result = AuditResult::Partial;
    event
}

/// A caller whose token is of one tenant and whose session is of another.
pub(crate) fn tenant_mismatch(trail: &Trail<'_>, session: &str) -> AuditEvent {
    let mut event = trail.event("security_violation", "security", "execute", trail.ended());
    trail.about(&mut event, "chat_session", trail.session.map(str::to_owned));
    event.new_values =
        Some(json!({"endpoint": trail.endpoint, "reason": "tenant_mismatch", "session": session}));
    event.result = AuditResult::Failure;
    event.error_message = Some("the bearer token does not belong to the session's tenant".into());
    event
}
