//! What plans there are, and who has which limits.
//!
//! Config and counters live apart: a reload swaps the [`Plans`] and touches no use.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::model::quota::{Dimension, Limit, Limits};
use crate::model::tenant::{PlanName, TenantId};
use crate::telemetry::Metrics;

/// Unknown plans are counted each time and logged at most this often.
const WARN_EVERY_S: i64 = 60;

/// What a tenant may use: its plan's limits with the overrides that hold now.
#[derive(Clone, Debug)]
pub struct Entitlement {
    /// The plan it is on.
    pub plan: PlanName,
    /// Its limits.
    pub limits: Arc<Limits>,
    /// Where its calendar windows begin.
    pub zone: TimeZone,
}

/// A plan as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// Its limits.
    pub limits: Limits,
    /// Its calendar, by IANA name; UTC unless set.
    pub zone: String,
}

/// An operator's override for one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverrideConfig {
    /// Another plan, whatever the service says.
    pub plan: Option<PlanName>,
    /// Single limits, over the plan's.
    pub limits: Vec<(Dimension, Limit)>,
    /// The first instant at which it no longer holds.
    pub expires: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
}

impl OverrideConfig {
    fn holds(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// Where a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The tenant's plan.
    Plan,
    /// An override in the config file.
    Config,
}

impl Origin {
    /// `plan` or `config`.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Plan => "plan",
            Origin::Config => "config",
        }
    }
}

/// What plans there are, and who has which limits: from the config. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plans(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plans: HashMap<Box<str>, Entitlement>,
    default: Entitlement,
    overrides: HashMap<TenantId, OverrideConfig>,
    metrics: Arc<Metrics>,
    warned_s: AtomicI64,
}

impl Plans {
    /// Checks and takes over the config's plans. The error names every plan, zone and tenant that is wrong.
    pub fn new(
        plans: BTreeMap<PlanName, PlanConfig>,
        overrides: BTreeMap<TenantId, OverrideConfig>,
        default_plan: PlanName,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let mut faults = Vec::new();
        let mut known = HashMap::new();
        for (plan, config) in plans {
            match TimeZone::get(&config.zone) {
                Ok(zone) => {
                    let entitlement =
                        Entitlement { plan: plan.clone(), limits: Arc::new(config.limits), zone };
                    known.insert(plan.as_str().into(), entitlement);
                }
                Err(error) => faults.push(format!("plan {plan}: zone {:?}: {error}", config.zone)),
            }
        }
        for (tenant, config) in &overrides {
            if let Some(plan) = config.plan.as_ref().filter(|plan| !known.contains_key(plan.as_str())) {
                faults.push(format!("override of {tenant}: there is no plan {plan}"));
            }
        }
        let default = known.get(default_plan.as_str()).cloned();
        if default.is_none() {
            faults.push(format!("the default plan: there is no plan {default_plan}"));
        }
        match default {
            Some(default) if faults.is_empty() => Ok(Self(Arc::new(Inner {
                plans: known,
                default,
                overrides: overrides.into_iter().collect(),
                metrics,
                warned_s: AtomicI64::new(i64::MIN),
            }))),
            _ => Err(faults.join("; ")),
        }
    }

    /// The limits of `tenant`, which the service says is on `plan` (`None`: it does not say, so the default plan).
    ///
    /// An override's plan goes before the service's, and its single limits before the plan's. Expiry is looked at each
    /// time. Without an override nothing is allocated.
    pub fn entitlement(&self, tenant: &TenantId, plan: Option<&str>, now: Timestamp) -> Entitlement {
        let Some(overriding) = self.overriding(tenant, now) else {
            return self.plan(plan, now).clone();
        };
        let mut entitlement = self.overridden_plan(overriding, plan, now).clone();
        if !overriding.limits.is_empty() {
            let mut limits = Limits::clone(&entitlement.limits);
            overriding.limits.iter().for_each(|(dimension, limit)| limits.set(*dimension, *limit));
            entitlement.limits = Arc::new(limits);
        }
        entitlement
    }

    /// The same limits, each with where it comes from, for operators.
    pub fn origins(
        &self,
        tenant: &TenantId,
        plan: Option<&str>,
        now: Timestamp,
    ) -> Vec<(Dimension, Limit, Origin)> {
        let overriding = self.overriding(tenant, now);
        let set = |dimension| overriding.is_some_and(|o| o.limits.iter().any(|(d, _)| *d == dimension));
        let origin = |dimension| if set(dimension) { Origin::Config } else { Origin::Plan };
        let limits = self.entitlement(tenant, plan, now).limits;
        limits.iter().map(|(dimension, limit)| (dimension, limit, origin(dimension))).collect()
    }

    /// The override that holds for `tenant` now.
    pub fn overriding(&self, tenant: &TenantId, now: Timestamp) -> Option<&OverrideConfig> {
        self.0.overrides.get(tenant).filter(|config| config.holds(now))
    }

    fn overridden_plan(
        &self,
        overriding: &OverrideConfig,
        plan: Option<&str>,
        now: Timestamp,
    ) -> &Entitlement {
        match &overriding.plan {
            Some(plan) => self.plan(Some(plan.as_str()), now),
            None => self.plan(plan, now),
        }
    }

    fn plan(&self, plan: Option<&str>, now: Timestamp) -> &Entitlement {
        let Some(name) = plan else { return &self.0.default };
        if let Some(known) = self.0.plans.get(name) {
            return known;
        }
        self.0.metrics.unknown_plans.inc();
        let (now_s, warned_s) = (now.as_second(), self.0.warned_s.load(Ordering::Relaxed));
        let due = now_s.abs_diff(warned_s) >= WARN_EVERY_S as u64;
        let claim =
            |from| self.0.warned_s.compare_exchange(from, now_s, Ordering::Relaxed, Ordering::Relaxed);
        if due && claim(warned_s).is_ok() {
            let default = &self.0.default.plan;
            tracing::warn!(plan = ?name, %default, "a tenant is on a plan that the config does not know; the default plan holds");
        }
        &self.0.default
    }
}
