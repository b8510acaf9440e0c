//! The database's side of the leases, in memory: the arithmetic of `tollgate_lease`, of the charges, of the release.
//!
//! `tests/it/sql/leases.rs` holds it against the real one. Left out: windows that overlap because a zone was changed.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::{Ask, Dimension, Grant, Grants, LeaseError, Round, TenantId, Timestamp};

/// A row of `quota_usage`.
pub(super) type Quota = (TenantId, Dimension, Timestamp);

/// A row of `quota_leases`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) granted: i64,
    pub(super) consumed: i64,
    granted_at: Duration,
    /// In which order they were wanted.
    wanted: Option<u64>,
}

impl Lease {
    /// What its lessee may use and has not accounted for.
    pub(super) fn outstanding(&self) -> i64 {
        (self.granted - self.consumed).max(0)
    }
}

#[derive(Clone, Copy, Debug)]
struct Lessee {
    run: u64,
    round: u64,
    heard: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Database {
    pub(super) clock: Duration,
    lessees: BTreeMap<String, Lessee>,
    pub(super) settled: BTreeMap<Quota, i64>,
    pub(super) leases: BTreeMap<Quota, BTreeMap<(String, u64), Lease>>,
    landed: HashSet<u64>,
    wants: u64,
    /// The most that was taken from a lessee that was not heard of.
    pub(super) reclaimed: BTreeMap<Quota, BTreeMap<(String, u64), i64>>,
}

impl Database {
    pub(super) fn lease(&mut self, me: &str, round: Round, asks: &[Ask]) -> Result<Grants, LeaseError> {
        let now = self.clock;
        let lessee = Lessee { run: round.run, round: round.number, heard: now };
        let known = self.lessees.get(me).copied();
        if let Some(known) = known {
            if (round.run, round.number) <= (known.run, known.round) {
                return Err(LeaseError::Void("too late".into()));
            }
            let silent = now - known.heard;
            if round.run == known.run && round.reclaim_after.is_some_and(|after| silent > after) {
                return Err(LeaseError::Void("taken for dead".into()));
            }
        }
        self.lessees.insert(me.to_owned(), lessee);
        let alive = |lessee: &&Lessee| now - lessee.heard < Duration::from_secs(10);
        let live = self.lessees.values().filter(alive).count().max(1);
        let grants = asks.iter().map(|ask| self.grant(me, round, live as i64, ask)).collect();
        let mut wanted: Vec<_> = self
            .leases
            .iter()
            .filter_map(|(quota, leases)| {
                let lease = leases.get(&(me.to_owned(), round.run))?;
                Some((lease.wanted?, quota.clone()))
            })
            .collect();
        wanted.sort();
        Ok(Grants { grants, wanted: wanted.into_iter().map(|(_, quota)| quota).collect() })
    }

    fn grant(&mut self, me: &str, round: Round, live: i64, ask: &Ask) -> Grant {
        let quota = (ask.key.tenant.clone(), ask.key.dimension, ask.key.span.start);
        let lessee = (me.to_owned(), round.run);
        let settled = *self.settled.entry(quota.clone()).or_default();
        let row = self.leases.get(&quota).and_then(|leases| leases.get(&lessee)).copied();
        let mine = row.unwrap_or_default();
        let base = mine.granted.max(mine.consumed);
        let shift = if ask.known.is_none() { mine.granted } else { 0 };
        let mut recalled = false;
        let granted = match ask.limit {
            None => mine.granted.min(ask.at_most + shift),
            Some(limit) => {
                let held_elsewhere = self.held_elsewhere(&quota, &lessee, round.reclaim_after);
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                let room = (limit - settled - held_elsewhere - mine.outstanding()).max(0);
                let lowest = ask.at_least + shift;
                let fair = base + if live > 1 { room / (2 * live) } else { room };
                let wish = (ask.at_most + shift).min(fair);
                let granted = mine.granted.max(lowest.max(wish).min(base + room));
                if granted < lowest && held_elsewhere > 0 {
                    self.want_back(&quota, &lessee);
                    recalled = self.lives_elsewhere(&quota, me);
                }
                granted
            }
        };
        if row.is_some() || granted > 0 {
            let leases = self.leases.entry(quota).or_default();
            let lease = leases.entry(lessee).or_insert_with(|| Lease { granted_at: self.clock, ..mine });
            if granted > lease.granted {
                lease.granted_at = self.clock;
            }
            lease.granted = granted;
            if ask.limit.is_none() {
                lease.wanted = None;
            }
        }
        Grant { granted, before: mine.granted, elsewhere: settled - mine.consumed, recalled }
    }

    /// What all others hold. Of those that were not heard of for long enough it is taken away, and remembered.
    fn held_elsewhere(&mut self, quota: &Quota, me: &(String, u64), reclaim_after: Option<Duration>) -> i64 {
        let mut held = 0;
        for (lessee, lease) in
            self.leases.get(quota).into_iter().flatten().filter(|(lessee, _)| *lessee != me)
        {
            let long = |since: Duration| {
                reclaim_after.is_some_and(|after| self.clock - since >= after.mul_f64(1.25))
            };
            let heard =
                self.lessees.get(&lessee.0).filter(|known| known.run == lessee.1).map(|known| known.heard);
            if long(lease.granted_at) && heard.is_none_or(long) {
                let reclaimed = self.reclaimed.entry(quota.clone()).or_default();
                let most = reclaimed.entry(lessee.clone()).or_default();
                *most = lease.outstanding().max(*most);
            } else {
                held += lease.outstanding();
            }
        }
        held
    }

    /// Whether another replica holds something and was heard of.
    fn lives_elsewhere(&self, quota: &Quota, me: &str) -> bool {
        self.leases.get(quota).into_iter().flatten().any(|((of, run), lease)| {
            let heard = self.lessees.get(of).filter(|known| known.run == *run).map(|known| known.heard);
            let lives = heard.is_some_and(|heard| self.clock - heard < Duration::from_secs(10));
            of != me && lives && lease.granted > lease.consumed
        })
    }

    fn want_back(&mut self, quota: &Quota, me: &(String, u64)) {
        self.wants += 1;
        for (lessee, lease) in self.leases.get_mut(quota).into_iter().flatten() {
            if lessee != me && lease.granted > lease.consumed {
                lease.wanted.get_or_insert(self.wants);
            }
        }
    }

    /// Whether an event is there.
    pub(super) fn has(&self, event: u64) -> bool {
        self.landed.contains(&event)
    }

    /// Whether an event is new.
    pub(super) fn lands(&mut self, event: u64) -> bool {
        self.landed.insert(event)
    }

    pub(super) fn charge(&mut self, replica: &str, run: u64, quota: Quota, amount: i64, limited: bool) {
        *self.settled.entry(quota.clone()).or_default() += amount;
        if run > 0 && limited {
            let granted_at = self.clock;
            let leases = self.leases.entry(quota).or_default();
            let fresh = Lease { granted_at, ..Lease::default() };
            leases.entry((replica.to_owned(), run)).or_insert(fresh).consumed += amount;
        }
    }

    pub(super) fn release_before(&mut self, replica: &str, run: u64) {
        for leases in self.leases.values_mut() {
            leases.retain(|(of, its), _| of != replica || *its >= run);
        }
    }

    pub(super) fn outstanding(&self, quota: &Quota) -> i64 {
        self.leases.get(quota).into_iter().flatten().map(|(_, lease)| lease.outstanding()).sum()
    }
}
