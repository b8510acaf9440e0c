//! What a reload can change, compiled from the settings.

use std::sync::Arc;

use crate::proxy::{Policy, PolicyParts};
use crate::quota::Plans;
use crate::settings::Settings;
use crate::telemetry::Metrics;

/// Compiles what a reload can change.
pub(super) fn of(settings: &Settings, metrics: &Arc<Metrics>) -> anyhow::Result<Policy> {
    let plans = Plans::new(
        settings.plans.clone(),
        settings.overrides.clone(),
        settings.default_plan.clone(),
        metrics.clone(),
    )
    .map_err(|why| settings.fault("plans", why))?;
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
