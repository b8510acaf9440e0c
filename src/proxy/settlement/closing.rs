//! Closing an account: the text is counted, the reservation is replaced by what was used, the records are made.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::account::{Close, Open};
use super::late::{Late, Told};
use crate::meter::{CountJob, Counted, Meter, Reading, estimate};
use crate::model::billing::Billing;
use crate::model::event::{CHARGED_TOKENS, FLOOR_COST, Outcome, Record};
use crate::model::price::{Call, PricedBy};
use crate::model::quota::{Amounts, Charge};
use crate::model::tokens::{TokenSource, TokenUsage};
use crate::proxy::audit::End;
use crate::proxy::charging::{self, Basis, Facts, Known, Priced};
use crate::proxy::refusals::Weighed;
use crate::quota::Reservation;
use crate::record::Records;
use crate::telemetry::bump;

impl Open {
    /// Closes the meter and, where text must be counted, hands it to the counter. Done once.
    pub(super) fn close(&mut self, mut outcome: Outcome) {
        if self.close.is_some() {
            return;
        }
        let reading = self.meter.take().map(Meter::finish).unwrap_or_default();
        self.streamed = reading.streamed;
        // A client may choose the last segment of a path: what answers with text or both sides of a usage is no count.
        self.subject.only_counts &= charging::is_a_count(&reading);
        // The answer was over, but for the end of its body: OpenAI's own clients hang up on `[DONE]`.
        if outcome == Outcome::ClientAborted && reading.ended && !self.left_early {
            outcome = Outcome::Completed;
        }
        // Where the status itself is an error's, the exchange came to its end all the same.
        let hidden = (reading.error_event || charging::is_failure(&reading))
            && self.status.is_some_and(|status| status < 400);
        if outcome == Outcome::Completed && hidden {
            outcome = Outcome::UpstreamError;
        }
        if self.subject.tenant.is_none() {
            self.subject.tenant = self.route.audit.tenant(&reading.gleaned);
        }
        if let Some(results) = reading.results {
            self.metadata.insert("search_result_count".into(), json!(results));
        }
        let facts = Facts {
            outcome,
            status: self.status,
            reading: &reading,
            whole: outcome == Outcome::Completed || self.read_on,
            request_text: self.request_has_text(),
            request_unread: self.request_is_unread(),
            expects_text: self.expects_text(),
        };
        let basis = if self.uses_tokens() { charging::basis(&facts) } else { Basis::Free };
        let unread =
            if basis == Basis::Reserved { charging::unread(&facts) } else { charging::Unread::default() };
        self.note_reading(&reading, basis, unread);
        let has_text = facts.request_text || reading.text.seen_bytes > 0;
        let request_text = facts.request_text;
        let mut estimated = None;
        if matches!(basis, Basis::Text(_)) || (basis == Basis::Reserved && has_text) {
            estimated = Some(self.count(&reading));
        }
        self.close = Some(Close { outcome, reading, basis, request_text, estimated });
    }

    /// Hands the text of both sides to the counter. Returns an estimate, for what can't wait for the count.
    fn count(&mut self, reading: &Reading) -> Counted {
        let model = reading.model.as_deref().or(self.subject.model.name.as_deref());
        let job = CountJob {
            encoding: self.route.format.counting.encoding(model),
            request: std::mem::take(&mut self.subject.inspected.text),
            answer: reading.text.clone(),
        };
        let (input, output) = (estimate(&job.request), estimate(&job.answer));
        let estimated = Counted { input, output, extrapolated: true, with: job.stand_in() };
        match self.core.counter.submit(job) {
            Ok(counting) => self.counting = Some(counting),
            Err(_) => {
                self.core.metrics.counts_estimated.inc();
                self.metadata.insert("estimated".into(), json!(true));
                let (sender, receiver) = oneshot::channel();
                let _ = sender.send(estimated);
                self.counting = Some(receiver);
            }
        }
        estimated
    }

