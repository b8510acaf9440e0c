//! One tenant's counters: pure arithmetic, under a lock that somebody else holds.
//!
//! Windows follow the wall clock, and wall clocks jump:
//!
//! * Forward: the window that holds the new time opens, as if the time between had passed.
//! * Back by at most the length of the running window: that window stays until the clock has passed its end, so its use
//!   is neither forgotten nor counted into a window that was closed before. The running window is then longer by the
//!   jump, at most twice its length.
//! * Back by more (an hour, for a window of a minute): waiting for the clock to catch up would refuse a tenant for as
//!   long as the jump. The window is moved to where the clock is now and keeps its use and reservations, so the jump
//!   gives nobody a second quota.
//!
//! Counters are 32 bytes, and a tenant of the standard dimensions is one allocation of 160: a million tenants are to fit
//! into 300 MB with their keys and the map.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use smallvec::SmallVec;

use crate::model::quota::{Amounts, Dimension, Limit, Limits, Standing};
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

/// The use of one dimension in its current window.
#[derive(Clone, Copy, Debug)]
struct Counter {
    /// The window's first second since the epoch. (No zone in use has offsets of less than a second.)
    start_s: i64,
    /// Settled use; negative only while a correction is here before what it corrects.
    used: i64,
    /// Held by exchanges in flight that were admitted in this window.
    reserved: u64,
    /// The window's length.
    length_s: u32,
    /// Which window this is, as reservations remember it. Wraps after 65,536 windows: a reservation is mistaken only
    /// when it is in flight for exactly that many (45 days of minutes).
    turn: u16,
    dimension: Dimension,
}

const _: () = assert!(size_of::<Counter>() == 32);

impl Counter {
    fn open(dimension: Dimension, span: Span) -> Self {
        let mut counter = Self { start_s: 0, used: 0, reserved: 0, length_s: 0, turn: 0, dimension };
        counter.place(span);
        counter
    }

    fn place(&mut self, span: Span) {
        self.start_s = span.start.as_second();
        self.length_s = u32::try_from(span.end.as_second() - self.start_s).unwrap_or(u32::MAX);
    }

    fn turn_to(&mut self, span: Span) {
        self.place(span);
        self.used = 0;
        self.reserved = 0;
        self.turn = self.turn.wrapping_add(1);
    }

    fn end_s(&self) -> i64 {
        self.start_s + i64::from(self.length_s)
    }

    fn span(&self) -> Span {
        let at = |second| Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
        Span { start: at(self.start_s), end: at(self.end_s()) }
    }

    /// Makes this the counter of the window that is current at `now`.
    fn look(&mut self, zone: &TimeZone, now: Timestamp) {
        let second = now.as_second();
        if second >= self.end_s() {
            self.turn_to(self.dimension.window.span(zone, now));
        } else if self.start_s.saturating_sub(second) > i64::from(self.length_s) {
            self.place(self.dimension.window.span(zone, now));
        }
    }

    /// Settled and reserved, as far as admission is concerned.
    fn taken(&self) -> u64 {
        u64::try_from(self.used).unwrap_or(0).saturating_add(self.reserved)
    }

    fn add(&mut self, amount: i64) {
        self.used = self.used.saturating_add(amount);
    }

    fn is_idle(&self, now: Timestamp) -> bool {
        self.reserved == 0 && (self.used == 0 || now.as_second() >= self.end_s())
    }
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
    /// Whether the amounts were taken.
    pub(super) taken: bool,
}

impl Admission {
    /// What stood in the way of an exchange that needs `amounts`. Apart from [`Ledger::reserve`], so that it is
    /// allocated outside of the lock.
    pub(super) fn refusal(&self, amounts: &Amounts) -> Option<Box<Refusal>> {
        let standing = self.standings[self.short?];
        let needed = amounts.of(standing.dimension.unit);
        Some(Box::new(Refusal { standing, needed, standings: self.standings.to_vec() }))
    }
}

/// One tenant's counters, by dimension.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    counters: SmallVec<[Counter; 4]>,
}

