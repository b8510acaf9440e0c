//! The schema and the store, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

mod aggregation;
mod events;
mod faults;
mod functions;
mod history;
mod leases;
mod listen;
mod plans;
mod private;
pub(crate) mod records;
mod schema;
mod tls;
