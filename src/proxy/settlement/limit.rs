//! A stream held against what its tenant has left: `over_limit = "cut"`.
//!
//! What is held against the limit is an estimate, the same for all: what the stream reports, else four bytes of ASCII
//! a token and a token for each other character, of question and answer. What is charged is counted as ever.

use bytes::Bytes;
use serde_json::json;

use super::account::{Limit, Open};
use crate::meter::{Meter, estimate};
use crate::model::quota::{Standing, Unit};
use crate::proxy::config::Enforce;
use crate::proxy::cut::{CutEvent, CutFacts};
use crate::quota::Reservation;

/// How many tokens a growing reservation takes at once, so that the tenant's ledger is not locked for each event. Where
/// so many are not left it takes what it needs.
const STEP: u64 = 64;

impl Open {
    /// Holds the answer to the limit, if its route says so and it is a stream that can be cut.
    pub(super) fn hold_to_limit(&mut self, meter: &Meter) {
        let config = &self.route.config;
        let (Some(cut), Some(kind)) = (&config.cut, meter.stream_kind()) else { return };
        if config.enforce == Enforce::Off || self.status.is_none_or(|status| status >= 300) {
            return;
        }
        let event = cut.event.clone().unwrap_or_else(|| CutEvent::default_of(kind));
        // An end that is none to who reads it would be worse than no end.
        if event.kind() != kind {
            return;
        }
        let request = estimate(&self.subject.inspected.text);
        self.limit = Some(Limit { kind, event, request, tokens: 0 });
    }

    /// Whether what was seen is more than the tenant has left. In shadow mode it is noted, once, and never so.
    pub(super) fn spent(&mut self) -> bool {
        let (Some(limit), Some(meter), Some(reservation)) =
            (&mut self.limit, &self.meter, &mut self.reservation)
        else {
            return false;
        };
        let Some(running) = meter.running() else { return false };
        let request = if running.with_input { 0 } else { limit.request };
        limit.tokens = running.tokens.saturating_add(request);
        let step = limit.tokens.div_ceil(STEP).saturating_mul(STEP);
        if limit.tokens <= reservation.amounts().tokens
            || reservation.extend(step)
            || reservation.extend(limit.tokens)
        {
            return false;
        }
        if self.route.config.enforce == Enforce::Hard {
            return true;
        }
        let dimension = scarcest(reservation).map(|standing| standing.dimension.to_string());
        self.metadata.insert("would_cut".into(), json!(dimension));
        self.limit = None;
        false
    }

    /// The last event of the stream, which is cut now.
    pub(super) fn cut_event(&mut self) -> Option<Bytes> {
        let limit = self.limit.take()?;
        let standing = *scarcest(self.reservation.as_ref()?)?;
        self.metadata.insert("cut_by".into(), json!(standing.dimension.to_string()));
        Some(limit.event.fill(&CutFacts {
            request_id: &self.subject.request_id,
            dimension: standing.dimension.to_string(),
            limit: standing.limit.unwrap_or_default(),
            resets_at: standing.span.end.to_string(),
            tokens: limit.tokens,
        }))
    }
}

/// The dimension of tokens with the least left at admission: the first to be used up.
fn scarcest(reservation: &Reservation) -> Option<&Standing> {
    let standings = reservation.standings().iter();
    let limited = standings.filter(|s| s.dimension.unit == Unit::Tokens && s.limit.is_some() && !s.soft);
    limited.min_by_key(|standing| standing.remaining())
}
