//! What a reload can change, compiled from the settings.

use std::sync::Arc;

use crate::proxy::{Policy, PolicyParts};
use crate::quota::{Overrides, Plans};
use crate::settings::Settings;
use crate::telemetry::Metrics;

/// Compiles what a reload can change. The plans stand under `overrides`, which a reload does not change.
pub(super) fn of(
    settings: &Settings,
    overrides: &Arc<Overrides>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Policy> {
    let plans = Plans::new(
        settings.plans.clone(),
        settings.overrides.clone(),
        settings.default_plan.clone(),
        metrics.clone(),
    )
    .map_err(|why| settings.fault("plans", why))?
    .with_admin(overrides.clone());
    let policy = Policy::new(PolicyParts {
        routes: &settings.routes,
        formats: &settings.formats,
        identify: &settings.identify,
        plans: Arc::new(plans),
        prices: settings.prices.clone(),
        meter: settings.meter.clone(),
    });
    Ok(policy.map_err(|error| settings.fault(error.key(), error.to_string()))?)
}
