//! How slowly a request's body may come.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep, sleep_until};

use super::core::Core;
use crate::net::Upload;

/// How slowly a body may come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bytes a second; 0 is no limit.
    pub(crate) min_rate: u64,
    /// How long it may stay behind that.
    pub(crate) grace: Duration,
    /// How long all of it may take, where it is held meanwhile.
    pub(crate) total: Option<Duration>,
    /// How long it may pause.
    pub(crate) idle: Duration,
}

impl Pace {
    /// Of a body that is held until all of it is there.
    pub(crate) fn whole(core: &Core) -> Self {
        Self { total: Some(core.server.body_timeout), ..Self::passing(core) }
    }

    /// Of one that is passed on as it comes.
    pub(crate) fn passing(core: &Core) -> Self {
        let (server, idle) = (&core.server, core.upstream.idle_timeout);
        Self { min_rate: server.min_body_rate, grace: server.body_grace, total: None, idle }
    }
}

/// The latest that the next frame may come.
#[derive(Debug)]
pub(crate) struct Clock {
    pace: Pace,
    end: Option<Instant>,
    /// When it will have been behind the least rate for too long: each byte buys time, but never more than the grace.
    behind: Instant,
}

impl Clock {
    pub(crate) fn new(pace: Pace) -> Self {
        let now = Instant::now();
        Self { pace, end: pace.total.map(|total| now + total), behind: now + pace.grace }
    }

    pub(crate) fn deadline(&self) -> Instant {
        let pause = Instant::now() + self.pace.idle;
        let soonest = self.end.map_or(pause, |end| end.min(pause));
        if self.pace.min_rate == 0 { soonest } else { soonest.min(self.behind) }
    }

    pub(crate) fn received(&mut self, bytes: usize) {
        if let Some(bought) = (bytes as u64 * 1_000_000).checked_div(self.pace.min_rate) {
            let latest = Instant::now() + self.pace.grace;
            self.behind = (self.behind + Duration::from_micros(bought)).min(latest);
        }
    }

    /// It was not read for so long.
    pub(crate) fn stood_still(&mut self, time: Duration) {
        self.end = self.end.map(|end| end + time);
        self.behind += time;
    }
}

/// Why a request's body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PaceError {
    /// The client broke it off, or sent what is no HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It came too slowly.
    #[error("the body came too slowly")]
    Slow,
}

/// A body that must keep its pace. The time in which nobody asks for more of it is none of the client's.
#[derive(Debug)]
pub(crate) struct Paced {
    pub(crate) body: Upload,
    clock: Clock,
    /// Since when nobody asks; `None` while the client is waited for.
    unasked: Option<Instant>,
    /// Made when the client is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(crate) fn new(body: Upload, pace: Pace) -> Self {
        Self { body, clock: Clock::new(pace), unasked: Some(Instant::now()), timer: None }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PaceError>>> {
        let since = self.unasked.take();
        if let Some(since) = since {
            self.clock.stood_still(since.elapsed());
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.clock.received(data.map_or(0, Bytes::len));
            self.unasked = Some(Instant::now());
            return Poll::Ready(frame.map(|frame| frame.map_err(PaceError::Broken)));
        }
        let timer = match &mut self.timer {
            Some(timer) => {
                if since.is_some() {
                    timer.as_mut().reset(self.clock.deadline());
                }
                timer
            }
            none => none.insert(Box::pin(sleep_until(self.clock.deadline()))),
        };
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(PaceError::Slow)))
    }
}
