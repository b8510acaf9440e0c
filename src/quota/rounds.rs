//! Rounds of leases: what is asked for, and what is made of the answers. No clock, no database, no task.
//!
//! A round gathers all that the exchanges left a note of and asks for it at once. How much: what those that wait need,
//! and beside it what the tenant spends in two seconds, at least four requests' need; the database gives less as the
//! quota drains. What nobody knows yet of a quota costs its first request a wait; what is known to be spent is spent by
//! refusing at once, and asked for again at the next heartbeat.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::asking::{Asking, Waiters};
use super::enforcer::Enforcer;
use super::lease::{Ask, Grants, LeaseKey, Round};
use super::ledger::Want;
use super::locked::Tenant;
use crate::model::quota::Dimension;
use crate::model::tenant::TenantId;
use crate::model::window::Span;

/// A lease lasts about so long at the pace that a tenant spends it.
const LASTS: Duration = Duration::from_secs(2);

/// Or for so many requests.
const REQUESTS: u64 = 4;

/// A window that ends within so long gets its successor's lease.
const AHEAD: Duration = Duration::from_millis(1500);

/// A tenant that did not ask for so long is no longer active.
const IDLE: Duration = Duration::from_secs(10);

/// Between two looks for tenants that hold leases and use nothing.
const LOOK_FOR_IDLE: Duration = Duration::from_secs(60);

/// The tenants of one round; the rest is next. At five statements a tenant this is some ten milliseconds.
const TENANTS: usize = 500;

/// What is asked for in one round, each with whose it is.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) asks: Vec<Ask>,
    /// `None` where it is only to be said that nothing is handed back.
    wants: Vec<Option<(Arc<Tenant>, Want)>>,
    /// Of each tenant that was noted, those that wait.
    noted: Vec<(TenantId, Option<Waiters>)>,
}

impl Pending {
    fn push(&mut self, id: &TenantId, tenant: &Arc<Tenant>, want: Want) {
        let key = LeaseKey { tenant: id.clone(), dimension: want.dimension, span: want.span };
        let Want { known, at_least, at_most, limit, .. } = want;
        self.asks.push(Ask { key, known, at_least, at_most, limit });
        self.wants.push(Some((tenant.clone(), want)));
    }

    /// Of a quota that nothing is known of any more, nothing is handed back.
    fn push_nothing(&mut self, tenant: TenantId, dimension: Dimension, start: Timestamp) {
        let key = LeaseKey { tenant, dimension, span: Span { start, end: start } };
        self.asks.push(Ask { key, known: None, at_least: 0, at_most: 0, limit: None });
        self.wants.push(None);
    }
}

/// How fast a tenant spends.
#[derive(Clone, Copy, Debug)]
struct Pace {
    window_start: Timestamp,
    used: i64,
    at: Duration,
    /// For two seconds.
    wish: u64,
}

/// The rounds of one run.
#[derive(Debug)]
pub(super) struct Rounds {
    enforcer: Arc<Enforcer>,
    run: u64,
    number: u64,
    reclaim_after: Option<Duration>,
    paces: HashMap<(TenantId, Dimension), Pace>,
    /// To be handed back, because another replica wants it or because its tenant is idle.
    recalled: Vec<(TenantId, Dimension, Timestamp)>,
    looked_for_idle: Duration,
}

impl Rounds {
    pub(super) fn new(enforcer: Arc<Enforcer>, run: u64, reclaim_after: Option<Duration>) -> Self {
        enforcer.asking().begin_run(run);
        Self {
            enforcer,
            run,
            number: 0,
            reclaim_after,
            paces: HashMap::new(),
            recalled: Vec::new(),
            looked_for_idle: Duration::ZERO,
        }
    }

    /// The next round's number.
    pub(super) fn next(&mut self) -> Round {
        self.number += 1;
        Round { run: self.run, number: self.number, reclaim_after: self.reclaim_after }
    }

    /// Whether something is to be handed back.
    pub(super) fn has_recalled(&self) -> bool {
        !self.recalled.is_empty()
    }

    /// All leases are void: what was used under them is used, and `run` begins with none.
    pub(super) fn begin_run(&mut self, run: u64) {
        (self.run, self.number) = (run, 0);
        self.paces.clear();
        self.recalled.clear();
        // In this order: what is settled in between is taken from the new run's lease and charged to the old one's. The
        // other way round it would use up a lease in the database that nobody here has spent.
        self.enforcer.each(|_, tenant| tenant.ledger().begin_run());
        self.asking().begin_run(run);
    }

