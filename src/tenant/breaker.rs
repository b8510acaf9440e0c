//! Whether a query is worth waiting for.

use std::time::Duration;

use tokio::time::Instant;

use super::source::{Fault, SourceError};

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
    /// Why it failed last, where the database will never answer it as it is.
    broken: Option<String>,
}

impl Breaker {
    /// What the caller may do now. A probe is given to one caller a [`PAUSE`].
    pub(super) fn permit(&mut self, now: Instant) -> Permit {
        match self.retry_at {
            None => Permit::Ask,
            Some(at) if now < at => Permit::Leave,
            Some(_) => {
                self.retry_at = Some(now + PAUSE);
                Permit::Probe
            }
        }
    }

    /// The database answered. Says whether that is news.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.answered_at = Some(now);
        self.broken = None;
        self.retry_at.take().is_some()
    }

    /// A look-up begun at `began` failed. Says what that means, and whether it is news.
    pub(super) fn failed(&mut self, error: &SourceError, began: Instant, now: Instant) -> (Fault, bool) {
        match error.fault {
            Fault::Busy => (self.overdue(began, now), false),
            Fault::Away => {
                self.broken = None;
                (Fault::Away, self.rest(now))
            }
            Fault::Broken => {
                let news = self.broken.replace(error.message.clone()).is_none();
                self.rest(now);
                (Fault::Broken, news)
            }
        }
    }

    /// Somebody waited in vain for a look-up begun at `began`. One slow look-up among others that are answered is no
    /// sign that the database is away: it is busy.
    pub(super) fn overdue(&mut self, began: Instant, now: Instant) -> Fault {
        if self.answered_at.is_some_and(|at| at >= began) {
            return Fault::Busy;
        }
        self.rest(now);
        self.fault()
    }

    /// A look-up ended without a word of the database, by a panic or the end of its runtime.
    pub(super) fn rest(&mut self, now: Instant) -> bool {
        self.retry_at.replace(now + PAUSE).is_none()
    }

    /// Why a query that is left alone has no answer; of one that isn't, that there was no room to ask.
    pub(super) fn fault(&self) -> Fault {
        match (&self.broken, self.retry_at) {
            (Some(_), _) => Fault::Broken,
            (None, Some(_)) => Fault::Away,
            (None, None) => Fault::Busy,
        }
    }

    /// What the database said, where it will never answer the query as it is.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}
