//! All tenants' ledgers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::model::quota::{self, Amounts, Charge};
use crate::model::tenant::TenantId;
use crate::model::window::Span;
use crate::telemetry::Metrics;

use super::asking::{Answer, Asking, Footing};
use super::holding::Holding;
use super::lease::Settled;
use super::ledger::{Ledger, Refusal, Rule};
use super::locked::Tenant;
use super::plans::Entitlement;
use super::reservation::Reservation;

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
    asking: Arc<Asking>,
}

/// Why an exchange is not admitted.
#[derive(Debug)]
pub enum Denial {
    /// Over quota.
    Over(Box<Refusal>),
    /// Nobody can say: the database is away, and what was leased is spent.
    Unavailable,
}

/// What came of one look at a ledger.
#[expect(
    clippy::large_enum_variant,
    reason = "it is made and taken apart at once: a box would cost an allocation"
)]
enum Attempt {
    Taken(Reservation),
    Over(Box<Refusal>),
    /// The lease is too small; more may be had, if it is only that others hold it (true) when they hand it back.
    Unleased(Box<Refusal>, bool),
}

impl Enforcer {
    /// No use at all.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        let asking = Arc::new(Asking::new(metrics));
        Arc::new(Self { shards, hasher: RandomState::new(), asking })
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
            ledger.amend(charge);
        }
    }

    /// The run whose leases pay for what is settled from now on. To be read before settling: where a run begins in between,
    /// a replica then has less than the database thinks, and not more.
    pub fn run(&self) -> u64 {
        self.asking.run()
    }

    /// How this replica stands to the others.
    pub fn footing(&self) -> Footing {
        self.asking.footing()
    }

    /// Says how this replica stands to the others.
    pub fn stand(&self, footing: Footing) {
        self.asking.stand(footing);
    }

    /// Takes `amounts` in all dimensions of `entitlement` at once, or nothing. Where only this replica's lease is too
    /// small it waits for more, for `patience` at most.
    ///
    /// A dimension that the exchange needs nothing of never refuses it. With `enforce` false it always takes, and the
    /// reservation knows what would have been refused.
    ///
    /// # Errors
    /// The exchange is over quota, or nobody can say whether it is.
    pub async fn admit(
        self: &Arc<Self>,
        tenant: &TenantId,
        entitlement: &Entitlement,
        amounts: Amounts,
        enforce: bool,
        now: Timestamp,
        patience: Duration,
    ) -> Result<Reservation, Denial> {
        let began = Instant::now();
        let ledger = self.tenant(tenant);
        let mut answered = false;
        loop {
            // From before the look, so that no change can slip in between look and wait.
            let mut stood = self.asking.stood();
            let attempt = |rule| self.attempt(tenant, &ledger, entitlement, amounts, rule, enforce, now);
            let (short, recalled) = match attempt(self.asking.rule()) {
                Attempt::Taken(reservation) => return Ok(reservation),
                Attempt::Over(refusal) => return Err(Denial::Over(refusal)),
                Attempt::Unleased(refusal, recalled) => (refusal, recalled),
            };
            let left = patience.saturating_sub(began.elapsed());
            match self.asking.footing() {
                Footing::CutOff => return Err(Denial::Unavailable),
                Footing::Alone | Footing::OnItsOwn => continue,
                // The database answers, and it is others who hold what is left.
                Footing::Leased if left.is_zero() && (answered || recalled) => {
                    return Err(Denial::Over(short));
                }
                // A want that the database has not answered refuses nobody.
                Footing::Leased if left.is_zero() => return self.impatient(attempt(Rule::Known)),
                Footing::Leased => {}
            }
            let mut answer = self.asking.soon(tenant, &ledger, amounts);
            tokio::select! {
                _ = answer.changed() => answered |= *answer.borrow() == Answer::Here,
                _ = stood.changed() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// No answer came in time: the database is too slow. What holds then is what holds while it is away.
    fn impatient(&self, known: Attempt) -> Result<Reservation, Denial> {
        self.asking.metrics.lease_waits_expired.inc();
        match known {
            Attempt::Over(refusal) => Err(Denial::Over(refusal)),
            Attempt::Taken(mut reservation) if self.asking.serves_alone() => {
                reservation.mark_unleased();
                Ok(reservation)
            }
            Attempt::Taken(_) | Attempt::Unleased(..) => Err(Denial::Unavailable),
        }
    }

    /// The same without waiting: what the lease can't cover is refused, and asked for.
    pub fn reserve(
        self: &Arc<Self>,
        tenant: &TenantId,
        entitlement: &Entitlement,
        amounts: Amounts,
        enforce: bool,
        now: Timestamp,
    ) -> Result<Reservation, Box<Refusal>> {
        let ledger = self.tenant(tenant);
        match self.attempt(tenant, &ledger, entitlement, amounts, self.asking.rule(), enforce, now) {
            Attempt::Taken(reservation) => Ok(reservation),
            Attempt::Over(refusal) => Err(refusal),
            Attempt::Unleased(refusal, _) => {
                drop(self.asking.soon(tenant, &ledger, amounts));
                Err(refusal)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the question has as many parts")]
    fn attempt(
        &self,
        id: &TenantId,
        tenant: &Arc<Tenant>,
        entitlement: &Entitlement,
        amounts: Amounts,
        rule: Rule,
        enforce: bool,
        now: Timestamp,
    ) -> Attempt {
        let Entitlement { limits, zone, .. } = entitlement;
        let admission = tenant.ledger().reserve(limits, zone, &amounts, rule, enforce, now);
        if admission.low && admission.taken {
            self.asking.low(id, tenant, amounts);
        } else if admission.short.is_some() && rule == Rule::Leased {
            self.asking.later(id, tenant, amounts);
        }
        let (refusal, recalled) = (admission.refusal(&amounts), admission.recalled);
        match refusal {
            Some(refusal) if !admission.taken && admission.short.is_some() => Attempt::Over(refusal),
            Some(refusal) if !admission.taken => Attempt::Unleased(refusal, recalled),
            would_refuse => Attempt::Taken(Reservation::new(
                id.clone(),
                tenant.clone(),
                self.asking.clone(),
                amounts,
                admission,
                would_refuse,
            )),
        }
    }

    /// The limits of `tenant` have changed: what is leased under the old ones goes back, to be asked for anew.
    pub fn limits_changed(&self, tenant: &TenantId) {
        if let Some(known) = self.known(tenant) {
            self.asking.back(tenant, &known);
        }
    }

    /// How a tenant stands now, in every dimension that it has. A tenant never seen stands at 0, and is not remembered.
    pub fn standings(
        &self,
        tenant: &TenantId,
        entitlement: &Entitlement,
        now: Timestamp,
    ) -> Vec<quota::Standing> {
        self.standings_with(tenant, entitlement, &[], now)
    }

    /// The same with what everybody else used, as `settled` (all of it, less what was used through this run) now says.
    pub fn standings_with(
        &self,
        tenant: &TenantId,
        entitlement: &Entitlement,
        settled: &[Settled],
        now: Timestamp,
    ) -> Vec<quota::Standing> {
        match self.known(tenant) {
            Some(tenant) => {
                let mut ledger = tenant.ledger();
                for s in settled {
                    ledger.hear(s.dimension, s.window_start, s.amount);
                }
                ledger.standings(&entitlement.limits, &entitlement.zone, now)
            }
            None => {
                let mut ledger = Ledger::default();
                for s in settled {
                    let span = Span { start: s.window_start, end: s.window_end };
                    ledger.absorb(s.dimension, span, s.amount);
                }
                ledger.standings(&entitlement.limits, &entitlement.zone, now)
            }
        }
    }

    /// What this replica knows and holds of a tenant's quotas in the windows that run at `now`; nothing of one never seen.
    pub fn holdings(&self, tenant: &TenantId, now: Timestamp) -> Vec<Holding> {
        self.known(tenant).map(|tenant| tenant.ledger().holdings(now)).unwrap_or_default()
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
            self.asking.metrics.tenants.dec_by((before - tenants.len()) as i64);
            if tenants.len() < tenants.capacity() / 4 {
                tenants.shrink_to_fit();
            }
        }
    }

    /// Exchanges whose reservation is still held.
    pub fn reservations(&self) -> u64 {
        u64::try_from(self.asking.metrics.reservations.get()).unwrap_or(0)
    }

    pub(super) fn asking(&self) -> &Arc<Asking> {
        &self.asking
    }

    /// Every tenant in memory, a shard at a time.
    pub(super) fn each(&self, mut each: impl FnMut(&TenantId, &Arc<Tenant>)) {
        for shard in &self.shards {
            let tenants: Vec<_> =
                shard.read().iter().map(|(id, tenant)| (id.clone(), tenant.clone())).collect();
            tenants.iter().for_each(|(id, tenant)| each(id, tenant));
        }
    }

    fn shard(&self, tenant: &TenantId) -> &Shard {
        &self.shards[self.hasher.hash_one(tenant) as usize % SHARDS]
    }

    pub(super) fn known(&self, tenant: &TenantId) -> Option<Arc<Tenant>> {
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
            self.asking.metrics.tenants.inc();
            Arc::default()
        });
        entry.clone()
    }
}
