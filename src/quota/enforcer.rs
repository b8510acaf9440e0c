//! All tenants' ledgers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jiff::Timestamp;

use crate::model::quota::{Amounts, Charge, Standing};
use crate::model::tenant::TenantId;
use crate::model::window::Span;
use crate::telemetry::Metrics;

use super::lease::Settled;
use super::ledger::{Ledger, Refusal};
use super::plans::Entitlement;
use super::reservation::{Reservation, Tenant};

/// Parts of the map, each with a lock of its own. A million tenants make about 4,000 a part, so that growing or sweeping
/// one holds its lock for a fraction of a millisecond.
const SHARDS: usize = 256;

/// One part of the map, on cache lines of its own. The lock is for finding a tenant: read-locked but for a tenant's first
/// exchange and its eviction, so that a busy tenant's exchanges queue for its ledger and nobody else's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(RwLock<HashMap<TenantId, Arc<Tenant>>>);

impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<TenantId, Arc<Tenant>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<TenantId, Arc<Tenant>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All tenants' use of their quotas in the current windows.
#[derive(Debug)]
pub struct Enforcer {
    shards: Box<[Shard]>,
    hasher: RandomState,
    metrics: Arc<Metrics>,
}

impl Enforcer {
    /// No use at all.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Arc::new(Self { shards, hasher: RandomState::new(), metrics })
    }

    /// Adds what Postgres knows to what is counted here.
    ///
    /// To be called once in a process, when the database is first reached and before anything of the journal is shipped:
    /// the counters here are then what this process and the journal know and Postgres does not, so that the sum is right
    /// and nothing is in it twice. Windows that are over do no harm: they are dropped when they are next looked at.
    pub fn hydrate(&self, settled: &[Settled]) {
        for counter in settled.iter().filter(|counter| counter.amount != 0) {
            let span = Span { start: counter.window_start, end: counter.window_end };
            self.tenant(&counter.tenant).ledger().absorb(counter.dimension, span, counter.amount);
        }
    }

    /// Adds the charges of an event (or a correction of one) that a former run left in the journal.
    pub fn replay(&self, tenant: &TenantId, charges: &[Charge]) {
        if charges.is_empty() {
            return;
        }
        let tenant = self.tenant(tenant);
        let mut ledger = tenant.ledger();
        for charge in charges {
            let span = Span { start: charge.window_start, end: charge.window_end };
            ledger.absorb(charge.dimension, span, charge.amount);
        }
    }

    /// Corrects what was settled by the differences in `charges`, as far as their windows still run.
    pub fn amend(&self, tenant: &TenantId, charges: &[Charge]) {
        let Some(tenant) = self.known(tenant) else { return };
        let mut ledger = tenant.ledger();
        for charge in charges {
            ledger.amend(charge.dimension, charge.window_start, charge.amount);
        }
    }

    /// Takes `amounts` in all dimensions of `entitlement` at once, or nothing.
    ///
    /// A dimension that the exchange needs nothing of never refuses it. With `enforce` false it always takes, and the
    /// reservation knows what would have been refused.
    pub fn reserve(
        self: &Arc<Self>,
        tenant: &TenantId,
        entitlement: &Entitlement,
        amounts: Amounts,
        enforce: bool,
        now: Timestamp,
    ) -> Result<Reservation, Box<Refusal>> {
        let tenant = self.tenant(tenant);
        let Entitlement { limits, zone, .. } = entitlement;
        let admission = tenant.ledger().reserve(limits, zone, &amounts, enforce, now);
        match admission.refusal(&amounts) {
            Some(refusal) if !admission.taken => Err(refusal),
            would_refuse => {
                Ok(Reservation::new(tenant, self.metrics.clone(), amounts, admission, would_refuse))
            }
        }
    }

    /// How a tenant stands now, in every dimension that it has. A tenant never seen stands at 0, and is not remembered.
    pub fn standings(&self, tenant: &TenantId, entitlement: &Entitlement, now: Timestamp) -> Vec<Standing> {
        let Entitlement { limits, zone, .. } = entitlement;
        match self.known(tenant) {
            Some(tenant) => tenant.ledger().standings(limits, zone, now),
            None => Ledger::default().standings(limits, zone, now),
        }
    }

    /// Forgets tenants with nothing left: no reservation, and no use in a window that still runs. Called every minute.
    pub fn evict(&self, now: Timestamp) {
        let idle = |tenant: &Arc<Tenant>| Arc::strong_count(tenant) == 1 && tenant.ledger().is_idle(now);
        for shard in &self.shards {
            // Most sweeps of most shards find nothing, and find it without keeping anyone out.
            if !shard.read().values().any(idle) {
                continue;
            }
            let mut tenants = shard.write();
            let before = tenants.len();
            // Handles are cloned under the shard's lock only: one that is alone here stays alone.
            tenants.retain(|_, tenant| !idle(tenant));
            self.metrics.tenants.dec_by((before - tenants.len()) as i64);
            if tenants.len() < tenants.capacity() / 4 {
                tenants.shrink_to_fit();
            }
        }
    }

    /// Exchanges whose reservation is still held.
    pub fn reservations(&self) -> u64 {
        u64::try_from(self.metrics.reservations.get()).unwrap_or(0)
    }

    fn shard(&self, tenant: &TenantId) -> &Shard {
        &self.shards[self.hasher.hash_one(tenant) as usize % SHARDS]
    }

    fn known(&self, tenant: &TenantId) -> Option<Arc<Tenant>> {
        self.shard(tenant).read().get(tenant).cloned()
    }

    /// The tenant's ledger, made if this is its first exchange: concurrent first exchanges get the same one.
    fn tenant(&self, tenant: &TenantId) -> Arc<Tenant> {
        let shard = self.shard(tenant);
        if let Some(known) = shard.read().get(tenant) {
            return known.clone();
        }
        let mut tenants = shard.write();
        let entry = tenants.entry(tenant.clone()).or_insert_with(|| {
            self.metrics.tenants.inc();
            Arc::default()
        });
        entry.clone()
    }
}
