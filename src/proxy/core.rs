//! What every worker shares: the policy (swapped whole on reload), the quotas, the recorder.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::config::{IdentifyConfig, RouteConfig, ServerConfig, SourceConfig, UpstreamConfig};
use super::drain::Drains;
use super::identify::Rules;
use super::refusals::Refusals;
use super::route::Table;
use super::strangers::Strangers;
use crate::meter::Counter;
use crate::meter::{self, Formats};
use crate::model::price::PriceTable;
use crate::model::tenant::{TenantId, UNRESOLVED};
use crate::quota::{Enforcer, Entitlement, Overrides, Plans};
use crate::record::Recorder;
use crate::telemetry::Metrics;
use crate::tenant::{Answer, Directory, Fault};

/// What a reload can change.
#[derive(Debug)]
pub struct Policy {
    pub(crate) routes: Table,
    pub(crate) rules: Arc<Rules>,
    pub(crate) plans: Arc<Plans>,
    pub(crate) prices: PriceTable,
    pub(crate) meter: meter::Config,
    look_ups: Vec<(String, Arc<str>)>,
    /// Of each route that has some: its path, and a look-up of its sessions.
    session_look_ups: Vec<(String, Arc<str>)>,
}

/// The config key of the look-up of plans.
const PLAN_QUERY: &str = "tenant.plan_query";

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
        let (look_ups, session_look_ups) = (look_ups(&parts), session_look_ups(&parts));
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
            look_ups,
            session_look_ups,
        })
    }

    /// The look-ups in the service's database, each with the config key that it is from; each query once.
    pub fn look_ups(&self) -> impl Iterator<Item = (&str, &Arc<str>)> {
        self.look_ups.iter().map(|(key, query)| (key.as_str(), query))
    }

    /// Those of them that find the tenant of a session that called `endpoint`, the path of a route; of all routes where
    /// none has that path.
    pub fn session_look_ups(&self, endpoint: &str) -> Vec<&Arc<str>> {
        let of_route =
            self.session_look_ups.iter().filter(|(path, _)| path == endpoint).map(|(_, query)| query);
        let of_route: Vec<_> = of_route.collect();
        if !of_route.is_empty() {
            return of_route;
        }
        self.look_ups().filter(|(key, _)| *key != PLAN_QUERY).map(|(_, query)| query).collect()
    }
}

fn session_query(source: &SourceConfig) -> Option<Arc<str>> {
    match source {
        SourceConfig::Session { query, .. } => Some(query.clone()),
        _ => None,
    }
}

fn session_look_ups(parts: &PolicyParts<'_>) -> Vec<(String, Arc<str>)> {
    let of_route = |route: &RouteConfig| {
        let sources = route.sources.as_ref().unwrap_or(&parts.identify.sources);
        sources.iter().filter_map(session_query).map(|query| (route.path.clone(), query)).collect::<Vec<_>>()
    };
    parts.routes.iter().flat_map(of_route).collect()
}

fn look_ups(parts: &PolicyParts<'_>) -> Vec<(String, Arc<str>)> {
    let plan = parts.identify.plan_query.clone().map(|query| (PLAN_QUERY.to_owned(), query));
    let lists = [("tenant".to_owned(), &parts.identify.sources)];
    let own = parts.routes.iter().enumerate();
    let own = own.filter_map(|(at, route)| Some((format!("routes[{at}]"), route.sources.as_ref()?)));
    let sessions = lists.into_iter().chain(own).flat_map(|(owner, sources)| {
        let key = move |at| format!("{owner}.sources[{at}].session.query");
        sources.iter().enumerate().filter_map(move |(at, source)| Some((key(at), session_query(source)?)))
    });
    let mut all: Vec<(String, Arc<str>)> = Vec::new();
    for (key, query) in plan.into_iter().chain(sessions) {
        if !all.iter().any(|(_, known)| *known == query) {
            all.push((key, query));
        }
    }
    all
}

impl Policy {
    /// A tenant's limits under this policy, and whether they are a guess: the service's database is too busy to say which
    /// plan it is on.
    pub(crate) async fn entitlement(
        &self,
        directory: &Arc<Directory>,
        tenant: &TenantId,
        now: Timestamp,
    ) -> (Entitlement, bool) {
        let said = self.service_plan(directory, tenant).await;
        let guessed = said == Some(Answer::Unavailable(Fault::Busy));
        let plan = match said {
            Some(Answer::Known(plan)) => Some(plan),
            Some(Answer::Absent | Answer::Unavailable(_)) | None => None,
        };
        (self.plans.entitlement(tenant, plan.as_deref(), now), guessed)
    }

    /// What the service's database, or the last that it said, has as a tenant's plan; `None`: it is not asked.
    async fn service_plan(&self, directory: &Arc<Directory>, tenant: &TenantId) -> Option<Answer> {
        if tenant.is_unresolved() {
            return Some(Answer::Known(UNRESOLVED.into()));
        }
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
    /// What is left to client addresses whose sessions can't be looked up.
    pub strangers: Strangers,
    /// Refusals that are recorded together.
    pub refusals: Refusals,
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
    /// Cancelled once the drain limit has run out: what still runs ends, and what is dropped from then on was cut by us.
    pub cutting: CancellationToken,
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
        (policy.entitlement(&self.directory, tenant, now).await.0, policy.plans.clone())
    }
}
