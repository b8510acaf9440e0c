//! What the gateway hands to the admin listener, and what the listener asks of it.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::model::event::AuditEvent;
use crate::model::quota::{Dimension, Limits, Standing};
use crate::model::tenant::{PlanName, TenantId};
use crate::quota::overrides::Override;
use crate::quota::{Entitlement, Footing, Holding, Layers, Origin, OverrideConfig, Overrides};
use crate::store::Store;
use crate::telemetry::Metrics;

/// The admin listener.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// Where operators and Prometheus connect.
    pub listen: SocketAddr,
    /// `ADMIN_TOKEN`: may read and change.
    pub operator_token: Option<String>,
    /// `ADMIN_VIEWER_TOKEN`: may read.
    pub viewer_token: Option<String>,
    /// `CRON_SECRET`: may start an aggregation.
    pub cron_secret: Option<String>,
}

/// Asks the gateway how its parts are. Called for each probe: it must read what is known, not go and look.
pub type HealthSource = Arc<dyn Fn() -> Health + Send + Sync>;

/// Asks how a tenant stands: its plan looked up, its limits, and its use as this replica counts it.
pub type QuotaSource = Arc<dyn Fn(&TenantId) -> BoxFuture<'static, QuotaView> + Send + Sync>;

/// Asks for everything that this replica knows of why a tenant may use what it may.
pub type ExplainSource = Arc<dyn Fn(&TenantId) -> BoxFuture<'static, Explained> + Send + Sync>;

/// The names of the plans that the config has now.
pub type PlanSource = Arc<dyn Fn() -> Vec<PlanName> + Send + Sync>;

/// Runs one aggregation and retention pass. `Ok` is its report, an object whose keys join the answer; `Err` is
/// said to the operator as it is, so it names no secret.
pub type Aggregation = Arc<dyn Fn() -> BoxFuture<'static, Result<Map<String, Value>, String>> + Send + Sync>;

/// Hears that a tenant's limits have changed.
pub type LimitsChanged = Arc<dyn Fn(&TenantId) + Send + Sync>;

/// Takes an audit event for recording. Never blocks.
pub type AuditSink = Arc<dyn Fn(AuditEvent) + Send + Sync>;

/// Everything that the admin listener needs.
#[derive(Clone)]
pub struct State {
    /// Who may do what.
    pub config: Config,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Where usage and audit rows are read.
    pub store: Store,
    /// How the parts are.
    pub health: HealthSource,
    /// How tenants stand.
    pub quota: QuotaSource,
    /// Why they may use what they may.
    pub explain: ExplainSource,
    /// What plans an override may name.
    pub plans: PlanSource,
    /// What operators set, as this replica knows it: an edit made here holds here before it is answered.
    pub overrides: Arc<Overrides>,
    /// Told when they have changed.
    pub limits_changed: LimitsChanged,
    /// The aggregation that `POST /api/admin/metrics/aggregate` starts.
    pub aggregate: Aggregation,
    /// Where what happens here is recorded.
    pub audit: AuditSink,
}

/// What the gateway as a whole can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not accepting yet.
    Starting,
    /// All is well.
    Ok,
    /// Serving, with a part that is not well: the database away, the journal growing.
    Degraded,
    /// Ending.
    Draining,
    /// Accepting, but refusing what is metered (`on_outage`).
    Refusing,
}

impl Status {
    /// As `/readyz` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Starting => "starting",
            Status::Ok => "ok",
            Status::Degraded => "degraded",
            Status::Draining => "draining",
            Status::Refusing => "refusing",
        }
    }

    /// Whether traffic should be sent here.
    pub fn ready(self) -> bool {
        matches!(self, Status::Ok | Status::Degraded)
    }
}

/// One part's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name: `database`, `journal`, …
    pub name: &'static str,
    /// In a word: `ok`, `down`, `growing`, …
    pub state: &'static str,
    /// In a sentence; empty where the word says it all. Shown without a token, so never a secret.
    pub detail: String,
}

/// How the gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// All in all.
    pub status: Status,
    /// Part by part.
    pub parts: Vec<Part>,
}

/// How a tenant stands.
#[derive(Clone, Debug)]
pub struct QuotaView {
    /// The plan that holds, overrides included.
    pub plan: PlanName,
    /// Where it comes from.
    pub plan_origin: Origin,
    /// An operator has blocked the tenant.
    pub blocked: bool,
    /// Every dimension, limited or not, with its use in memory.
    pub standings: Vec<Standing>,
    /// Where limits come from; a dimension that is not named here has the plan's.
    pub origins: Vec<(Dimension, Origin)>,
    /// The config's override, where one holds now.
    pub overridden: Option<OverrideConfig>,
    /// What operators set, expired or not.
    pub set: Vec<Arc<Override>>,
}

/// What this replica knows of why a tenant may use what it may.
#[derive(Clone, Debug)]
pub struct Explained {
    /// How the tenant stands.
    pub quota: QuotaView,
    /// What the service's database says of its plan.
    pub service: ServicePlan,
    /// The plan of those of whom it says nothing.
    pub default_plan: PlanName,
    /// The limits of the plan that holds, without anybody's override.
    pub plan_limits: Arc<Limits>,
    /// The plan's time zone, by IANA name.
    pub zone: String,
    /// The config's override, whether or not it has expired.
    pub config: Option<OverrideConfig>,
    /// What this replica counts and holds in the windows that run.
    pub holdings: Vec<Holding>,
    /// How this replica stands to the others.
    pub footing: Footing,
    /// The run whose leases it spends.
    pub run: u64,
    /// This replica.
    pub replica_id: Option<String>,
}

/// What the service's database says of a tenant's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServicePlan {
    /// It is not asked: there is no `plan_query`.
    NotAsked,
    /// This, or it was the last that it said.
    Known(String),
    /// It has no such tenant, or no plan for it.
    Absent,
    /// It is away, and never said anything.
    Unavailable,
}

impl QuotaView {
    /// Puts together what the parts know.
    pub fn new(entitlement: &Entitlement, standings: Vec<Standing>, layers: &Layers<'_>) -> Self {
        Self {
            plan: entitlement.plan.clone(),
            plan_origin: layers.plan().map_or(Origin::Plan, |(_, origin)| origin),
            blocked: entitlement.blocked,
            origins: standings.iter().map(|s| (s.dimension, layers.origin(s.dimension))).collect(),
            standings,
            overridden: layers.config().cloned(),
            set: layers.admin().map(|admin| admin.all().cloned().collect()).unwrap_or_default(),
        }
    }

    /// Where a limit comes from.
    pub fn origin(&self, dimension: Dimension) -> Origin {
        self.origins.iter().find(|(d, _)| *d == dimension).map_or(Origin::Plan, |(_, origin)| *origin)
    }
}
