//! One tenant's counters, under a lock that somebody else holds.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use smallvec::SmallVec;

use super::counter::{Counter, NO_TURN};
use super::holding::Holding;
use super::lease::Grant;
use crate::model::quota::{Amounts, Charge, Dimension, Limit, Limits, Standing, Unit};
use crate::model::window::Span;

/// How a tenant stands in each dimension, without an allocation for the standard ones.
pub(super) type Standings = SmallVec<[Standing; 4]>;

/// Why an exchange was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The dimension that had too little left, with its use before this exchange. Where several had, the one that
    /// resets last, since before that a retry is refused again.
    pub standing: Standing,
    /// What the exchange would have needed of it.
    pub needed: u64,
    /// All dimensions, for the `RateLimit` headers.
    pub standings: Vec<Standing>,
}

/// What admission goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The limit, and the use that is known here: one replica, or one that is on its own.
    Known,
    /// That, and the lease: what this replica was granted.
    Leased,
}

/// What a ledger says to an exchange.
#[derive(Debug)]
pub(super) struct Admission {
    /// How the tenant stood in each dimension before the exchange, with the windows that it would be in.
    pub(super) standings: Standings,
    /// The turn of each standing's counter.
    pub(super) turns: SmallVec<[u16; 4]>,
    /// The place of the dimension that had too little left.
    pub(super) short: Option<usize>,
    /// The place of the dimension of which only the lease is too small, and more may be had.
    pub(super) unleased: Option<usize>,
    /// Whether others hold it, as the database said.
    pub(super) recalled: bool,
    /// Whether the amounts were taken.
    pub(super) taken: bool,
    /// Whether more should be asked for, though nobody waits for it.
    pub(super) low: bool,
    /// Soft limits that it is over, and whether it is the first to be in their windows.
    pub(super) over_soft: SmallVec<[(Dimension, bool); 2]>,
}

impl Admission {
    /// What stood in the way of an exchange that needs `amounts`. Apart from [`Ledger::reserve`], so that it is
    /// allocated outside of the lock.
    pub(super) fn refusal(&self, amounts: &Amounts) -> Option<Box<Refusal>> {
        let unleased = self.unleased.filter(|_| !self.taken);
        let standing = self.standings[self.short.or(unleased)?];
        let needed = amounts.of(standing.dimension.unit);
        Some(Box::new(Refusal { standing, needed, standings: self.standings.to_vec() }))
    }
}

/// What is wanted of one quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) dimension: Dimension,
    pub(super) span: Span,
    pub(super) known: Option<i64>,
    pub(super) at_least: i64,
    pub(super) at_most: i64,
    /// `None` where something is handed back.
    pub(super) limit: Limit,
    /// Used through this run so far.
    pub(super) used: i64,
}

/// One tenant's counters, by dimension; of a dimension also the one of the window that is about to begin.
#[derive(Debug)]
pub(super) struct Ledger {
    counters: SmallVec<[Counter; 3]>,
    /// The limits of the last exchange, for what is asked between two.
    limits: Option<Arc<Limits>>,
    zone: TimeZone,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { counters: SmallVec::new(), limits: None, zone: TimeZone::UTC }
    }
}

