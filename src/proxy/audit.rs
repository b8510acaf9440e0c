//! What the audit trail says of a metered exchange: the chat service's own event names.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::event::{Actor, AuditEvent, AuditResult, EventType, Outcome};
use crate::model::tenant::TenantId;
use crate::quota::Refusal;

/// What all audit events of one exchange have in common.
#[derive(Debug)]
pub(crate) struct Trail<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) session: Option<&'a str>,
    pub(crate) endpoint: &'a str,
    pub(crate) event: EventType,
    pub(crate) client: IpAddr,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) request_id: &'a str,
    pub(crate) arrived: Timestamp,
    pub(crate) elapsed: Duration,
    /// Characters of the request's messages.
    pub(crate) message_chars: u64,
}

/// The events of an exchange that the upstream answered, or should have.
pub(crate) fn exchange(
    trail: &Trail<'_>,
    outcome: Outcome,
    status: Option<u16>,
    tokens: Option<u64>,
) -> impl IntoIterator<Item = AuditEvent> {
    let chat = trail.event == EventType::ChatMessage;
    let received = chat.then(|| {
        let new_values = json!({"message_length": trail.message_chars});
        trail.event("chat_message_received", "chat_activity", "create", trail.arrived, Some(new_values))
    });
    let went_well = outcome == Outcome::Completed && status.is_some_and(|status| status < 400);
    let ended = if went_well {
        chat.then(|| {
            let new_values = json!({"tokens_used": tokens});
            trail.event("chat_response_sent", "chat_activity", "create", trail.ended(), Some(new_values))
        })
    } else {
        Some(failure(trail, outcome, status))
    };
    received.into_iter().chain(ended)
}

/// The event that an answer was sent, with a count that came later.
pub(crate) fn with_tokens(mut sent: AuditEvent, tokens: u64) -> AuditEvent {
    if let Some(told) = sent.new_values.as_mut().and_then(|values| values.get_mut("tokens_used")) {
        *told = json!(tokens);
    }
    sent
}

/// An exchange that the gateway itself answered with an error.
pub(crate) fn api_error(trail: &Trail<'_>, status: u16) -> AuditEvent {
    let outcome = if status == 504 { Outcome::Timeout } else { Outcome::UpstreamError };
    failure(trail, outcome, Some(status))
}

fn failure(trail: &Trail<'_>, outcome: Outcome, status: Option<u16>) -> AuditEvent {
    let new_values = json!({"endpoint": trail.endpoint, "status_code": status, "outcome": outcome.as_str()});
    let event = trail.event("api_error", "error", "execute", trail.ended(), Some(new_values));
    let why = match (outcome, status) {
        (Outcome::Completed, Some(status)) => format!("the service answered {status}"),
        (outcome, _) => format!("the exchange ended as {}", outcome.as_str()),
    };
    AuditEvent { result: AuditResult::Failure, error_message: Some(why), ..event }
}

/// A refusal.
pub(crate) fn quota_exceeded(trail: &Trail<'_>, refusal: &Refusal) -> AuditEvent {
    let standing = &refusal.standing;
    let over = standing.limit.map(|limit| (standing.used + refusal.needed).saturating_sub(limit));
    let new_values = json!({
        "quota_type": standing.dimension.to_string(),
        "limit": standing.limit,
        "used": standing.used,
        "needed": refusal.needed,
        "exceeded_by": over,
    });
    let event = trail.event("quota_exceeded", "error", "execute", trail.ended(), Some(new_values));
    AuditEvent { result: AuditResult::Failure, ..event }
}

/// A call of a tenant that an operator has blocked.
pub(crate) fn tenant_blocked(trail: &Trail<'_>) -> AuditEvent {
    let new_values = json!({"endpoint": trail.endpoint, "reason": "blocked"});
    let event = trail.event("tenant_blocked", "error", "execute", trail.ended(), Some(new_values));
    AuditEvent { result: AuditResult::Failure, ..event }
}

/// A caller whose token is of one tenant and whose session is of another.
pub(crate) fn tenant_mismatch(trail: &Trail<'_>, session: &str) -> AuditEvent {
    let new_values = json!({"endpoint": trail.endpoint, "reason": "tenant_mismatch", "session": session});
    let event = trail.event("security_violation", "security", "execute", trail.ended(), Some(new_values));
    AuditEvent {
        result: AuditResult::Failure,
        error_message: Some("the bearer token does not belong to the session's tenant".into()),
        ..event
    }
}

impl Trail<'_> {
    fn ended(&self) -> Timestamp {
        self.arrived.checked_add(self.elapsed).unwrap_or(self.arrived)
    }

    fn event(
        &self,
        kind: &str,
        category: &str,
        action: &str,
        at: Timestamp,
        new_values: Option<Value>,
    ) -> AuditEvent {
        AuditEvent {
            event_id: Uuid::now_v7(),
            tenant_id: Some(self.tenant.clone()),
            event_type: kind.to_owned(),
            category: category.to_owned(),
            entity_type: if self.session.is_some() { "chat_session" } else { "request" }.to_owned(),
            entity_id: Some(self.session.unwrap_or(self.request_id).to_owned()),
            action: action.to_owned(),
            actor: Actor::Visitor,
            actor_id: None,
            old_values: None,
            new_values,
            summary: None,
            result: AuditResult::Success,
            error_message: None,
            ip_address: Some(self.client),
            user_agent: self.user_agent.map(str::to_owned),
            request_id: Some(self.request_id.to_owned()),
            at,
        }
    }
}
