//! The operators' API and pages, on a listener of their own.

use std::net::SocketAddr;

/// The admin listener.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// Where operators and Prometheus connect.
    pub listen: SocketAddr,
    /// `ADMIN_TOKEN`: may read and change.
    pub operator_token: Option<String>,
    /// `ADMIN_VIEWER_TOKEN`: may read.
    pub viewer_token: Option<String>,
    /// `CRON_SECRET`: may start an aggregation.
    pub cron_secret: Option<String>,
}
