//! The only SQL.
//!
//! 1. Nothing above this module sees a connection, a statement or a row; the parts below it (`record`, `quota`,
//!    `tenant`) say what they need as traits, and [`Store`] provides it.
//! 2. No statement waits without a bound: for a connection `connect_timeout`, for an answer `statement_timeout`, by
//!    the server's clock and, should the server hang, by ours.
//! 3. No error tells a password. The URL is taken apart once, in `address`, and is never printed.
//! 4. An event and what it adds to the live counters are one transaction: see [`events`].
//!
//! Writing: `record`'s shipper → [`events`]. Reading: [`leases`] when the gateway starts, [`tenants`] when a request
//! misses the cache ([`examine`] says whether its look-ups can work), the admin API at its leisure. What operators set: [`overrides`]; what others wrote is
//! heard of by [`listen`]. [`jobs`] keeps partitions, aggregates and retention; [`alerts`] what crossed a threshold;
//! [`reassign`] moves rows to tenants that were found late; [`drift`] checks the counters, [`chain`] the audit trail; [`reconcile`] has what invoices are held against;
//! [`migrate`] brings up the schema; [`private`] runs a server of our own where none is configured.

mod address;
mod instant;
mod pool;
mod tls;

pub mod alerts;
pub mod audit;
pub mod chain;
pub mod drift;
pub mod events;
pub mod examine;
pub mod explain;
pub mod jobs;
pub mod leases;
pub mod listen;
pub mod migrate;
pub mod models;
pub mod overrides;
pub mod plans;
pub mod private;
mod reaggregate;
pub mod reassign;
pub mod reconcile;
pub mod replay;
pub mod replicas;
pub mod report;
pub mod reprice;
pub mod tenants;
pub mod usage;

pub use address::check_credentials;
pub use drift::{Drift, Drifted};
pub use examine::Examined;
pub use jobs::{AggregateReport, CleanUpReport};
pub use leases::LEASES;
pub use listen::{Heard, Listener};
pub use migrate::{Migrated, SCHEMA_VERSION, SchemaState};
pub use pool::{Config, PoolCounts, Store, StoreError};
pub use private::{PrivateError, PrivatePostgres};
