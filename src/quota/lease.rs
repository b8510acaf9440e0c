//! Where the right to spend comes from: leases, granted by Postgres to each run of each replica.
//!
//! The seam is [`LeaseSource`]. `leasing` says when it is asked and with what; `docs/quota.md` says why it holds.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::model::quota::{Dimension, Limit};
use crate::model::tenant::TenantId;
use crate::model::window::Span;

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

/// A tenant's quota in one window: what is granted and counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseKey {
    /// Whose quota.
    pub tenant: TenantId,
    /// Which one.
    pub dimension: Dimension,
    /// In which window.
    pub span: Span,
}

/// What a replica wants of one quota. All amounts count from the beginning of the window, so that asking twice grants
/// once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Of which quota.
    pub key: LeaseKey,
    /// What it believes it was granted; `None` when it knows of nothing in this window.
    pub known: Option<i64>,
    /// The grant below which a request has to be refused.
    pub at_least: i64,
    /// The grant that it would like; where it hands back, the grant that it keeps.
    pub at_most: i64,
    /// The limit that holds; `None` to hand back all above `at_most`.
    pub limit: Limit,
}

/// The answer to an [`Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What the replica may use of the window in all.
    pub granted: i64,
    /// What that was before this round.
    pub before: i64,
    /// What was used by everybody else in the window, as far as it is settled.
    pub elsewhere: i64,
    /// What was asked for and not granted is held by others that live, who were now asked for what they don't use of it.
    pub recalled: bool,
}

/// The answer to a round: one grant for each ask, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// The grants.
    pub grants: Vec<Grant>,
    /// Quotas of which another replica is refused for want of what this one holds unused.
    pub wanted: Vec<(TenantId, Dimension, Timestamp)>,
}

/// Who asks: one run of a replica is one lessee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The run. Later ones are greater.
    pub run: u64,
    /// The round of this run. One that is carried out after a later one is refused.
    pub number: u64,
    /// After how long a lessee that was not heard of loses what it holds; `None`: only when the window ends.
    pub reclaim_after: Option<Duration>,
}

/// Leases could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The database is away, or too slow.
    #[error("{0}")]
    Unavailable(String),
    /// This run was taken for dead, or a later one has begun: its leases are void.
    #[error("this run's leases are void: {0}")]
    Void(String),
}

/// Where a replica's right to spend comes from.
pub trait LeaseSource: Send + Sync + 'static {
    /// The live counters whose window holds `now`.
    fn settled(&self, now: Timestamp) -> BoxFuture<'_, Result<Vec<Settled>, LeaseError>>;

    /// Says that this run lives, and carries out `asks`: one statement, however many there are.
    fn lease<'a>(&'a self, round: Round, asks: &'a [Ask]) -> BoxFuture<'a, Result<Grants, LeaseError>>;

    /// Gives up everything that runs before `run` hold. Only for runs whose events have all been written.
    fn release_before(&self, run: u64) -> BoxFuture<'_, Result<(), LeaseError>>;
}
