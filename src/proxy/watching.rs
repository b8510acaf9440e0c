//! An answer's bytes, shown to its settlement as they come.
//!
//! 1. A step at a time: a few KB may decode to many MB, and whoever else this thread serves has its turn in between.
//! 2. One frame at a time: the next is not read before this one has been shown whole.

use bytes::{Buf, Bytes};
use hyper::body::Incoming;

use super::cutting::{Limiter, Step};
use super::settlement::Settlement;

/// Shows an answer's frames to its settlement.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Where it is a stream that may be cut at the tenant's limit.
    limiter: Option<Limiter>,
    /// What of the frame has not been shown.
    rest: Bytes,
    /// How much of it has been.
    shown: usize,
    behind: bool,
}

impl Watch {
    /// For an answer of which nothing has been shown.
    pub(crate) fn new(settlement: &Settlement, body: &Incoming) -> Self {
        let limiter = Limiter::of(settlement, body);
        Self { limiter, rest: Bytes::new(), shown: 0, behind: false }
    }

    /// Whether the place where the stream was cut is within an event, which is to be ended.
    pub(crate) fn within_event(&self) -> bool {
        self.limiter.as_ref().is_some_and(Limiter::within_event)
    }

    /// Whether a frame has not been shown whole.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind
    }

    /// The next frame, when the last has been shown whole. Then come its steps.
    pub(crate) fn begin(&mut self, data: &Bytes) {
        self.rest = data.clone();
        self.shown = 0;
        self.behind = true;
    }

    /// Shows more of the frame. Places are counted from its beginning.
    pub(crate) fn step(&mut self, settlement: &mut Settlement) -> Step {
        let step = match &mut self.limiter {
            Some(limiter) => limiter.step(&self.rest, settlement),
            None => settlement.step(&self.rest).map_or(Step::Done, Step::Behind),
        };
        self.behind = false;
        match step {
            Step::Done => {
                self.rest = Bytes::new();
                Step::Done
            }
            Step::Behind(taken) => {
                self.behind = true;
                self.rest.advance(taken);
                self.shown += taken;
                Step::Behind(self.shown)
            }
            Step::Cut(at) => Step::Cut(self.shown + at),
        }
    }

    /// Shows the rest of the frame, for one who holds nobody's bytes back. True where the stream is to be cut.
    pub(crate) async fn catch_up(&mut self, settlement: &mut Settlement) -> bool {
        while self.behind {
            match self.step(settlement) {
                Step::Done => {}
                Step::Behind(_) => tokio::task::yield_now().await,
                Step::Cut(_) => return true,
            }
        }
        false
    }
}
