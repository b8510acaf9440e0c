//! The integration tests: one binary, real parts.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod admin;
mod architecture;
mod config;
mod demo;
mod faults;
mod gateway;
mod harness;
mod nginx;
mod outages;
mod overrides;
mod postgres;
mod prices;
mod recording;
mod routes;
mod sql;
mod upkeep;
