//! Alerts: what has crossed a threshold goes into the outbox, and from there to the webhook.
//!
//! 1. An alert is raised once for each window, over all replicas: its row is unique. Its audit event is of the same
//!    statement.
//! 2. One replica looks at a time. Another's look finds the lock taken, and leaves it at that.
//! 3. A delivery belongs to whoever took it last, told by the number of attempts; its row is not locked meanwhile.

use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use uuid::Uuid;

use super::pool::{Store, StoreError};
use super::report::{Binds, Column, Kind, Snapshot, Table, list, snapshot};
use crate::jobs::Alertness;
use crate::model::tenant::TenantId;

const RAISE: &str = include_str!("alerts/raise.sql");
const CLAIM: &str = include_str!("alerts/claim.sql");
const FAILED: &str = include_str!("alerts/failed.sql");

/// The lock of who looks: held to the end of the transaction.
const TURN: &str = "SELECT pg_try_advisory_xact_lock(7021993005)";

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a look came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Another replica is looking.
    NotOurs,
    /// So many alerts were raised, by kind.
    Raised(Vec<(String, u64)>),
}

/// Looks for what has crossed a threshold. `to_be_sent` says whether what is found waits for delivery.
///
/// # Errors
/// When the database is away, has no schema, or the look takes too long.
pub async fn look(
    store: &Store,
    alertness: &Alertness,
    aggregate_interval: Duration,
    to_be_sent: bool,
) -> Result<Look, StoreError> {
    let windows: Vec<String> =
        alertness.quota_windows.iter().map(|window| format!("%\\_per\\_{}", window.as_str())).collect();
    let min_calls = i64::try_from(alertness.min_calls).unwrap_or(i64::MAX);
    let p99_ms = i64::try_from(alertness.p99.as_millis()).unwrap_or(i64::MAX);
    let state = if to_be_sent { "pending" } else { "unsent" };
    // The connection is closed after it, and the transaction with it where it did not come to COMMIT.
    let work = async |client: &ClientWrapper| {
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        if !client.query_one(TURN, &[]).await?.try_get::<_, bool>(0)? {
            return Ok(Look::NotOurs);
        }
        let rows = client
            .query(
                RAISE,
                &[
                    &alertness.quota_thresholds,
                    &windows,
                    &alertness.error_rate,
                    &min_calls,
                    &p99_ms,
                    &alertness.cost_factor,
                    &alertness.min_cost_usd,
                    &aggregate_interval.as_secs_f64(),
                    &state,
                ],
            )
            .await?;
        client.batch_execute("COMMIT").await?;
        let count = |row: &tokio_postgres::Row| {
            Ok((row.try_get(0)?, u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0)))
        };
        rows.iter().map(count).collect::<Result<Vec<_>, _>>().map(Look::Raised)
    };
    store.patient(PATIENCE, work).await
}

/// An alert to be delivered by us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Which alert; a receiver's key for what it has seen already.
    pub alert_id: Uuid,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The JSON document.
    pub body: String,
}

/// Takes up to `most` alerts that are due. Until `hold` is over no other replica takes them.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn claim(store: &Store, most: u32, hold: Duration) -> Result<Vec<Delivery>, StoreError> {
    let client = store.client().await?;
    let (most, hold) = (i64::from(most), hold.as_secs_f64());
    let work = async |client: &ClientWrapper| {
        let statement = client.prepare_cached(CLAIM).await?;
        let rows = client.query(&statement, &[&most, &hold]).await?;
        let delivery = |row: &tokio_postgres::Row| {
            let attempt = u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or(u32::MAX);
            Ok(Delivery { alert_id: row.try_get(0)?, attempt, body: row.try_get(2)? })
        };
        rows.iter().map(delivery).collect()
    };
    store.bounded(client, work).await
}

/// How long until the next alert is due; `None`: none waits.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn next_due(store: &Store) -> Result<Option<Duration>, StoreError> {
    let sql = "SELECT extract(epoch FROM min(next_attempt_at) - now())::float8 FROM alert_outbox WHERE state = 'pending'";
    let client = store.client().await?;
    let work = async |client: &ClientWrapper| {
        client.query_one(&client.prepare_cached(sql).await?, &[]).await?.try_get::<_, Option<f64>>(0)
    };
    let seconds = store.bounded(client, work).await?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)))
}

