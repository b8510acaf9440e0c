//! Rows whose model had no price, priced anew: `tollgate reprice`.
//!
//! 1. A batch is one transaction: rows, the audit event that tells of them, counters and aggregates change together or
//!    not at all. A run that breaks off leaves whole batches, and the next run does the rest.
//! 2. A row that gets a price loses its mark (`default_price`, `cost_from`) and keeps what it cost (`repriced_from`), so
//!    that a second run finds nothing to do.
//! 3. A counter is changed by what its rows are: the difference of what the columns say, so that what agreed with its
//!    events still does (`drift.sql`).
//! 4. Locks are taken in the order of those who ship events: rows, the audit chain, counters by their key. The
//!    aggregation's lock comes first: it is held while partitions are dropped.
//! 5. Left alone are rows whose count may still come, and those of hours whose events are partly gone: their aggregates
//!    can't be computed again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::events;
use super::instant::moment;
use super::pool::{Store, StoreError};
use super::reaggregate::reaggregate;
use super::report::Between;
use crate::model::billing::Billing;
use crate::model::event::{Actor, AuditEvent};
use crate::model::tokens::TokenUsage;

/// How long it may take in all.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Rows of a transaction: a few seconds' work, as those who wait for the aggregation's lock must wait for it.
const BATCH: usize = 1_000;

/// The most that a row's cost holds, in nano-dollars: NUMERIC(14, 8).
const MAX_NANOUSD: u64 = 999_999_999_999_990;

/// Rows without a price of their model's. A row that used nothing and was not served has no cost to be told; one that was
/// shipped a moment ago and still says `reserved` may be amended.
const MARKED: &str = "
    SELECT event_id, event_timestamp FROM tenant_usage_realtime
    WHERE event_timestamp >= $1 AND event_timestamp < $2 AND outcome <> 'refused' AND model IS NOT NULL
        AND (metadata -> 'default_price' = 'true' OR metadata ? 'cost_from')
        AND (coalesce(tokens_consumed, 0) > 0 OR cost_usd > 0 OR (outcome IN ('completed', 'client_aborted')
            AND coalesce(api_status_code < 300, outcome = 'client_aborted')))
        AND NOT (token_source = 'reserved' AND created_at > now() - interval '1 hour')
    ORDER BY event_timestamp, event_id";

const ROWS: &str = include_str!("reprice.sql");

/// The first hour of which all events are still there.
const WHOLE_FROM: &str = "
    SELECT date_trunc('hour', retained_from + interval '1 hour' - interval '1 microsecond', 'UTC')
    FROM usage_aggregation_state WHERE isfinite(retained_from)";

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(7021993003);
    SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

const UPDATE: &str = "
    UPDATE tenant_usage_realtime t
    SET cost_usd = round(n.nanousd * 0.000000001, 8), updated_at = now(),
        metadata = (t.metadata - 'default_price' - 'cost_from' - 'unpriced')
            || jsonb_build_object('repriced_from', t.cost_usd)
            || CASE WHEN n.unpriced = '' THEN '{}' ELSE jsonb_build_object('unpriced', string_to_array(n.unpriced, ',')) END
    FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::text[]) n(id, at, nanousd, unpriced)
    WHERE t.event_id = n.id AND t.event_timestamp = n.at AND t.event_timestamp BETWEEN $5 AND $6";

/// By what their rows were charged to: cost is never charged to a dimension that the row does not name.
const COUNTERS: &str = "
    WITH deltas AS (
        SELECT t.tenant_id, c.key AS dimension, c.value::timestamptz AS window_start,
            sum((t.cost_usd - (t.metadata ->> 'repriced_from')::numeric) * 1000000000) AS delta
        FROM unnest($1::uuid[], $2::timestamptz[]) n(id, at)
        JOIN tenant_usage_realtime t ON t.event_id = n.id AND t.event_timestamp = n.at
        CROSS JOIN LATERAL jsonb_each_text(t.metadata -> 'charged') c
        WHERE t.event_timestamp BETWEEN $3 AND $4 AND split_part(c.key, '_per_', 1) = 'cost_usd'
        GROUP BY 1, 2, 3
    ), locked AS MATERIALIZED (
        SELECT q.tenant_id, q.dimension, q.window_start, d.delta
        FROM quota_usage q JOIN deltas d USING (tenant_id, dimension, window_start)
        WHERE d.delta <> 0
        ORDER BY 1, 2, 3 FOR UPDATE OF q
    )
    UPDATE quota_usage q
    SET settled = least(greatest(q.settled::numeric + l.delta, -9223372036854775807), 9223372036854775807)::bigint,
        updated_at = now()
    FROM locked l
    WHERE q.tenant_id = l.tenant_id AND q.dimension = l.dimension AND q.window_start = l.window_start";

