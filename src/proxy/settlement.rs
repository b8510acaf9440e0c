//! The end of a metered exchange: what it is charged, and what is recorded of it. Exactly once, whatever happens.
//!
//! Constraints:
//! 1. `finish` is called once with the outcome that really happened; dropping a settlement that was not finished
//!    (a client that left, a panic) finishes it all the same, without waiting.
//! 2. The reservation is held until what was used is known and on its way to the journal.
//! 3. `finish` returns when the records are in the journal: only then may the client see the end of the answer. A
//!    count is waited for at most `count_wait`; past that the event says what was reserved, and is amended later.
//! 4. No message text leaves this file: it is counted and dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Map, json};
use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::audit::{self, Trail};
use super::charging::{self, Basis, Facts, Priced};
use super::config::Enforce;
use super::core::{Core, Policy};
use super::headers::Caller;
use super::route::Route;
use crate::meter::{CountJob, Counted, estimate};
use crate::meter::{Inspected, Meter, Reading};
use crate::model::event::{Amendment, AuditEvent, EventType, Outcome, Record, UsageEvent};
use crate::model::quota::{Amounts, Charge, Unit};
use crate::model::tenant::TenantId;
use crate::model::tokens::{TokenSource, TokenUsage};
use crate::quota::{Entitlement, Refusal, Reservation};
use crate::record::{Hub, Records};
use crate::telemetry::{Label, bump};

/// How long the end of an answer waits for the journal before it is released all the same: no fault of recording is
/// ever felt by a caller, not even a disk that hangs.
const JOURNAL_WAIT: Duration = Duration::from_secs(1);

/// When a request arrived, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) instant: Instant,
    pub(crate) at: Timestamp,
}

impl Arrival {
    pub(crate) fn now() -> Self {
        Self { instant: Instant::now(), at: Timestamp::now() }
    }
}

/// What is known of an exchange when its tenant is.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) tenant: TenantId,
    /// The tenant stands for a session that could not be looked up.
    pub(crate) provisional: bool,
    pub(crate) caller: Caller,
    pub(crate) method: http::Method,
    pub(crate) request_id: String,
    pub(crate) user_agent: Option<String>,
    pub(crate) inspected: Inspected,
    /// Characters of the request's messages.
    pub(crate) message_chars: u64,
}

/// A metered exchange that is not over.
#[derive(Debug)]
pub(crate) struct Settlement {
    open: Option<Box<Open>>,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
struct Open {
    core: Arc<Core>,
    /// This reactor's way to the journal.
    hub: Arc<Hub>,
    policy: Arc<Policy>,
    route: Arc<Route>,
    subject: Subject,
    event_id: Uuid,
    arrival: Arrival,
    sent: Option<Instant>,
    head: Option<Instant>,
    ended: Option<Instant>,
    status: Option<u16>,
    streamed: bool,
    reservation: Option<Reservation>,
    meter: Option<Meter>,
    metadata: Map<String, serde_json::Value>,
    counting: Option<oneshot::Receiver<Counted>>,
    /// Known once the meter is closed.
    close: Option<Close>,
}

/// What the closed meter came to.
#[derive(Debug)]
struct Close {
    outcome: Outcome,
    reading: Reading,
    basis: Basis,
}

/// A count that the event could not wait for.
struct Late {
    counting: oneshot::Receiver<Counted>,
    reported: TokenUsage,
    /// What the row will say.
    source: TokenSource,
    model: Option<String>,
    /// Tokens charged until then.
    charged: u64,
    /// The audit event that tells the tokens.
    sent: Option<AuditEvent>,
}

impl Settlement {
    /// Opens the account of an exchange.
    pub(crate) fn open(
        core: Arc<Core>,
        hub: Arc<Hub>,
        policy: Arc<Policy>,
        route: Arc<Route>,
        subject: Subject,
        arrival: Arrival,
    ) -> Self {
        core.metrics.exchanges.inc();
        let mut metadata = Map::new();
        if subject.provisional {
            metadata.insert("provisional_tenant".into(), json!(true));
        }
        let open = Open {
            core,
            hub,
            policy,
            route,
            subject,
            event_id: Uuid::now_v7(),
            arrival,
            sent: None,
            head: None,
            ended: None,
            status: None,
            streamed: false,
            reservation: None,
            meter: None,
            metadata,
            counting: None,
            close: None,
        };
        Self { open: Some(Box::new(open)), outcome: None }
    }

