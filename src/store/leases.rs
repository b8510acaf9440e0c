//! What the database knows of quotas: [`LeaseSource`].

use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::instant::moment;
use super::pool::{Store, StoreError};
use crate::model::quota::Dimension;
use crate::model::tenant::TenantId;
use crate::quota::{Ask, Grant, Grants, LeaseError, LeaseSource, Round, Settled};

/// The windows that hold `$1`. Those that are over are the greater part of the table, so the index is on the end.
const SETTLED: &str = "SELECT tenant_id, dimension, window_start, window_end, settled FROM quota_usage \
     WHERE window_end > $1 AND window_start <= $1";

/// One tenant's, each less what this run of this replica has used of it.
const SETTLED_ELSEWHERE: &str = "SELECT u.tenant_id, u.dimension, u.window_start, u.window_end, \
         u.settled - coalesce(l.consumed, 0) \
     FROM quota_usage u LEFT JOIN quota_leases l ON l.tenant_id = u.tenant_id AND l.dimension = u.dimension \
         AND l.window_start = u.window_start AND l.replica_id = $3 AND l.run = $4 \
     WHERE u.tenant_id = $1 AND u.window_end > $2 AND u.window_start <= $2";

const LEASE: &str = "SELECT place, granted, before, elsewhere, recalled, tenant, dimension, starts_at \
     FROM tollgate_lease($1, $2, $3, make_interval(secs => $4), $5, $6, $7, $8, $9, $10, $11, $12)";

/// Where replicas say that they are refused for want of what others hold.
pub const LEASES: &str = "tollgate_leases";

const RELEASE: &str = "DELETE FROM quota_leases WHERE replica_id = $1 AND run < $2";

/// SQLSTATE of `tollgate_lease`: a later round of this run, or a later run, has been carried out.
const TOO_LATE: &str = "TG001";

/// SQLSTATE of `tollgate_lease`: this run was taken for dead.
const TAKEN_FOR_DEAD: &str = "TG002";

impl LeaseSource for Store {
    fn settled(&self, now: Timestamp) -> BoxFuture<'_, Result<Vec<Settled>, LeaseError>> {
        async move {
            let client = self.client().await.map_err(told)?;
            let rows = self
                .bounded(client, async |client| {
                    let statement = client.prepare_cached(SETTLED).await?;
                    client.query(&statement, &[&moment(now)]).await
                })
                .await
                .map_err(told)?;
            Ok(rows.iter().filter_map(settled).collect())
        }
        .boxed()
    }

    fn lease<'a>(&'a self, round: Round, asks: &'a [Ask]) -> BoxFuture<'a, Result<Grants, LeaseError>> {
        async move {
            let client = self.client().await.map_err(told)?;
            let rows = self.bounded(client, async |client| ask(client, self.replica_id(), round, asks).await);
            grants(&rows.await.map_err(told)?, asks.len())
        }
        .boxed()
    }

    fn release_before(&self, run: u64) -> BoxFuture<'_, Result<(), LeaseError>> {
        async move {
            let Some(replica) = self.replica_id() else { return Ok(()) };
            let client = self.client().await.map_err(told)?;
            self.bounded(client, async |client| client.execute(RELEASE, &[&replica, &signed(run)]).await)
                .await
                .map_err(told)?;
            Ok(())
        }
        .boxed()
    }
}

impl Store {
    /// The live counters of `tenant` whose window holds `now`, each less what `run` of this replica has used of it.
    pub async fn settled_elsewhere(
        &self,
        tenant: &TenantId,
        run: u64,
        now: Timestamp,
    ) -> Result<Vec<Settled>, StoreError> {
        let client = self.client().await?;
        let (replica, run, now) = (self.replica_id(), signed(run), moment(now));
        let rows = self
            .bounded(client, async |client| {
                let statement = client.prepare_cached(SETTLED_ELSEWHERE).await?;
                client.query(&statement, &[&tenant.as_str(), &now, &replica, &run]).await
            })
            .await?;
        Ok(rows.iter().filter_map(settled).collect())
    }
}

fn told(error: StoreError) -> LeaseError {
    match &error {
        StoreError::Query(query)
            if query.code().is_some_and(|code| [TOO_LATE, TAKEN_FOR_DEAD].contains(&code.code())) =>
        {
            LeaseError::Void(error.to_string())
        }
        _ => LeaseError::Unavailable(error.to_string()),
    }
}

