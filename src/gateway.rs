//! The composition root: every part is made here, joined to the others here, and stopped here.
//!
//! Start: journal (a gateway that can't record does not start) → listeners bound → database reached, or not → quotas
//! hydrated, operators' overrides read → accept. Stop: drain → flush the journal to Postgres as far as it answers → close
//! the journal.
//!
//! Constraints:
//! 1. The database being away delays a start by its connect timeout at most, and never prevents it.
//! 2. Nothing is shipped before the quotas were read from Postgres: what they say and what the journal holds would
//!    else overlap, and use would be counted twice.

mod alerts;
mod database;
mod explain;
mod file_limit;
mod health;
mod inherited;
mod jobs;
mod leases;
mod look_ups;
mod notices;
mod offline;
mod overrides;
mod plan_changes;
mod policy;
mod reassign;
mod reload;
mod reprice;
mod what_if;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::database::Keeper;
use self::health::Live;
pub use self::inherited::Inherited;
use self::notices::Notices;
pub use self::offline::{
    aggregate, migrate, recorded_by_model, replicas, reprice, retire, verify_audit, verify_quota, what_if,
};
pub use self::reprice::Reprice;
pub use self::what_if::{Refusals, Replayed, WhatIf};
use crate::admin;
use crate::meter::Counter;
use crate::model::event::Record;
use crate::proxy::{self, Budget, Core, Drains, Listener, Proxy, Strangers};
use crate::quota::{Enforcer, Overrides};
use crate::record::{Journal, create_private_dir, write_private};
use crate::settings::Settings;
use crate::store::{PrivatePostgres, Store};
use crate::telemetry::Metrics;
use crate::tenant::{Directory, TenantSource};

/// How long the last batches may take to reach Postgres at the stop. What is left stays in the journal.
const LAST_SHIPMENT: Duration = Duration::from_secs(5);

/// How long the last word to the database may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long an operator's question waits for what other replicas used.
const LOOK_UP: Duration = Duration::from_secs(1);

/// Texts that wait to be counted.
const COUNT_QUEUE: usize = 1024;

/// Bytes of text among them. They are counted at about 30 MB a second: one that is queued last is counted within a second.
const COUNT_QUEUE_BYTES: usize = 32 << 20;

/// A gateway that accepts connections.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    admin_address: SocketAddr,
    drain_timeout: Duration,
    core: Arc<Core>,
    proxy: Proxy,
    journal: Arc<Journal>,
    live: Arc<Live>,
    /// Ends the background work at the very end.
    stop: CancellationToken,
    background: TaskTracker,
    /// Ends the shipping once everything is in the journal.
    shipped: CancellationToken,
    shipping: JoinHandle<()>,
    admin: JoinHandle<()>,
    enforcer: Arc<Enforcer>,
    metrics: Arc<Metrics>,
    store: Store,
    private: Option<PrivatePostgres>,
}