    /// Takes what the exchange is expected to need, or records that it was refused.
    pub(crate) fn reserve(&mut self, entitlement: &Entitlement) -> Result<(), Box<Refusal>> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let config = &open.route.config;
        let amounts = expected(config.event, config.reserve_tokens, &open.subject.inspected);
        let enforce = config.enforce == Enforce::Hard;
        let taken =
            open.core.enforcer.reserve(&open.subject.tenant, entitlement, amounts, enforce, open.arrival.at);
        match taken {
            Ok(reservation) => {
                if let (Enforce::Shadow, Some(refusal)) = (config.enforce, reservation.would_refuse()) {
                    let dimension = refusal.standing.dimension.to_string();
                    bump(&open.core.metrics.shadow_refusals, "dimension", dimension.clone());
                    open.metadata.insert("would_refuse".into(), json!(dimension));
                }
                open.reservation = Some(reservation);
                Ok(())
            }
            Err(refusal) => {
                self.refused(&refusal);
                Err(refusal)
            }
        }
    }

    /// How the tenant stands with this exchange's reservation, for the client's headers.
    pub(crate) fn standings(&self) -> &[crate::model::quota::Standing] {
        let reservation = self.open.as_ref().and_then(|open| open.reservation.as_ref());
        reservation.map_or(&[], Reservation::standings)
    }

    fn refused(&mut self, refusal: &Refusal) {
        let Some(mut open) = self.open.take() else { return };
        let dimension = refusal.standing.dimension.to_string();
        bump(&open.core.metrics.refusals, "dimension", dimension.clone());
        open.metadata.insert("refused_by".into(), json!(dimension));
        open.status = Some(429);
        let trail = open.trail();
        let audit = audit::quota_exceeded(&trail, refusal);
        open.record_unserved(Outcome::Refused, Some(audit));
    }

    /// Ends an exchange that the gateway itself answered, after its tenant was known.
    pub(crate) fn failed(mut self, outcome: Outcome, status: u16) {
        let Some(mut open) = self.open.take() else { return };
        open.status = Some(status);
        let audit = audit::api_error(&open.trail(), status);
        open.record_unserved(outcome, Some(audit));
    }

    /// The request goes out now.
    pub(crate) fn sent(&mut self) {
        if let Some(open) = self.open.as_mut() {
            open.sent = Some(Instant::now());
        }
    }

    /// The answer's head is here: the meter is chosen by it.
    pub(crate) fn answered(&mut self, head: &http::response::Parts) {
        let Some(open) = self.open.as_mut() else { return };
        open.head = Some(Instant::now());
        open.status = Some(head.status.as_u16());
        let value = |name| head.headers.get(name).map(http::HeaderValue::as_bytes);
        let meter = Meter::new(
            &open.route.format,
            &open.policy.meter,
            head.status.as_u16(),
            value(http::header::CONTENT_TYPE),
            value(http::header::CONTENT_ENCODING),
        );
        open.meter = Some(meter);
    }

    /// Bytes of the answer pass by.
    pub(crate) fn observe(&mut self, chunk: &[u8]) {
        if let Some(meter) = self.open.as_mut().and_then(|open| open.meter.as_mut()) {
            meter.observe(chunk);
        }
    }

    /// The answer is whole: closes the meter. True when its text is being counted, so that the end may have to wait.
    pub(crate) fn conclude(&mut self) -> bool {
        let Some(open) = self.open.as_mut() else { return false };
        open.ended = Some(Instant::now());
        open.close(Outcome::Completed);
        open.counting.is_some()
    }

