//! What is to be asked of the database next, and what admission goes by until the answer is there.
//!
//! Between the exchanges, which only leave a note here, and the one task that asks (`leasing`).

use std::collections::{HashMap, VecDeque};
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
    /// Where to tell those that wait; none do if it is not there.
    waiters: Option<watch::Sender<Answer>>,
}

/// What those that wait for a want know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Answer {
    /// Not yet; an answer to an earlier want of the same tenant may have brought enough.
    #[default]
    Due,
    /// The database has answered.
    Here,
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
    /// Changes with the footing: whoever waits looks again.
    stood: watch::Sender<()>,
    pub(super) metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Notes {
    soon: HashMap<TenantId, Asked>,
    /// The tenants of `soon`, the first that came first: who waits longest is asked for first.
    order: VecDeque<TenantId>,
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
            stood: watch::Sender::new(()),
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
        self.stood.send_replace(());
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

    /// Notes that an exchange waits for `amounts`. The receiver is told of the answer; its sender goes without one when the
    /// database gave none.
    pub(super) fn soon(
        &self,
        id: &TenantId,
        tenant: &Arc<Tenant>,
        amounts: Amounts,
    ) -> watch::Receiver<Answer> {
        let receiver = {
            let mut notes = self.notes();
            let asked = notes.soon(id, tenant, amounts);
            asked.waiters.get_or_insert_with(watch::Sender::default).subscribe()
        };
        self.soon.notify_one();
        receiver
    }

    /// Notes that a lease is low, of a tenant whose exchanges need `amounts`.
    pub(super) fn low(&self, id: &TenantId, tenant: &Arc<Tenant>, amounts: Amounts) {
        raise(&mut self.notes().soon(id, tenant, Amounts::default()).usual, amounts);
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
        self.notes().soon(id, tenant, Amounts::default()).back = true;
        self.soon.notify_one();
    }

    /// What is to be asked now, the longest noted first; `everything` with what can wait. The tenants of one round are
    /// bounded by `most`.
    pub(super) fn take(&self, everything: bool, most: usize) -> Vec<(TenantId, Asked)> {
        let mut notes = self.notes();
        let mut taken = Vec::with_capacity(most.min(notes.order.len()));
        while taken.len() < most
            && let Some(id) = notes.order.pop_front()
        {
            taken.extend(notes.soon.remove_entry(&id));
        }
        if everything {
            let rest = most - taken.len();
            let later: Vec<TenantId> = notes.later.keys().take(rest).cloned().collect();
            taken.extend(later.into_iter().filter_map(|id| notes.later.remove_entry(&id)));
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

    /// The database has answered what was asked for `id`: those that waited for it look again, and so do those that came
    /// meanwhile, whose own want is due.
    pub(super) fn answered(&self, id: &TenantId, waiters: Option<&Waiters>) {
        if let Some(waiters) = waiters {
            waiters.0.send_replace(Answer::Here);
        }
        let notes = self.notes();
        if let Some(waiters) = notes.soon.get(id).and_then(|asked| asked.waiters.as_ref()) {
            waiters.send_replace(Answer::Due);
        }
    }

    /// Told of each change of the footing from now on.
    pub(super) fn stood(&self) -> watch::Receiver<()> {
        self.stood.subscribe()
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that wait for one want. Dropped, they are told that there is no answer.
#[derive(Debug)]
pub(super) struct Waiters(watch::Sender<Answer>);

impl Asked {
    /// Takes those that wait for it.
    pub(super) fn waiters(&mut self) -> Option<Waiters> {
        self.waiters.take().map(Waiters)
    }
}

impl Notes {
    fn soon(&mut self, id: &TenantId, tenant: &Arc<Tenant>, amounts: Amounts) -> &mut Asked {
        if !self.soon.contains_key(id) {
            self.order.push_back(id.clone());
        }
        note(&mut self.soon, id, tenant, amounts)
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
        waiters: None,
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
