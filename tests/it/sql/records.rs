//! Records for the tests of this folder.

use jiff::{Timestamp, ToSpan};
use serde_json::Map;
use tollgate::model::event::{
    Actor, Amendment, AuditEvent, AuditResult, EventType, Outcome, Record, UsageEvent,
};
use tollgate::model::quota::{Charge, Dimension, Unit};
use tollgate::model::tenant::TenantId;
use tollgate::model::tokens::{TokenSource, TokenUsage};
use tollgate::model::window::Window;
use uuid::Uuid;

pub(crate) const DAY: Dimension = Dimension { unit: Unit::Tokens, window: Window::Day };
pub(crate) const CALLS: Dimension = Dimension { unit: Unit::ApiCalls, window: Window::Minute };

pub(crate) fn charge(dimension: Dimension, at: Timestamp, amount: i64) -> Charge {
    let span = dimension.window.span(&jiff::tz::TimeZone::UTC, at);
    Charge { dimension, window_start: span.start, window_end: span.end, amount, limit: Some(10_000) }
}

/// A chat message that used `tokens`.
pub(crate) fn chat(tenant: &str, tokens: u64, at: Timestamp) -> UsageEvent {
    UsageEvent {
        event_id: Uuid::now_v7(),
        tenant_id: TenantId::parse(tenant).unwrap(),
        event_type: EventType::ChatMessage,
        at,
        method: "POST".into(),
        endpoint: "/api/widget/chat".into(),
        status: Some(200),
        response_time_us: 12_345,
        first_byte_us: Some(2_000),
        chat_session_id: Some("session-1".into()),
        usage: TokenUsage {
            input: Some(tokens / 4),
            output: Some(tokens - tokens / 4),
            ..TokenUsage::default()
        },
        tokens_consumed: Some(tokens),
        token_source: TokenSource::Reported,
        messages: 1,
        embeddings: 0,
        model: Some("gpt-4o-mini".into()),
        outcome: Outcome::Completed,
        streamed: false,
        cost_nanousd: 1_235,
        request_id: "r-1".into(),
        metadata: Map::new(),
        charges: vec![charge(DAY, at, tokens.cast_signed()), charge(CALLS, at, 1)],
        lease_run: 0,
    }
}

/// The same, charged what was reserved, and the amendment that brings `tokens`.
pub(crate) fn amended(tenant: &str, reserved: u64, tokens: u64, at: Timestamp) -> (UsageEvent, Amendment) {
    let event = UsageEvent { token_source: TokenSource::Reserved, ..chat(tenant, reserved, at) };
    let amendment = Amendment {
        event_id: event.event_id,
        tenant_id: event.tenant_id.clone(),
        at,
        usage: TokenUsage { total: Some(tokens), ..TokenUsage::default() },
        tokens_consumed: tokens,
        token_source: TokenSource::Counted,
        cost_nanousd: 999,
        charges: vec![charge(DAY, at, tokens.cast_signed() - reserved.cast_signed())],
        lease_run: 0,
    };
    (event, amendment)
}

pub(crate) fn audit(tenant: &str, event_type: &str, at: Timestamp) -> AuditEvent {
    AuditEvent {
        event_id: Uuid::now_v7(),
        tenant_id: Some(TenantId::parse(tenant).unwrap()),
        event_type: event_type.into(),
        category: "chat_activity".into(),
        entity_type: "chat_session".into(),
        entity_id: Some("session-1".into()),
        action: "create".into(),
        actor: Actor::Visitor,
        actor_id: None,
        old_values: None,
        new_values: Some(serde_json::json!({"message_length": 5})),
        in_history: false,
        summary: None,
        result: AuditResult::Success,
        error_message: None,
        ip_address: Some("192.0.2.7".parse().unwrap()),
        user_agent: Some("test".into()),
        request_id: Some("r-1".into()),
        at,
    }
}

pub(crate) fn usage(event: UsageEvent) -> Record {
    Record::Usage(Box::new(event))
}

pub(crate) fn amend(amendment: Amendment) -> Record {
    Record::Amend(Box::new(amendment))
}

pub(crate) fn audited(event: AuditEvent) -> Record {
    Record::Audit(Box::new(event))
}

pub(crate) fn hours_ago(hours: i64) -> Timestamp {
    Timestamp::now() - hours.hours()
}
