//! Recorded calls, in the order in which each tenant made them: what `tollgate what-if` replays.
//!
//! One cursor in one snapshot, ordered by tenant and time as the index is (read backwards: the last tenant first), so
//! that neither the server has to sort the range nor this program to hold it. A few thousand calls are in memory at a time.

use std::time::{Duration, SystemTime};

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};

use super::instant::moment;
use super::pool::{Store, StoreError};
use super::report::Between;
use crate::model::quota::Amounts;
use crate::model::tenant::TenantId;

/// How long it may take in all.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Calls that are read at once.
const BATCH: usize = 2_000;

const CALLS: &str = include_str!("replay.sql");

/// A recorded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whose.
    pub tenant: TenantId,
    /// When it arrived.
    pub at: Timestamp,
    /// From its arrival to its end, in milliseconds, rounded half up.
    pub response_time_ms: Option<u64>,
    /// Its method.
    pub method: String,
    /// Its route's path.
    pub endpoint: String,
    /// Its kind, as written: `chat_message`, …
    pub event: String,
    /// What it used, or its quotas were charged beyond that. Nothing, where it was refused.
    pub used: Amounts,
    /// It was refused, for quota or because quotas could not be checked.
    pub refused: bool,
    /// How many calls the row stands for: refused ones may be summed.
    pub times: u64,
    /// The model that priced it.
    pub model: Option<String>,
    /// What it asked for, where its row keeps that.
    pub asked: Option<Amounts>,
}

impl Store {
    /// Hands the calls of `between` (of one tenant, or of all) to `each`, in batches: tenant by tenant, each tenant's in the
    /// order of their arrival.
    ///
    /// # Errors
    /// When the database is away or has no schema, or it takes more than an hour.
    pub async fn replay(
        &self,
        between: Between,
        tenant: Option<&TenantId>,
        mut each: impl AsyncFnMut(Vec<Call>),
    ) -> Result<(), StoreError> {
        let (start, end, tenant) = (moment(between.start), moment(between.end), tenant.map(TenantId::as_str));
        self.patient(PATIENCE, async |client: &ClientWrapper| {
            client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let binds: [(&(dyn ToSql + Sync), Type); 3] =
                [(&start, Type::TIMESTAMPTZ), (&end, Type::TIMESTAMPTZ), (&tenant, Type::TEXT)];
            client.query_typed(&format!("DECLARE calls NO SCROLL CURSOR FOR {CALLS}"), &binds).await?;
            let fetch = format!("FETCH {BATCH} FROM calls");
            loop {
                let rows = client.query_typed(&fetch, &[]).await?;
                let read = rows.len();
                let calls: Result<Vec<_>, Error> =
                    rows.iter().filter_map(|row| call(row).transpose()).collect();
                each(calls?).await;
                if read < BATCH {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// The first instant whose events are all still there; `None` where retention has taken none.
    ///
    /// # Errors
    /// When the database is away or has no schema.
    pub async fn retained_from(&self) -> Result<Option<Timestamp>, StoreError> {
        const SQL: &str = "SELECT retained_from FROM usage_aggregation_state WHERE isfinite(retained_from)";
        let client = self.client().await?;
        let row = self.bounded(client, async |client| client.query_opt(SQL, &[]).await).await?;
        Ok(row.and_then(|row| Timestamp::try_from(row.get::<_, SystemTime>(0)).ok()))
    }
}

/// `None` for a row that this program can't have written.
fn call(row: &Row) -> Result<Option<Call>, Error> {
    let (Ok(tenant), Ok(at)) =
        (TenantId::parse(row.try_get(0)?), Timestamp::try_from(row.try_get::<_, SystemTime>(1)?))
    else {
        return Ok(None);
    };
    let count = |at: usize| {
        let count = row.try_get::<_, Option<i32>>(at);
        count.map(|count| count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0))
    };
    let amount = |at: usize| {
        let amount = row.try_get::<_, Option<i64>>(at);
        amount.map(|amount| amount.and_then(|amount| u64::try_from(amount).ok()).unwrap_or(0))
    };
    let refused: bool = row.try_get(10)?;
    let used = Amounts {
        tokens: amount(8)?,
        api_calls: u64::from(!refused),
        chat_messages: count(6)?,
        embeddings: count(7)?,
        cost_nanousd: amount(9)?,
        concurrent: 0,
    };
    let asked: Option<serde_json::Value> = row.try_get(12)?;
    Ok(Some(Call {
        tenant,
        at,
        response_time_ms: row.try_get::<_, Option<i32>>(2)?.and_then(|ms| u64::try_from(ms).ok()),
        method: row.try_get::<_, Option<String>>(3)?.unwrap_or_default(),
        endpoint: row.try_get::<_, Option<String>>(4)?.unwrap_or_default(),
        event: row.try_get(5)?,
        used,
        refused,
        times: u64::try_from(row.try_get::<_, i64>(13)?).unwrap_or(1),
        model: row.try_get(11)?,
        asked: asked.and_then(|asked| serde_json::from_value(asked).ok()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{ASKED, CHARGED_TOKENS, FLOOR_COST};

    #[test]
    fn the_statement_asks_for_what_events_keep() {
        for name in [ASKED, CHARGED_TOKENS, FLOOR_COST] {
            assert!(CALLS.contains(&format!("metadata -> '{name}'")), "{name}");
        }
    }
}
