//! Says a lasting trouble now and then instead of each time it is met.

use std::time::{Duration, Instant};

/// How often a trouble that lasts is said again.
const EVERY: Duration = Duration::from_secs(30);

/// When one kind of trouble was last said.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    said: Option<Instant>,
}

impl Alarm {
    /// Whether it is time to say it (again); counts as said then.
    pub(super) fn ring(&mut self) -> bool {
        let due = self.said.is_none_or(|said| said.elapsed() >= EVERY);
        if due {
            self.said = Some(Instant::now());
        }
        due
    }

    /// The trouble is over; `true` when it had been said.
    pub(super) fn clear(&mut self) -> bool {
        self.said.take().is_some()
    }
}
