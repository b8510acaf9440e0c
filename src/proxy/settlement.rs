//! The end of a metered exchange: what it is charged, and what is recorded of it. Exactly once, whatever happens.
//!
//! Constraints:
//! 1. `finish` is called once with the outcome that really happened; dropping a settlement that was not finished
//!    (a client that left, a panic) finishes it all the same, without waiting.
//! 2. The reservation is held until what was used is known and on its way to the journal.
//! 3. `finish` returns when the records are in the journal: only then may the client see the end of the answer. A
//!    count is waited for at most `count_wait`; past that the event says what was reserved, and is amended later.
//! 4. An admitted exchange leaves an intent in the journal, which its event closes: should the process die in between, the
//!    next one makes the event (`intent`).
//! 5. No message text leaves this module: it is counted and dropped.
//!
//! Here is the life of an open account (`account`); `closing` counts, charges and makes the records, `event` the row
//! among them, and `late` amends it; `unread` tells what could not be understood; `limit` holds a stream against what its tenant has left; `asked` keeps what a row does
//! not tell by itself of what its exchange asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, json};
use smallvec::smallvec;
use uuid::Uuid;

use super::audit::{self, End};
use super::config::{BodyConfig, DrainConfig, Enforce};
use super::core::{Core, Policy};
use super::departure::Departure;
use super::drain::Drained;
use super::failure::Failure;
use super::route::Route;
use crate::meter::{Meter, StreamKind};
use crate::model::billing::Billing;
use crate::model::event::{Outcome, PROVISIONAL, Record};
use crate::model::quota::Amounts;
use crate::model::tenant::UNRESOLVED;
use crate::model::tokens::TokenUsage;
use crate::quota::{Denial, Entitlement, Refusal, Reservation};
use crate::record::{Hub, Records};
use crate::telemetry::bump;
use account::Open;
pub(crate) use account::{Arrival, Subject};

mod account;
mod asked;
mod closing;
mod event;
mod intent;
mod late;
mod limit;
mod soft;
mod unread;

/// How long the end of an answer waits for the journal before it is released all the same: no fault of recording is
/// ever felt by a caller, not even a disk that hangs.
const JOURNAL_WAIT: Duration = Duration::from_secs(1);

