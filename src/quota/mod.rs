//! Quotas: refuse before the call, settle after it.
//!
//! Constraints that everything here keeps:
//!
//! 1. At admission, used + reserved + need ≤ limit in every dimension that the exchange needs, checked and taken under
//!    one lock: all dimensions or none.
//! 2. A refusal charges nothing and leaves no trace in the counters.
//! 3. A reservation belongs to the window it was made in, and so does its settlement. One that is settled after its
//!    window turned still says what to charge, and leaves the window that runs now alone.
//! 4. Use beyond the reservation is debt of the same window: it is admitted nowhere and forgotten nowhere.
//! 5. A reservation that is dropped gives everything back.
//! 6. Nothing waits: no `.await` in this module, no lock held for longer than some arithmetic.
//! 7. `now` is handed in. Only the wall clock decides on windows, and a clock that goes back neither reopens nor
//!    doubles one (`ledger.rs` says how).
//!
//! The write path: [`Enforcer::reserve`] → [`Reservation::settle`] → the charges go out with the usage event →
//! [`Enforcer::amend`] when a count comes late. The read path: [`Enforcer::standings`]. What a former run used comes in
//! by [`Enforcer::replay`] (from the journal) and [`Enforcer::hydrate`] (from Postgres).

mod enforcer;
mod lease;
mod ledger;
mod plans;
mod reservation;
#[cfg(test)]
mod tests;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::model::quota::{Amounts, Charge, Dimension, Limit, Limits, Standing};
use crate::model::tenant::{PlanName, TenantId};
use crate::telemetry::Metrics;

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
pub trait LeaseSource: Send + Sync + 'static {
    /// The live counters whose window holds `now`.
    fn settled(&self, now: Timestamp) -> BoxFuture<'_, Result<Vec<Settled>, LeaseError>>;
}

/// What a tenant may use: its plan's limits with the overrides that hold now.
#[derive(Clone, Debug)]
pub struct Entitlement {
    /// The plan it is on.
    pub plan: PlanName,
    /// Its limits.
    pub limits: Arc<Limits>,
    /// Where its calendar windows begin.
    pub zone: TimeZone,
}

/// Why an exchange was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The dimension that had too little left, with its use before this exchange.
    pub standing: Standing,
    /// What the exchange would have needed of it.
    pub needed: u64,
    /// All dimensions, for the `RateLimit` headers.
    pub standings: Vec<Standing>,
}

/// All tenants' use of their quotas in the current windows.
#[derive(Debug)]
pub struct Enforcer;

impl Enforcer {
    /// No use at all.
    pub fn new(_metrics: Arc<Metrics>) -> Arc<Self> {
        unimplemented!()
    }

    /// Adds what Postgres knows to what is counted here. Called once, when the database is first reached.
    pub fn hydrate(&self, _settled: &[Settled]) {
        unimplemented!()
    }

    /// Adds the charges of an event that a former run left in the journal.
    pub fn replay(&self, _tenant: &TenantId, _charges: &[Charge]) {
        unimplemented!()
    }

    /// Takes `amounts` in all dimensions at once, or nothing. With `enforce` false it always takes, and the
    /// reservation knows what would have been refused.
    pub fn reserve(
        self: &Arc<Self>,
        _tenant: &TenantId,
        _entitlement: &Entitlement,
        _amounts: Amounts,
        _enforce: bool,
        _now: Timestamp,
    ) -> Result<Reservation, Box<Refusal>> {
        unimplemented!()
    }

    /// How a tenant stands now, in every dimension that it has.
    pub fn standings(
        &self,
        _tenant: &TenantId,
        _entitlement: &Entitlement,
        _now: Timestamp,
    ) -> Vec<Standing> {
        unimplemented!()
    }

    /// Forgets windows that are over and tenants with nothing left. Called every minute.
    pub fn evict(&self, _now: Timestamp) {
        unimplemented!()
    }

    /// Exchanges whose reservation is still held.
    pub fn reservations(&self) -> u64 {
        unimplemented!()
    }
}

/// Amounts taken for one exchange. Settled once; dropped unsettled it gives everything back.
#[derive(Debug)]
pub struct Reservation {
    _private: (),
}

impl Reservation {
    /// What was reserved.
    pub fn amounts(&self) -> Amounts {
        unimplemented!()
    }

    /// How the tenant stands, this reservation included.
    pub fn standings(&self) -> &[Standing] {
        unimplemented!()
    }

    /// In shadow mode: what would have been refused.
    pub fn would_refuse(&self) -> Option<&Refusal> {
        unimplemented!()
    }

    /// Replaces the reservation by what was used, and says what that adds to the live counters. Amounts of 0 make no charge.
    pub fn settle(self, _used: Amounts) -> Vec<Charge> {
        unimplemented!()
    }
}

/// What plans there are, and who has which limits: from the config.
#[derive(Debug, Clone)]
pub struct Plans;

impl Plans {
    /// The limits of `tenant`, which the service says is on `plan`.
    pub fn entitlement(&self, _tenant: &TenantId, _plan: Option<&str>, _now: Timestamp) -> Entitlement {
        unimplemented!()
    }
}

/// A plan as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// Its limits.
    pub limits: Limits,
    /// Its calendar; UTC unless set.
    pub zone: String,
}

/// An operator's override for one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverrideConfig {
    /// Another plan.
    pub plan: Option<PlanName>,
    /// Single limits.
    pub limits: Vec<(Dimension, Limit)>,
    /// When it stops to hold.
    pub expires: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
}
