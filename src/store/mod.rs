//! The only SQL.

pub mod audit;
pub mod report;
pub mod usage;

use std::time::Duration;

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
    /// It was reached, and said no.
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
}

/// The database. Cheap to clone; connects when it is used, so making one never fails for the database's sake.
#[derive(Clone, Debug)]
pub struct Store;

impl Store {
    /// A pool for `config`; an error only when the URL itself is wrong.
    pub fn new(_config: &Config) -> Result<Self, StoreError> {
        unimplemented!()
    }

    /// A connection, waited for within the config's bounds.
    pub async fn client(&self) -> Result<deadpool_postgres::Client, StoreError> {
        unimplemented!()
    }
}
