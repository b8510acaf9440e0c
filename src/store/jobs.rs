//! What keeps the tables in order: partitions ahead, aggregates, retention. Called by a timer, by the admin API and by
//! `tollgate aggregate`; each is safe to run at any time and beside itself.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::pool::{Store, StoreError};

/// How long a job may take. A first aggregation reads every event that is kept: benches/aggregation.sh measures it.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What an aggregation wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AggregateReport {
    /// Hours computed anew, over all tenants.
    pub hourly: u32,
    /// Days computed anew.
    pub daily: u32,
    /// Months computed anew.
    pub monthly: u32,
    /// Events that came, or were amended, from here on were looked at; `None` is all of them: it was the first run.
    pub since: Option<Timestamp>,
}

/// What retention removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanUpReport {
    /// Usage events older than 30 days.
    pub usage_events: u64,
    /// Audit events older than two years.
    pub audit_events: u64,
    /// Counters of windows long over.
    pub quota_windows: u64,
    /// Alerts older than 90 days.
    pub alerts: u64,
}

impl Store {
    /// Makes the partitions that will be needed next, and moves events that had none into theirs. Returns how many
    /// it made.
    pub async fn make_partitions_ahead(&self) -> Result<u32, StoreError> {
        let sql = "SELECT tollgate_make_partitions_ahead()";
        let row = self.patient(PATIENCE, async |client| client.query_one(sql, &[]).await).await?;
        Ok(count(row.get::<_, i32>(0).into()) as u32)
    }

    /// Brings `tenant_usage_metrics` and `tenant_model_usage` up to date, the current periods and those of late events
    /// included.
    pub async fn aggregate(&self) -> Result<AggregateReport, StoreError> {
        let sql = "SELECT hourly, daily, monthly, CASE WHEN isfinite(since) THEN since END FROM aggregate_usage_metrics()";
        let row = self.patient(PATIENCE, async |client| client.query_one(sql, &[]).await).await?;
        let rows = |at: usize| count(row.get::<_, i32>(at).into()) as u32;
        let since = row.get::<_, Option<SystemTime>>(3).and_then(|since| Timestamp::try_from(since).ok());
        Ok(AggregateReport { hourly: rows(0), daily: rows(1), monthly: rows(2), since })
    }

    /// Removes what is older than it is kept: usage 30 days, audit two years, alerts 90 days. Each kind in a transaction of its own,
    /// so that no lock is held for longer than its own removal.
    pub async fn clean_up(&self) -> Result<CleanUpReport, StoreError> {
        let remove = async |function: &str| {
            let sql = format!("SELECT {function}()");
            let row = self.patient(PATIENCE, async |client| client.query_one(&sql, &[]).await).await?;
            Ok::<_, StoreError>(count(row.get(0)))
        };
        let usage_events = remove("cleanup_old_realtime_events").await?;
        let audit_events = remove("cleanup_old_audit_events").await?;
        let quota_windows = remove("cleanup_old_quota_windows").await?;
        let alerts = remove("cleanup_old_alerts").await?;
        Ok(CleanUpReport { usage_events, audit_events, quota_windows, alerts })
    }
}

fn count(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or(0)
}
