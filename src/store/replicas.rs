//! Which Tollgate processes there are: `gateway_replicas`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;

use super::pool::{Store, StoreError};

const REGISTER: &str = "INSERT INTO gateway_replicas (replica_id, address, version) VALUES ($1, $2, $3) \
     ON CONFLICT (replica_id) DO UPDATE SET state = 'live', address = excluded.address, \
     version = excluded.version, started_at = now(), heartbeat_at = now()";
const LEAVE: &str =
    "UPDATE gateway_replicas SET state = 'stopped', heartbeat_at = now() WHERE replica_id = $1";

/// Leases of windows that run, with what is granted of them and not yet written as used.
const LIST: &str = "WITH units AS ( \
         SELECT replica_id, split_part(dimension, '_per_', 1) AS unit, count(*) AS held, \
             sum(greatest(granted - consumed, 0)) AS outstanding \
         FROM quota_leases WHERE window_end > now() GROUP BY 1, 2) \
     SELECT r.replica_id, r.state, r.address, r.version, r.run, \
         greatest(extract(epoch FROM clock_timestamp() - r.heartbeat_at), 0)::float8, r.started_at, \
         coalesce(sum(u.held), 0)::bigint, \
         coalesce(array_agg(u.unit ORDER BY u.unit) FILTER (WHERE u.unit IS NOT NULL), '{}'), \
         coalesce(array_agg(least(u.outstanding, 9223372036854775807)::bigint ORDER BY u.unit) \
             FILTER (WHERE u.unit IS NOT NULL), '{}') \
     FROM gateway_replicas r LEFT JOIN units u USING (replica_id) \
     GROUP BY r.replica_id ORDER BY r.heartbeat_at DESC, r.replica_id";

/// Refuses while the process was heard of lately, unless told otherwise. One statement: what was taken for dead holds
/// nothing from the same instant on.
const RETIRE: &str = "WITH retired AS ( \
         UPDATE gateway_replicas SET state = 'retired' \
         WHERE replica_id = $1 AND ($2 OR heartbeat_at < clock_timestamp() - make_interval(secs => $3)) \
         RETURNING replica_id), \
     freed AS (DELETE FROM quota_leases l USING retired r WHERE l.replica_id = r.replica_id RETURNING 1) \
     SELECT (SELECT count(*) FROM retired), (SELECT count(*) FROM freed), \
         (SELECT greatest(extract(epoch FROM clock_timestamp() - heartbeat_at), 0)::float8 \
          FROM gateway_replicas WHERE replica_id = $1)";

/// A process that was heard of so lately lives, for all that is known: in seconds.
pub const ALIVE_SECS: f64 = 10.0;

/// A Tollgate process, as the database knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// The id in its data directory.
    pub id: String,
    /// `live`, `draining`, `stopped` or `retired`.
    pub state: String,
    /// Where it listens.
    pub address: Option<String>,
    /// Its program's version.
    pub version: Option<String>,
    /// Its run: leases are those of one run.
    pub run: i64,
    /// Seconds since it was last heard of, by the database's clock.
    pub silent_secs: f64,
    /// When it started.
    pub started: Option<Timestamp>,
    /// Leases that it holds in windows that run.
    pub leases: u64,
    /// What it may still spend under them, as far as its use is written, by unit.
    pub outstanding: BTreeMap<String, i64>,
}

/// What came of retiring a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Retired {
    /// It is retired, and so many leases of it are free.
    Done {
        /// Leases that it held, of all windows.
        leases: u64,
    },
    /// It was heard of so many seconds ago.
    Alive {
        /// Seconds since then.
        silent_secs: f64,
    },
    /// There is none of this id.
    Unknown,
}

impl Store {
    /// Makes this replica known as live, listening on `address`. Without a replica id it does nothing.
    pub async fn register_replica(&self, address: &str) -> Result<(), StoreError> {
        let Some(id) = self.replica_id() else { return Ok(()) };
        let client = self.client().await?;
        let version = env!("CARGO_PKG_VERSION");
        self.bounded(client, async |client| client.execute(REGISTER, &[&id, &address, &version]).await)
            .await?;
        Ok(())
    }

    /// Says that this replica has stopped of its own will.
    pub async fn leave(&self) -> Result<(), StoreError> {
        let Some(id) = self.replica_id() else { return Ok(()) };
        let client = self.client().await?;
        self.bounded(client, async |client| client.execute(LEAVE, &[&id]).await).await?;
        Ok(())
    }

    /// Every process that was ever heard of, the latest first.
    pub async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        let client = self.client().await?;
        let rows = self.bounded(client, async |client| client.query(LIST, &[]).await).await?;
        let replica = |row: &tokio_postgres::Row| {
            let (units, amounts): (Vec<String>, Vec<i64>) = (row.get(8), row.get(9));
            Replica {
                id: row.get(0),
                state: row.get(1),
                address: row.get(2),
                version: row.get(3),
                run: row.get(4),
                silent_secs: row.get(5),
                started: Timestamp::try_from(row.get::<_, SystemTime>(6)).ok(),
                leases: u64::try_from(row.get::<_, i64>(7)).unwrap_or(0),
                outstanding: units.into_iter().zip(amounts).collect(),
            }
        };
        Ok(rows.iter().map(replica).collect())
    }

    /// Takes a replica for dead: what it was granted is free for the others. Refuses while it was heard of in the last
    /// [`ALIVE_SECS`] seconds, unless `force`. One that lives all the same hears of it with its next round, and begins a
    /// new run.
    pub async fn retire(&self, id: &str, force: bool) -> Result<Retired, StoreError> {
        let client = self.client().await?;
        let row = self
            .bounded(client, async |client| client.query_one(RETIRE, &[&id, &force, &ALIVE_SECS]).await)
            .await?;
        let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        Ok(match (count(0), row.get::<_, Option<f64>>(2)) {
            (0, Some(silent_secs)) => Retired::Alive { silent_secs },
            (0, None) => Retired::Unknown,
            _ => Retired::Done { leases: count(1) },
        })
    }
}
