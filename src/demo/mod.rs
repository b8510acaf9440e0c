//! The one-command demo.

mod replies;
pub mod service;
mod sessions;