impl Ledger {
    /// Takes `amounts` in every dimension of `limits`, or says what stands in the way and takes nothing. With `enforce`
    /// false it takes them in any case.
    pub(super) fn reserve(
        &mut self,
        limits: &Arc<Limits>,
        zone: &TimeZone,
        amounts: &Amounts,
        rule: Rule,
        enforce: bool,
        now: Timestamp,
    ) -> Admission {
        if !self.limits.as_ref().is_some_and(|known| Arc::ptr_eq(known, limits)) {
            (self.limits, self.zone) = (Some(limits.clone()), zone.clone());
        }
        let (mut standings, mut turns) = (Standings::new(), SmallVec::new());
        let mut short: Option<usize> = None;
        let (mut unleased, mut recalled, mut low) = (None, false, false);
        let mut over_soft = SmallVec::new();
        for (at, (dimension, limit)) in limits.iter().enumerate() {
            let need = amounts.of(dimension.unit);
            let soft = limits.is_soft(dimension);
            // An exchange uses no more messages or embeddings than it reserved: where that is none, no counter is needed.
            let spared = need == 0 && matches!(dimension.unit, Unit::ChatMessages | Unit::Embeddings);
            if spared && self.find(dimension).is_none() {
                let same = standings.iter().find(|s: &&Standing| s.dimension.window == dimension.window);
                let span = same.map_or_else(|| dimension.window.span(zone, now), |s| s.span);
                standings.push(Standing { dimension, limit, used: 0, span, soft });
                turns.push(NO_TURN);
                continue;
            }
            let counter = self.current(dimension, zone, now);
            let (used, span) = (counter.taken(), told_span(counter, now));
            turns.push(counter.turn());
            standings.push(Standing { dimension, limit, used, span, soft });
            let Some(limit) = limit.filter(|_| need > 0) else { continue };
            let mut fits = used.saturating_add(need) <= limit;
            if soft {
                if !fits {
                    over_soft.push((dimension, false));
                }
                continue;
            }
            if fits && rule == Rule::Leased && !dimension.is_momentary() {
                let free = counter.free();
                let leased = i64::try_from(need).is_ok_and(|need| need <= free);
                if !leased && counter.is_dry(limit) {
                    fits = false;
                } else if !leased {
                    unleased = Some(at);
                    recalled |= counter.is_recalled();
                }
                low |= counter.is_low();
            }
            if !fits && short.is_none_or(|other| span.end > standings[other].span.end) {
                short = Some(at);
            }
        }
        let taken = (short.is_none() && unleased.is_none()) || !enforce;
        if taken {
            for counter in self.counters.iter_mut().filter(|counter| !counter.is_ahead()) {
                let amount = amounts.of(counter.dimension.unit);
                let standing = standings.iter().find(|standing| standing.dimension == counter.dimension);
                if let Some(standing) = standing.filter(|_| amount > 0) {
                    counter.reserve(amount);
                    low |= rule == Rule::Leased
                        && is_leased(standing.dimension, standing.limit)
                        && counter.is_low();
                }
            }
            for (dimension, first) in &mut over_soft {
                *first = self.find(*dimension).is_some_and(Counter::mark_over);
            }
        }
        Admission { standings, turns, short, unleased, recalled, taken, low, over_soft }
    }

    /// Reserves `more` in each of these windows (dimension, turn, limit), or in none of them; whether it did, and whether
    /// a lease is low. A window that is over holds nothing any more, and stands in nobody's way. Who streams can't wait
    /// for a grant: where more may be had, a lease is overdrawn until it is.
    pub(super) fn extend(
        &mut self,
        windows: impl Iterator<Item = (Dimension, u16, Limit)> + Clone,
        more: u64,
        rule: Rule,
    ) -> (bool, bool) {
        let room = windows.clone().all(|(dimension, turn, limit)| {
            let current = self.find(dimension).filter(|counter| counter.turn() == turn);
            let (Some(counter), Some(limit)) = (current, limit) else { return true };
            let dry = rule == Rule::Leased
                && counter.is_spent(limit)
                && i64::try_from(more).is_ok_and(|more| more > counter.free());
            counter.taken().saturating_add(more) <= limit && !dry
        });
        let mut low = false;
        for (dimension, turn, limit) in windows.filter(|_| room) {
            if let Some(counter) = self.find(dimension).filter(|counter| counter.turn() == turn) {
                counter.reserve(more);
                low |= rule == Rule::Leased && limit.is_some() && counter.is_low();
            }
        }
        (room, low)
    }

    /// Gives back what was reserved in a window, if it is still the current one, and adds what was used.
    pub(super) fn settle(&mut self, standing: &Standing, turn: u16, reserved: u64, used: u64) {
        let Standing { dimension, span, limit, .. } = *standing;
        let used = i64::try_from(used).unwrap_or(i64::MAX);
        if turn == NO_TURN {
            // Nothing was reserved, and nothing was counted then.
            if used == 0 {
                return;
            }
            let counter = self.find_or_open(dimension, || span);
            // Not the window after; one before it is the same one, moved there by a clock that went back.
            if counter.span().start < span.end {
                counter.add(used, limit);
            }
        } else if let Some(counter) = self.find(dimension).filter(|counter| counter.turn() == turn) {
            counter.give_back(reserved);
            counter.add(used, limit);
        }
    }