/// Notes that the receiver has it.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn sent(store: &Store, delivery: &Delivery) -> Result<(), StoreError> {
    let sql = "UPDATE alert_outbox SET state = 'sent', sent_at = now(), last_error = NULL
               WHERE alert_id = $1 AND state = 'pending'";
    let client = store.client().await?;
    let work = async |client: &ClientWrapper| {
        client.execute(&client.prepare_cached(sql).await?, &[&delivery.alert_id]).await.map(drop)
    };
    store.bounded(client, work).await
}

/// Notes why it did not get there; it is tried again after `pause`, or given up where there is none.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn failed(
    store: &Store,
    delivery: &Delivery,
    why: &str,
    pause: Option<Duration>,
) -> Result<(), StoreError> {
    let attempt = i32::try_from(delivery.attempt).unwrap_or(i32::MAX);
    let (why, pause) = (why.replace('\0', ""), pause.map(|pause| pause.as_secs_f64()));
    let client = store.client().await?;
    let work = async |client: &ClientWrapper| {
        let statement = client.prepare_cached(FAILED).await?;
        client.execute(&statement, &[&delivery.alert_id, &attempt, &why, &pause]).await.map(drop)
    };
    store.bounded(client, work).await
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: Kind::Number }
}

const fn time(name: &'static str) -> Column {
    Column { name, kind: Kind::Time }
}

/// The columns of `alert_outbox`.
const ALERTS: [Column; 16] = [
    text("alert_id"),
    text("tenant_id"),
    text("kind"),
    text("dimension"),
    number("threshold"),
    number("observed"),
    number("reference"),
    time("window_start"),
    time("window_end"),
    text("summary"),
    text("state"),
    number("attempts"),
    time("next_attempt_at"),
    text("last_error"),
    time("created_at"),
    time("sent_at"),
];

/// A place in the list of alerts, latest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// When the last alert shown was raised.
    pub at: Timestamp,
    /// Which one it was, of those at that instant.
    pub alert_id: Uuid,
}

/// The question that [`alerts`] answers; a `None` asks for any.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Concerning whom.
    pub tenant: Option<&'a TenantId>,
    /// How far on their way.
    pub state: Option<&'a str>,
    /// How many at most.
    pub limit: u32,
    /// Only those that come after this place.
    pub after: Option<Place>,
}

/// The alerts, latest first, and the place of the last one when there are more.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn alerts(store: &Store, question: &Question<'_>) -> Result<(Table, Option<Place>), StoreError> {
    let mut binds = Binds::new();
    let mut tests = vec!["true".to_owned()];
    let equals = [("tenant_id", question.tenant.map(TenantId::as_str)), ("state", question.state)];
    for (column, value) in equals {
        tests.extend(value.map(|value| format!("o.{column} = {}", binds.text(value))));
    }
    if let Some(place) = question.after {
        let (at, id) = (binds.instant(place.at), binds.text(place.alert_id.to_string()));
        tests.push(format!("(o.created_at, o.alert_id) < ({at}, {id}::uuid)"));
    }
    let sql = format!(
        "SELECT {}, (extract(epoch FROM a.created_at) * 1000000)::bigint, a.alert_id FROM (
            SELECT o.alert_id, nullif(o.tenant_id, '') AS tenant_id, o.kind, nullif(o.dimension, '') AS dimension,
                o.threshold, o.observed, o.reference, o.window_start, o.window_end, o.summary, o.state, o.attempts,
                CASE o.state WHEN 'pending' THEN o.next_attempt_at END AS next_attempt_at, o.last_error, o.created_at,
                o.sent_at
            FROM alert_outbox o WHERE {}
            ORDER BY o.created_at DESC, o.alert_id DESC LIMIT {}
         ) a ORDER BY a.created_at DESC, a.alert_id DESC",
        list(&ALERTS),
        tests.join(" AND "),
        binds.number(i64::from(question.limit) + 1),
    );
    let mut rows = snapshot(store, async |db: &Snapshot<'_>| db.rows(&sql, &binds).await).await?;
    let more = rows.len() > question.limit as usize;
    rows.truncate(question.limit as usize);
    let next = match rows.last() {
        Some(row) if more => {
            let (at, alert_id) = (row.try_get(ALERTS.len())?, row.try_get(ALERTS.len() + 1)?);
            Timestamp::from_microsecond(at).ok().map(|at| Place { at, alert_id })
        }
        _ => None,
    };
    Ok((Table::read(ALERTS.to_vec(), &rows)?, next))
}
