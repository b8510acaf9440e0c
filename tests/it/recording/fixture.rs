//! Records, sinks, and a journal in a directory of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tollgate::model::event::{
    Actor, Amendment, AuditEvent, AuditResult, EventType, Outcome, Record, UsageEvent,
};
use tollgate::model::intent::Intent;
use tollgate::model::quota::{Amounts, Charge, Dimension};
use tollgate::model::tenant::TenantId;
use tollgate::model::tokens::{TokenSource, TokenUsage};
use tollgate::record::{Config, EventSink, Records, SinkError};
use uuid::Uuid;

pub(super) fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        max_bytes: 64 << 20,
        segment_bytes: 1 << 20,
        fsync_interval: Duration::from_millis(20),
        batch_records: 100,
        batch_linger: Duration::from_millis(1),
    }
}

fn id(n: u64) -> Uuid {
    Uuid::from_u128(0x018f_6b1e_0000_7000_8000_0000_0000_0000 | u128::from(n))
}

/// The number that a record was made with.
pub(super) fn number(record: &Record) -> u64 {
    record.event_id().as_u128() as u64 & 0xffff_ffff
}

pub(super) fn numbers<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<u64> {
    records.into_iter().map(number).collect()
}

pub(super) fn usage(n: u64) -> Record {
    let at = Timestamp::from_second(1_800_000_000 + n as i64).unwrap();
    let charge = |dimension: Dimension, amount| Charge {
        dimension,
        window_start: Timestamp::from_second(1_800_000_000).unwrap(),
        window_end: Timestamp::from_second(1_800_086_400).unwrap(),
        amount,
        limit: Some(10_000),
    };
    Record::Usage(Box::new(UsageEvent {
        event_id: id(n),
        tenant_id: TenantId::parse("tn_ab12cd").unwrap(),
        event_type: EventType::ChatMessage,
        at,
        method: "POST".into(),
        endpoint: "/api/widget/chat".into(),
        status: Some(200),
        response_time_us: 830_000,
        first_byte_us: Some(210_000),
        chat_session_id: Some("0d6a2f2e-5f0e-4d0c-9a53-0b8f6c1d2e3f".into()),
        usage: TokenUsage { input: Some(120), output: Some(380), ..TokenUsage::default() },
        tokens_consumed: Some(500),
        token_source: TokenSource::Reported,
        messages: 1,
        embeddings: 0,
        model: Some("gpt-4o-mini".into()),
        outcome: Outcome::Completed,
        streamed: false,
        cost_nanousd: 246_000,
        request_id: format!("r-{n}"),
        metadata: serde_json::Map::new(),
        charges: vec![charge(Dimension::STANDARD[0], 500), charge(Dimension::STANDARD[2], 1)],
        lease_run: 0,
    }))
}

/// Announces `usage(n)`.
pub(super) fn intent(n: u64) -> Box<Intent> {
    let Record::Usage(event) = usage(n) else { unreachable!() };
    let reserved = Amounts { tokens: 150, api_calls: 1, chat_messages: 1, ..Amounts::default() };
    let charges = event.charges.into_iter().map(|charge| {
        let amount = reserved.of(charge.dimension.unit) as i64;
        Charge { amount, ..charge }
    });
    Box::new(Intent {
        event_id: event.event_id,
        tenant_id: event.tenant_id,
        event_type: event.event_type,
        at: event.at,
        method: event.method,
        endpoint: event.endpoint,
        chat_session_id: event.chat_session_id,
        model: event.model,
        request_id: event.request_id,
        reserved,
        charges: charges.collect(),
        lease_run: 3,
        metadata: serde_json::Map::new(),
    })
}

/// Whether a record is what a dead process left of an exchange.
pub(super) fn crashed(record: &Record) -> bool {
    matches!(record, Record::Usage(event) if event.outcome == Outcome::Crashed)
}