/// A metered exchange that is not over.
#[derive(Debug)]
pub(crate) struct Settlement {
    open: Option<Box<Open>>,
    outcome: Option<Outcome>,
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
        if subject.unresolved {
            metadata.insert(PROVISIONAL.into(), json!(true));
        }
        // Where no tokens are counted, nobody misses what an opaque body says.
        let opaque = matches!(route.config.body, BodyConfig::Opaque { .. });
        let unread = subject.unread.filter(|_| !opaque || route.format.has_tokens());
        if let Some(why) = unread {
            metadata.insert("request_unread".into(), json!(why));
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
            departure: Departure::default(),
            head: None,
            ended: None,
            status: None,
            streamed: false,
            limit: None,
            left_early: false,
            read_on: false,
            reservation: None,
            strangers: None,
            lease_run: 0,
            meter: None,
            metadata,
            counting: None,
            close: None,
        };
        Self { open: Some(Box::new(open)), outcome: None }
    }

    /// Takes what the exchange is expected to need, or records that it was refused. Waits for a lease where this
    /// replica's can't cover it, for `lease_wait` at most. Not for a tenant that only the answer names, nor where the
    /// route charges nobody. `guessed`: the limits are, so they refuse nobody for good.
    pub(crate) async fn reserve(&mut self, entitlement: &Entitlement, guessed: bool) -> Result<(), Failure> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        // Until the answer names a model.
        let model = open.priced_as(None);
        let Some(tenant) = &open.subject.tenant else { return Ok(()) };
        let config = &open.route.config;
        if !config.charge {
            open.intend();
            return Ok(());
        }
        let mut amounts = open.expected();
        // Output is the dearer side.
        let (price, _) = open.policy.prices.price(model.as_deref(), open.arrival.at);
        let tokens = TokenUsage { output: Some(amounts.tokens), ..TokenUsage::default() };
        amounts.cost_nanousd = price.cost_nanousd(&tokens, &Billing::default());
        let enforce = config.enforce == Enforce::Hard;
        let (now, patience) = (open.arrival.at, open.core.lease_wait);
        let enforcer = &open.core.enforcer;
        match enforcer.admit(tenant, entitlement, amounts, enforce, now, patience).await {
            Ok(reservation) => {
                if let (Enforce::Shadow, Some(refusal)) = (config.enforce, reservation.would_refuse()) {
                    let dimension = refusal.standing.dimension.to_string();
                    bump(&open.core.metrics.shadow_refusals, "dimension", dimension.clone());
                    open.metadata.insert("would_refuse".into(), json!(dimension));
                }
                if reservation.is_unleased() {
                    open.metadata.insert("unleased".into(), json!(true));
                }
                open.pass_over_soft(&reservation);
                open.reservation = Some(reservation);
                if open.subject.unresolved
                    && let Err(refusal) = open.reserve_for_stranger(amounts, enforce)
                {
                    return Err(self.unresolved(&refusal));
                }
                open.intend();
                Ok(())
            }
            Err(Denial::Over(refusal)) if guessed || open.subject.unresolved => {
                Err(self.unresolved(&refusal))
            }
            Err(Denial::Over(refusal)) => {
                self.refused(&refusal, amounts);
                Err(Failure::OverQuota(refusal))
            }
            Err(Denial::Unavailable) => {
                self.unavailable();
                Err(Failure::QuotaUnavailable)
            }
        }
    }

    /// How the tenant stands with this exchange's reservation, for the client's headers.
    pub(crate) fn standings(&self) -> &[crate::model::quota::Standing] {
        let reservation = self.open.as_ref().and_then(|open| open.reservation.as_ref());
        reservation.map_or(&[], Reservation::standings)
    }

    fn refused(&mut self, refusal: &Refusal, amounts: Amounts) {
        let Some(mut open) = self.open.take() else { return };
        let dimension = refusal.standing.dimension.to_string();
        bump(&open.core.metrics.refusals, "dimension", dimension.clone());
        open.metadata.insert("refused_by".into(), json!(dimension));
        open.note_refusal(refusal, amounts);
        open.status = Some(429);
        let end = End { refusal: Some(refusal), ..End::unserved(Outcome::Refused, 429) };
        open.record_unserved(&end);
    }

    /// There is no room for a call of which nobody can say whose it is, or what its tenant may use.
    fn unresolved(&mut self, refusal: &Refusal) -> Failure {
        let failure = Failure::TenantUnavailable;
        if let Some(mut open) = self.open.take() {
            let status = failure.status().as_u16();
            bump(&open.core.metrics.refusals, "dimension", UNRESOLVED);
            open.metadata.insert("refused_by".into(), json!(UNRESOLVED));
            open.metadata.insert("unresolved_by".into(), json!(refusal.standing.dimension.to_string()));
            open.status = Some(status);
            open.record_unserved(&End::unserved(Outcome::Refused, status));
        }
        failure
    }

    /// Nobody can say whether the tenant is over quota, and the config says to refuse then.
    pub(crate) fn unavailable(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        let status = Failure::QuotaUnavailable.status().as_u16();
        open.status = Some(status);
        open.record_unserved(&End::unserved(Outcome::Refused, status));
    }

    /// Ends an exchange of a tenant that an operator has blocked.
    pub(crate) fn blocked(mut self, status: u16) {
        let Some(mut open) = self.open.take() else { return };
        bump(&open.core.metrics.refusals, "dimension", "blocked");
        open.metadata.insert("refused_by".into(), json!("blocked"));
        open.status = Some(status);
        let event = audit::tenant_blocked(&open.trail());
        open.record_unserved_with(Outcome::Refused, smallvec![Record::Audit(Box::new(event))]);
    }

    /// Ends an exchange whose request is not one that can be served.
    pub(crate) fn rejected(mut self, why: &'static str, status: u16) {
        let Some(mut open) = self.open.take() else { return };
        bump(&open.core.metrics.refusals, "dimension", why);
        open.metadata.insert("refused_by".into(), json!(why));
        open.status = Some(status);
        open.record_unserved_with(Outcome::Refused, Records::new());
    }

    /// Ends an exchange that the gateway itself answered, after its tenant was known.
    pub(crate) fn failed(mut self, outcome: Outcome, status: u16) {
        let Some(mut open) = self.open.take() else { return };
        open.status = Some(status);
        open.record_unserved(&End::unserved(outcome, status));
    }

    /// The request is handed to the upstream now; what this returns is to know when it has left.
    pub(crate) fn calling(&mut self) -> Departure {
        let Some(open) = self.open.as_mut() else { return Departure::default() };
        open.sent = Some(Instant::now());
        open.departure.clone()
    }

    /// Whether the service may have seen the request.
    pub(crate) fn was_sent(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.was_sent())
    }

    /// The answer's head is here: the meter is chosen by it.
    pub(crate) fn answered(&mut self, head: &http::response::Parts) {
        let Some(open) = self.open.as_mut() else { return };
        open.head = Some(Instant::now());
        open.status = Some(head.status.as_u16());
        let value = |name| head.headers.get(name).map(http::HeaderValue::as_bytes);
        let mut meter = Meter::new(
            &open.route.format,
            &open.policy.meter,
            head.status.as_u16(),
            value(http::header::CONTENT_TYPE),
            value(http::header::CONTENT_ENCODING),
        );
        if let Some(pointers) = open.route.audit.answer() {
            meter.glean(pointers);
        }
        meter.headers(|name| head.headers.get(name).map(http::HeaderValue::as_bytes));
        open.hold_to_limit(&meter);
        open.meter = Some(meter);
    }

    /// The service switches to another protocol: its answer is what goes through the connection from here on.
    pub(crate) fn switching(&mut self, head: &http::Response<hyper::body::Incoming>) {
        if let Some(open) = self.open.as_mut() {
            open.head = Some(Instant::now());
            open.status = Some(head.status().as_u16());
        }
    }

    /// What went through a connection that had switched, for the row's metadata.
    pub(crate) fn switched(&mut self, protocol: &str, from_client: u64, to_client: u64) {
        if let Some(open) = self.open.as_mut() {
            open.metadata.insert("upgrade".into(), json!(protocol));
            open.metadata.insert("bytes_from_client".into(), json!(from_client));
            open.metadata.insert("bytes_to_client".into(), json!(to_client));
        }
    }

    /// Bytes of the answer pass by. `None` when all were read; else how many were, and the rest is to be shown next: see
    /// [`Meter::step`].
    pub(crate) fn step(&mut self, chunk: &[u8]) -> Option<usize> {
        self.open.as_mut()?.meter.as_mut()?.step(chunk)
    }

    /// Where the answer is a stream that is held against the tenant's limit: how it is cut into events.
    pub(crate) fn limited(&self) -> Option<StreamKind> {
        self.open.as_ref()?.limit.as_ref().map(|limit| limit.kind)
    }

    /// Whether the stream has used up what its tenant has left. Up to then its reservation grows with it.
    pub(crate) fn spent(&mut self) -> bool {
        self.open.as_mut().is_some_and(|open| open.spent())
    }

    /// Whether a document of the stream ends here though its event doesn't: see [`Meter::between_documents`].
    pub(crate) fn between_documents(&self) -> bool {
        let meter = self.open.as_ref().and_then(|open| open.meter.as_ref());
        meter.is_some_and(Meter::between_documents)
    }

    /// The last event of a stream that is cut.
    pub(crate) fn cut_event(&mut self) -> Bytes {
        self.open.as_mut().and_then(|open| open.cut_event()).unwrap_or_default()
    }

    /// How far the answer is read on when the client leaves; `None` is not at all.
    pub(crate) fn drain(&self) -> Option<(&Arc<Core>, DrainConfig)> {
        let open = self.open.as_ref()?;
        Some((&open.core, open.route.config.drain?))
    }

    /// Whether the answer has come to its own end, and only that of its body is missing.
    pub(crate) fn ended(&self) -> bool {
        let meter = self.open.as_ref().and_then(|open| open.meter.as_ref());
        meter.is_some_and(Meter::ended)
    }

    /// The client has left before the answer's end, and what it left is read on.
    pub(crate) fn left(&mut self) {
        self.outcome = Some(Outcome::ClientAborted);
        if let Some(open) = self.open.as_mut() {
            open.left_early = true;
        }
    }

    /// Ends an exchange whose client has left. Nobody waits for it, so its count is waited for, however long it takes.
    pub(crate) fn drained(mut self, how: Drained) {
        self.left();
        if let Some(open) = self.open.as_mut() {
            open.read_on = how == Drained::Whole;
            open.metadata.insert("drained".into(), json!(how.as_str()));
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
        if !open.was_sent() {
            // It waited for its admission, or for a connection: the upstream was never called.
            return open.record_unserved_with(outcome, Records::new());
        }
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

#[cfg(test)]
mod tests;
