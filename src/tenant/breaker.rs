//! Whether a query is worth waiting for.

use std::time::Duration;

use tokio::time::Instant;

/// How long a query is left alone after it failed.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// What a request may do about a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// Ask, and wait.
    Ask,
    /// Ask on behalf of everyone whether the database is back; wait only with nothing else to say.
    Probe,
    /// Neither.
    Leave,
}

/// One query's recent luck.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    retry_at: Option<Instant>,
    answered_at: Option<Instant>,
}

impl Breaker {
    /// What the caller may do now. A probe is given to one caller a [`PAUSE`].
    pub(super) fn permit(&mut self, now: Instant) -> Permit {
        match self.retry_at {
            None => Permit::Ask,
            Some(at) if now < at => Permit::Leave,
            Some(_) => {
                self.failed(now);
                Permit::Probe
            }
        }
    }

    /// The database answered. Says whether that is news.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.answered_at = Some(now);
        self.retry_at.take().is_some()
    }

    /// It said that it can't. Says whether that is news.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.retry_at.replace(now + PAUSE).is_none()
    }

    /// Somebody waited in vain for a look-up begun at `began`. One slow look-up among others that are answered is no
    /// sign that the database is away.
    pub(super) fn overdue(&mut self, began: Instant, now: Instant) {
        if self.answered_at.is_none_or(|at| at < began) {
            self.failed(now);
        }
    }
}
