//! Where the right to spend comes from: the seam behind which several replicas will share a quota.

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::model::quota::Dimension;
use crate::model::tenant::TenantId;

/// A live counter as Postgres knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whose counter.
    pub tenant: TenantId,
    /// Which quota.
    pub dimension: Dimension,
    /// The window's first instant.
    pub window_start: Timestamp,
    /// The first instant after it.
    pub window_end: Timestamp,
    /// Used by all replicas, as far as their events have been written.
    pub amount: i64,
}

/// The leases could not be had: the database is away, or too slow.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct LeaseError(pub String);

/// Where a replica's right to spend comes from.
///
/// One replica holds the whole limit, so all it needs to know is what was spent before it started. Grants for several
/// replicas will be further methods here; see `docs/quota.md`.
pub trait LeaseSource: Send + Sync + 'static {
    /// The live counters whose window holds `now`.
    fn settled(&self, now: Timestamp) -> BoxFuture<'_, Result<Vec<Settled>, LeaseError>>;
}
