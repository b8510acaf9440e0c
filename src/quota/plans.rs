//! What plans there are, and who has which limits.
//!
//! Three layers, the upper before the lower, for each limit and for the plan by themselves: what an operator set through
//! the admin API, the config file's overrides, the plan. Config and counters live apart, and so do config and operators'
//! overrides: a reload swaps the [`Plans`] and touches neither use nor [`Overrides`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::model::quota::{Dimension, Limit, Limits};
use crate::model::tenant::{PlanName, TenantId};
use crate::telemetry::Metrics;

use super::overrides::{Overrides, Target, TenantOverrides};

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
    /// An operator has blocked it: it is refused, whatever is left.
    pub blocked: bool,
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
    /// The limits that are soft, instead of those of the plan.
    pub soft: Option<Vec<Dimension>>,
    /// The first instant at which it no longer holds.
    pub expires: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
}

impl OverrideConfig {
    /// Whether it has not expired.
    pub fn holds(&self, now: Timestamp) -> bool {
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
    /// An operator, through the admin API.
    Admin,
}

impl Origin {
    /// `plan`, `config` or `admin`.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Plan => "plan",
            Origin::Config => "config",
            Origin::Admin => "admin",
        }
    }
}

/// The overrides that hold for a tenant at an instant, the upper layer first.
#[derive(Clone, Debug)]
pub struct Layers<'a> {
    admin: Option<Arc<TenantOverrides>>,
    config: Option<&'a OverrideConfig>,
    now: Timestamp,
}

impl Layers<'_> {
    /// Where the limit of `dimension` comes from.
    pub fn origin(&self, dimension: Dimension) -> Origin {
        let set = |config: &OverrideConfig| config.limits.iter().any(|(d, _)| *d == dimension);
        if self.admin.as_ref().is_some_and(|admin| admin.of(Target::Limit(dimension), self.now).is_some()) {
            Origin::Admin
        } else if self.config.is_some_and(set) {
            Origin::Config
        } else {
            Origin::Plan
        }
    }

    /// The plan that is set instead of the service's, and by whom.
    pub fn plan(&self) -> Option<(&PlanName, Origin)> {
        let admin = || self.admin.as_ref()?.plan(self.now).map(|plan| (plan, Origin::Admin));
        let config = || self.config?.plan.as_ref().map(|plan| (plan, Origin::Config));
        admin().or_else(config)
    }

    /// Whether an operator has blocked the tenant.
    pub fn blocked(&self) -> bool {
        self.admin.as_ref().is_some_and(|admin| admin.blocked(self.now))
    }

    /// What operators set through the admin API, expired or not.
    pub fn admin(&self) -> Option<&TenantOverrides> {
        self.admin.as_deref()
    }

    /// The config's override.
    pub fn config(&self) -> Option<&OverrideConfig> {
        self.config
    }

    /// The single limits that are set, those that go before coming last.
    fn limits(&self) -> impl Iterator<Item = (Dimension, Limit)> + '_ {
        let config = self.config.into_iter().flat_map(|config| config.limits.iter().copied());
        config.chain(self.admin.iter().flat_map(|admin| admin.limits(self.now)))
    }
}

/// What plans there are, and who has which limits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plans {
    config: Arc<Inner>,
    admin: Arc<Overrides>,
}

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
                    let limits = Arc::new(config.limits);
                    let entitlement = Entitlement { plan: plan.clone(), limits, zone, blocked: false };
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
            Some(default) if faults.is_empty() => {
                let overrides = overrides.into_iter().collect();
                let warned_s = AtomicI64::new(i64::MIN);
                let config = Arc::new(Inner { plans: known, default, overrides, metrics, warned_s });
                Ok(Self { config, admin: Overrides::new() })
            }
            _ => Err(faults.join("; ")),
        }
    }

    /// The same plans under what operators set.
    #[must_use]
    pub fn with_admin(self, admin: Arc<Overrides>) -> Self {
        Self { admin, ..self }
    }

    /// The limits of `tenant`, which the service says is on `plan` (`None`: it does not say, so the default plan).
    ///
    /// Each limit is the operator's, else the config's override's, else that of the plan, which is chosen in the same
    /// order. Expiry is looked at each time. Without an override nothing is allocated.
    pub fn entitlement(&self, tenant: &TenantId, plan: Option<&str>, now: Timestamp) -> Entitlement {
        let layers = self.layers(tenant, now);
        if layers.admin.is_none() && layers.config.is_none() {
            return self.plan(plan, now).clone();
        }
        let plan = layers.plan().map(|(plan, _)| plan.as_str()).or(plan);
        let mut entitlement = self.plan(plan, now).clone();
        let mut single = layers.limits().peekable();
        let soft = layers.config.and_then(|config| config.soft.as_deref());
        if single.peek().is_some() || soft.is_some() {
            let mut limits = Limits::clone(&entitlement.limits);
            single.for_each(|(dimension, limit)| limits.set(dimension, limit));
            if let Some(soft) = soft {
                limits.soften(soft);
            }
            entitlement.limits = Arc::new(limits);
        }
        entitlement.blocked = layers.blocked();
        entitlement
    }

    /// The overrides that hold for `tenant` now, to say where its limits come from.
    pub fn layers(&self, tenant: &TenantId, now: Timestamp) -> Layers<'_> {
        let config = self.config.overrides.get(tenant).filter(|config| config.holds(now));
        Layers { admin: self.admin.of(tenant), config, now }
    }

    /// A plan by its name, without anybody's override; `None` where the config does not know it.
    pub fn named(&self, plan: &str) -> Option<&Entitlement> {
        self.config.plans.get(plan)
    }

    /// The config's override of a tenant, whether or not it has expired.
    pub fn config_override(&self, tenant: &TenantId) -> Option<&OverrideConfig> {
        self.config.overrides.get(tenant)
    }

    /// The plan of tenants of which the service says nothing.
    pub fn default_plan(&self) -> &PlanName {
        &self.config.default.plan
    }

    /// Every plan's name, in order.
    pub fn names(&self) -> Vec<PlanName> {
        let mut names: Vec<_> = self.config.plans.values().map(|plan| plan.plan.clone()).collect();
        names.sort();
        names
    }

    fn plan(&self, plan: Option<&str>, now: Timestamp) -> &Entitlement {
        let Some(name) = plan else { return &self.config.default };
        if let Some(known) = self.config.plans.get(name) {
            return known;
        }
        self.config.metrics.unknown_plans.inc();
        let (now_s, warned_s) = (now.as_second(), self.config.warned_s.load(Ordering::Relaxed));
        let due = now_s.abs_diff(warned_s) >= WARN_EVERY_S as u64;
        let claim =
            |from| self.config.warned_s.compare_exchange(from, now_s, Ordering::Relaxed, Ordering::Relaxed);
        if due && claim(warned_s).is_ok() {
            let default = &self.config.default.plan;
            tracing::warn!(plan = ?name, %default, "a tenant is on a plan that the config does not know; the default plan holds");
        }
        &self.config.default
    }
}
