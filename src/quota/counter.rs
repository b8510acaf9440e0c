//! One quota's use in one window: pure arithmetic.
//!
//! Windows follow the wall clock, and wall clocks jump:
//!
//! * Forward: the window that holds the new time opens, as if the time between had passed.
//! * Back by at most the length of the running window: that window stays until the clock has passed its end, so its use
//!   is neither forgotten nor counted into a window that was closed before. The running window is then longer by the
//!   jump, at most twice its length.
//! * Back by more (an hour, for a window of a minute): waiting for the clock to catch up would refuse a tenant for as
//!   long as the jump. The window is moved to where the clock is now and keeps its use and reservations, so the jump
//!   gives nobody a second quota. What was granted was granted in another window, and is left behind.
//!
//! 48 bytes, and the three that a chat needs are in the tenant's one allocation of 192: a million tenants are to fit
//! into 300 MB with their keys and the map.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::model::quota::{Dimension, Limit};
use crate::model::window::Span;

use super::holding::Holding;
use super::lease::Grant;

/// The use of one dimension in one window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    /// Used under a limit through this run of this replica; negative only while a correction is here before what it corrects.
    used: i64,
    /// Held by exchanges in flight that were admitted in this window.
    reserved: u64,
    /// What this run may use of the window in all.
    granted: i64,
    /// Used by everybody else (other replicas, former runs) as last heard, and through this run while there was no limit.
    elsewhere: i64,
    /// The window's first minute since the epoch. (Windows and offsets of zones in use are whole minutes.)
    start_min: u32,
    /// More is asked for when less than this is free. Of a dry counter: the lower half of the limit that it is dry at; of
    /// one whose rest is recalled: the rounds that are still waited for.
    low: u32,
    /// The window's length.
    length_min: u16,
    /// Which window this is, as reservations remember it. Wraps after 65,535 windows: a reservation is mistaken only
    /// when it is in flight for exactly that many (45 days of minutes).
    turn: u16,
    pub(super) dimension: Dimension,
    flags: u8,
}

const _: () = assert!(size_of::<Counter>() == 48);

/// The turn of a window that no counter was open for.
pub(super) const NO_TURN: u16 = u16::MAX;

/// Nothing was heard of this window's lease yet.
const FRESH: u8 = 1;
/// All replicas together have used up the limit, as far as was heard.
const DRY: u8 = 2;
/// The window is yet to begin.
const AHEAD: u8 = 4;
/// More has been asked for.
const ASKED: u8 = 8;
/// An exchange has passed over a soft limit in this window.
const OVER: u8 = 16;

/// Others were asked to hand back what they don't use: it may be there in a moment.
const RECALLED: u8 = 32;

/// The rounds in which what others don't use should have come back: half a second or more. They hear of it at once, and
/// hand it back with their next round but one; after this long they use it.
const RECALL_ROUNDS: u32 = 25;

const SECONDS: i64 = 60;

impl Counter {
    pub(super) fn open(dimension: Dimension, span: Span) -> Self {
        let mut counter = Self {
            used: 0,
            reserved: 0,
            granted: 0,
            elsewhere: 0,
            start_min: 0,
            low: 0,
            length_min: 0,
            turn: 0,
            dimension,
            flags: FRESH,
        };
        counter.place(span);
        counter
    }

    /// The counter of a window that is yet to begin.
    pub(super) fn open_ahead(dimension: Dimension, span: Span) -> Self {
        Self { flags: FRESH | AHEAD, ..Self::open(dimension, span) }
    }

    fn place(&mut self, span: Span) {
        let start = span.start.as_second().div_euclid(SECONDS);
        let length = span.end.as_second().div_euclid(SECONDS) - start;
        self.start_min = u32::try_from(start).unwrap_or(0);
        self.length_min = u16::try_from(length).unwrap_or(u16::MAX);
    }

    fn turn_to(&mut self, span: Span, ahead: Option<Counter>) {
        let next = (self.turn + 1) % NO_TURN;
        let opened = ahead.filter(|ahead| ahead.start_s() == span.start.as_second());
        *self = opened.unwrap_or_else(|| Self::open(self.dimension, span));
        self.turn = next;
        self.flags &= !AHEAD;
    }

    fn start_s(&self) -> i64 {
        i64::from(self.start_min) * SECONDS
    }

    fn end_s(&self) -> i64 {
        if self.dimension.is_momentary() {
            return Timestamp::MAX.as_second();
        }
        self.start_s() + i64::from(self.length_min) * SECONDS
    }

    pub(super) fn turn(&self) -> u16 {
        self.turn
    }

    pub(super) fn span(&self) -> Span {
        let at = |second| Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
        Span { start: at(self.start_s()), end: at(self.end_s()) }
    }