async fn ask(
    client: &deadpool_postgres::ClientWrapper,
    replica: Option<&str>,
    round: Round,
    asks: &[Ask],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let statement = client.prepare_cached(LEASE).await?;
    let dimensions: Vec<String> = asks.iter().map(|ask| ask.key.dimension.to_string()).collect();
    let tenants: Vec<&str> = asks.iter().map(|ask| ask.key.tenant.as_str()).collect();
    let dimensions: Vec<&str> = dimensions.iter().map(String::as_str).collect();
    let starts: Vec<SystemTime> = asks.iter().map(|ask| moment(ask.key.span.start)).collect();
    let ends: Vec<SystemTime> = asks.iter().map(|ask| moment(ask.key.span.end)).collect();
    let known: Vec<Option<i64>> = asks.iter().map(|ask| ask.known).collect();
    let at_least: Vec<i64> = asks.iter().map(|ask| ask.at_least).collect();
    let at_most: Vec<i64> = asks.iter().map(|ask| ask.at_most).collect();
    let limits: Vec<Option<i64>> = asks.iter().map(|ask| ask.limit.map(signed)).collect();
    let reclaim_after = round.reclaim_after.as_ref().map(Duration::as_secs_f64);
    let columns: [&(dyn ToSql + Sync); 12] = [
        &replica.unwrap_or_default(),
        &signed(round.run),
        &signed(round.number),
        &reclaim_after,
        &tenants,
        &dimensions,
        &starts,
        &ends,
        &known,
        &at_least,
        &at_most,
        &limits,
    ];
    client.query(&statement, &columns).await
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads the answer to a round of `asked` asks.
fn grants(rows: &[Row], asked: usize) -> Result<Grants, LeaseError> {
    let mut grants = vec![None; asked];
    let mut wanted = Vec::new();
    for row in rows {
        let place: i32 = row.try_get(0).map_err(unreadable)?;
        if place == 0 {
            wanted.extend(recalled(row));
            continue;
        }
        let at = usize::try_from(place).ok().and_then(|place| grants.get_mut(place - 1));
        let Some(at) = at else { return Err(unreadable("a place that was not asked for")) };
        *at = Some(Grant {
            granted: row.try_get(1).map_err(unreadable)?,
            before: row.try_get(2).map_err(unreadable)?,
            elsewhere: row.try_get(3).map_err(unreadable)?,
            recalled: row.try_get(4).map_err(unreadable)?,
        });
    }
    let grants: Option<Vec<Grant>> = grants.into_iter().collect();
    let grants = grants.ok_or_else(|| unreadable("an ask without an answer"))?;
    Ok(Grants { grants, wanted })
}

fn unreadable(why: impl std::fmt::Display) -> LeaseError {
    LeaseError::Unavailable(format!("the answer to a round of leases can't be read: {why}"))
}

fn instant(row: &Row, at: usize) -> Option<Timestamp> {
    row.try_get::<_, SystemTime>(at).ok().and_then(|time| Timestamp::try_from(time).ok())
}

/// A lease that is wanted back; `None` for one that this program can't have been granted.
fn recalled(row: &Row) -> Option<(TenantId, Dimension, Timestamp)> {
    let tenant = TenantId::parse(row.try_get(5).ok()?).ok()?;
    Some((tenant, row.try_get::<_, &str>(6).ok()?.parse().ok()?, instant(row, 7)?))
}

/// A counter; `None` for one that this program can't have written, such as a newer one's unit.
fn settled(row: &Row) -> Option<Settled> {
    let read = || {
        Some(Settled {
            tenant: TenantId::parse(row.try_get(0).ok()?).ok()?,
            dimension: row.try_get::<_, &str>(1).ok()?.parse().ok()?,
            window_start: instant(row, 2)?,
            window_end: instant(row, 3)?,
            amount: row.try_get(4).ok()?,
        })
    };
    let counter = read();
    if counter.is_none() {
        tracing::warn!(
            tenant = row.try_get::<_, &str>(0).ok(),
            "a quota counter that can't be read is left out"
        );
    }
    counter
}