/// A row as far as it decides what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Unpriced {
    /// As the answer, or else the request, names it.
    pub model: String,
    /// When the call arrived.
    pub at: Timestamp,
    /// The tokens that are billed.
    pub usage: TokenUsage,
    /// What decides the price beside them.
    pub billing: Billing,
    /// Tokens charged beyond those seen.
    pub unseen: u64,
}

/// What a row costs by the price that its model has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repriced {
    /// In nano-dollars.
    pub nanousd: u64,
    /// What of it has no price.
    pub unpriced: Vec<&'static str>,
}

/// Sums over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// How many.
    pub rows: u64,
    /// What they cost before, in nano-dollars.
    pub old_nanousd: i128,
    /// What they cost now.
    pub new_nanousd: i128,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repricing {
    /// Rows that got a price, by model.
    pub models: BTreeMap<String, Sums>,
    /// Rows whose model has no price still, or was not asked for.
    pub left: u64,
    /// Counters that changed.
    pub counters: u64,
    /// Where the range began in fact, if events of its beginning are gone.
    pub from: Option<Timestamp>,
}

impl Repricing {
    /// Over all models.
    pub fn sums(&self) -> Sums {
        self.models.values().fold(Sums::default(), |mut all, sums| {
            all.add(*sums);
            all
        })
    }
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.old_nanousd += other.old_nanousd;
        self.new_nanousd += other.new_nanousd;
    }
}

/// Who wants it, and how.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// Calls that arrived within.
    pub between: Between,
    /// For the audit trail.
    pub author: &'a str,
    /// What the audit trail is told of the rows asked for.
    pub asked: Value,
    /// Nothing is changed: only told.
    pub dry_run: bool,
}

struct Marked {
    id: Uuid,
    at: SystemTime,
    tenant: String,
    old_nanousd: i64,
    row: Unpriced,
}

/// A row and what it costs now.
type Change = (Marked, Repriced);

impl Store {
    /// Prices the rows of `order` by `price`, which says nothing of a row that is to be left alone.
    ///
    /// # Errors
    /// When the database is away or has no schema, or it takes more than an hour. Batches that were committed stay.
    pub async fn reprice(
        &self,
        order: &Order<'_>,
        price: impl Fn(&Unpriced) -> Option<Repriced>,
    ) -> Result<Repricing, StoreError> {
        let run = Uuid::now_v7();
        self.patient(PATIENCE, async |client| {
            let mut done = Repricing::default();
            let start = self.whole_from(client, order, &mut done).await?;
            let end = moment(order.between.end);
            let binds: [(&(dyn ToSql + Sync), Type); 2] =
                [(&start, Type::TIMESTAMPTZ), (&end, Type::TIMESTAMPTZ)];
            client.batch_execute("BEGIN").await?;
            client.query_typed(&format!("DECLARE marked CURSOR WITH HOLD FOR {MARKED}"), &binds).await?;
            client.batch_execute("COMMIT").await?;
            loop {
                let keys = client.query(&format!("FETCH {BATCH} FROM marked"), &[]).await?;
                if keys.is_empty() {
                    return Ok(done);
                }
                client.batch_execute(BEGIN).await?;
                // What breaks off ends with its connection, which is not used again.
                let batch = batch(client, order, run, &keys, &price, &mut done).await?;
                client.batch_execute(if order.dry_run { "ROLLBACK" } else { "COMMIT" }).await?;
                for (model, sums) in batch {
                    done.models.entry(model).or_default().add(sums);
                }
            }
        })
        .await
    }

    async fn whole_from(
        &self,
        client: &ClientWrapper,
        order: &Order<'_>,
        done: &mut Repricing,
    ) -> Result<SystemTime, Error> {
        let start = moment(order.between.start);
        let row = client.query_opt(WHOLE_FROM, &[]).await?;
        let whole: Option<SystemTime> = row.map(|row| row.try_get(0)).transpose()?;
        let Some(whole) = whole.filter(|whole| *whole > start) else { return Ok(start) };
        done.from = Timestamp::try_from(whole).ok();
        Ok(whole)
    }
}