    pub(super) fn starts_at(&self, start: Timestamp) -> bool {
        self.start_s() == start.as_second()
    }

    pub(super) fn is_ahead(&self) -> bool {
        self.flags & AHEAD != 0
    }

    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        now.as_second() >= self.end_s()
    }

    /// Makes this the counter of the window that is current at `now`; `ahead` is the one that was prepared for it.
    pub(super) fn look(&mut self, zone: &TimeZone, now: Timestamp, ahead: impl FnOnce() -> Option<Counter>) {
        let second = now.as_second();
        if second >= self.end_s() {
            self.turn_to(self.dimension.window.span(zone, now), ahead());
        } else if self.start_s().saturating_sub(second) > self.end_s() - self.start_s() {
            self.place(self.dimension.window.span(zone, now));
            self.elsewhere = self.elsewhere.saturating_add(self.used);
            (self.used, self.granted, self.flags) = (0, 0, FRESH | (self.flags & OVER));
        }
    }

    /// Settled by everybody as far as was heard, and reserved here.
    pub(super) fn taken(&self) -> u64 {
        u64::try_from(self.elsewhere.saturating_add(self.used)).unwrap_or(0).saturating_add(self.reserved)
    }

    /// What this run has used and holds.
    fn spoken_for(&self) -> i64 {
        self.used.saturating_add(i64::try_from(self.reserved).unwrap_or(i64::MAX))
    }

    /// What is known here, to be told.
    pub(super) fn holding(&self) -> Holding {
        Holding {
            dimension: self.dimension,
            span: self.span(),
            used: self.used,
            reserved: self.reserved,
            elsewhere: self.elsewhere,
            granted: self.granted,
            dry: self.flags & DRY != 0,
        }
    }

    /// What of the lease is neither used nor reserved; negative is debt.
    pub(super) fn free(&self) -> i64 {
        self.granted.saturating_sub(self.spoken_for())
    }

    /// Used through this run.
    pub(super) fn used(&self) -> i64 {
        self.used
    }

    pub(super) fn reserve(&mut self, amount: u64) {
        self.reserved = self.reserved.saturating_add(amount);
    }

    pub(super) fn give_back(&mut self, amount: u64) {
        self.reserved = self.reserved.saturating_sub(amount);
    }

    /// Adds what this run used. Only what was used under a limit uses up a lease (charge.sql goes by the same); the rest
    /// counts as everything that is settled does.
    pub(super) fn add(&mut self, amount: i64, limit: Limit) {
        let counted = if limit.is_some() { &mut self.used } else { &mut self.elsewhere };
        *counted = counted.saturating_add(amount);
    }

    /// Adds what others used. A window later than this takes its place; an earlier one is over. One that overlaps it is
    /// the same stretch of time cut otherwise, because the plan's zone was changed, and counts, so that changing a zone
    /// gives nobody a second quota.
    pub(super) fn absorb(&mut self, span: Span, amount: i64) {
        if span.start.as_second() >= self.end_s() {
            self.turn_to(span, None);
        }
        if span.end.as_second() > self.start_s() {
            self.elsewhere = self.elsewhere.saturating_add(amount);
        }
    }

    /// Whether it is known that nothing is left of `limit` anywhere.
    pub(super) fn is_dry(&self, limit: u64) -> bool {
        self.flags & DRY != 0 && self.low == limit as u32
    }

    /// Whether there is nothing to be had of `limit` now: it is dry, or what others hold is on its way back.
    pub(super) fn is_spent(&self, limit: u64) -> bool {
        self.is_recalled() || self.is_dry(limit)
    }

    /// Whether what others hold was asked back.
    pub(super) fn is_recalled(&self) -> bool {
        self.flags & RECALLED != 0
    }

    /// Whether the lease is low and nobody has asked yet.
    pub(super) fn is_low(&self) -> bool {
        self.flags & (ASKED | DRY | RECALLED) == 0 && self.free() < i64::from(self.low)
    }

    /// Notes that a soft limit was passed; whether this is the first time in the window.
    pub(super) fn mark_over(&mut self) -> bool {
        let first = self.flags & OVER == 0;
        self.flags |= OVER;
        first
    }

    pub(super) fn mark_asked(&mut self) {
        self.flags |= ASKED;
    }

    /// No answer will come to what was asked.
    pub(super) fn unmark_asked(&mut self) {
        self.flags &= !ASKED;
    }

    /// What is asked for, to have `need` and better `wish` free beside what is spoken for: the known grant, the least
    /// and the most.
    pub(super) fn ask(&self, need: u64, wish: u64) -> (Option<i64>, i64, i64) {
        let with = |amount| self.spoken_for().saturating_add(i64::try_from(amount).unwrap_or(i64::MAX));
        let known = (self.flags & FRESH == 0).then_some(self.granted);
        (known, with(need), with(need.max(wish)))
    }

    /// Takes over what was granted under `limit`, where at least `at_least` was asked for. Less than that is all that
    /// there was, but for what others may hand back: the first time that is waited for. (What is free now says nothing of
    /// that: exchanges went on while the question was on its way.)
    pub(super) fn take_over(&mut self, grant: Grant, at_least: i64, limit: Limit) {
        let mut at_least = at_least;
        if self.flags & FRESH != 0 {
            // An earlier grant in this window that nothing is known of counts as used.
            self.used = self.used.saturating_add(grant.before);
            at_least = at_least.saturating_add(grant.before);
        }
        let rounds = match self.flags {
            flags if flags & RECALLED != 0 => self.low.saturating_sub(1),
            _ if limit.is_some_and(|limit| self.is_dry(limit)) => 0,
            _ => RECALL_ROUNDS,
        };
        self.flags &= !(FRESH | ASKED | DRY | RECALLED);
        (self.granted, self.elsewhere) = (grant.granted, grant.elsewhere);
        let free = self.free();
        match limit {
            Some(limit) if grant.granted < at_least => {
                let waits = grant.recalled && rounds > 0;
                (self.flags, self.low) = match waits {
                    true => (self.flags | RECALLED, rounds),
                    false => (self.flags | DRY, limit as u32),
                };
            }
            _ => self.low = u32::try_from(free.max(0) / 2).unwrap_or(u32::MAX),
        }
    }

    /// Hands back what is free: the known grant and what is kept of it.
    pub(super) fn hand_back(&mut self) -> (Option<i64>, i64) {
        let known = (self.flags & FRESH == 0).then_some(self.granted);
        let kept = self.granted.min(self.spoken_for().max(0));
        self.granted = kept;
        if self.flags & RECALLED == 0 {
            self.low = 0;
        }
        (known, kept)
    }

    /// Whether something of a lease is free in a window that runs.
    pub(super) fn has_rest(&self, now: Timestamp) -> bool {
        !self.is_over(now) && self.granted > 0 && self.free() > 0
    }

    /// The leases are void: what was used counts as another's, and nothing is granted.
    pub(super) fn begin_run(&mut self) {
        self.elsewhere = self.elsewhere.saturating_add(self.used);
        (self.used, self.granted, self.low) = (0, 0, 0);
        self.flags = FRESH | (self.flags & (AHEAD | OVER));
    }

    /// What everybody else used, as it was now read.
    pub(super) fn hear(&mut self, elsewhere: i64) {
        self.elsewhere = elsewhere;
    }

    /// Whether forgetting it changes nothing.
    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        let nothing = self.used == 0 && self.elsewhere == 0 && self.granted <= 0;
        self.reserved == 0 && (nothing || self.is_over(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Some(100);

    fn counter() -> Counter {
        let day = Dimension::STANDARD[0];
        Counter::open(day, day.window.span(&TimeZone::UTC, Timestamp::UNIX_EPOCH))
    }

    fn grant(granted: i64, recalled: bool) -> Grant {
        Grant { granted, before: 0, elsewhere: 0, recalled }
    }

    #[test]
    fn what_others_hold_is_waited_for_once_and_then_the_quota_is_dry() {
        let mut counter = counter();
        counter.take_over(grant(10, true), 50, LIMIT);
        for _ in 1..RECALL_ROUNDS {
            assert!(counter.is_spent(100) && !counter.is_dry(100) && !counter.is_low());
            counter.take_over(grant(10, true), 50, LIMIT);
        }
        counter.take_over(grant(10, true), 50, LIMIT);
        assert!(counter.is_dry(100), "they use it");
        counter.take_over(grant(20, true), 50, LIMIT);
        assert!(counter.is_dry(100), "nobody waits a second time");
        counter.take_over(grant(50, false), 50, LIMIT);
        assert!(!counter.is_spent(100), "it came back after all");
        counter.take_over(grant(50, true), 60, LIMIT);
        assert!(!counter.is_dry(100), "which begins anew");
    }

    #[test]
    fn what_nobody_holds_is_not_waited_for() {
        let mut counter = counter();
        counter.take_over(grant(10, false), 50, LIMIT);
        assert!(counter.is_dry(100));
        counter.take_over(grant(10, true), 50, Some(200));
        assert!(!counter.is_dry(200), "another limit is another question");
    }

    #[test]
    fn what_is_handed_back_meanwhile_ends_no_wait() {
        let mut counter = counter();
        counter.take_over(grant(10, true), 50, LIMIT);
        assert_eq!(counter.hand_back(), (Some(10), 0));
        counter.take_over(grant(0, true), 50, LIMIT);
        assert!(counter.is_spent(100) && !counter.is_dry(100));
    }
}
