//! The integration tests: one binary, real parts.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod admin;
mod alerts;
mod architecture;
mod browser;
mod chain;
mod charging;
mod config;
mod demo;
mod exactness;
mod explain;
mod faults;
mod formats;
mod gateway;
mod harness;
mod limits;
mod memory;
mod nginx;
mod outages;
mod overrides;
mod postgres;
mod price_import;
mod prices;
mod reconciliation;
mod recording;
mod replicas;
mod repricing;
mod routes;
mod sdk;
mod sharing;
mod sql;
mod upkeep;
mod what_if;
