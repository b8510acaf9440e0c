//! How many batches may be in flight at once: all there is room for, but one while a backlog is caught up with beside
//! traffic.
//!
//! Shipping takes cores from the database, and from whatever runs beside it: batches that overlap made the slowest
//! answers slower twentyfold on a small machine, for a fifth more events a second. So:
//! 1. Where nothing was recorded for a while there is nobody to be spared, and without a backlog there is little to ship.
//! 2. Else it is one batch, and one more for each look at which the backlog has grown: it must not grow for ever.

use std::time::{Duration, Instant};

/// So many records behind are a backlog: more than are kept in memory for a sink that keeps up.
const BACKLOG: u64 = 10_000;
/// From one look at the backlog to the next.
const LOOK: Duration = Duration::from_secs(1);

/// The pace of shipping.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    now: usize,
    sparing: bool,
    looked: Option<Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    recorded: u64,
    behind: u64,
}

impl Pace {
    /// A pace of `most` batches in flight at most.
    pub(super) fn new(most: usize) -> Self {
        Self { most, now: most, sparing: false, looked: None }
    }

    /// How many may be in flight at `at`, with `recorded` records taken over so far in all, `behind` of them not shipped.
    pub(super) fn flights(&mut self, at: Instant, recorded: u64, behind: u64) -> usize {
        let look = Look { at, recorded, behind };
        let Some(last) = self.looked else {
            self.looked = Some(look);
            return self.now;
        };
        if at.saturating_duration_since(last.at) < LOOK {
            return self.now;
        }
        self.looked = Some(look);
        let was_sparing = self.sparing;
        self.sparing = behind >= BACKLOG && recorded > last.recorded;
        self.now = match (self.sparing, was_sparing) {
            (false, _) => self.most,
            (true, false) => 1,
            (true, true) if behind > last.behind => (self.now + 1).min(self.most),
            (true, true) => self.now.saturating_sub(1).max(1),
        };
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paces at looks of a second each, of `(recorded, behind)`.
    fn paces(looks: &[(u64, u64)]) -> Vec<usize> {
        let (mut pace, start) = (Pace::new(4), Instant::now());
        let at = |second: usize| start + LOOK * u32::try_from(second).unwrap();
        looks.iter().enumerate().map(|(n, look)| pace.flights(at(n), look.0, look.1)).collect()
    }

    #[test]
    fn a_backlog_beside_traffic_is_shipped_one_batch_at_a_time_and_alone_as_fast_as_can_be() {
        let beside_traffic = [(0, 500_000), (1000, 480_000), (2000, 460_000), (3000, 440_000), (4000, 900)];
        assert_eq!(paces(&beside_traffic), [4, 1, 1, 1, 4]);
        let alone = [(0, 500_000), (0, 480_000), (0, 460_000)];
        assert_eq!(paces(&alone), [4, 4, 4]);
        let without = [(0, 0), (30_000, 4000), (60_000, 4000)];
        assert_eq!(paces(&without), [4, 4, 4]);
    }

    #[test]
    fn a_backlog_that_grows_gets_more_until_it_shrinks() {
        let looks = [
            (0, 0),
            (30_000, 11_000),
            (60_000, 12_000),
            (90_000, 13_000),
            (120_000, 14_000),
            (150_000, 13_500),
        ];
        assert_eq!(paces(&looks), [4, 1, 2, 3, 4, 3]);
    }

    #[test]
    fn looks_in_between_change_nothing() {
        let (mut pace, start) = (Pace::new(4), Instant::now());
        assert_eq!(pace.flights(start, 0, 500_000), 4);
        assert_eq!(pace.flights(start + LOOK / 2, 1000, 490_000), 4);
        assert_eq!(pace.flights(start + LOOK, 2000, 480_000), 1);
        assert_eq!(pace.flights(start + LOOK * 3 / 2, 3000, 490_000), 1);
    }
}
