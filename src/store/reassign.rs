//! Rows of sessions that could not be looked up when they called, moved to their tenants.
//!
//! 1. Rows, counters and aggregates change together or not at all. A row is moved once: it must still be of
//!    [`UNRESOLVED`].
//! 2. Counters change by what `drift.sql` says that the rows were charged to, so that what agreed with its events still does.
//!    The tenant's counter is that of the same window: one that begins elsewhere, in a time zone of the tenant's plan, is
//!    not charged.
//! 3. Left alone are rows whose count may still come: their amendment is charged to whom they are of. And those older than
//!    [`KEPT`], whose counters may be gone.
//! 4. Locks are taken in the order of those who ship events: the aggregation's, rows, counters by their key.

use std::time::{Duration, SystemTime};

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::Error;
use uuid::Uuid;

use super::pool::{Store, StoreError};
use super::reaggregate::reaggregate;
use crate::model::tenant::{TenantId, UNRESOLVED};

/// How long moving may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// For how long a row waits for its tenant. Counters of minutes are removed after two days.
pub const KEPT: Duration = Duration::from_secs(47 * 3600);

const WAITING: &str = "
    SELECT event_id, event_timestamp, chat_session_id, api_endpoint FROM tenant_usage_realtime
    WHERE tenant_id = $1 AND event_timestamp > now() - $2 * interval '1 second' AND metadata ? 'provisional_tenant'
        AND NOT (token_source = 'reserved' AND created_at > now() - interval '1 hour')
        AND (event_timestamp, event_id) > ($4, $5)
    ORDER BY event_timestamp, event_id LIMIT $3";

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(7021993003)";

/// A row without a tenant is of a session that there is not. One with a tenant has its session as the service knows it.
const MOVE: &str = "
    UPDATE tenant_usage_realtime t
    SET tenant_id = coalesce(n.tenant, t.tenant_id), chat_session_id = coalesce(nullif(n.session, ''), t.chat_session_id),
        updated_at = now(), metadata = (t.metadata - 'provisional_tenant')
        || CASE WHEN n.tenant IS NULL THEN '{\"unknown_session\": true}'::jsonb
            ELSE jsonb_build_object('reassigned_from', t.tenant_id) END
    FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $7::text[]) n(id, at, tenant, session)
    WHERE t.event_id = n.id AND t.event_timestamp = n.at AND t.event_timestamp BETWEEN $4 AND $5
        AND t.tenant_id = $6 AND t.metadata ? 'provisional_tenant'
    RETURNING t.event_id, t.event_timestamp, t.tenant_id";

const COUNTERS: &str = include_str!("reassign.sql");

/// What was aggregated of rows that are no longer there: an hour without any would keep its row, and so would its day.
const FORGET: &str = "
    WITH hours AS (SELECT DISTINCT date_trunc('hour', at, 'UTC') AS at FROM unnest($2::timestamptz[]) t(at)),
    models AS (DELETE FROM tenant_model_usage u USING hours h WHERE u.tenant_id = $1 AND u.hour = h.at)
    DELETE FROM tenant_usage_metrics m USING hours h
    WHERE m.tenant_id = $1 AND m.period_start = date_trunc(
        CASE m.period_type WHEN 'hourly' THEN 'hour' WHEN 'daily' THEN 'day' ELSE 'month' END, h.at, 'UTC')";

/// What is left of the same days and months is merged anew.
const TOUCH: &str = "
    UPDATE tenant_usage_metrics m SET updated_at = now()
    WHERE m.tenant_id = $1 AND m.period_type IN ('hourly', 'daily') AND date_trunc('month', m.period_start, 'UTC') IN
        (SELECT date_trunc('month', at, 'UTC') FROM unnest($2::timestamptz[]) t(at))";

/// A row that waits for its tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    id: Uuid,
    at: SystemTime,
    /// The session by which it is found.
    pub session: String,
    /// The path of the route that was called.
    pub endpoint: String,
}

/// Up to where the waiting rows were looked at: the next are those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(SystemTime, Uuid);

