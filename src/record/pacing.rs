//! How many batches may be in flight at once: all there is room for, but one, with pauses, while a backlog is caught up with
//! beside traffic.
//!
//! Shipping takes cores from the database, and from whatever runs beside it, the more the more batches overlap. So:
//! 1. Where nothing was recorded for a while there is nobody to be spared, and without a backlog there is little to ship.
//! 2. Else it is one batch, and a pause before the next; the pause goes, and then batches are added, look by look, where
//!    the backlog would not be gone in time: it must not grow for ever.

use std::time::{Duration, Instant};

/// So many records behind are a backlog: more than are kept in memory for a sink that keeps up.
const BACKLOG: u64 = 10_000;
/// From one look at the backlog to the next.
const LOOK: Duration = Duration::from_secs(1);
/// A backlog should be gone after so many looks: an hour.
const IN_TIME: u64 = 3600;

/// The pace of shipping.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    /// Batches in flight; 0 is one at a time with pauses.
    level: usize,
    sparing: bool,
    looked: Option<Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    behind: u64,
    recorded: u64,
}

impl Pace {
    /// A pace of `most` batches in flight at most.
    pub(super) fn new(most: usize) -> Self {
        Self { most, level: most, sparing: false, looked: None }
    }

    /// Looks at how it is at `at`: `recorded` records taken over so far in all, `behind` of them not shipped.
    pub(super) fn look(&mut self, at: Instant, recorded: u64, behind: u64) {
        let look = Look { at, behind, recorded };
        let Some(last) = self.looked else {
            self.looked = Some(look);
            return;
        };
        if at.saturating_duration_since(last.at) < LOOK {
            return;
        }
        self.looked = Some(look);
        let was_sparing = self.sparing;
        self.sparing = behind >= BACKLOG && recorded > last.recorded;
        let gone = last.behind.saturating_sub(behind);
        self.level = match (self.sparing, was_sparing) {
            (false, _) => self.most,
            (true, false) => 0,
            (true, true) if gone < behind / IN_TIME => (self.level + 1).min(self.most),
            // Not at once: what is just enough would be too little again.
            (true, true) if gone > behind / IN_TIME * 2 => self.level.saturating_sub(1),
            (true, true) => self.level,
        };
    }

    /// How many batches may be in flight.
    pub(super) fn flights(&self) -> usize {
        self.level.max(1)
    }

    /// Whether there is a pause between them.
    pub(super) fn pauses(&self) -> bool {
        self.level == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The levels after looks of a second each, of `(recorded, behind)`.
    fn levels(looks: &[(u64, u64)]) -> Vec<usize> {
        let (mut pace, start) = (Pace::new(4), Instant::now());
        let level = |(second, look): (u32, &(u64, u64))| {
            pace.look(start + LOOK * second, look.0, look.1);
            assert_eq!((pace.flights(), pace.pauses()), (pace.level.max(1), pace.level == 0));
            pace.level
        };
        (0..).zip(looks).map(level).collect()
    }

    #[test]
    fn a_backlog_beside_traffic_is_shipped_a_batch_at_a_time_and_alone_as_fast_as_can_be() {
        let beside_traffic = [(0, 500_000), (1000, 480_000), (2000, 460_000), (3000, 440_000), (4000, 900)];
        assert_eq!(levels(&beside_traffic), [4, 0, 0, 0, 4]);
        let alone = [(0, 500_000), (0, 480_000), (0, 460_000)];
        assert_eq!(levels(&alone), [4, 4, 4]);
        let without = [(0, 0), (30_000, 4000), (60_000, 4000)];
        assert_eq!(levels(&without), [4, 4, 4]);
    }

    #[test]
    fn a_backlog_that_would_not_be_gone_in_an_hour_gets_more() {
        let grows =
            [(0, 0), (9, 11_000), (18, 12_000), (27, 13_000), (36, 14_000), (45, 15_000), (54, 16_000)];
        assert_eq!(levels(&grows), [4, 0, 1, 2, 3, 4, 4]);
        // Ten million: some 2,800 a second must go.
        let million = 1_000_000;
        let large = [10 * million, 10 * million, 9_999_000, 9_997_000, 9_994_000, 9_980_000];
        let looks: Vec<_> = (0..).map(|second| second * 1000).zip(large).collect();
        assert_eq!(levels(&looks), [4, 0, 1, 2, 2, 1]);
    }

    #[test]
    fn looks_in_between_change_nothing() {
        let (mut pace, start) = (Pace::new(4), Instant::now());
        for (halves, recorded, behind, level) in
            [(0, 0, 500_000, 4), (1, 1000, 490_000, 4), (2, 2000, 480_000, 0), (3, 3000, 490_000, 0)]
        {
            pace.look(start + LOOK / 2 * halves, recorded, behind);
            assert_eq!(pace.level, level);
        }
    }
}