    /// Ends the exchange as it really ended, and returns when its records are in the journal.
    pub(crate) async fn finish(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        let Some(open) = self.open.as_mut() else { return };
        open.ended.get_or_insert_with(Instant::now);
        open.close(outcome);
        let mut counted = None;
        if let Some(counting) = open.counting.as_mut()
            && let Ok(done) = tokio::time::timeout(open.policy.meter.count_wait, counting).await
        {
            // A count that failed is no count of zero: what was reserved stands.
            counted = done.ok();
            open.counting = None;
        }
        let Some(open) = self.open.take() else { return };
        let hub = open.hub.clone();
        let recorded = hub.record(open.settle(counted));
        let _ = tokio::time::timeout(JOURNAL_WAIT, recorded).await;
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        let outcome = self.outcome.unwrap_or_else(|| open.interrupted());
        open.ended.get_or_insert_with(Instant::now);
        open.close(outcome);
        let core = open.core.clone();
        match (open.counting.take(), tokio::runtime::Handle::try_current()) {
            (Some(counting), Ok(runtime)) => {
                core.clone().tasks.spawn_on(
                    async move {
                        let counted = counting.await.ok();
                        drop(core.recorder.record(open.settle(counted)));
                    },
                    &runtime,
                );
            }
            _ => drop(core.recorder.record(open.settle(None))),
        }
    }
}

impl Open {
    /// What it means that the exchange was dropped before its end.
    fn interrupted(&self) -> Outcome {
        if std::thread::panicking() {
            Outcome::Crashed
        } else if self.core.cutting.load(Ordering::Relaxed) {
            Outcome::Cut
        } else {
            Outcome::ClientAborted
        }
    }

    /// Closes the meter and, where text must be counted, hands it to the counter. Done once.
    fn close(&mut self, mut outcome: Outcome) {
        if self.close.is_some() {
            return;
        }
        let reading = self.meter.take().map(Meter::finish).unwrap_or_default();
        self.streamed = reading.streamed;
        // Where the status itself is an error's, the exchange came to its end all the same.
        let hidden = reading.error_event && self.status.is_some_and(|status| status < 400);
        if outcome == Outcome::Completed && hidden {
            outcome = Outcome::UpstreamError;
        }
        if let Some(flag) = reading.flag {
            bump(&self.core.metrics.unmetered, "flag", flag);
            self.metadata.insert("meter_flag".into(), json!(flag));
        }
        let facts = Facts {
            outcome,
            status: self.status,
            reading: &reading,
            request_text: self.subject.inspected.text.seen_bytes > 0,
        };
        let basis = charging::basis(&facts);
        if matches!(basis, Basis::Text(_)) {
            let model = reading.model.as_deref().or(self.subject.inspected.model.as_deref());
            let job = CountJob {
                encoding: self.route.format.counting.encoding(model),
                request: std::mem::take(&mut self.subject.inspected.text),
                answer: reading.text.clone(),
            };
            match self.core.counter.submit(job) {
                Ok(counting) => self.counting = Some(counting),
                Err(job) => {
                    self.core.metrics.counts_estimated.inc();
                    self.metadata.insert("estimated".into(), json!(true));
                    let (sender, receiver) = oneshot::channel();
                    let (input, output) = (estimate(&job.request), estimate(&job.answer));
                    let _ = sender.send(Counted { input, output, extrapolated: true });
                    self.counting = Some(receiver);
                }
            }
        }
        self.close = Some(Close { outcome, reading, basis });
    }

