//! The integration tests: one binary, real parts.

mod admin;
mod architecture;
mod config;
mod demo;
mod faults;
mod gateway;
mod harness;
mod nginx;
mod outages;
mod postgres;
mod recording;
mod sql;
