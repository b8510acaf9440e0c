//! What every worker shares: the policy (swapped whole on reload), the quotas, the recorder.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::config::{IdentifyConfig, RouteConfig, ServerConfig, UpstreamConfig};
use super::drain::Drains;
use super::identify::Rules;
use super::route::Table;
use crate::meter::Counter;
use crate::meter::{self, Formats};
use crate::model::price::PriceTable;
use crate::model::tenant::TenantId;
use crate::quota::{Enforcer, Entitlement, Overrides, Plans};
use crate::record::Recorder;
use crate::telemetry::Metrics;
use crate::tenant::{Answer, Directory};

/// What a reload can change.
#[derive(Debug)]
pub struct Policy {
    pub(crate) routes: Table,
    pub(crate) rules: Arc<Rules>,
    pub(crate) plans: Arc<Plans>,
    pub(crate) prices: PriceTable,
    pub(crate) meter: meter::Config,
}

/// What a policy is made of.
#[derive(Debug)]
pub struct PolicyParts<'a> {
    /// The metered routes.
    pub routes: &'a [RouteConfig],
    /// Answer formats by name.
    pub formats: &'a Formats,
    /// How tenants are named.
    pub identify: &'a IdentifyConfig,
    /// Who may use how much.
    pub plans: Arc<Plans>,
    /// What tokens cost.
    pub prices: PriceTable,
    /// Bounds of metering.
    pub meter: meter::Config,
}

/// A policy that can't work; one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Something about the routes.
    #[error("{0}")]
    Routes(String),
    /// Something about the tenant sources.
    #[error("{0}")]
    Sources(String),
}

impl PolicyError {
    /// The config key that it is about.
    pub fn key(&self) -> &'static str {
        match self {
            PolicyError::Routes(_) => "routes",
            PolicyError::Sources(_) => "tenant.sources",
        }
    }
}

impl Policy {
    /// Checks and compiles a policy.
    pub fn new(parts: PolicyParts<'_>) -> Result<Self, PolicyError> {
        let mut rules = Rules::new(parts.identify, &[]).map_err(PolicyError::Sources)?;
        for route in parts.routes {
            rules.also_strip(route.sources.iter().flatten()).map_err(PolicyError::Routes)?;
        }
        let rules = Arc::new(rules);
        let routes = Table::new(parts.routes, parts.formats, parts.identify, &rules);
        Ok(Self {
            routes: routes.map_err(PolicyError::Routes)?,
            rules,
            plans: parts.plans,
            prices: parts.prices,
            meter: parts.meter,
        })
    }
}

impl Policy {
    /// A tenant's limits under this policy.
    pub(crate) async fn entitlement(
        &self,
        directory: &Arc<Directory>,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Entitlement {
        let plan = match self.service_plan(directory, tenant).await {
            Some(Answer::Known(plan)) => Some(plan),
            Some(Answer::Absent | Answer::Unavailable) | None => None,
        };
        self.plans.entitlement(tenant, plan.as_deref(), now)
    }

    /// What the service's database, or the last that it said, has as a tenant's plan; `None`: it is not asked.
    async fn service_plan(&self, directory: &Arc<Directory>, tenant: &TenantId) -> Option<Answer> {
        let query = self.rules.plan_query.as_ref()?;
        Some(directory.look_up(query, tenant.as_str()).await)
    }
}

/// What every worker shares.
#[derive(Debug)]
pub struct Core {
    /// Swapped whole on reload; an exchange keeps the one it began with.
    pub policy: ArcSwap<Policy>,
    /// Who is calling.
    pub directory: Arc<Directory>,
    /// What operators set for single tenants; every policy's plans stand under it, so a reload leaves it alone.
    pub overrides: Arc<Overrides>,
    /// What is left.
    pub enforcer: Arc<Enforcer>,
    /// What happened.
    pub recorder: Recorder,
    /// Counts text off the reactor.
    pub counter: Counter,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// The public listener's limits.
    pub server: ServerConfig,
    /// The service behind.
    pub upstream: UpstreamConfig,
    /// How long a request waits for a lease.
    pub lease_wait: Duration,
    /// Set while quotas can't be checked and the config says to refuse then.
    pub refusing: AtomicBool,
    /// Set once the drain limit has run out: what is dropped from then on was cut by us.
    pub cutting: AtomicBool,
    /// Room for the bytes of requests.
    pub budget: Arc<Budget>,
    /// Room for answers that are read on after their clients left.
    pub drains: Drains,
    /// Settlements that outlive their connection. Closed and waited for at the stop.
    pub tasks: TaskTracker,
}

impl Core {
    /// What the service's database says of a tenant's plan (`None`: it is not asked), and the plans that there are.
    pub async fn service_plan(&self, tenant: &TenantId) -> (Option<Answer>, Arc<Plans>) {
        let policy = self.policy.load_full();
        (policy.service_plan(&self.directory, tenant).await, policy.plans.clone())
    }

    /// A tenant's limits: its plan by the service's database or the last that it said, else the default plan.
    pub async fn entitlement(&self, tenant: &TenantId, now: Timestamp) -> (Entitlement, Arc<Plans>) {
        let policy = self.policy.load_full();
        (policy.entitlement(&self.directory, tenant, now).await, policy.plans.clone())
    }
}
