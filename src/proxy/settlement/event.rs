//! The row of an exchange, and what the metrics are told of it.

use std::time::{Duration, Instant};

use super::account::Open;
use crate::model::event::{Outcome, UsageEvent};
use crate::model::quota::{Amounts, Charge};
use crate::model::tokens::{TokenSource, TokenUsage};
use crate::telemetry::{Label, bump};

impl Open {
    /// Makes the usage event and tells the metrics. The clocks stop here. There is none where the answer should have
    /// named the tenant and did not: nobody could be charged.
    #[expect(clippy::too_many_arguments, reason = "one row has as many columns")]
    pub(super) fn event(
        self: Box<Self>,
        outcome: Outcome,
        usage: TokenUsage,
        tokens_consumed: Option<u64>,
        token_source: TokenSource,
        used: Amounts,
        cost_nanousd: u64,
        model: Option<String>,
        charges: Vec<Charge>,
    ) -> Option<UsageEvent> {
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
        let Some(tenant_id) = self.subject.tenant else {
            metrics.unnamed.inc();
            return None;
        };
        Some(UsageEvent {
            event_id: self.event_id,
            tenant_id,
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
            lease_run: self.lease_run,
        })
    }
}
