//! What commands ask of the database, without a gateway being started.

use super::reprice::Reprice;
use super::what_if::{Replayed, WhatIf};
use super::{database, jobs};
use crate::settings::Settings;
use crate::store::chain::{Question, Walked};
use crate::store::reconcile::Recorded;
use crate::store::replicas::{Replica, Retired};
use crate::store::reprice::Repricing;
use crate::store::{Drift, Store};
use crate::telemetry::Metrics;

/// Brings the schema up, or takes it away; says what was done.
pub async fn migrate(settings: &Settings, down: bool) -> anyhow::Result<String> {
    with_store(settings, async |store| {
        if down {
            store.migrate_down().await?;
            return Ok("the schema and all that was recorded in it is gone".to_owned());
        }
        let migrated = store.migrate().await?;
        Ok(match migrated.applied.as_slice() {
            [] => migrated.from.to_string(),
            applied => format!("the schema is up to date (applied: {})", applied.join(", ")),
        })
    })
    .await
}

/// One aggregation and retention pass; its report as JSON.
pub async fn aggregate(settings: &Settings) -> anyhow::Result<String> {
    with_store(settings, async |store| {
        store.migrate().await?;
        let report = jobs::pass(store, &Metrics::new()).await.map_err(anyhow::Error::msg)?;
        Ok(serde_json::Value::Object(report).to_string())
    })
    .await
}

/// The live counters against their events.
pub async fn verify_quota(settings: &Settings) -> anyhow::Result<Drift> {
    with_store(settings, async |store| Ok(store.drift(None).await?)).await
}

/// Recorded calls against the limits of `settings`.
pub async fn what_if(settings: &Settings, question: &WhatIf) -> anyhow::Result<Replayed> {
    with_store(settings, async |store| super::what_if::replay(settings, store, question).await).await
}

/// Rows whose model had no price, by the prices of `settings`.
pub async fn reprice(settings: &Settings, asked: &Reprice) -> anyhow::Result<Repricing> {
    with_store(settings, async |store| super::reprice::reprice(settings, store, asked).await).await
}

/// What was recorded of each model on `days`, to hold an invoice against.
pub async fn recorded_by_model(
    settings: &Settings,
    days: &[(jiff::Timestamp, jiff::Timestamp)],
) -> anyhow::Result<Recorded> {
    with_store(settings, async |store| Ok(store.recorded_by_model(days).await?)).await
}

/// The chains of audit events, walked without starting a gateway.
pub async fn verify_audit(settings: &Settings, question: &Question) -> anyhow::Result<Walked> {
    with_store(settings, async |store| Ok(store.verify_audit(question).await?)).await
}

/// Every process that shares the database.
pub async fn replicas(settings: &Settings) -> anyhow::Result<Vec<Replica>> {
    with_store(settings, async |store| Ok(store.replicas().await?)).await
}

/// Takes a process for dead.
pub async fn retire(settings: &Settings, id: &str, force: bool) -> anyhow::Result<Retired> {
    with_store(settings, async |store| Ok(store.retire(id, force).await?)).await
}

async fn with_store<T>(
    settings: &Settings,
    work: impl AsyncFnOnce(&Store) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (config, private) = database::configured(settings).await?;
    let store = Store::new(&config).map_err(|error| settings.fault("database.url", error.to_string()))?;
    let done = work(&store).await;
    store.close();
    if let Some(private) = private {
        private.stop().await;
    }
    done
}
