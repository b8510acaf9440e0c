//! The composition root: start, reload, drain, stop.

use std::net::SocketAddr;

use crate::settings::Settings;

/// A gateway that accepts connections.
pub struct Gateway;

impl Gateway {
    /// Starts every part and binds both listeners; returns once it accepts.
    pub async fn start(_settings: Settings) -> anyhow::Result<Self> {
        unimplemented!()
    }

    /// Where clients connect (the real port, where the config says 0).
    pub fn address(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Serves until `shutdown` resolves, then drains, flushes and stops.
    pub async fn run_until(self, _shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        unimplemented!()
    }
}