    /// What is to be asked at `now` by the wall clock, `at` by one that never jumps. With a `heartbeat` also what can wait
    /// for one: what was refused, and the windows that are about to begin.
    pub(super) fn gather(&mut self, heartbeat: bool, now: Timestamp, at: Duration) -> Pending {
        let mut pending = Pending::default();
        for (id, dimension, start) in std::mem::take(&mut self.recalled) {
            let tenant = self.enforcer.known(&id);
            let back = tenant.as_ref().and_then(|tenant| tenant.ledger().hand_back(dimension, start));
            match (back, tenant) {
                (Some(want), Some(tenant)) => pending.push(&id, &tenant, want),
                _ => pending.push_nothing(id, dimension, start),
            }
        }
        for (id, mut asked) in self.asking().take(heartbeat, TENANTS) {
            pending.noted.push((id.clone(), asked.waiters()));
            if asked.back {
                let rests = asked.tenant.ledger().rests(now);
                for (dimension, start) in rests {
                    let want = asked.tenant.ledger().hand_back(dimension, start);
                    want.into_iter().for_each(|want| pending.push(&id, &asked.tenant, want));
                }
            }
            let wish = |dimension: Dimension, need: u64| {
                let pace = self.paces.get(&(id.clone(), dimension)).map_or(0, |pace| pace.wish);
                let request = need.max(asked.usual.of(dimension.unit));
                pace.max(request.saturating_mul(REQUESTS))
            };
            let wants = asked.tenant.ledger().wants(&asked.most, &asked.waiting, asked.news, wish, now);
            for want in wants {
                self.note_pace(&id, &want, at);
                pending.push(&id, &asked.tenant, want);
            }
        }
        self.asking().again();
        if heartbeat {
            self.ahead(&mut pending, now, at);
        }
        pending
    }

    fn note_pace(&mut self, id: &TenantId, want: &Want, at: Duration) {
        let fresh = Pace { window_start: want.span.start, used: want.used, at, wish: 0 };
        let pace = self.paces.entry((id.clone(), want.dimension)).or_insert(fresh);
        let (spent, passed) = (want.used.saturating_sub(pace.used), at.saturating_sub(pace.at));
        // Over less than a tenth of a second there is no telling.
        if pace.window_start == want.span.start && passed < Duration::from_millis(100) {
            return;
        }
        let same = pace.window_start == want.span.start;
        let wish = if same {
            let per_second = spent.max(0) as f64 / passed.as_secs_f64();
            (per_second * LASTS.as_secs_f64()) as u64
        } else {
            pace.wish
        };
        *pace = Pace { wish, ..fresh };
    }

    /// The first leases of windows that are about to begin, of tenants that are active; the others are forgotten.
    fn ahead(&mut self, pending: &mut Pending, now: Timestamp, at: Duration) {
        self.paces.retain(|_, pace| at.saturating_sub(pace.at) < IDLE);
        let by = now.checked_add(AHEAD).unwrap_or(Timestamp::MAX);
        for ((id, dimension), pace) in &self.paces {
            let Some(tenant) = self.enforcer.known(id) else { continue };
            if pace.wish == 0 {
                continue;
            }
            let want = tenant.ledger().want_ahead(*dimension, pace.wish, by);
            if let Some(want) = want {
                pending.push(id, &tenant, want);
            }
        }
    }

    /// Takes over the answers to a round.
    pub(super) fn answered(&mut self, pending: Pending, grants: Grants) {
        for (want, grant) in pending.wants.iter().zip(&grants.grants) {
            if let Some((tenant, want)) = want {
                tenant.ledger().take_over(want, *grant);
            }
        }
        self.recalled = grants.wanted;
        for (id, waiters) in &pending.noted {
            self.asking().answered(id, waiters.as_ref());
        }
    }

    /// A round had no answer: whoever waits asks again when `pending` is dropped. What was to be handed back is kept from being spent all the same.
    pub(super) fn failed(&mut self, pending: &Pending) {
        for (tenant, want) in pending.wants.iter().flatten() {
            tenant.ledger().unanswered(want);
        }
    }

    /// Every minute hands back what tenants without any use hold, so that they can be forgotten.
    pub(super) fn recall_idle_sometimes(&mut self, now: Timestamp, at: Duration) {
        if at.saturating_sub(self.looked_for_idle) < LOOK_FOR_IDLE {
            return;
        }
        self.looked_for_idle = at;
        let mut idle = Vec::new();
        self.enforcer.each(|id, tenant| {
            let rests = tenant.ledger().idle_rests(now);
            idle.extend(rests.into_iter().map(|(dimension, start)| (id.clone(), dimension, start)));
        });
        self.recalled.extend(idle);
    }

    /// Asks anew for every tenant in memory, so that what others used is known as it now is.
    pub(super) fn refresh(&self) {
        self.enforcer.each(|id, tenant| self.asking().news(id, tenant));
    }

    fn asking(&self) -> &Arc<Asking> {
        self.enforcer.asking()
    }
}
