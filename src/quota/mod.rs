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
//! 6. No lock is held over an `.await`, or for longer than some arithmetic. Only [`Enforcer::admit`] waits: for a lease, where
//!    this replica's can't cover the exchange, and within bounds.
//! 7. `now` is handed in. Only the wall clock decides on windows, and a clock that goes back neither reopens nor
//!    doubles one (`counter.rs` says how).
//!
//! 8. Of several replicas each spends only what it was granted (`leasing`, and docs/quota.md for why that holds).
//!
//! The write path: [`Enforcer::admit`] → [`Reservation::settle`] → the charges go out with the usage event →
//! [`Enforcer::amend`] when a count comes late. The read path: [`Enforcer::standings`]. What a former run used comes in
//! by [`Enforcer::replay`] (from the journal) and [`Enforcer::hydrate`] (from Postgres).

mod asking;
mod counter;
mod enforcer;
mod holding;
mod lease;
mod leasing;
mod ledger;
mod locked;
pub mod overrides;
mod plans;
mod reservation;
mod rounds;
#[cfg(test)]
mod tests;

pub use asking::Footing;
pub use enforcer::{Denial, Enforcer};
pub use holding::Holding;
pub use lease::{Ask, Grant, Grants, LeaseError, LeaseKey, LeaseSource, Round, Settled};
pub use leasing::{Config as LeaseConfig, Leasing, Mark, Runs, Written};
pub use ledger::Refusal;
pub use overrides::Overrides;
pub use plans::{Entitlement, Layers, Origin, OverrideConfig, PlanConfig, Plans};
pub use reservation::Reservation;