impl Place {
    /// Before all of them.
    pub const START: Self = Self(SystemTime::UNIX_EPOCH, Uuid::nil());
}

impl Unresolved {
    /// The place of this row.
    pub fn place(&self) -> Place {
        Place(self.at, self.id)
    }
}

impl Store {
    /// The first rows behind `place` that wait for their tenants, `most` at most.
    ///
    /// # Errors
    /// When the database is away or has no schema.
    pub async fn unresolved(&self, place: Place, most: usize) -> Result<Vec<Unresolved>, StoreError> {
        let client = self.client().await?;
        let (kept, most) = (KEPT.as_secs_f64(), i64::try_from(most).unwrap_or(i64::MAX));
        let rows = self
            .bounded(client, async |client| {
                let waiting = client.prepare_cached(WAITING).await?;
                client.query(&waiting, &[&UNRESOLVED, &kept, &most, &place.0, &place.1]).await
            })
            .await?;
        let row = |row: &tokio_postgres::Row| -> Result<Unresolved, Error> {
            let session: Option<String> = row.try_get(2)?;
            let endpoint: Option<String> = row.try_get(3)?;
            let (session, endpoint) = (session.unwrap_or_default(), endpoint.unwrap_or_default());
            Ok(Unresolved { id: row.try_get(0)?, at: row.try_get(1)?, session, endpoint })
        };
        Ok(rows.iter().map(row).collect::<Result<_, _>>()?)
    }

    /// Moves each row to its tenant, with what it was charged; one with none stays, and waits no longer. Returns how many
    /// were moved.
    ///
    /// # Errors
    /// When the database is away. Then nothing was moved.
    pub async fn reassign(&self, rows: &[(Unresolved, Option<TenantId>)]) -> Result<usize, StoreError> {
        self.patient(PATIENCE, async |client| {
            client.batch_execute(BEGIN).await?;
            let moved = reassign(client, rows).await?;
            client.batch_execute("COMMIT").await?;
            Ok(moved)
        })
        .await
    }
}

async fn reassign(client: &ClientWrapper, rows: &[(Unresolved, Option<TenantId>)]) -> Result<usize, Error> {
    let ids: Vec<Uuid> = rows.iter().map(|(row, _)| row.id).collect();
    let ats: Vec<SystemTime> = rows.iter().map(|(row, _)| row.at).collect();
    let tenants: Vec<Option<&str>> =
        rows.iter().map(|(_, tenant)| tenant.as_ref().map(TenantId::as_str)).collect();
    let sessions: Vec<&str> = rows.iter().map(|(row, _)| row.session.as_str()).collect();
    let (Some(first), Some(last)) = (ats.iter().min(), ats.iter().max()) else { return Ok(0) };
    let moved = client.query(MOVE, &[&ids, &ats, &tenants, first, last, &UNRESOLVED, &sessions]).await?;
    let mut landed: Vec<(Uuid, SystemTime, String)> = Vec::with_capacity(moved.len());
    for row in &moved {
        let tenant: String = row.try_get(2)?;
        if tenant != UNRESOLVED {
            landed.push((row.try_get(0)?, row.try_get(1)?, tenant));
        }
    }
    if landed.is_empty() {
        return Ok(0);
    }
    let ids: Vec<Uuid> = landed.iter().map(|(id, ..)| *id).collect();
    let ats: Vec<SystemTime> = landed.iter().map(|(_, at, _)| *at).collect();
    client.execute(COUNTERS, &[&ids, &ats, first, last, &UNRESOLVED]).await?;
    client.execute(FORGET, &[&UNRESOLVED, &ats]).await?;
    client.execute(TOUCH, &[&UNRESOLVED, &ats]).await?;
    let at = |at: &SystemTime| Timestamp::try_from(*at).unwrap_or(Timestamp::MIN);
    let both =
        landed.iter().flat_map(|(_, time, tenant)| [(tenant.as_str(), at(time)), (UNRESOLVED, at(time))]);
    reaggregate(client, both).await?;
    Ok(landed.len())
}
