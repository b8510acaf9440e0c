//! The pool of connections. Lazy: nothing connects until it is asked to, so the gateway starts without its database.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod,
    Runtime, TimeoutType, Timeouts,
};

use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::Address;
use super::tls;

/// The database that Tollgate writes to.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// `postgres://…`, `sslmode` included.
    pub url: String,
    /// Connections at most.
    pub pool_size: usize,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a statement of the gateway's own may take.
    pub statement_timeout: Duration,
}

/// What went wrong with the database, as told to operators; never with a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be reached, or no connection was free in time.
    #[error("{0}")]
    Unavailable(String),
    /// It may well be there: no connection of the pool was free in time.
    #[error("{0}")]
    Busy(String),
    /// It was reached, and said no.
    #[error("{}", describe(.0))]
    Query(#[from] tokio_postgres::Error),
}

/// The pool's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Open.
    pub size: usize,
    /// Of them, idle.
    pub idle: usize,
}

/// The database. Cheap to clone; connects when it is used, so making one never fails for the database's sake.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    /// How the pool connects, for connections that are not of it.
    dial: Arc<(tokio_postgres::Config, MakeRustlsConnect)>,
    place: Arc<str>,
    connect_timeout: Duration,
    statement_timeout: Duration,
    replica_id: Option<Arc<str>>,
}

impl Store {
    /// A pool for `config`; an error only when the URL itself is wrong, or a certificate that it names.
    pub fn new(config: &Config) -> Result<Self, StoreError> {
        let address = Address::parse(&config.url).map_err(StoreError::Unavailable)?;
        let connector =
            tls::connector(&address.trust, address.identity.as_ref()).map_err(StoreError::Unavailable)?;
        let mut postgres = address.postgres;
        postgres.connect_timeout(config.connect_timeout);
        if postgres.get_application_name().is_none() {
            postgres.application_name("tollgate");
        }
        // A peer that vanished without a word is noticed even on a connection that waits for an answer.
        postgres.tcp_user_timeout(config.statement_timeout + config.connect_timeout);

        let dial = Arc::new((postgres.clone(), connector.clone()));
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(postgres, connector, manager);
        let prelude: Arc<str> = prelude(config.statement_timeout).into();
        let pool = Pool::builder(manager)
            .max_size(config.pool_size.max(1))
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(config.connect_timeout),
                create: Some(config.connect_timeout),
                recycle: Some(config.connect_timeout),
            })
            .post_create(Hook::async_fn(move |client: &mut ClientWrapper, _| {
                let prelude = prelude.clone();
                Box::pin(async move { client.batch_execute(&prelude).await.map_err(HookError::Backend) })
            }))
            .build()
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self {
            pool,
            dial,
            place: address.place.into(),
            connect_timeout: config.connect_timeout,
            statement_timeout: config.statement_timeout,
            replica_id: None,
        })
    }

    /// The same store, which marks what it writes as this replica's.
    #[must_use]
    pub fn with_replica_id(mut self, id: &str) -> Self {
        self.replica_id = Some(id.into());
        self
    }

    /// The replica that this store writes for.
    pub fn replica_id(&self) -> Option<&str> {
        self.replica_id.as_deref()
    }

    /// Where the database is: `host:port/database`. For messages; holds no secret.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// A connection, waited for within the config's bounds.
    pub async fn client(&self) -> Result<deadpool_postgres::Client, StoreError> {
        self.pool.get().await.map_err(|error| self.unavailable(error))
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let client = self.client().await?;
        self.bounded(client, async |client| client.batch_execute("").await).await
    }

    /// How many connections there are.
    pub fn pool_counts(&self) -> PoolCounts {
        let status = self.pool.status();
        PoolCounts { size: status.size, idle: status.available }
    }

    /// Closes the pool: idle connections at once, those in use when they come back.
    pub fn close(&self) {
        self.pool.close();
    }

    /// What a connection outside the pool is made with.
    pub(super) fn dial(&self) -> (tokio_postgres::Config, MakeRustlsConnect) {
        (*self.dial).clone()
    }

    /// How long a statement may take, with a little for the way.
    pub(super) fn patience(&self) -> Duration {
        self.statement_timeout + self.connect_timeout
    }

    /// Runs `work` on `client`, no longer than the statement timeout and a little for the way. The server stops a
    /// statement by itself; this is for a server that hangs. A connection that an answer is still due on is closed
    /// rather than given to the next.
    pub(super) async fn bounded<T>(
        &self,
        client: Object,
        work: impl AsyncFnOnce(&ClientWrapper) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let patience = self.patience();
        let doubt = Doubt(Some(client));
        let result = match &doubt.0 {
            Some(client) => tokio::time::timeout(patience, work(client)).await,
            None => return Err(StoreError::Unavailable("the connection is gone".to_owned())),
        };
        match result {
            Ok(done) => {
                doubt.settled();
                Ok(done?)
            }
            Err(_) => Err(StoreError::Unavailable(format!(
                "the database at {} gave no answer in {patience:?}",
                self.place
            ))),
        }
    }

    /// Runs `work` on a connection outside the pool, all in all no longer than `patience`: for jobs and migrations. The
    /// connection is closed after it, and with it goes all that was set or locked on it.
    pub(super) async fn patient<T>(
        &self,
        patience: Duration,
        work: impl AsyncFnOnce(&ClientWrapper) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let client = Object::take(self.client().await?);
        let all = async {
            client.batch_execute(&format!("SET statement_timeout = {}", patience.as_millis())).await?;
            work(&client).await
        };
        match tokio::time::timeout(patience + self.connect_timeout, all).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(StoreError::Unavailable(format!(
                "the database at {} gave no answer in {patience:?}",
                self.place
            ))),
        }
    }

    fn unavailable(&self, error: PoolError) -> StoreError {
        let place = &self.place;
        StoreError::Unavailable(match error {
            PoolError::Timeout(TimeoutType::Wait) => {
                return StoreError::Busy(format!(
                    "no connection to the database at {place} was free in {:?}",
                    self.connect_timeout
                ));
            }
            PoolError::Timeout(_) => {
                format!("the database at {place} did not answer in {:?}", self.connect_timeout)
            }
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
                format!("can't connect to the database at {place}: {}", describe(&error))
            }
            PoolError::Closed => "the pool of database connections is closed".to_owned(),
            PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(HookError::Message(_)) => {
                format!("can't connect to the database at {place}")
            }
        })
    }
}

/// A connection that is in the middle of something. Dropped so, it leaves the pool and closes: its next user would
/// find a transaction open, or wait behind a statement that nobody wants the answer of.
struct Doubt(Option<Object>);

impl Doubt {
    fn settled(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

/// What every session begins with, in one round trip. Plain SET, because poolers such as PgBouncer refuse such
/// settings at connection time. An acknowledged batch leaves the journal, so COMMIT must mean written.
fn prelude(statement_timeout: Duration) -> String {
    let ms = statement_timeout.as_millis();
    format!(
        "SET statement_timeout = {ms}; SET idle_in_transaction_session_timeout = {ms}; \
         SET timezone = 'UTC'; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
}

/// An error of the driver with its causes, in one line: its own text says only "db error".
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let detail = db.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        return format!("{}{detail} [{}]", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("place", &self.place)
            .field("replica_id", &self.replica_id)
            .finish_non_exhaustive()
    }
}
