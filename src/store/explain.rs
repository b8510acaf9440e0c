//! What the database knows of one tenant's quotas: counters, who holds which lease, and whom it refused lately.
//!
//! One snapshot, three statements, each by an index that begins with the tenant. Refusals are looked for among the
//! latest calls only: `LOOKED_AT` of them, and no further back than `LOOKED_BACK_DAYS`, so that a tenant with millions
//! of calls and no refusal costs no more than that.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::{Error, Row};

use super::pool::{Store, StoreError};
use super::report::{Binds, Snapshot, snapshot};
use crate::model::tenant::TenantId;

const REFUSED: &str = include_str!("explain/refusals.sql");

/// Refusals that are told.
const REFUSALS: i64 = 10;

/// The latest calls that are looked at for them.
const LOOKED_AT: i64 = 10_000;

/// Nor are older ones looked at.
const LOOKED_BACK_DAYS: i64 = 7;

/// What the database knows of a tenant.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its counters of windows that hold the instant.
    pub settled: Vec<Settled>,
    /// Leases of those windows.
    pub leases: Vec<Lease>,
    /// Its last refusals, the latest first.
    pub refusals: Vec<Refused>,
}

/// A live counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Of which quota, as written.
    pub dimension: String,
    /// The window's first instant.
    pub window_start: Option<Timestamp>,
    /// Used by all replicas, as far as their events are written.
    pub amount: i64,
}

/// What one run of a replica may spend of a quota.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Of which quota, as written.
    pub dimension: String,
    /// The window's first instant.
    pub window_start: Option<Timestamp>,
    /// The replica.
    pub replica_id: String,
    /// Its run: of an earlier one than the replica's present run nothing is spent any more.
    pub run: i64,
    /// The replica's present run; `None` where the replica is not known.
    pub present_run: Option<i64>,
    /// `live`, `draining`, `stopped` or `retired`.
    pub state: Option<String>,
    /// Seconds since the replica was last heard of, by the database's clock.
    pub silent_secs: Option<f64>,
    /// Granted in all, since the window began.
    pub granted: i64,
    /// The part of it whose events are written.
    pub consumed: i64,
    /// Another replica is refused for want of the rest.
    pub wanted: bool,
}

/// A call that was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// When it arrived.
    pub at: Option<Timestamp>,
    /// Its `x-request-id`.
    pub request_id: Option<String>,
    /// The route's path.
    pub endpoint: Option<String>,
    /// The status that it was answered with.
    pub status: Option<i32>,
    /// The replica that refused it.
    pub replica_id: Option<String>,
    /// What its row says beside.
    pub metadata: Value,
}

/// Reads what is known of `tenant` at `now`.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn known(store: &Store, tenant: &TenantId, now: Timestamp) -> Result<Known, StoreError> {
    snapshot(store, async |db: &Snapshot<'_>| {
        Ok(Known {
            settled: settled(db, tenant, now).await?,
            leases: leases(db, tenant, now).await?,
            refusals: refusals(db, tenant, now).await?,
        })
    })
    .await
}

async fn settled(db: &Snapshot<'_>, tenant: &TenantId, now: Timestamp) -> Result<Vec<Settled>, Error> {
    let mut binds = Binds::new();
    let (tenant, now) = (binds.text(tenant.as_str()), binds.instant(now));
    let sql = format!(
        "SELECT dimension, window_start, settled FROM quota_usage
         WHERE tenant_id = {tenant} AND window_start <= {now} AND window_end > {now}"
    );
    let settled = |row: &Row| {
        Ok(Settled {
            dimension: row.try_get(0)?,
            window_start: instant(row, 1)?,
            amount: row.try_get::<_, i64>(2)?,
        })
    };
    db.rows(&sql, &binds).await?.iter().map(settled).collect()
}

async fn leases(db: &Snapshot<'_>, tenant: &TenantId, now: Timestamp) -> Result<Vec<Lease>, Error> {
    let mut binds = Binds::new();
    let (tenant, now) = (binds.text(tenant.as_str()), binds.instant(now));
    let sql = format!(
        "SELECT l.dimension, l.window_start, l.replica_id, l.run, r.run, r.state,
             greatest(extract(epoch FROM clock_timestamp() - r.heartbeat_at), 0)::float8,
             l.granted, l.consumed, l.wanted_at IS NOT NULL
         FROM quota_leases l LEFT JOIN gateway_replicas r USING (replica_id)
         WHERE l.tenant_id = {tenant} AND l.window_start <= {now} AND l.window_end > {now}
         ORDER BY l.dimension, l.replica_id, l.run"
    );
    let lease = |row: &Row| {
        Ok(Lease {
            dimension: row.try_get(0)?,
            window_start: instant(row, 1)?,
            replica_id: row.try_get(2)?,
            run: row.try_get(3)?,
            present_run: row.try_get(4)?,
            state: row.try_get(5)?,
            silent_secs: row.try_get(6)?,
            granted: row.try_get(7)?,
            consumed: row.try_get(8)?,
            wanted: row.try_get(9)?,
        })
    };
    db.rows(&sql, &binds).await?.iter().map(lease).collect()
}

async fn refusals(db: &Snapshot<'_>, tenant: &TenantId, now: Timestamp) -> Result<Vec<Refused>, Error> {
    let around = |days: i64| Timestamp::from_second(now.as_second() + days * 86_400).unwrap_or(now);
    let mut binds = Binds::new();
    binds.text(tenant.as_str());
    binds.moment(around(-LOOKED_BACK_DAYS));
    // Replicas' clocks differ; the partitions of later days are left alone.
    binds.moment(around(1));
    binds.number(LOOKED_AT);
    binds.number(REFUSALS);
    let refused = |row: &Row| {
        Ok(Refused {
            at: instant(row, 0)?,
            request_id: row.try_get(1)?,
            endpoint: row.try_get(2)?,
            status: row.try_get(3)?,
            replica_id: row.try_get(4)?,
            metadata: row.try_get(5)?,
        })
    };
    db.rows(REFUSED, &binds).await?.iter().map(refused).collect()
}

fn instant(row: &Row, at: usize) -> Result<Option<Timestamp>, Error> {
    // What jiff has no place for (infinity) is told as nothing.
    Ok(row.try_get::<_, Option<SystemTime>>(at)?.and_then(|at| Timestamp::try_from(at).ok()))
}
