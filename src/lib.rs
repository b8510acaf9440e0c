//! Tollgate: a transparent metering gateway in front of a chat service.
//!
//! The life of a request, and one line for each module, will stand here once all parts do.

pub mod admin;
pub mod cli;
pub mod demo;
pub mod gateway;
pub mod meter;
pub mod model;
pub mod proxy;
pub mod quota;
pub mod record;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod tenant;