    /// Replaces the reservation by what was used and makes the records. Without a count where one is needed, the
    /// event says what was reserved, and an amendment follows when the count is there.
    fn settle(mut self: Box<Self>, counted: Option<Counted>) -> Records {
        let Some(close) = self.close.take() else { return Records::new() };
        let reserved = self.reservation.as_ref().map(Reservation::amounts).unwrap_or_default();
        let floor = self.floor();
        let priced =
            charging::price(&close.basis, close.outcome, &close.reading, counted.as_ref(), reserved, floor);
        let served = charging::is_served(close.outcome, self.status);
        let used = Amounts {
            tokens: priced.tokens.unwrap_or(0),
            api_calls: 1,
            chat_messages: if served { reserved.chat_messages } else { 0 },
            embeddings: if served { reserved.embeddings } else { 0 },
        };
        let charges = self.reservation.take().map(|reservation| reservation.settle(used)).unwrap_or_default();
        let model = close.reading.model.clone().or_else(|| self.subject.inspected.model.clone());
        let cost_nanousd =
            self.cost(model.as_deref(), &priced.usage, close.reading.billed.as_ref(), used.tokens);
        if counted.is_some_and(|counted| counted.extrapolated) {
            self.metadata.insert("extrapolated".into(), json!(true));
        }
        let trail = self.trail();
        let mut records = Records::new();
        let audits = audit::exchange(&trail, close.outcome, self.status, priced.tokens);
        let mut audits: SmallVec<[AuditEvent; 2]> = audits.into_iter().collect();
        if let (Some(counting), Basis::Text(source)) = (self.counting.take(), &close.basis) {
            // What was sent is told with its count: not before.
            let sent = audits.pop();
            let late = Late {
                counting,
                reported: close.reading.usage,
                source: *source,
                model: model.clone(),
                charged: used.tokens,
                sent,
            };
            self.amend_later(late, &charges);
        }
        let Priced { usage, tokens, source } = priced;
        let event = self.event(close.outcome, usage, tokens, source, used, cost_nanousd, model, charges);
        records.push(Record::Usage(Box::new(event)));
        records.extend(audits.into_iter().map(|event| Record::Audit(Box::new(event))));
        records
    }

    /// What leaving early costs at least: one message's reservation.
    fn floor(&self) -> u64 {
        self.route.config.reserve_tokens
    }

    /// What the tokens cost: those that the provider bills, where they are others than it counts, and what is charged
    /// beyond those seen (a floor, or a reservation) as input.
    fn cost(&self, model: Option<&str>, usage: &TokenUsage, billed: Option<&TokenUsage>, tokens: u64) -> u64 {
        let (price, known) = self.policy.prices.price(model);
        if tokens == 0 {
            return 0;
        }
        if !known && model.is_some() {
            self.core.metrics.unknown_models.inc();
        }
        let unseen = tokens.saturating_sub(usage.total().unwrap_or(0));
        let unseen = TokenUsage { total: Some(unseen), ..TokenUsage::default() };
        let extra = price.cost_nanousd(&unseen).saturating_sub(price.per_request_nanousd);
        price.cost_nanousd(billed.unwrap_or(usage)).saturating_add(extra)
    }