async fn batch(
    client: &ClientWrapper,
    order: &Order<'_>,
    run: Uuid,
    keys: &[Row],
    price: impl Fn(&Unpriced) -> Option<Repriced>,
    done: &mut Repricing,
) -> Result<BTreeMap<String, Sums>, Error> {
    let ids: Vec<Uuid> = keys.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let ats: Vec<SystemTime> = keys.iter().map(|row| row.try_get(1)).collect::<Result<_, _>>()?;
    let (Some(first), Some(last)) = (ats.first().copied(), ats.last().copied()) else {
        return Ok(BTreeMap::new());
    };
    let rows = client.query(ROWS, &[&ids, &ats, &first, &last]).await?;
    let mut changes: Vec<Change> = Vec::new();
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for row in &rows {
        let marked = marked(row)?;
        let Some(mut new) = price(&marked.row) else {
            done.left += 1;
            continue;
        };
        // As the column keeps it: to eight decimals, rounded half up.
        new.nanousd = (new.nanousd.min(MAX_NANOUSD) + 5) / 10 * 10;
        sums.entry(marked.row.model.clone()).or_default().add(Sums {
            rows: 1,
            old_nanousd: i128::from(marked.old_nanousd),
            new_nanousd: i128::from(new.nanousd),
        });
        changes.push((marked, new));
    }
    if !changes.is_empty() && !order.dry_run {
        write(client, order, run, &changes, &sums, done).await?;
    }
    Ok(sums)
}

fn marked(row: &Row) -> Result<Marked, Error> {
    let count = |at: usize| {
        let count = row.try_get::<_, Option<i64>>(at);
        count.map(|count| count.and_then(|count| u64::try_from(count).ok()))
    };
    let (tokens, input, output) = (count(4)?, count(5)?, count(6)?);
    let at: SystemTime = row.try_get(1)?;
    let seen = TokenUsage {
        input,
        output,
        cached_input: count(7)?,
        cache_write_input: count(8)?,
        reasoning: count(9)?,
        // Of a sum alone the columns have no parts.
        total: tokens.filter(|_| input.is_none()),
    };
    let unseen = tokens.unwrap_or(0).saturating_sub(seen.total().unwrap_or(0));
    let billing: Option<Value> = row.try_get(11)?;
    let billed: Option<Value> = row.try_get(12)?;
    let billed = billed.map(|billed| TokenUsage {
        input: billed["input"].as_u64(),
        output: billed["output"].as_u64(),
        ..TokenUsage::default()
    });
    Ok(Marked {
        id: row.try_get(0)?,
        at,
        tenant: row.try_get(2)?,
        old_nanousd: row.try_get(10)?,
        row: Unpriced {
            model: row.try_get(3)?,
            at: Timestamp::try_from(at).unwrap_or(Timestamp::MIN),
            usage: billed.unwrap_or(seen),
            billing: billing.and_then(|billing| serde_json::from_value(billing).ok()).unwrap_or_default(),
            unseen,
        },
    })
}

async fn write(
    client: &ClientWrapper,
    order: &Order<'_>,
    run: Uuid,
    changes: &[Change],
    sums: &BTreeMap<String, Sums>,
    done: &mut Repricing,
) -> Result<(), Error> {
    let ids: Vec<Uuid> = changes.iter().map(|(row, _)| row.id).collect();
    let ats: Vec<SystemTime> = changes.iter().map(|(row, _)| row.at).collect();
    let costs: Vec<i64> = changes.iter().map(|(_, new)| new.nanousd as i64).collect();
    let unpriced: Vec<String> = changes.iter().map(|(_, new)| new.unpriced.join(",")).collect();
    let (Some(first), Some(last)) = (ats.first().copied(), ats.last().copied()) else { return Ok(()) };
    client.execute(UPDATE, &[&ids, &ats, &costs, &unpriced, &first, &last]).await?;
    events::insert_audit(client, audit(order, run, sums)).await?;
    done.counters += client.execute(COUNTERS, &[&ids, &ats, &first, &last]).await?;
    reaggregate(client, changes.iter().map(|(row, _)| (row.tenant.as_str(), row.row.at))).await
}

fn audit(order: &Order<'_>, run: Uuid, models: &BTreeMap<String, Sums>) -> AuditEvent {
    let mut all = Sums::default();
    models.values().for_each(|sums| all.add(*sums));
    let usd = |nanousd: i128| nanousd as f64 / 1e9;
    AuditEvent {
        entity_type: "usage".into(),
        entity_id: Some(run.to_string()),
        actor: Actor::Admin,
        actor_id: Some(order.author.to_owned()),
        old_values: Some(json!({"cost_usd": usd(all.old_nanousd)})),
        new_values: Some(json!({
            "cost_usd": usd(all.new_nanousd),
            "rows": all.rows,
            "models": models.keys().take(MODELS_TOLD).collect::<Vec<_>>(),
            "asked": order.asked,
        })),
        summary: Some(format!(
            "{} rows without a price of their model's were priced anew: {} USD before, {} USD now",
            all.rows,
            usd(all.old_nanousd),
            usd(all.new_nanousd)
        )),
        ..AuditEvent::new(
            Uuid::now_v7(),
            Timestamp::now(),
            "usage_repriced",
            "configuration_change",
            "update",
        )
    }
}

/// Models of a batch that the audit trail names.
const MODELS_TOLD: usize = 100;
