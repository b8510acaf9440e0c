//! What every worker shares: the policy (swapped whole on reload), the quotas, the recorder.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;

use super::config::{IdentifyConfig, RouteConfig, ServerConfig, UpstreamConfig};
use super::identify::Rules;
use super::route::Table;
use crate::meter::counting::Counter;
use crate::meter::{self, Formats};
use crate::model::price::PriceTable;
use crate::quota::{Enforcer, Plans};
use crate::record::Recorder;
use crate::telemetry::Metrics;
use crate::tenant::Directory;

/// What a reload can change.
#[derive(Debug)]
pub struct Policy {
    pub(crate) routes: Table,
    pub(crate) rules: Rules,
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
#[error("{0}")]
pub struct PolicyError(pub String);

impl Policy {
    /// Checks and compiles a policy.
    pub fn new(parts: PolicyParts<'_>) -> Result<Self, PolicyError> {
        Ok(Self {
            routes: Table::new(parts.routes, parts.formats).map_err(PolicyError)?,
            rules: Rules::new(parts.identify).map_err(PolicyError)?,
            plans: parts.plans,
            prices: parts.prices,
            meter: parts.meter,
        })
    }
}

/// What every worker shares.
#[derive(Debug)]
pub struct Core {
    /// Swapped whole on reload; an exchange keeps the one it began with.
    pub policy: ArcSwap<Policy>,
    /// Who is calling.
    pub directory: Arc<Directory>,
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
    /// Set while quotas can't be checked and the config says to refuse then.
    pub refusing: AtomicBool,
    /// Set once the drain limit has run out: what is dropped from then on was cut by us.
    pub cutting: AtomicBool,
    /// Settlements that outlive their connection. Closed and waited for at the stop.
    pub tasks: TaskTracker,
}