impl Ledger {
    /// Takes `amounts` in every dimension of `limits`, or says what stands in the way and takes nothing. With `enforce`
    /// false it takes them in any case.
    pub(super) fn reserve(
        &mut self,
        limits: &Limits,
        zone: &TimeZone,
        amounts: &Amounts,
        enforce: bool,
        now: Timestamp,
    ) -> Admission {
        let (mut standings, mut turns) = (Standings::new(), SmallVec::new());
        let mut short: Option<usize> = None;
        for (at, (dimension, limit)) in limits.iter().enumerate() {
            let counter = self.current(dimension, zone, now);
            let (used, span) = (counter.taken(), counter.span());
            turns.push(counter.turn);
            standings.push(Standing { dimension, limit, used, span });
            let need = amounts.of(dimension.unit);
            let fits = need == 0 || limit.is_none_or(|limit| used.saturating_add(need) <= limit);
            if !fits && short.is_none_or(|other| span.end > standings[other].span.end) {
                short = Some(at);
            }
        }
        let taken = short.is_none() || !enforce;
        for counter in self.counters.iter_mut().filter(|_| taken) {
            if standings.iter().any(|standing| standing.dimension == counter.dimension) {
                counter.reserved = counter.reserved.saturating_add(amounts.of(counter.dimension.unit));
            }
        }
        Admission { standings, turns, short, taken }
    }

    /// Reserves `more` in each of these windows (dimension, turn, limit), or in none of them. A window that is over holds
    /// nothing any more, and stands in nobody's way.
    pub(super) fn extend(
        &mut self,
        windows: impl Iterator<Item = (Dimension, u16, Limit)> + Clone,
        more: u64,
    ) -> bool {
        let room = windows.clone().all(|(dimension, turn, limit)| {
            let current = self.find(dimension).filter(|counter| counter.turn == turn);
            let taken = current.map_or(0, |counter| counter.taken().saturating_add(more));
            limit.is_none_or(|limit| taken <= limit)
        });
        for (dimension, turn, _) in windows.filter(|_| room) {
            if let Some(counter) = self.find(dimension).filter(|counter| counter.turn == turn) {
                counter.reserved = counter.reserved.saturating_add(more);
            }
        }
        room
    }

    /// Gives back what was reserved in a window, if it is still the current one, and adds what was used.
    pub(super) fn settle(&mut self, dimension: Dimension, turn: u16, reserved: u64, used: u64) {
        if let Some(counter) = self.find(dimension).filter(|counter| counter.turn == turn) {
            counter.reserved = counter.reserved.saturating_sub(reserved);
            counter.add(i64::try_from(used).unwrap_or(i64::MAX));
        }
    }

    /// Corrects the use of a window, if it is still the current one.
    pub(super) fn amend(&mut self, dimension: Dimension, window_start: Timestamp, delta: i64) {
        let start_s = window_start.as_second();
        if let Some(counter) = self.find(dimension).filter(|counter| counter.start_s == start_s) {
            counter.add(delta);
        }
    }

    /// Adds use that this run did not see itself. A window later than the known one takes its place; an earlier one is
    /// over. One that overlaps it is the same stretch of time cut otherwise, because the plan's zone was changed, and
    /// counts, so that changing a zone gives nobody a second quota.
    pub(super) fn absorb(&mut self, dimension: Dimension, span: Span, amount: i64) {
        let (start_s, end_s) = (span.start.as_second(), span.end.as_second());
        let counter = self.find_or_open(dimension, || span);
        if start_s >= counter.end_s() {
            counter.turn_to(span);
        }
        if end_s > counter.start_s {
            counter.add(amount);
        }
    }

    /// How the tenant stands, without making `now` the current time.
    pub(super) fn standings(&self, limits: &Limits, zone: &TimeZone, now: Timestamp) -> Vec<Standing> {
        let standing = |(dimension, limit)| {
            let known = self.counters.iter().find(|counter| counter.dimension == dimension).copied();
            let open = || Counter::open(dimension, dimension.window.span(zone, now));
            let mut counter = known.unwrap_or_else(open);
            counter.look(zone, now);
            Standing { dimension, limit, used: counter.taken(), span: counter.span() }
        };
        limits.iter().map(standing).collect()
    }

    /// Whether forgetting this ledger changes nothing.
    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        self.counters.iter().all(|counter| counter.is_idle(now))
    }

    fn current(&mut self, dimension: Dimension, zone: &TimeZone, now: Timestamp) -> &mut Counter {
        let counter = self.find_or_open(dimension, || dimension.window.span(zone, now));
        counter.look(zone, now);
        counter
    }

    fn find(&mut self, dimension: Dimension) -> Option<&mut Counter> {
        self.counters.iter_mut().find(|counter| counter.dimension == dimension)
    }

    fn find_or_open(&mut self, dimension: Dimension, span: impl FnOnce() -> Span) -> &mut Counter {
        let at = match self.counters.iter().position(|counter| counter.dimension == dimension) {
            Some(at) => at,
            None => {
                self.counters.push(Counter::open(dimension, span()));
                self.counters.len() - 1
            }
        };
        &mut self.counters[at]
    }
}