    /// Corrects the use of a window, if it is still the current one.
    pub(super) fn amend(&mut self, charge: &Charge) {
        let counter = self.find(charge.dimension);
        if let Some(counter) = counter.filter(|counter| counter.starts_at(charge.window_start)) {
            counter.add(charge.amount, charge.limit);
        }
    }

    /// Adds use that this run did not see itself.
    pub(super) fn absorb(&mut self, dimension: Dimension, span: Span, amount: i64) {
        self.find_or_open(dimension, || span).absorb(span, amount);
    }

    /// What everybody else used of a window, as it was now read.
    pub(super) fn hear(&mut self, dimension: Dimension, window_start: Timestamp, elsewhere: i64) {
        if let Some(counter) = self.find(dimension).filter(|counter| counter.starts_at(window_start)) {
            counter.hear(elsewhere);
        }
    }

    /// How the tenant stands, without making `now` the current time.
    pub(super) fn standings(&self, limits: &Limits, zone: &TimeZone, now: Timestamp) -> Vec<Standing> {
        let standing = |(dimension, limit)| {
            let of = |counter: &&Counter| counter.dimension == dimension && !counter.is_ahead();
            let known = self.counters.iter().find(of).copied();
            let mut counter =
                known.unwrap_or_else(|| Counter::open(dimension, dimension.window.span(zone, now)));
            counter.look(zone, now, || None);
            let (used, span) = (counter.taken(), told_span(&counter, now));
            Standing { dimension, limit, used, span, soft: limits.is_soft(dimension) }
        };
        limits.iter().map(standing).collect()
    }

    /// Every counter whose window holds `now`, without making `now` the current time.
    pub(super) fn holdings(&self, now: Timestamp) -> Vec<Holding> {
        let running = self.counters.iter().filter(|counter| !counter.is_ahead() && !counter.is_over(now));
        running.map(Counter::holding).collect()
    }

    /// What to ask for, so that exchanges that need `most` each and `waiting` together are covered, and `wish` of each
    /// dimension beside: of the dimensions that they need, and those whose lease is low; with `news` of all.
    pub(super) fn wants(
        &mut self,
        most: &Amounts,
        waiting: &Amounts,
        news: bool,
        wish: impl Fn(Dimension, u64) -> u64,
        now: Timestamp,
    ) -> SmallVec<[Want; 4]> {
        let mut wants = SmallVec::new();
        let (Some(limits), zone) = (self.limits.clone(), &self.zone.clone()) else { return wants };
        for (dimension, limit) in limits.iter().filter(|(d, limit)| is_leased(*d, *limit)) {
            let need = most.of(dimension.unit);
            if need == 0 && self.find(dimension).is_none_or(|counter| !news && !counter.is_low()) {
                continue;
            }
            let counter = self.current(dimension, zone, now);
            let wish = wish(dimension, need).max(waiting.of(dimension.unit));
            let (known, at_least, at_most) = counter.ask(need, wish);
            counter.mark_asked();
            let (span, used) = (counter.span(), counter.used());
            wants.push(Want { dimension, span, known, at_least, at_most, limit, used });
        }
        wants
    }

    /// What to ask for ahead in the window after the current one of `dimension`.
    pub(super) fn want_ahead(&mut self, dimension: Dimension, wish: u64, by: Timestamp) -> Option<Want> {
        let limit = self.limits.as_ref()?.limit(dimension)?;
        let end = self.find(dimension)?.span().end;
        if end > by {
            return None;
        }
        let span = dimension.window.span(&self.zone, end);
        let ahead = |counter: &&mut Counter| counter.is_ahead() && counter.dimension == dimension;
        match self.counters.iter_mut().find(ahead) {
            Some(counter) if counter.starts_at(span.start) => return None,
            Some(counter) => *counter = Counter::open_ahead(dimension, span),
            None => self.counters.push(Counter::open_ahead(dimension, span)),
        }
        let at_most = i64::try_from(wish).unwrap_or(i64::MAX);
        let limit = Some(limit);
        Some(Want { dimension, span, known: None, at_least: 0, at_most, limit, used: 0 })
    }

