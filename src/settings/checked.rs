//! A checked config, and how it comes about.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::effective::{Change, Effective};
use super::fault::{BUILT_IN, Fault, Faults};
use super::layers::Layers;
use super::parts::{self, OnOutage};
use super::prices::{self, PriceOrigin};
use super::reader::{Findings, Report};
use super::{alerts, audit, formats, routes, tenants, variables};
use crate::model::price::PriceTable;
use crate::model::tenant::{PlanName, TenantId};
use crate::{admin, jobs, meter, proxy, quota, record, store, tenant};

/// What holds where neither file nor environment says otherwise. Documents every key.
const DEFAULT: &str = include_str!("../../config/default.toml");

/// The sections, for variables that miss one by an underscore.
const SECTIONS: [&str; 15] = [
    "server",
    "upstream",
    "database",
    "service_database",
    "data",
    "tenant",
    "plans",
    "overrides",
    "quota",
    "metering",
    "jobs",
    "alerts",
    "prices",
    "price_sources",
    "formats",
];

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
    /// `[database]`; `None` is a private Postgres under `data_dir`, see [`Settings::private_database`].
    pub database: Option<store::Config>,
    /// `[database] pool_size`, for the private one too.
    pub pool_size: usize,
    /// `[database] connect_timeout`, for the private one too.
    pub connect_timeout: Duration,
    /// `[database] statement_timeout`, for the private one too.
    pub statement_timeout: Duration,
    /// `[database] on_outage`
    pub on_outage: OnOutage,
    /// `[quota] lease_wait`: how long a request waits for a lease.
    pub lease_wait: Duration,
    /// `[quota]`: how leases are asked for.
    pub leases: quota::LeaseConfig,
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
    /// `[tenant] look_up_check`: not to start where a look-up can never be answered by the service's own database.
    pub refuse_broken_look_ups: bool,
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
    /// Where each entry of `prices` is from, by its name; that of [`prices::DEFAULT`] too.
    pub price_origins: BTreeMap<String, PriceOrigin>,
    /// `[jobs] aggregate_interval`: how often the aggregation job runs.
    pub aggregate_interval: Duration,
    /// `[alerts]`; `None`: there are to be none.
    pub alerts: Option<jobs::Alerting>,
    effective: Effective,
    warnings: Vec<String>,
    environment: Arc<BTreeMap<String, String>>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Settings {
    /// Reads the built-in default, then `file`, then `environment`, and checks the whole.
    ///
    /// Of the environment only `TOLLGATE__*`, `DATABASE_URL`, `ADMIN_TOKEN`, `ADMIN_VIEWER_TOKEN`, `CRON_SECRET`, `ALERT_WEBHOOK_SECRET` and
    /// what `secret_env` names are looked at.
    pub fn load(file: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<Self, Faults> {
        Self::load_under(file, environment, None)
    }

    fn load_under(
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        limits: Option<&Path>,
    ) -> Result<Self, Faults> {
        let mut unreadable = Vec::new();
        let layers = Layers::read(DEFAULT, file, environment, limits, &mut unreadable);
        if layers.torn {
            let mut faults = Faults(unreadable);
            faults.sort();
            return Err(faults);
        }
        let report = Report::new(&layers, unreadable);
        let checked = check(&report, file, environment);
        let Findings { faults, mut warnings, leaves, .. } = report.finish();
        warnings.extend(variables::near_misses(environment, &SECTIONS));
        let mut faults = Faults(faults);
        faults.sort();
        match checked {
            Some(settings) if faults.0.is_empty() => {
                let environment = Arc::new(environment.clone());
                Ok(Self { effective: Effective(leaves), warnings, environment, ..settings })
            }
            _ => Err(faults),
        }
    }

    /// Reads the same file again, with the same environment: what a reload comes to.
    pub fn reload(&self) -> Result<Self, Faults> {
        Self::load(self.file.as_deref(), &self.environment)
    }

    /// The same config under the file `limits`, which stands over everything else and may have `[plans.NAME]` and
    /// `[overrides."TENANT"]` only.
    pub fn with_limits(&self, limits: &Path) -> Result<Self, Faults> {
        Self::load_under(self.file.as_deref(), &self.environment, Some(limits))
    }

    /// What is no fault, but can't work, or lets anyone be anyone.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// The effective config as TOML, each value with its origin where that is not the built-in default; secrets and
    /// the passwords of URLs masked.
    pub fn masked(&self) -> String {
        self.effective.render()
    }

    /// What differs from `old`, key by key, masked: for the audit of a reload.
    pub fn changes_from(&self, old: &Settings) -> Vec<Change> {
        self.effective.changes(&old.effective)
    }

    /// A fault of `key` that shows only when its value is used, such as a port that is taken. The command line ends
    /// with the exit code of a bad config when a start fails with it.
    pub fn fault(&self, key: &str, reason: impl Into<String>) -> Faults {
        let origin = self.effective.origin(key).unwrap_or(BUILT_IN).to_owned();
        Faults(vec![Fault { origin, key: key.to_owned(), reason: reason.into() }])
    }

    /// The private Postgres at `url`, with the pool and the time limits of `[database]`.
    pub fn private_database(&self, url: String) -> store::Config {
        store::Config {
            url,
            pool_size: self.pool_size,
            connect_timeout: self.connect_timeout,
            statement_timeout: self.statement_timeout,
        }
    }
}

/// Reads every section, so that each has the chance to find its faults, before any is used.
fn check(
    report: &Report<'_>,
    file: Option<&Path>,
    environment: &BTreeMap<String, String>,
) -> Option<Settings> {
    let root = report.root();
    let server = parts::server(&root);
    let listen = server.as_ref().map(|(server, _)| server.listen);
    let upstream = parts::upstream(&root, listen);
    let database = parts::database(&root);
    let service_database = parts::service_database(&root);
    let data = parts::data(&root);
    let leases = parts::quota(&root, database.as_ref().map(|database| database.on_outage));
    let plan_names: Vec<PlanName> = root.key("plans").table_names().into_iter().map(PlanName::from).collect();
    let url_given = database.as_ref().is_some_and(|database| database.url.is_some());
    let around = tenants::Surroundings {
        environment,
        directory: file.and_then(Path::parent).unwrap_or(Path::new("")),
        plans: &plan_names,
        has_database: url_given || service_database.as_ref().is_some_and(Option::is_some),
    };
    let tenancy = tenants::tenant(&root, &around);
    let plans = tenants::plans(&root);
    let overrides = tenants::overrides(&root, &plan_names);
    let formats = formats::formats(&root);
    let audit = audit::shared(&root);
    let context = routes::Context {
        formats: formats.as_ref(),
        shared: audit.as_deref().unwrap_or_default(),
        around: &around,
    };
    let routes = routes::routes(&root, &context);
    let meter = parts::metering(&root);
    let aggregate_interval = parts::aggregate_interval(&root);
    let alerts = alerts::alerts(&root, environment);
    let prices = prices::prices(&root);
    let admin = tenants::admin(report, environment, server.as_ref().map(|(_, admin)| *admin));
    drop(root);
    if let (Some((server, _)), Some(routes)) = (&server, &routes) {
        warn_of_bodies(report, server, routes);
    }

    let (data_dir, record) = data?;
    let database = database?;
    let (lease_wait, leases) = leases?;
    let tenancy = tenancy?;
    let (prices, price_origins) = prices?;
    Some(Settings {
        file: file.map(Path::to_owned),
        server: server?.0,
        admin: admin?,
        upstream: upstream?,
        pool_size: database.pool_size,
        connect_timeout: database.connect_timeout,
        statement_timeout: database.statement_timeout,
        on_outage: database.on_outage,
        lease_wait,
        leases,
        database: database.store(),
        service_database: service_database?,
        data_dir,
        record,
        identify: tenancy.identify,
        directory: tenancy.directory,
        default_plan: tenancy.default_plan,
        refuse_broken_look_ups: tenancy.refuse_broken_look_ups,
        plans: plans?,
        overrides: overrides?,
        routes: audit.and(routes)?,
        meter: meter?,
        formats: formats?,
        prices,
        price_origins,
        aggregate_interval: aggregate_interval?,
        alerts: alerts?,
        effective: Effective::default(),
        warnings: Vec::new(),
        environment: Arc::default(),
    })
}

/// A body that one client address can never hold is a 413, whatever its route allows.
fn warn_of_bodies(report: &Report<'_>, server: &proxy::ServerConfig, routes: &[proxy::RouteConfig]) {
    let share = server.max_client_buffered_bytes / 4 * 3;
    for route in routes {
        if let proxy::BodyConfig::Json { max_bytes } = route.body
            && max_bytes > share
        {
            report.warn(format!(
                "the route {}: max_body_bytes = {max_bytes} is more than one client address may hold ({share} bytes, three \
                 quarters of server.max_client_buffered_bytes): larger bodies are refused; raise it, or lower max_body_bytes",
                route.path
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A config that makes the reader ask for every key.
    const PROBE: &str = r#"
        [tenant]
        sources = [
          { jwt = { claim = "t", secret_env = "S" } },
          { jwt = { claim = "t", public_key_file = "no-such.pem", algorithm = "RS256" } },
          { session = { json = "/s", query = "SELECT $1" } },
          { header = "x-t" }, { json = "/t" }, { query = "t" },
        ]
        [overrides.tn_x]
        plan = "pro"
        expires = "2027-01-31T00:00:00Z"
        reason = "a probe"
        [formats.probe]
        request = {}
        [[audit]]
        event_type = "x"
        events = ["search"]
        entity = { request = "/x" }
        new_values = { a = { request = "/a", mask = false }, b = { answer = "/b" } }
        summary = "{a}"
        [[routes]]
        path = "/{x}"
        sources = [{ path = "x" }, { answer = "/x" }]
        unidentified = "pass"
        [[routes.audit]]
        entity = { path = "x" }
    "#;

    #[test]
    fn the_built_in_default_documents_every_key() {
        let probe = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(probe.path(), PROBE).unwrap();
        let environment = BTreeMap::new();
        let layers = Layers::read(DEFAULT, Some(probe.path()), &environment, None, &mut Vec::new());
        let report = Report::new(&layers, Vec::new());
        check(&report, Some(probe.path()), &environment);
        let known = report.finish().known;
        assert!(known.len() > 70, "{known:?}");
        for pattern in known {
            let section = pattern.split(['.', '[']).next().unwrap();
            let key = pattern.rsplit(['.', ']', '*']).next().unwrap();
            let documented = section_text(section).is_some_and(|text| {
                key.is_empty()
                    || key == section
                    || text.contains(&format!(".{key}]"))
                    || text.contains(&format!(" {key} = "))
                    || text.contains(&format!("\n{key} = "))
            });
            assert!(documented, "{pattern} is not in config/default.toml");
        }
    }

    /// From the section's first header to the end of its last table.
    fn section_text(section: &str) -> Option<&'static str> {
        let headers = [
            format!("[{section}]"),
            format!("[{section}."),
            format!("[[{section}]]"),
            format!("[[{section}."),
        ];
        let own =
            |line: &str| headers.iter().any(|header| line.trim_start_matches(['#', ' ']).starts_with(header));
        let first = DEFAULT.lines().find(|line| own(line))?;
        let text = &DEFAULT[DEFAULT.find(&format!("\n{first}\n"))?..];
        let next = text.lines().skip(2).find(|line| line.starts_with('[') && !own(line));
        Some(next.map_or(text, |next| &text[..text.find(&format!("\n{next}\n")).unwrap_or(text.len())]))
    }

    #[test]
    fn the_built_in_default_has_no_key_that_nobody_reads() {
        assert!(Settings::load(None, &BTreeMap::new()).is_ok());
    }
}