impl Gateway {
    /// Starts every part and binds both listeners, but for those that were `inherited`; returns once it accepts.
    ///
    /// Errors: [`crate::settings::Faults`] where the config names what can't be had (a port that is taken, a data
    /// directory that can't be written, a policy that can't work); otherwise what failed, in one sentence.
    pub async fn start(settings: Settings, inherited: Inherited) -> anyhow::Result<Self> {
        let room = file_limit::room(file_limit::raise());
        let metrics = Metrics::new();
        let replica_id = replica_id(&settings.data_dir).map_err(|why| settings.fault("data.dir", why))?;
        let (recorder, journal) = Journal::open(settings.record.clone(), metrics.clone())
            .map_err(|error| settings.fault("data.dir", error.to_string()))?;
        let journal = Arc::new(journal);
        let listener = match inherited.listen {
            Some(socket) => Listener::inherited(socket),
            None => Listener::bind(settings.server.listen),
        }
        .map_err(|error| settings.fault("server.listen", bind_fault(settings.server.listen, &error)))?;
        let admin_listener = match inherited.admin {
            Some(socket) => socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)),
            None => TcpListener::bind(settings.admin.listen).await,
        }
        .map_err(|error| settings.fault("server.admin_listen", bind_fault(settings.admin.listen, &error)))?;
        let admin_address = admin_listener.local_addr()?;

        let (config, private) = database::configured(&settings).await?;
        let store = Store::new(&config)
            .map_err(|error| settings.fault("database.url", error.to_string()))?
            .with_replica_id(&replica_id);
        let (directory, service) = directory(&settings, &store, &metrics)?;

        let enforcer = Enforcer::new(metrics.clone());
        journal.replay(&mut |record| match record {
            Record::Usage(event) => enforcer.replay(&event.tenant_id, &event.charges),
            Record::Amend(amendment) => enforcer.replay(&amendment.tenant_id, &amendment.charges),
            Record::Audit(_) => {}
        });

        let overrides = Overrides::new();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let core = Arc::new(Core {
            policy: ArcSwap::from_pointee(policy::of(&settings, &overrides, &metrics)?),
            directory,
            overrides,
            enforcer: enforcer.clone(),
            strangers: Strangers::default(),
            refusals: proxy::Refusals::default(),
            recorder,
            counter: Counter::start(1, COUNT_QUEUE, COUNT_QUEUE_BYTES),
            metrics: metrics.clone(),
            server: room.within(settings.server.clone()),
            upstream: settings.upstream.clone(),
            lease_wait: settings.lease_wait,
            refusing: AtomicBool::new(false),
            cutting: CancellationToken::new(),
            budget: Budget::new(&settings.server, cores, metrics.clone()),
            drains: Drains::new(settings.server.max_drains),
            tasks: TaskTracker::new(),
        });

        let stop = CancellationToken::new();
        let background = TaskTracker::new();
        let live = Arc::new(Live::new(journal.clone(), enforcer.clone()));
        let look_ups = look_ups::Watch::new(core.clone(), live.clone(), service, &settings);
        let look_ups = look_ups.first_look(&settings).await?;
        background.spawn(look_ups.run(stop.clone()));
        let notices = Notices::new(store.clone());
        let joined = leases::Joined {
            enforcer: &enforcer,
            store: &store,
            journal: &journal,
            data_dir: &settings.data_dir,
            live: &live,
            notices: notices.subscribe(),
        };
        leases::start(joined, settings.leases, &background, &stop)
            .map_err(|why| settings.fault("data.dir", why))?;
        let keeper =
            Keeper::new(store.clone(), core.clone(), live.clone(), settings.on_outage, listener.address());
        let keeper = keeper.first_look(config.connect_timeout).await;
        let hydrated = live.hydrated();
        background.spawn(keeper.run(stop.clone()));

        background.spawn(overrides::follow(
            store.clone(),
            core.clone(),
            live.clone(),
            notices.subscribe(),
            stop.clone(),
        ));
        background.spawn(reassign::run(store.clone(), core.clone(), live.clone(), stop.clone()));
        background.spawn(notices.run(live.hydrated(), stop.clone()));
        background.spawn(plan_changes::record(store.clone(), core.clone(), stop.clone()));

        let shipped = CancellationToken::new();
        let shipping = {
            let (journal, store, shipped) = (journal.clone(), Arc::new(store.clone()), shipped.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = hydrated => {}
                    // Never reached: everything stays in the journal for the next start.
                    () = shipped.cancelled() => return,
                }
                journal.ship(store, shipped, LAST_SHIPMENT).await;
            })
        };
        background.spawn(jobs::aggregate(
            store.clone(),
            metrics.clone(),
            live.clone(),
            settings.aggregate_interval,
            stop.clone(),
        ));
        if let Some(alerting) = settings.alerts.clone() {
            alerts::start(alerting, &settings, &store, &metrics, &live, &background, &stop)?;
        }
        background.spawn(jobs::record_refusals(core.clone(), stop.clone()));
        background.spawn(jobs::evict(core.clone(), stop.clone()));

        let quota = quota_source(core.clone(), store.clone());
        let state = admin::State {
            config: settings.admin.clone(),
            metrics: metrics.clone(),
            store: store.clone(),
            health: live.source(),
            explain: explain::source(core.clone(), store.clone(), quota.clone()),
            quota,
            plans: plan_source(core.clone()),
            overrides: core.overrides.clone(),
            limits_changed: limits_changed(enforcer.clone()),
            aggregate: jobs::on_request(store.clone(), metrics.clone()),
            audit: audit_sink(core.clone()),
        };
        let admin = tokio::spawn(admin::serve(
            admin_listener,
            admin::router(state),
            room.operators(),
            stop.clone().cancelled_owned(),
        ));
        background.spawn(reload::watch(settings.clone(), core.clone(), stop.clone()));

        let address = listener.address();
        let proxy = Proxy::start(listener, core.clone()).map_err(anyhow::Error::msg)?;
        live.serving();
        let drain_timeout = settings.server.drain_timeout;
        Ok(Self {
            address,
            admin_address,
            drain_timeout,
            core,
            proxy,
            journal,
            live,
            stop,
            background,
            shipped,
            shipping,
            admin,
            enforcer,
            metrics,
            store,
            private,
        })
    }

    /// Where clients connect (the real port, where the config says 0).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until `shutdown` resolves, then drains, flushes and stops; once `hurry` resolves it drains no longer.
    pub async fn run_until(
        self,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        shutdown.await;
        tracing::info!(limit = ?self.drain_timeout, "draining");
        self.live.draining();
        let limit = async {
            tokio::select! {
                () = tokio::time::sleep(self.drain_timeout) => {}
                () = hurry => {}
            }
        };
        self.proxy.stop(limit).await;
        for records in self.core.refusals.all() {
            drop(self.core.recorder.record(records));
        }
        // Every settlement is with the recorder now.
        self.shipped.cancel();
        self.shipping.await.context("the shipper ended in a panic")?;
        let journal = self.journal;
        let written = journal.state().records == 0;
        tokio::task::spawn_blocking(move || journal.close()).await.context("closing the journal panicked")?;
        self.stop.cancel();
        self.background.close();
        self.background.wait().await;
        self.admin.await.context("the admin listener ended in a panic")?;
        // A database that is away at the stop is no fault of the stop: leases then end with their windows.
        let goodbye = async {
            leases::give_up(&self.enforcer, &self.store, written).await;
            if let Err(error) = jobs::tell_heads(&self.store, &self.metrics).await {
                tracing::warn!(%error, "the heads of the audit chains can't be told");
            }
            self.store.leave().await
        };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        self.store.close();
        if let Some(private) = self.private {
            private.stop().await;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// The look-ups, and the database that they go to.
fn directory(
    settings: &Settings,
    store: &Store,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Arc<Directory>, Store)> {
    let service = match &settings.service_database {
        Some(config) => {
            Store::new(config).map_err(|error| settings.fault("service_database.url", error.to_string()))?
        }
        None => store.clone(),
    };
    let runtime = tokio::runtime::Handle::current();
    let source: Arc<dyn TenantSource> = Arc::new(service.clone());
    Ok((Directory::new(settings.directory.clone(), Some(source), runtime, metrics.clone()), service))
}

/// How a tenant stands, for the admin API: its plan looked up as the data path does.
fn quota_source(core: Arc<Core>, store: Store) -> admin::QuotaSource {
    Arc::new(move |tenant| {
        let (core, store, tenant) = (core.clone(), store.clone(), tenant.clone());
        Box::pin(async move {
            let now = jiff::Timestamp::now();
            let (entitlement, plans) = core.entitlement(&tenant, now).await;
            // What other replicas used is news only to the database; without it, what was last heard is told.
            let elsewhere = store.settled_elsewhere(&tenant, core.enforcer.run(), now);
            let elsewhere = match tokio::time::timeout(LOOK_UP, elsewhere).await {
                Ok(Ok(settled)) => settled,
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            let standings = core.enforcer.standings_with(&tenant, &entitlement, &elsewhere, now);
            admin::QuotaView::new(&entitlement, standings, &plans.layers(&tenant, now))
        })
    })
}

fn limits_changed(enforcer: Arc<Enforcer>) -> admin::LimitsChanged {
    Arc::new(move |tenant| enforcer.limits_changed(tenant))
}

fn plan_source(core: Arc<Core>) -> admin::PlanSource {
    Arc::new(move || core.policy.load().plans.names())
}

fn audit_sink(core: Arc<Core>) -> admin::AuditSink {
    Arc::new(move |event| drop(core.recorder.record([Record::Audit(Box::new(event))].into_iter().collect())))
}

/// This replica's name: made once, kept with the journal, so that its leases and rows are its own after a restart.
fn replica_id(dir: &Path) -> Result<String, String> {
    let file = dir.join("replica-id");
    let failed = |error: std::io::Error| format!("{} can't be used: {error}", file.display());
    create_private_dir(dir).map_err(failed)?;
    match std::fs::read_to_string(&file) {
        Ok(id) if Uuid::parse_str(id.trim()).is_ok() => Ok(id.trim().to_owned()),
        Ok(_) => Err(format!("{} holds no replica id: remove it to be given a new one", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = Uuid::now_v7().to_string();
            write_private(&file, id.as_bytes()).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

fn bind_fault(address: SocketAddr, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("{address} is taken by another process: stop it, or choose another port")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("{address} may not be bound: ports below 1024 need a privilege, choose another")
        }
        std::io::ErrorKind::AddrNotAvailable => format!("{address} is no address of this machine"),
        _ => format!("{address} can't be bound: {error}"),
    }
}