pub(super) fn audit(n: u64) -> Record {
    Record::Audit(Box::new(AuditEvent {
        event_id: id(n),
        tenant_id: Some(TenantId::parse("tn_ab12cd").unwrap()),
        event_type: "chat_message_received".into(),
        category: "chat_activity".into(),
        entity_type: "chat_session".into(),
        entity_id: Some("0d6a2f2e-5f0e-4d0c-9a53-0b8f6c1d2e3f".into()),
        action: "create".into(),
        actor: Actor::Visitor,
        actor_id: None,
        old_values: None,
        new_values: Some(json!({ "message_length": 42, "ratio": 0.5 })),
        in_history: false,
        summary: None,
        result: AuditResult::Success,
        error_message: None,
        ip_address: Some(IpAddr::from([192, 0, 2, 7])),
        user_agent: Some("Mozilla/5.0 (widget)".into()),
        request_id: Some(format!("r-{n}")),
        at: Timestamp::from_second(1_800_000_000).unwrap(),
    }))
}

/// Corrects `usage(n)`.
pub(super) fn amendment(n: u64) -> Record {
    Record::Amend(Box::new(Amendment {
        event_id: id(n),
        tenant_id: TenantId::parse("tn_ab12cd").unwrap(),
        at: Timestamp::from_second(1_800_000_000 + n as i64).unwrap(),
        usage: TokenUsage { total: Some(7), ..TokenUsage::default() },
        tokens_consumed: 7,
        token_source: TokenSource::Counted,
        cost_nanousd: 1,
        charges: vec![],
        lease_run: 0,
    }))
}

pub(super) fn one(record: Record) -> Records {
    Records::from_iter([record])
}

type Answer = Box<dyn Fn(&[Record]) -> Result<(), SinkError> + Send + Sync>;

/// A sink that keeps what it is given, and answers as it is told.
pub(super) struct FakeSink {
    answer: Mutex<Answer>,
    written: Mutex<Vec<Record>>,
    calls: watch::Sender<u64>,
}

impl FakeSink {
    pub(super) fn new(
        answer: impl Fn(&[Record]) -> Result<(), SinkError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(Box::new(answer)),
            written: Mutex::default(),
            calls: watch::Sender::new(0),
        })
    }

    pub(super) fn willing() -> Arc<Self> {
        Self::new(|_| Ok(()))
    }

    pub(super) fn away() -> Arc<Self> {
        Self::new(|_| Err(SinkError::Transient("away".into())))
    }

    pub(super) fn answer_with(
        &self,
        answer: impl Fn(&[Record]) -> Result<(), SinkError> + Send + Sync + 'static,
    ) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    pub(super) fn written_crashed(&self) -> Vec<u64> {
        numbers(self.written.lock().unwrap().iter().filter(|record| crashed(record)))
    }

    pub(super) fn written(&self) -> Vec<u64> {
        numbers(&*self.written.lock().unwrap())
    }

    /// Sorted, for where several batches may be in flight.
    pub(super) fn written_sorted(&self) -> Vec<u64> {
        let mut written = self.written();
        written.sort_unstable();
        written
    }

    pub(super) fn written_set(&self) -> BTreeSet<u64> {
        self.written().into_iter().collect()
    }

    /// Waits until `done` holds after some call.
    pub(super) async fn until(&self, done: impl Fn(&Self) -> bool) {
        let mut calls = self.calls.subscribe();
        while !done(self) {
            calls.changed().await.unwrap();
        }
    }

    pub(super) fn calls(&self) -> u64 {
        *self.calls.borrow()
    }
}

impl EventSink for FakeSink {
    fn write<'a>(&'a self, batch: &'a [Record]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            // As a real one would: others get a turn in between.
            tokio::task::yield_now().await;
            let answer = (self.answer.lock().unwrap())(batch);
            if answer.is_ok() {
                self.written.lock().unwrap().extend(batch.iter().cloned());
            }
            self.calls.send_modify(|calls| *calls += 1);
            answer
        })
    }
}