    /// Replaces the reservation by what was used and makes the records. Without a count where one is needed, the
    /// event says what was reserved, and an amendment follows when the count is there.
    pub(super) fn settle(mut self: Box<Self>, counted: Option<Counted>) -> Records {
        let Some(close) = self.close.take() else { return Records::new() };
        let reserved = match &self.reservation {
            Some(reservation) => self.with_items(reservation.amounts()),
            // Nothing is held where nobody is charged.
            None if !self.route.config.charge => self.expected(),
            None => Amounts::default(),
        };
        let counted = counted.or_else(|| self.instead_of_count(&close));
        let priced = charging::price(close.basis, &self.known(&close, counted.as_ref(), reserved));
        let served = charging::is_served(close.outcome, self.status, &close.reading);
        let model = self.priced_as(close.reading.model.as_deref());
        let Priced { usage, tokens, source, charged, split } = priced;
        if split {
            self.metadata.insert("split".into(), json!("estimated"));
        }
        let billing = close.reading.billing;
        self.note_billing(&close.reading);
        let call = Call {
            model: model.as_deref(),
            at: self.arrival.at,
            usage: close.reading.billed.as_ref().unwrap_or(&usage),
            billing: &billing,
            unseen: tokens.saturating_sub(usage.total().unwrap_or(0)),
        };
        let cost_nanousd = self.cost(&call, tokens, served && self.uses_model());
        let used = Amounts {
            tokens: charged,
            api_calls: 1,
            chat_messages: if served { reserved.chat_messages } else { 0 },
            embeddings: if served { reserved.embeddings } else { 0 },
            cost_nanousd: self.with_floor(cost_nanousd, tokens, charged, model.as_deref()),
            concurrent: 0,
        };
        let charges = self.charge(used);
        if counted.is_some_and(|counted| counted.extrapolated) {
            self.metadata.insert("extrapolated".into(), json!(true));
        }
        // An amendment carries no metadata: what will count is named with what is charged until then.
        if let Some(with) = counted.or(close.estimated).and_then(|counted| counted.with) {
            self.metadata.insert("counted_with".into(), json!(with.to_string()));
        }
        let (mut audits, mut told) = (Records::new(), Vec::new());
        let end = End {
            outcome: close.outcome,
            status: self.status,
            tokens: Some(tokens),
            received: true,
            answer: &close.reading.gleaned,
            refusal: None,
        };
        for (rule, event) in self.route.audit.events(&self.trail(), &end) {
            // What tells the count is told with it: not before.
            match self.counting.is_some() && self.route.audit.tells_tokens(rule) {
                true => told.push(Told { rule, event }),
                false => audits.push(Record::Audit(Box::new(event))),
            }
        }
        if let (Some(counting), Basis::Text(source)) = (self.counting.take(), &close.basis) {
            let late = Late {
                counting,
                reported: close.reading.usage,
                source: *source,
                model: model.clone(),
                billing,
                charged: used,
                told,
            };
            self.amend_later(late, &charges);
        }
        let event =
            self.event(close.outcome, usage, Some(tokens), source, used, cost_nanousd, model, charges);
        let mut records: Records = event.into_iter().map(|event| Record::Usage(Box::new(event))).collect();
        records.append(&mut audits);
        records
    }

    /// What was reserved, with all that the call holds: one that was taken for a count of tokens, and answered with text,
    /// has reserved none of its messages.
    fn with_items(&self, reserved: Amounts) -> Amounts {
        let held = self.expected();
        Amounts {
            chat_messages: reserved.chat_messages.max(held.chat_messages),
            embeddings: reserved.embeddings.max(held.embeddings),
            ..reserved
        }
    }

    /// What is charged its reservation is not amended: where its count is not there in time, an estimate is good enough.
    fn instead_of_count(&mut self, close: &Close) -> Option<Counted> {
        let estimated = close.estimated.filter(|_| close.basis == Basis::Reserved)?;
        self.counting = None;
        self.metadata.insert("estimated".into(), json!(true));
        Some(estimated)
    }

