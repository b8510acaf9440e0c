//! The schema: what version it has, and how it comes up or goes away.
//!
//! The migrations are the same files that an operator can run with psql. Each is one transaction, takes the same
//! advisory lock, and can be run again, so runners that start at once wait for each other and then find nothing to do.

use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio_postgres::error::SqlState;

use super::pool::{Store, StoreError};

/// The migrations, in order.
const MIGRATIONS: [(i32, &str, &str); 10] = [
    (1, "tables", include_str!("../../migrations/0001_tables.sql")),
    (2, "partitions", include_str!("../../migrations/0002_partitions.sql")),
    (3, "functions", include_str!("../../migrations/0003_functions.sql")),
    (4, "audit_history", include_str!("../../migrations/0004_audit_history.sql")),
    (5, "leases", include_str!("../../migrations/0005_leases.sql")),
    (6, "alerts", include_str!("../../migrations/0006_alerts.sql")),
    (7, "histograms", include_str!("../../migrations/0007_histograms.sql")),
    (8, "audit_chain", include_str!("../../migrations/0008_audit_chain.sql")),
    (9, "no_jit", include_str!("../../migrations/0009_no_jit.sql")),
    (10, "refusals", include_str!("../../migrations/0010_refusals.sql")),
];

/// The schema version that this program is written for.
pub const SCHEMA_VERSION: i32 = MIGRATIONS[MIGRATIONS.len() - 1].0;

const ROLLBACK: &str = include_str!("../../migrations/rollback.sql");

/// How long a run may take, waiting for another runner included.
const PATIENCE: Duration = Duration::from_secs(300);

/// What schema the database has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// None: `tollgate migrate` was never run.
    Missing,
    /// An older one, of this version.
    Older(i32),
    /// The one that this program is written for.
    Current,
    /// A newer one, of this version: a newer Tollgate has been here. It only ever adds, so this one goes on.
    Newer(i32),
}

impl std::fmt::Display for SchemaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SchemaState::Missing => {
                f.write_str("the database has no Tollgate schema: run `tollgate migrate`")
            }
            SchemaState::Older(version) => {
                write!(
                    f,
                    "the database's schema is version {version}, this Tollgate needs {SCHEMA_VERSION}: run `tollgate migrate`"
                )
            }
            SchemaState::Current => {
                write!(f, "the database's schema is up to date (version {SCHEMA_VERSION})")
            }
            SchemaState::Newer(version) => {
                write!(
                    f,
                    "the database's schema is version {version}, newer than this Tollgate's {SCHEMA_VERSION}"
                )
            }
        }
    }
}

/// What a run of the migrations did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// What was there before.
    pub from: SchemaState,
    /// The migrations that were run, by name.
    pub applied: Vec<&'static str>,
}

impl Store {
    /// What schema the database has.
    pub async fn schema_state(&self) -> Result<SchemaState, StoreError> {
        let client = self.client().await?;
        self.bounded(client, state).await
    }

    /// Brings the schema up to this program's version. Does nothing, and needs no right to, where it is current.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        self.patient(PATIENCE, async |client| {
            let from = state(client).await?;
            let have = match from {
                SchemaState::Missing => 0,
                SchemaState::Older(version) => version,
                SchemaState::Current | SchemaState::Newer(_) => SCHEMA_VERSION,
            };
            let mut applied = Vec::new();
            for (_, name, sql) in MIGRATIONS.iter().filter(|(version, ..)| *version > have) {
                client.batch_execute(sql).await?;
                applied.push(*name);
            }
            Ok(Migrated { from, applied })
        })
        .await
    }

    /// Takes the schema away, with everything recorded in it.
    pub async fn migrate_down(&self) -> Result<(), StoreError> {
        self.patient(PATIENCE, async |client| client.batch_execute(ROLLBACK).await).await
    }
}

async fn state(client: &ClientWrapper) -> Result<SchemaState, tokio_postgres::Error> {
    match client.query_one("SELECT max(version) FROM tollgate_schema", &[]).await {
        Ok(row) => Ok(match row.get::<_, Option<i32>>(0) {
            None => SchemaState::Missing,
            Some(version) if version < SCHEMA_VERSION => SchemaState::Older(version),
            Some(version) if version > SCHEMA_VERSION => SchemaState::Newer(version),
            Some(_) => SchemaState::Current,
        }),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(SchemaState::Missing),
        Err(error) => Err(error),
    }
}
