//! The exchange that fills a journal, for every benchmark that ships one.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tollgate::model::event::{EventType, Outcome, Record, UsageEvent};
use tollgate::model::quota::{Charge, Dimension};
use tollgate::model::tenant::TenantId;
use tollgate::model::tokens::{TokenSource, TokenUsage};
use uuid::Uuid;

/// A chat message of `tenant` at `at`, charged to the four standard counters.
pub(crate) fn usage(number: u64, tenant: &TenantId, at: Timestamp) -> Record {
    let charge = |dimension: Dimension| {
        let span = dimension.window.span(&TimeZone::UTC, at);
        Charge { dimension, window_start: span.start, window_end: span.end, amount: 1, limit: Some(1 << 40) }
    };
    Record::Usage(Box::new(UsageEvent {
        event_id: Uuid::now_v7(),
        tenant_id: tenant.clone(),
        event_type: EventType::ChatMessage,
        at,
        method: "POST".into(),
        endpoint: "/api/widget/chat".into(),
        status: Some(200),
        response_time_us: 830_000,
        first_byte_us: Some(210_000),
        chat_session_id: Some("0d6a2f2e-5f0e-4d0c-9a53-0b8f6c1d2e3f".into()),
        usage: TokenUsage { input: Some(1), ..TokenUsage::default() },
        tokens_consumed: Some(1),
        token_source: TokenSource::Reported,
        messages: 1,
        embeddings: 1,
        model: Some("gpt-4o-mini".into()),
        outcome: Outcome::Completed,
        streamed: false,
        cost_nanousd: 246_000,
        request_id: format!("r-{number}"),
        metadata: serde_json::Map::new(),
        charges: Dimension::STANDARD.map(charge).to_vec(),
        lease_run: 1,
    }))
}
