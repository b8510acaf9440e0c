//! Which counters an event was charged to, where its row does not say so by itself.
//!
//! A row says what was used; what it was charged to is a matter of the plan of that moment. For nearly all rows that can be
//! told from the row: a call that was not refused is charged to the standard dimensions, in the UTC window that holds its
//! time. The others keep it in their metadata (`charged`: the window's start by dimension), so that
//! `tollgate verify-quota` can add them up again, whatever became of plan, zone or clock.

use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use crate::model::event::{Outcome, UsageEvent};
use crate::model::quota::{Dimension, Unit};

/// The name in `metadata`.
pub(super) const KEY: &str = "charged";

/// What `event` was charged to, if its row alone would say otherwise.
pub(super) fn exceptional(event: &UsageEvent) -> Option<Value> {
    let expected = |dimension: Dimension| {
        (event.outcome != Outcome::Refused && amount(event, dimension.unit) > 0)
            .then(|| dimension.window.span(&TimeZone::UTC, event.at).start)
    };
    let charged = |dimension: Dimension| {
        let charge = event.charges.iter().find(|charge| charge.dimension == dimension);
        charge.map(|charge| charge.window_start)
    };
    let others = event.charges.iter().any(|charge| !Dimension::STANDARD.contains(&charge.dimension));
    if !others && Dimension::STANDARD.into_iter().all(|dimension| expected(dimension) == charged(dimension)) {
        return None;
    }
    let windows = event
        .charges
        .iter()
        .map(|charge| (charge.dimension.to_string(), Value::from(charge.window_start.to_string())));
    Some(Value::Object(windows.collect::<Map<_, _>>()))
}

/// What the row says was used, in a unit of the standard dimensions.
fn amount(event: &UsageEvent, unit: Unit) -> u64 {
    match unit {
        Unit::Tokens => event.charged_tokens(),
        Unit::ApiCalls => 1,
        Unit::ChatMessages => event.messages,
        Unit::Embeddings => event.embeddings,
        Unit::Cost | Unit::ConcurrentRequests => 0,
    }
}
