//! The config: as typed (file + environment) → as checked, with every fault reported at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::price::PriceTable;
use crate::model::tenant::{PlanName, TenantId};
use crate::{admin, meter, proxy, quota, record, store, tenant};

/// What quotas do while the database is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// Keep serving within the limits as known here.
    Open,
    /// Serve what is leased.
    Lease,
    /// Serve nothing that is metered.
    Closed,
}

/// A checked config: every part's own.
#[derive(Clone)]
pub struct Settings {
    /// The file it came from.
    pub file: Option<PathBuf>,
    /// `[server]`
    pub server: proxy::ServerConfig,
    /// `[server] admin_listen`, and the secrets of the environment.
    pub admin: admin::Config,
    /// `[upstream]`
    pub upstream: proxy::UpstreamConfig,
    /// `[database]`; `None` is a private Postgres under `data_dir`.
    pub database: Option<store::Config>,
    /// `[database] pool_size` and time limits, for the private one too.
    pub pool_size: usize,
    /// `[database] on_outage`
    pub on_outage: OnOutage,
    /// `[service_database]`; `None` is `[database]`.
    pub service_database: Option<store::Config>,
    /// `[data] dir`
    pub data_dir: PathBuf,
    /// The journal, under `data_dir`.
    pub record: record::Config,
    /// `[tenant]`: sources
    pub identify: proxy::IdentifyConfig,
    /// `[tenant]`: caches
    pub directory: tenant::Config,
    /// `[tenant] default_plan`
    pub default_plan: PlanName,
    /// `[plans.*]`
    pub plans: BTreeMap<PlanName, quota::PlanConfig>,
    /// `[overrides.*]`
    pub overrides: BTreeMap<TenantId, quota::OverrideConfig>,
    /// `[[routes]]`
    pub routes: Vec<proxy::RouteConfig>,
    /// `[metering]`
    pub meter: meter::Config,
    /// `[formats.*]`: the operator's own answer formats
    pub formats: meter::Formats,
    /// `[prices.*]`
    pub prices: PriceTable,
    /// How often the aggregation job runs.
    pub aggregate_interval: Duration,
}

/// Everything that is wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the environment variable, or the built-in default.
    pub origin: String,
    /// The key, dotted.
    pub key: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl Settings {
    /// Reads the built-in default, then `file`, then the environment, and checks the whole.
    pub fn load(_file: Option<&Path>, _environment: &BTreeMap<String, String>) -> Result<Self, Faults> {
        unimplemented!()
    }
}
