//! A tenant's ledger behind its lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ledger::Ledger;

/// A tenant's ledger, shared by its exchanges.
///
/// A std mutex: it is held for some arithmetic and over no `.await`, where an async one would only cost more.
#[derive(Debug, Default)]
pub(super) struct Tenant(Mutex<Ledger>);

impl Tenant {
    /// The ledger. One whose holder panicked is still whole: no step of it can panic half done.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// With the counts of an `Arc` it is an allocation of 192 bytes: see `counter`.
const _: () = assert!(size_of::<Tenant>() <= 176);
