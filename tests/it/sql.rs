//! The schema and the store, against a real Postgres.

mod events;
mod faults;
mod functions;
mod plans;
mod private;
mod records;
mod schema;
mod tls;
