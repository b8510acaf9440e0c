//! What the database knows of quotas: [`LeaseSource`].

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::instant::moment;
use super::pool::Store;
use crate::model::tenant::TenantId;
use crate::quota::{LeaseError, LeaseSource, Settled};

/// The windows that hold `$1`. Those that are over are the greater part of the table, so the index is on the end.
const SETTLED: &str = "SELECT tenant_id, dimension, window_start, window_end, settled FROM quota_usage \
     WHERE window_end > $1 AND window_start <= $1";

impl LeaseSource for Store {
    fn settled(&self, now: Timestamp) -> BoxFuture<'_, Result<Vec<Settled>, LeaseError>> {
        async move {
            let told = |error: &dyn std::fmt::Display| LeaseError(error.to_string());
            let client = self.client().await.map_err(|error| told(&error))?;
            let rows = self
                .bounded(client, async |client| {
                    let statement = client.prepare_cached(SETTLED).await?;
                    client.query(&statement, &[&moment(now)]).await
                })
                .await
                .map_err(|error| told(&error))?;
            Ok(rows.iter().filter_map(settled).collect())
        }
        .boxed()
    }
}

/// A counter; `None` for one that this program can't have written, such as a newer one's unit.
fn settled(row: &tokio_postgres::Row) -> Option<Settled> {
    let instant = |at: usize| {
        row.try_get::<_, std::time::SystemTime>(at).ok().and_then(|t| Timestamp::try_from(t).ok())
    };
    let read = || {
        Some(Settled {
            tenant: TenantId::parse(row.try_get(0).ok()?).ok()?,
            dimension: row.try_get::<_, &str>(1).ok()?.parse().ok()?,
            window_start: instant(2)?,
            window_end: instant(3)?,
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
