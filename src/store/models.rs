//! Models seen, as operators ask for them.
//!
//! Read from the events themselves, as far back as they are kept: whether a call was priced by the default is told by
//! its row, so that a price that was added since does not rewrite the answer.

use super::pool::{Store, StoreError};
use super::report::{Between, Binds, Column, Kind, Snapshot, Table, list, snapshot};

const fn number(name: &'static str) -> Column {
    Column { name, kind: Kind::Number }
}

/// What is said of a model.
const MODELS: [Column; 8] = [
    Column { name: "model", kind: Kind::Text },
    number("calls"),
    number("tokens"),
    number("cost_usd"),
    Column { name: "priced_by", kind: Kind::Text },
    number("default_priced_calls"),
    Column { name: "first_seen", kind: Kind::Time },
    Column { name: "last_seen", kind: Kind::Time },
];

/// Models with their calls in `between`, the dearest first, and whether there are more than `limit`. A refused call
/// reached no model. Calls whose answers name no model are one row without a name.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn models(store: &Store, between: Between, limit: u32) -> Result<(Table, bool), StoreError> {
    let mut binds = Binds::new();
    let sql = format!(
        "SELECT {} FROM (
            SELECT s.*, CASE WHEN calls = default_priced_calls THEN 'default' WHEN calls = answer_priced_calls THEN 'answer'
                        WHEN default_priced_calls + answer_priced_calls = 0 THEN 'own' ELSE 'both' END AS priced_by
            FROM (
                SELECT model, count(*) AS calls, coalesce(sum(tokens_consumed), 0) AS tokens,
                       coalesce(sum(cost_usd), 0) AS cost_usd,
                       count(*) FILTER (WHERE (model IS NULL AND NOT metadata ? 'cost_from')
                           OR metadata -> 'default_price' = 'true'::jsonb) AS default_priced_calls,
                       count(*) FILTER (WHERE metadata ? 'cost_from') AS answer_priced_calls,
                       min(event_timestamp) AS first_seen, max(event_timestamp) AS last_seen
                FROM tenant_usage_realtime
                WHERE event_timestamp >= {} AND event_timestamp < {} AND outcome <> 'refused'
                GROUP BY model
            ) s
         ) m ORDER BY m.cost_usd DESC, m.calls DESC, m.model NULLS LAST LIMIT {}",
        list(&MODELS),
        binds.instant(between.start),
        binds.instant(between.end),
        binds.number(i64::from(limit) + 1),
    );
    let mut rows = snapshot(store, async |db: &Snapshot<'_>| db.rows(&sql, &binds).await).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    Ok((Table::read(MODELS.to_vec(), &rows)?, more))
}
