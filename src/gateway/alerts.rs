//! Alerts: looked for by the clock, delivered as they come due, until the stop.
//!
//! 1. Nothing here is on the way of a request: what is looked at is in the database.
//! 2. While the database is away nothing is raised and nothing sent. What it holds when it is back still says what has
//!    crossed a threshold, so nothing is missed but by a window that is over for ten minutes by then.
//! 3. A receiver that hangs or is away holds up deliveries, never the looks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::health::Live;
use crate::jobs::{Alerting, Webhook};
use crate::settings::Settings;
use crate::store::alerts::{self, Delivery, Look};
use crate::store::{Store, StoreError};
use crate::telemetry::{Metrics, bump};

/// Deliveries at once.
const AT_ONCE: u32 = 8;

/// On top of a try's time limit: after it an alert that was taken and never accounted for is anybody's again.
const GRACE: Duration = Duration::from_secs(30);

/// What both tasks need.
#[derive(Clone)]
struct Desk {
    alerting: Arc<Alerting>,
    store: Store,
    metrics: Arc<Metrics>,
    live: Arc<Live>,
    /// Something was raised.
    raised: Arc<Notify>,
}

/// Starts looking, and delivering where there is a webhook.
///
/// Errors: [`crate::settings::Faults`] where the webhook can't be used.
pub(super) fn start(
    alerting: Alerting,
    settings: &Settings,
    store: &Store,
    metrics: &Arc<Metrics>,
    live: &Arc<Live>,
    background: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let desk = Desk {
        alerting: Arc::new(alerting),
        store: store.clone(),
        metrics: metrics.clone(),
        live: live.clone(),
        raised: Arc::default(),
    };
    if let Some(config) = &desk.alerting.webhook {
        let webhook = Webhook::new(config).map_err(|why| settings.fault("alerts.webhook_url", why))?;
        background.spawn(until(stop.clone(), deliver(desk.clone(), webhook)));
    }
    background.spawn(until(stop.clone(), look(desk, settings.aggregate_interval)));
    Ok(())
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// Looks every interval.
async fn look(desk: Desk, aggregate_interval: Duration) {
    let alerting = &desk.alerting;
    loop {
        tokio::time::sleep(alerting.interval).await;
        if !desk.live.database().hydrated || !desk.live.database().up {
            continue;
        }
        let to_be_sent = alerting.webhook.is_some();
        let result =
            match alerts::look(&desk.store, &alerting.alertness, aggregate_interval, to_be_sent).await {
                Ok(Look::NotOurs) => "taken",
                Ok(Look::Raised(kinds)) => {
                    for (kind, count) in kinds {
                        tracing::warn!(kind, count, "alerts were raised");
                        let label = crate::telemetry::Label("kind", kind.into());
                        desk.metrics.alerts.get_or_create(&label).inc_by(count);
                        desk.raised.notify_one();
                    }
                    "ok"
                }
                Err(error) => {
                    tracing::warn!(%error, "alerts could not be looked for; the next look makes up for it");
                    "failed"
                }
            };
        bump(&desk.metrics.alert_looks, "result", result);
    }
}

/// Delivers what is due: at once what was raised here, else when it comes due or every interval.
async fn deliver(desk: Desk, webhook: Webhook) {
    loop {
        let pause = match pending(&desk, &webhook).await {
            Ok(due) => due.map_or(desk.alerting.interval, |due| due.min(desk.alerting.interval)),
            Err(error) => {
                tracing::debug!(%error, "alerts wait for the database");
                desk.alerting.interval
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = desk.raised.notified() => {}
        }
    }
}

/// Delivers all that is due now; says when the next will be.
async fn pending(desk: &Desk, webhook: &Webhook) -> Result<Option<Duration>, StoreError> {
    if !desk.live.database().hydrated || !desk.live.database().up {
        return Ok(None);
    }
    let timeout = desk.alerting.webhook.as_ref().map_or(Duration::ZERO, |webhook| webhook.timeout);
    loop {
        let taken = alerts::claim(&desk.store, AT_ONCE, timeout + GRACE).await?;
        if taken.is_empty() {
            return alerts::next_due(&desk.store).await;
        }
        for done in join_all(taken.iter().map(|one| attempt(desk, webhook, one))).await {
            done?;
        }
    }
}

async fn attempt(desk: &Desk, webhook: &Webhook, delivery: &Delivery) -> Result<(), StoreError> {
    let now = jiff::Timestamp::now();
    let Err(why) = webhook.deliver(delivery.alert_id, &delivery.body, now).await else {
        bump(&desk.metrics.alert_deliveries, "result", "sent");
        return alerts::sent(&desk.store, delivery).await;
    };
    let pause = desk.alerting.pause_after(delivery.attempt, rand::random());
    let (alert, attempt) = (delivery.alert_id, delivery.attempt);
    match pause {
        Some(pause) => {
            tracing::warn!(%alert, attempt, why, ?pause, "an alert was not delivered; tried again")
        }
        None => tracing::error!(%alert, attempt, why, "an alert was not delivered, and is given up"),
    }
    bump(&desk.metrics.alert_deliveries, "result", if pause.is_some() { "retried" } else { "failed" });
    alerts::failed(&desk.store, delivery, &why, pause).await
}