    fn known<'a>(&'a self, close: &'a Close, counted: Option<&'a Counted>, reserved: Amounts) -> Known<'a> {
        Known {
            outcome: close.outcome,
            reading: &close.reading,
            request: &self.subject.inspected.text,
            counted,
            held: reserved.tokens,
            floor: self.floor(),
            request_text: close.request_text,
            expects_text: self.expects_text(),
        }
    }

    /// What the quota of cost is charged: the row's cost, and where more tokens are charged than the row has, what these
    /// would cost as input. The row says how much more.
    fn with_floor(&mut self, cost_nanousd: u64, tokens: u64, charged: u64, model: Option<&str>) -> u64 {
        let beyond = charged.saturating_sub(tokens);
        if beyond == 0 {
            return cost_nanousd;
        }
        self.metadata.insert(CHARGED_TOKENS.into(), json!(charged));
        let (price, _) = self.policy.prices.price(model, self.arrival.at);
        let usage = TokenUsage { total: Some(beyond), ..TokenUsage::default() };
        let floor = price.cost_nanousd(&usage, &Billing::default()).saturating_sub(price.per_request_nanousd);
        if floor > 0 {
            self.metadata.insert(FLOOR_COST.into(), json!(floor));
        }
        cost_nanousd.saturating_add(floor)
    }

    /// Records an exchange that the upstream did not answer: no tokens, no messages. A refusal charges nothing at
    /// all, nor does one that ended before its request was sent; a failed call counts as a call.
    pub(super) fn record_unserved(mut self: Box<Self>, end: &End<'_>) {
        self.ended = Some(Instant::now());
        let outcome = end.outcome;
        let trail = self.trail();
        let events = self.route.audit.events(&trail, end);
        let audits = events.map(|(_, event)| Record::Audit(Box::new(event))).collect();
        self.record_unserved_with(outcome, audits);
    }

    /// The same with these audit events.
    pub(super) fn record_unserved_with(mut self: Box<Self>, outcome: Outcome, mut audits: Records) {
        self.ended.get_or_insert_with(Instant::now);
        let sum = match self.weigh(outcome) {
            Weighed::Each => None,
            Weighed::First(key) => Some(key),
            Weighed::Summed => return self.forget(outcome),
        };
        let core = self.core.clone();
        let interrupted = matches!(outcome, Outcome::ClientAborted | Outcome::Cut | Outcome::Crashed);
        let not_sent = interrupted && !self.was_sent();
        if not_sent {
            self.metadata.insert("not_sent".into(), json!(true));
        }
        let is_call = outcome != Outcome::Refused && !not_sent;
        let used = Amounts { api_calls: u64::from(is_call), ..Amounts::default() };
        let charges = self.charge(used);
        let model = self.priced_as(None);
        let hub = self.hub.clone();
        let event =
            self.event(outcome, TokenUsage::default(), Some(0), TokenSource::None, used, 0, model, charges);
        let mut records: Records = event.into_iter().map(|event| Record::Usage(Box::new(event))).collect();
        records.append(&mut audits);
        match sum {
            Some(key) => core.refusals.begin(&key, records),
            None => drop(hub.record(records)),
        }
    }

    /// Whether a refusal is recorded by itself.
    fn weigh(&self, outcome: Outcome) -> Weighed {
        match &self.subject.tenant {
            Some(tenant) if outcome == Outcome::Refused => {
                let by = self.metadata.get("refused_by").and_then(Value::as_str).unwrap_or("unavailable");
                self.core.refusals.weigh(tenant, by, Timestamp::now())
            }
            _ => Weighed::Each,
        }
    }

    /// Ends a refusal that was added to others.
    fn forget(self: Box<Self>, outcome: Outcome) {
        self.core.metrics.exchanges.dec();
        bump(&self.core.metrics.requests, "outcome", outcome.as_str());
    }

    /// Replaces the reservation by what was used.
    fn charge(&mut self, used: Amounts) -> Vec<Charge> {
        self.lease_run = self.core.enforcer.run();
        if let Some(strangers) = self.strangers.take() {
            strangers.settle(used);
        }
        if let Some(reserved) = self.reservation.as_ref().map(Reservation::amounts) {
            self.note_given_back(reserved, used);
        }
        self.reservation.take().map(|reservation| reservation.settle(used)).unwrap_or_default()
    }

    /// Keeps in the row what its cost was made from, beside its columns.
    pub(super) fn note_billing(&mut self, reading: &Reading) {
        if !reading.billing.is_empty() {
            self.metadata.insert("billing".into(), json!(reading.billing));
        }
        if let Some(billed) = &reading.billed {
            self.metadata.insert("billed".into(), json!({"input": billed.input, "output": billed.output}));
        }
    }

    /// What the tokens cost: those that the provider bills, where they are others than it counts, with what is billed
    /// apart, and what is charged beyond those seen (a floor, or a reservation) as input.
    ///
    /// The price is the one that held when the exchange began. Where it is not the model's own, or where something has
    /// no price, the row says so.
    pub(super) fn cost(&mut self, call: &Call<'_>, tokens: u64, served: bool) -> u64 {
        let policy = self.policy.clone();
        let cost = policy.prices.cost(call);
        let named = call.model.is_some();
        if named && cost.by == PricedBy::Default {
            self.metadata.insert("default_price".into(), json!(true));
        }
        if !served && tokens == 0 {
            return 0;
        }
        if named && cost.by == PricedBy::Default && tokens > 0 {
            self.core.metrics.unknown_models.inc();
        }
        match cost.by {
            PricedBy::Answer => drop(self.metadata.insert("cost_from".into(), json!("answer"))),
            PricedBy::Own | PricedBy::Default => self.note_unpriced(cost.price.unpriced(call.billing)),
        }
        cost.nanousd
    }

    /// What was billed and has no price is no secret: the row names it, and a metric counts it.
    fn note_unpriced(&mut self, unpriced: impl Iterator<Item = &'static str>) {
        let unpriced: Vec<&str> =
            unpriced.inspect(|what| bump(&self.core.metrics.unpriced, "what", *what)).collect();
        if !unpriced.is_empty() {
            self.metadata.insert("unpriced".into(), json!(unpriced));
        }
    }
}
