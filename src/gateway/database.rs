//! Watches over the database: reaches it, brings its schema up, reads the quotas once, and says when it is away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::health::{Database, Live};
use super::overrides;
use crate::proxy::Core;
use crate::quota::{Footing, LeaseSource};
use crate::settings::{OnOutage, Settings};
use crate::store::{Config, PrivatePostgres, Store};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The database as configured, or one of our own under the data directory.
pub(super) async fn configured(settings: &Settings) -> anyhow::Result<(Config, Option<PrivatePostgres>)> {
    match &settings.database {
        Some(config) => Ok((config.clone(), None)),
        None => {
            let private = PrivatePostgres::start(&settings.data_dir).await?;
            Ok((settings.private_database(private.url()), Some(private)))
        }
    }
}

/// The watcher.
#[derive(Debug)]
pub(super) struct Keeper {
    store: Store,
    core: Arc<Core>,
    live: Arc<Live>,
    on_outage: OnOutage,
    /// Where this replica listens, for `gateway_replicas`.
    address: SocketAddr,
}

impl Keeper {
    pub(super) fn new(
        store: Store,
        core: Arc<Core>,
        live: Arc<Live>,
        on_outage: OnOutage,
        address: SocketAddr,
    ) -> Self {
        Self { store, core, live, on_outage, address }
    }

    /// Looks once before the gateway accepts, so that a restart forgets nothing; for `patience` at most, since a
    /// database that is away must not keep it from starting.
    pub(super) async fn first_look(self, patience: Duration) -> Self {
        if tokio::time::timeout(patience, self.look()).await.is_err() {
            self.found(false, "it did not answer in time".into());
        }
        self
    }

    /// Looks every second, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = self.look() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn look(&self) {
        let seen = if self.live.database().hydrated {
            self.store.ping().await.map_err(|error| error.to_string())
        } else {
            self.prepare().await
        };
        match seen {
            Ok(()) => self.found(true, String::new()),
            Err(why) => self.found(false, why),
        }
    }

    /// Brings the schema up and reads the quotas: what is in Postgres is added to what is counted here, which is
    /// exact because nothing has been shipped yet.
    async fn prepare(&self) -> Result<(), String> {
        self.store.migrate().await.map_err(|error| error.to_string())?;
        self.store.register_replica(&self.address.to_string()).await.map_err(|error| error.to_string())?;
        overrides::read_all(&self.store, &self.core).await.map_err(|error| error.to_string())?;
        let settled = self.store.settled(jiff::Timestamp::now()).await.map_err(|error| error.to_string())?;
        self.core.enforcer.hydrate(&settled);
        self.core.enforcer.stand(Footing::Leased);
        Ok(())
    }

    fn found(&self, up: bool, detail: String) {
        let hydrated = up || self.live.database().hydrated;
        let refusing = match self.on_outage {
            OnOutage::Open => false,
            // What was leased is served; nothing is before the first contact, since nothing is leased.
            OnOutage::Lease => !hydrated,
            OnOutage::Closed => !up || self.core.enforcer.footing() != Footing::Leased,
        };
        self.core.refusing.store(refusing, Ordering::Relaxed);
        self.core.metrics.database_up.set(i64::from(up));
        let counts = self.store.pool_counts();
        self.core.metrics.pool_size.set(i64::try_from(counts.size).unwrap_or(i64::MAX));
        self.core.metrics.pool_idle.set(i64::try_from(counts.idle).unwrap_or(i64::MAX));
        let was_up = self.live.database().up;
        if self.live.set_database(Database { up, hydrated, refusing, detail: detail.clone() }) {
            match (was_up, up) {
                (false, true) => tracing::info!(place = self.store.place(), "the database answers"),
                (_, false) => {
                    tracing::warn!(
                        place = self.store.place(),
                        why = detail,
                        "the database is away; events wait in the journal"
                    );
                }
                (true, true) => {}
            }
        }
    }
}
