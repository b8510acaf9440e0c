//! What is to be asked of the database next, and what admission goes by until the answer is there.
//!
//! Between the exchanges, which only leave a note here, and the one task that asks (`leasing`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use super::ledger::Rule;
use super::locked::Tenant;
use crate::model::quota::{Amounts, Unit};
use crate::model::tenant::TenantId;
use crate::telemetry::Metrics;

/// How this replica stands to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Footing {
    /// There are no leases: it holds every limit alone.
    Alone = 0,
    /// It spends what it was granted, and may ask for more.
    Leased = 1,
    /// The database is away: it holds every limit as far as it knows.
    OnItsOwn = 2,
    /// The database is away: it spends what it was granted, and there is no more.
    CutOff = 3,
}

/// What is asked for one tenant.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) tenant: Arc<Tenant>,
    /// The most that one exchange needs, by unit.
    pub(super) most: Amounts,
    /// What those that wait need together.
    pub(super) waiting: Amounts,
    /// The most that one exchange took that left a lease low.
    pub(super) usual: Amounts,
    /// Nothing is needed but to hear what others used.
    pub(super) news: bool,
    /// What is free is to be handed back.
    pub(super) back: bool,
}

/// Notes of what is to be asked. One a tenant, so bounded by the tenants in memory.
#[derive(Debug)]
pub(super) struct Asking {
    footing: AtomicU8,
    serves_alone: AtomicBool,
    /// The run whose leases are spent.
    run: AtomicU64,
    notes: Mutex<Notes>,
    /// Somebody waits, or a lease is low.
    soon: Notify,
    /// Counts the rounds that are over.
    rounds: watch::Sender<u64>,
    pub(super) metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Notes {
    soon: HashMap<TenantId, Asked>,
    /// Of tenants that were refused: it is enough to ask again at the next heartbeat.
    later: HashMap<TenantId, Asked>,
}

impl Asking {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            footing: AtomicU8::new(Footing::Alone as u8),
            serves_alone: AtomicBool::new(false),
            run: AtomicU64::new(0),
            notes: Mutex::default(),
            soon: Notify::new(),
            rounds: watch::Sender::new(0),
            metrics,
        }
    }

    pub(super) fn footing(&self) -> Footing {
        match self.footing.load(Ordering::Relaxed) {
            1 => Footing::Leased,
            2 => Footing::OnItsOwn,
            3 => Footing::CutOff,
            _ => Footing::Alone,
        }
    }

    pub(super) fn stand(&self, footing: Footing) {
        self.footing.store(footing as u8, Ordering::Relaxed);
    }

    /// Whether this replica serves on its own while the database is away.
    pub(super) fn serves_alone(&self) -> bool {
        self.serves_alone.load(Ordering::Relaxed)
    }

    pub(super) fn set_serves_alone(&self, serves_alone: bool) {
        self.serves_alone.store(serves_alone, Ordering::Relaxed);
    }

    pub(super) fn is_on_its_own(&self) -> bool {
        self.footing() == Footing::OnItsOwn
    }

    /// What admission goes by now.
    pub(super) fn rule(&self) -> Rule {
        match self.footing() {
            Footing::Alone | Footing::OnItsOwn => Rule::Known,
            Footing::Leased | Footing::CutOff => Rule::Leased,
        }
    }

    pub(super) fn run(&self) -> u64 {
        self.run.load(Ordering::Relaxed)
    }

    pub(super) fn begin_run(&self, run: u64) {
        self.run.store(run, Ordering::Relaxed);
    }

    /// Notes that an exchange waits for `amounts`.
    pub(super) fn soon(&self, id: &TenantId, tenant: &Arc<Tenant>, amounts: Amounts) {
        note(&mut self.notes().soon, id, tenant, amounts);
        self.soon.notify_one();
    }

    /// Notes that a lease is low, of a tenant whose exchanges need `amounts`.
    pub(super) fn low(&self, id: &TenantId, tenant: &Arc<Tenant>, amounts: Amounts) {
        raise(&mut note(&mut self.notes().soon, id, tenant, Amounts::default()).usual, amounts);
        self.soon.notify_one();
    }

    /// Notes that an exchange was refused `amounts`, which may be there later.
    pub(super) fn later(&self, id: &TenantId, tenant: &Arc<Tenant>, amounts: Amounts) {
        note(&mut self.notes().later, id, tenant, amounts);
    }

    /// Notes that what others used is to be heard.
    pub(super) fn news(&self, id: &TenantId, tenant: &Arc<Tenant>) {
        note(&mut self.notes().later, id, tenant, Amounts::default()).news = true;
    }

    /// Notes that what is free is to be handed back: the limits have changed.
    pub(super) fn back(&self, id: &TenantId, tenant: &Arc<Tenant>) {
        note(&mut self.notes().soon, id, tenant, Amounts::default()).back = true;
        self.soon.notify_one();
    }

    /// What is to be asked now; `everything` with what can wait. The tenants of one round are bounded by `most`.
    pub(super) fn take(&self, everything: bool, most: usize) -> Vec<(TenantId, Asked)> {
        let mut notes = self.notes();
        let mut taken = take(&mut notes.soon, most);
        if everything {
            let rest = most - taken.len();
            taken.extend(take(&mut notes.later, rest));
        }
        taken
    }

    /// Resolves when something is to be asked soon.
    pub(super) async fn wait(&self) {
        self.soon.notified().await;
    }

    /// Something is to be asked soon that has no note: more than one round could take.
    pub(super) fn again(&self) {
        if !self.notes().soon.is_empty() {
            self.soon.notify_one();
        }
    }

    /// A round is over: whoever waits may look again.
    pub(super) fn round_is_over(&self) {
        self.rounds.send_modify(|round| *round += 1);
    }

    pub(super) fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note<'a>(
    notes: &'a mut HashMap<TenantId, Asked>,
    id: &TenantId,
    tenant: &Arc<Tenant>,
    amounts: Amounts,
) -> &'a mut Asked {
    let asked = notes.entry(id.clone()).or_insert_with(|| Asked {
        tenant: tenant.clone(),
        most: Amounts::default(),
        waiting: Amounts::default(),
        usual: Amounts::default(),
        news: false,
        back: false,
    });
    raise(&mut asked.most, amounts);
    for unit in Unit::ALL {
        *asked.waiting.of_mut(unit) = asked.waiting.of(unit).saturating_add(amounts.of(unit));
    }
    asked
}

fn raise(most: &mut Amounts, amounts: Amounts) {
    for unit in Unit::ALL {
        *most.of_mut(unit) = most.of(unit).max(amounts.of(unit));
    }
}

fn take(notes: &mut HashMap<TenantId, Asked>, most: usize) -> Vec<(TenantId, Asked)> {
    if notes.len() <= most {
        return notes.drain().collect();
    }
    let ids: Vec<TenantId> = notes.keys().take(most).cloned().collect();
    ids.into_iter().filter_map(|id| notes.remove_entry(&id)).collect()
}
