//! Live counters against the events that they count: they must never differ.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio_postgres::Row;

use super::instant::moment;
use super::pool::{Store, StoreError};

const DRIFT: &str = include_str!("drift.sql");

/// How long the comparison may take: it reads every event that is kept.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The most counters that are told one by one.
const MOST: i64 = 1000;

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Counters that were compared.
    pub counters: u64,
    /// Of them, those that differ from their events.
    pub drifted: u64,
    /// By how much in all, whichever way.
    pub total: u64,
    /// Those that differ, the worst first: a thousand at most.
    pub worst: Vec<Drifted>,
}

/// A counter that differs from its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drifted {
    /// Whose.
    pub tenant: String,
    /// Of which quota.
    pub dimension: String,
    /// The window's first instant.
    pub window_start: Option<Timestamp>,
    /// The first instant after it; `None` where there is no counter.
    pub window_end: Option<Timestamp>,
    /// What the counter says.
    pub settled: i64,
    /// What its events add up to.
    pub charged: i64,
}

impl Store {
    /// Compares the counters of the windows that hold `at`, or all of those whose events are all still there, with the
    /// events, in one snapshot.
    ///
    /// # Errors
    /// When the database is away or has no schema.
    pub async fn drift(&self, at: Option<Timestamp>) -> Result<Drift, StoreError> {
        let at: Option<SystemTime> = at.map(moment);
        let rows = self.patient(PATIENCE, async |client| client.query(DRIFT, &[&at, &MOST]).await).await?;
        let mut drift = Drift::default();
        for row in &rows {
            match row.get::<_, Option<String>>(0) {
                None => {
                    let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
                    (drift.counters, drift.drifted, drift.total) = (count(4), count(5), count(6));
                }
                Some(tenant) => drift.worst.push(drifted(row, tenant)),
            }
        }
        Ok(drift)
    }
}

fn drifted(row: &Row, tenant: String) -> Drifted {
    let instant =
        |at: usize| row.get::<_, Option<SystemTime>>(at).and_then(|at| Timestamp::try_from(at).ok());
    Drifted {
        tenant,
        dimension: row.get(1),
        window_start: instant(2),
        window_end: instant(3),
        settled: row.get(4),
        charged: row.get(5),
    }
}