    /// Takes over the answer to a want.
    pub(super) fn take_over(&mut self, want: &Want, grant: Grant) {
        let asked = |counter: &&mut Counter| {
            counter.dimension == want.dimension && counter.starts_at(want.span.start)
        };
        if let Some(counter) = self.counters.iter_mut().find(asked) {
            if want.limit.is_some() {
                counter.take_over(grant, want.at_least, want.limit);
            } else {
                counter.hear(grant.elsewhere);
            }
        }
    }

    /// There will be no answer to a want.
    pub(super) fn unanswered(&mut self, want: &Want) {
        let asked = |counter: &&mut Counter| {
            counter.dimension == want.dimension && counter.starts_at(want.span.start)
        };
        if let Some(counter) = self.counters.iter_mut().find(asked) {
            counter.unmark_asked();
        }
    }

    /// Hands back what is free of one quota; what is kept from now on is to be told.
    pub(super) fn hand_back(&mut self, dimension: Dimension, window_start: Timestamp) -> Option<Want> {
        let held = |counter: &&mut Counter| counter.dimension == dimension && counter.starts_at(window_start);
        let counter = self.counters.iter_mut().find(held)?;
        let (known, kept) = counter.hand_back();
        let (span, used) = (counter.span(), counter.used());
        Some(Want { dimension, span, known, at_least: kept, at_most: kept, limit: None, used })
    }

    /// The quotas of which something is free in a window that runs, though nothing is used or reserved of any.
    pub(super) fn idle_rests(&self, now: Timestamp) -> SmallVec<[(Dimension, Timestamp); 4]> {
        let in_use = |counter: &&Counter| !counter.is_idle(now) && !counter.has_rest(now);
        if self.counters.iter().any(|counter| in_use(&counter) || counter.used() != 0) {
            return SmallVec::new();
        }
        self.rests(now)
    }

    /// The quotas of which something is free in a window that runs.
    pub(super) fn rests(&self, now: Timestamp) -> SmallVec<[(Dimension, Timestamp); 4]> {
        let rests = self.counters.iter().filter(|counter| counter.has_rest(now));
        rests.map(|counter| (counter.dimension, counter.span().start)).collect()
    }

    /// The leases are void.
    pub(super) fn begin_run(&mut self) {
        self.counters.iter_mut().for_each(Counter::begin_run);
    }

    /// Whether forgetting this ledger changes nothing.
    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        self.counters.iter().all(|counter| counter.is_idle(now))
    }

    fn current(&mut self, dimension: Dimension, zone: &TimeZone, now: Timestamp) -> &mut Counter {
        let place = self.place(dimension, || dimension.window.span(zone, now));
        if self.counters[place].is_over(now) {
            let ahead = |counter: &Counter| counter.is_ahead() && counter.dimension == dimension;
            let ahead = self.counters.iter().position(ahead).map(|at| self.counters.remove(at));
            let place = self.place(dimension, || dimension.window.span(zone, now));
            self.counters[place].look(zone, now, || ahead);
            return &mut self.counters[place];
        }
        self.counters[place].look(zone, now, || None);
        &mut self.counters[place]
    }

    fn find(&mut self, dimension: Dimension) -> Option<&mut Counter> {
        self.counters.iter_mut().find(|counter| counter.dimension == dimension && !counter.is_ahead())
    }

    fn find_or_open(&mut self, dimension: Dimension, span: impl FnOnce() -> Span) -> &mut Counter {
        let place = self.place(dimension, span);
        &mut self.counters[place]
    }

    fn place(&mut self, dimension: Dimension, span: impl FnOnce() -> Span) -> usize {
        let known = |counter: &Counter| counter.dimension == dimension && !counter.is_ahead();
        self.counters.iter().position(known).unwrap_or_else(|| {
            self.counters.push(Counter::open(dimension, span()));
            self.counters.len() - 1
        })
    }
}

/// Whether replicas share a limit by leases.
fn is_leased(dimension: Dimension, limit: Limit) -> bool {
    limit.is_some() && !dimension.is_momentary()
}

/// The window that clients are told. What is held of a limit of a moment may be free in a second.
fn told_span(counter: &Counter, now: Timestamp) -> Span {
    if counter.dimension.is_momentary() {
        return Span {
            start: now,
            end: now.saturating_add(jiff::SignedDuration::from_secs(1)).unwrap_or(now),
        };
    }
    counter.span()
}
