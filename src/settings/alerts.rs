//! `[alerts]`, and the secret that deliveries are signed with.

use std::collections::BTreeMap;
use std::time::Duration;

use super::effective::shown_secret;
use super::reader::{Table, all};
use super::{tenants, units};
use crate::jobs::{Alerting, Alertness, WebhookConfig};

/// The variable that holds the secret.
const SECRET: &str = "ALERT_WEBHOOK_SECRET";

const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The outer `None` is a fault, the inner that there are to be no alerts.
pub(super) fn alerts(root: &Table<'_>, environment: &BTreeMap<String, String>) -> Option<Option<Alerting>> {
    let table = root.key("alerts").table()?;
    let enabled = table.key("enabled").boolean();
    let interval = table.key("interval").duration(50 * MS..=HOUR);
    let quota_windows = table.key("quota_windows").strings(|text| {
        text.parse().map_err(|()| format!("{text:?} is no window: write minute, hour, day or month"))
    });
    // An hour in which every call fails has a rate of 1: nothing is above it.
    let error_rate = table.key("error_rate").number(0.0..=1.0);
    let min_calls = table.key("min_calls").integer(1..=1_000_000_000);
    let p99 = table.key("p99").duration(MS..=DAY);
    let cost_factor = table.key("cost_factor").number(1.0..=1e6);
    let min_cost_usd = table.key("min_cost").dollars();
    let thresholds = table.key("quota_thresholds").in_one_line().list();
    let thresholds = thresholds.and_then(|each| all(each.iter().map(|one| one.number(1.0..=1000.0))));
    let webhook = webhook(&table, environment);
    let retry_first = table.key("retry_first").duration(10 * MS..=HOUR);
    let max_attempts = table.key("max_attempts").integer(1..=1000);
    let alerting = Alerting {
        interval: interval?,
        alertness: Alertness {
            quota_thresholds: thresholds?,
            quota_windows: quota_windows?,
            error_rate: error_rate?,
            min_calls: min_calls?,
            p99: p99?,
            cost_factor: cost_factor?,
            min_cost_usd: min_cost_usd?,
        },
        webhook: webhook?,
        retry_first: retry_first?,
        max_attempts: u32::try_from(max_attempts?).ok()?,
    };
    Some(enabled?.then_some(alerting))
}

fn webhook(table: &Table<'_>, environment: &BTreeMap<String, String>) -> Option<Option<WebhookConfig>> {
    let report = table.report();
    let set = environment.contains_key(SECRET);
    let secret = tenants::secret(report, environment, SECRET, SECRET);
    report.note(
        SECRET.to_owned(),
        shown_secret(secret.is_some()),
        secret.as_deref().unwrap_or("").as_bytes(),
    );
    let timeout = table.key("webhook_timeout").duration(10 * MS..=MINUTE);
    let url = match table.optional("webhook_url") {
        Some(slot) => {
            let url = slot.secret_url(units::webhook_url);
            if url.is_some() && !set {
                slot.fault(format!(
                    "needs a secret that its deliveries are signed with: set the variable {SECRET}"
                ));
            }
            Some(url?)
        }
        None => None,
    };
    let timeout = timeout?;
    match (url, secret) {
        (Some(url), Some(secret)) => Some(Some(WebhookConfig { url, secret, timeout })),
        (Some(_), None) => None,
        (None, Some(_)) => Some(None),
        (None, None) => (!set).then_some(None),
    }
}
