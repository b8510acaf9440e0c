//! What an operator is told once, and not with every call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the same thing is told.
const EVERY: Duration = Duration::from_secs(60);

/// A notice about something that every call may give rise to.
#[derive(Debug)]
pub(crate) struct Notice {
    since: Instant,
    /// Milliseconds after `since` at which it may be told again.
    due_ms: AtomicU64,
    untold: AtomicU64,
}

impl Notice {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), due_ms: AtomicU64::new(0), untold: AtomicU64::new(0) }
    }

    /// One more reason for it. How many there were since it was told, where it is to be told now: at most once a minute.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        self.untold.fetch_add(1, Ordering::Relaxed);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let at = ms(now.saturating_duration_since(self.since));
        let due = self.due_ms.load(Ordering::Relaxed);
        if at < due {
            return None;
        }
        let next = at.saturating_add(ms(EVERY));
        // Of several at once one tells it.
        self.due_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(self.untold.swap(0, Ordering::Relaxed))
    }
}

/// Notices of one kind, each for a reason of its own.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<HashMap<String, Notice>>);

/// More reasons than there are.
const MOST: usize = 64;

impl Notices {
    /// One more for this reason, as [`Notice::due`] has it.
    pub(crate) fn due(&self, reason: &str, now: Instant) -> Option<u64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = if known.len() < MOST || known.contains_key(reason) { reason } else { "" };
        known.entry(reason.to_owned()).or_insert_with(Notice::new).due(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_told_once_a_minute_how_often_it_was() {
        let notice = Notice::new();
        let at = |seconds| notice.since + Duration::from_secs(seconds);
        assert_eq!(notice.due(at(0)), Some(1));
        for seconds in [0, 1, 59] {
            assert_eq!(notice.due(at(seconds)), None);
        }
        assert_eq!(notice.due(at(60)), Some(4));
        assert_eq!(notice.due(at(61)), None);
        assert_eq!(notice.due(at(3600)), Some(2));
    }
}
