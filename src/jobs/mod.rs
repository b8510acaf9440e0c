//! Work that is done by the clock, as far as it needs no database: what alerts go by, and how they are delivered.
//!
//! When they run is `gateway`'s, what they read and write `store`'s.

mod alerts;
mod webhook;

pub use alerts::{Alerting, Alertness};
pub use webhook::{Webhook, WebhookConfig};
