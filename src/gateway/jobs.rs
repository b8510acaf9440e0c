//! Work that is done by the clock: aggregation and retention, and forgetting tenants that are idle.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::health::Live;
use crate::admin;
use crate::proxy::Core;
use crate::store::{Store, StoreError};
use crate::telemetry::{AuditHead, Metrics, bump};

/// Between two looks for tenants with nothing left.
const EVICT_INTERVAL: Duration = Duration::from_secs(60);

/// Aggregates every `interval`, until `stop`. Partitions are made ahead and old ones dropped in the same pass.
pub(super) async fn aggregate(
    store: Store,
    metrics: Arc<Metrics>,
    live: Arc<Live>,
    interval: Duration,
    stop: CancellationToken,
) {
    // A gateway that was away for long finds none for today.
    let first = async {
        live.hydrated().await;
        store.make_partitions_ahead().await?;
        tell_heads(&store, &metrics).await
    };
    tokio::select! {
        made = first => {
            if let Err(error) = made {
                tracing::warn!(%error, "the first look after the tables failed; the next pass makes up for it");
            }
        }
        () = stop.cancelled() => return,
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = stop.cancelled() => return,
        }
        if !live.database().up {
            continue;
        }
        tokio::select! {
            result = pass(&store, &metrics) => match result {
                Ok(report) => tracing::debug!(?report, "aggregated"),
                Err(why) => tracing::warn!(why, "the aggregation failed; the next one makes up for it"),
            },
            () = stop.cancelled() => return,
        }
    }
}

/// The aggregation that an operator starts.
pub(super) fn on_request(store: Store, metrics: Arc<Metrics>) -> admin::Aggregation {
    Arc::new(move || {
        let (store, metrics) = (store.clone(), metrics.clone());
        Box::pin(async move { pass(&store, &metrics).await })
    })
}

/// One aggregation and retention pass, and its report.
pub(crate) async fn pass(store: &Store, metrics: &Metrics) -> Result<Map<String, Value>, String> {
    let result = maintain(store, metrics).await;
    bump(&metrics.aggregations, "result", if result.is_ok() { "ok" } else { "failed" });
    result.map_err(|error| error.to_string())
}

/// Tells the heads of the audit chains in the log and in `/metrics`, so that they can be noted where whoever can write
/// to the database can't.
pub(super) async fn tell_heads(store: &Store, metrics: &Metrics) -> Result<(), StoreError> {
    let heads = store.audit_heads().await?;
    // A hash of before must not be shown beside that of now.
    metrics.audit_chain_seq.clear();
    for head in heads {
        tracing::info!(chain = head.chain, seq = head.seq, hash = head.hash, "the head of an audit chain");
        let seq = head.seq;
        metrics.audit_chain_seq.get_or_create(&AuditHead { chain: head.chain, hash: head.hash }).set(seq);
    }
    Ok(())
}

async fn maintain(store: &Store, metrics: &Metrics) -> Result<Map<String, Value>, StoreError> {
    let partitions = store.make_partitions_ahead().await?;
    let written = store.aggregate().await?;
    let removed = store.clean_up().await?;
    tell_heads(store, metrics).await?;
    let drift = store.drift(Some(jiff::Timestamp::now())).await?;
    metrics.quota_drift.set(i64::try_from(drift.total).unwrap_or(i64::MAX));
    if drift.drifted > 0 {
        tracing::error!(
            counters = drift.drifted,
            by = drift.total,
            "quota counters differ from their events: `tollgate verify-quota` says which"
        );
    }
    let report = json!({
        "quota_drift": drift.total,
        "periods": {"hourly": written.hourly, "daily": written.daily, "monthly": written.monthly},
        "since": written.since.map(|since| since.to_string()),
        "partitions_made": partitions,
        "removed": {
            "usage_events": removed.usage_events,
            "audit_events": removed.audit_events,
            "quota_windows": removed.quota_windows,
            "alerts": removed.alerts,
        },
    });
    match report {
        Value::Object(report) => Ok(report),
        _ => Ok(Map::new()),
    }
}

/// Between two looks for refusals whose minute is over.
const REFUSALS_INTERVAL: Duration = Duration::from_secs(1);

/// Records the refusals of each minute that were summed, until `stop`. The last ones are the stop's to record.
pub(super) async fn record_refusals(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(REFUSALS_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        for records in core.refusals.due(jiff::Timestamp::now()) {
            drop(core.recorder.record(records));
        }
    }
}

/// Forgets idle tenants every minute, until `stop`.
pub(super) async fn evict(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVICT_INTERVAL) => {
                let now = jiff::Timestamp::now();
                core.enforcer.evict(now);
                core.strangers.evict(now);
            }
            () = stop.cancelled() => return,
        }
    }
}
