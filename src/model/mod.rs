//! Pure values: what a tenant, a window, a quota, a token count, a price and an event *are*.
//!
//! No clock, no async, no I/O: whoever needs "now" is handed it.

pub mod billing;
pub mod client;
pub mod event;
pub mod intent;
pub mod pattern;
pub mod price;
pub mod quota;
pub mod spelling;
pub mod tenant;
pub mod tokens;
pub mod window;
