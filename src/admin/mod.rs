//! The operators' API and pages, on a listener of their own.
//!
//! The gateway makes a [`State`], a [`router()`] of it, and lets [`serve()`] run until it stops. What this part needs of
//! others comes as closures in the state: it never sees the enforcer, the directory, the journal or the jobs.
//!
//! A call goes through `router` (its id, the door, the form of the answer), is read by `params`, answered by one
//! of the handlers, and fails as a `problem`. Under `/api/admin/` nothing is reached without credentials.

mod aggregate;
mod alerts;
mod answer;
mod audit;
mod auth;
mod context;
mod cursor;
mod explain;
mod health;
mod models;
mod overrides;
mod pages;
mod params;
mod problem;
mod quotas;
mod router;
mod serve;
mod state;
mod throttle;
mod usage;

pub use router::router;
pub use serve::{MAX_CONNECTIONS, serve};
pub use state::{
    Aggregation, AuditSink, Config, ExplainSource, Explained, Health, HealthSource, LimitsChanged, Part,
    PlanSource, QuotaSource, QuotaView, ServicePlan, State, Status,
};