    /// A count that came too late for the event corrects it: the row, the live counter and the quota in memory.
    fn amend_later(&self, late: Late, charges: &[Charge]) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (core, policy) = (self.core.clone(), self.policy.clone());
        let (event_id, tenant_id, at) = (self.event_id, self.subject.tenant.clone(), self.arrival.at);
        let charges = charges.iter().filter(|charge| charge.dimension.unit == Unit::Tokens);
        let charges: Vec<Charge> = charges.cloned().collect();
        self.core.tasks.spawn_on(
            async move {
                let Ok(counted) = late.counting.await else { return };
                let usage = charging::usage_of(&late.reported, &counted);
                let tokens = usage.total().unwrap_or(0);
                let signed = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
                let delta = signed(tokens) - signed(late.charged);
                let charges: Vec<_> =
                    charges.into_iter().map(|charge| Charge { amount: delta, ..charge }).collect();
                core.enforcer.amend(&tenant_id, &charges);
                let amendment = Amendment {
                    event_id,
                    tenant_id,
                    at,
                    usage,
                    tokens_consumed: tokens,
                    token_source: late.source,
                    cost_nanousd: policy.prices.price(late.model.as_deref()).0.cost_nanousd(&usage),
                    charges,
                };
                let mut records: Records = smallvec![Record::Amend(Box::new(amendment))];
                records
                    .extend(late.sent.map(|sent| Record::Audit(Box::new(audit::with_tokens(sent, tokens)))));
                drop(core.recorder.record(records));
            },
            &runtime,
        );
    }

    /// Records an exchange that the upstream did not answer: no tokens, no messages. A refusal charges nothing at
    /// all; a failed call counts as a call.
    fn record_unserved(mut self: Box<Self>, outcome: Outcome, audit: Option<AuditEvent>) {
        self.ended = Some(Instant::now());
        let used = Amounts { api_calls: u64::from(outcome != Outcome::Refused), ..Amounts::default() };
        let charges = self.reservation.take().map(|reservation| reservation.settle(used)).unwrap_or_default();
        let model = self.subject.inspected.model.clone();
        let hub = self.hub.clone();
        let event =
            self.event(outcome, TokenUsage::default(), Some(0), TokenSource::None, used, 0, model, charges);
        let mut records = Records::new();
        records.push(Record::Usage(Box::new(event)));
        records.extend(audit.map(|event| Record::Audit(Box::new(event))));
        drop(hub.record(records));
    }

    fn trail(&self) -> Trail<'_> {
        Trail {
            tenant: &self.subject.tenant,
            session: self.subject.inspected.session.as_deref(),
            endpoint: &self.route.config.path,
            event: self.route.config.event,
            client: self.subject.caller.client,
            user_agent: self.subject.user_agent.as_deref(),
            request_id: &self.subject.request_id,
            arrived: self.arrival.at,
            elapsed: self.ended.map_or(Duration::ZERO, |ended| ended - self.arrival.instant),
            message_chars: self.subject.message_chars,
        }
    }

    /// Makes the usage event and tells the metrics. The clocks stop here.
    #[expect(clippy::too_many_arguments, reason = "one row has as many columns")]
    fn event(
        self: Box<Self>,
        outcome: Outcome,
        usage: TokenUsage,
        tokens_consumed: Option<u64>,
        token_source: TokenSource,
        used: Amounts,
        cost_nanousd: u64,
        model: Option<String>,
        charges: Vec<Charge>,
    ) -> UsageEvent {
        let ended = self.ended.unwrap_or_else(Instant::now);
        let response_time = ended - self.arrival.instant;
        let metrics = &self.core.metrics;
        metrics.exchanges.dec();
        bump(&metrics.requests, "outcome", outcome.as_str());
        if let Some(tokens) = tokens_consumed.filter(|tokens| *tokens > 0) {
            metrics.tokens.get_or_create(&Label("source", token_source.as_str().into())).inc_by(tokens);
        }
        if let Some(sent) = self.sent {
            metrics.upstream_seconds.observe((ended - sent).as_secs_f64());
            metrics.overhead_seconds.observe((sent - self.arrival.instant + ended.elapsed()).as_secs_f64());
        }
        let first_byte = self.sent.zip(self.head).map(|(sent, head)| head - sent);
        if let Some(first_byte) = first_byte {
            metrics.first_byte_seconds.observe(first_byte.as_secs_f64());
        }
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        UsageEvent {
            event_id: self.event_id,
            tenant_id: self.subject.tenant,
            event_type: self.route.config.event,
            at: self.arrival.at,
            method: self.subject.method.as_str().to_owned(),
            endpoint: self.route.config.path.clone(),
            status: self.status,
            response_time_us: micros(response_time),
            first_byte_us: first_byte.map(micros),
            chat_session_id: self.subject.inspected.session,
            usage,
            tokens_consumed,
            token_source,
            messages: used.chat_messages,
            embeddings: used.embeddings,
            model,
            outcome,
            streamed: self.streamed,
            cost_nanousd,
            request_id: self.subject.request_id,
            metadata: self.metadata,
            charges,
        }
    }
}

/// What an exchange is expected to need.
fn expected(event: EventType, reserve_tokens: u64, inspected: &Inspected) -> Amounts {
    let messages = if event == EventType::ChatMessage { inspected.messages.max(1) } else { 0 };
    let embeddings = if event == EventType::Embedding { inspected.embeddings.max(1) } else { 0 };
    let pieces = messages.max(embeddings).max(1);
    Amounts {
        tokens: reserve_tokens.saturating_mul(pieces),
        api_calls: 1,
        chat_messages: messages,
        embeddings,
    }
}

#[cfg(test)]
mod tests;
