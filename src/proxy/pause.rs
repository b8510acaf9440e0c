//! The limit on how long an answer's body may pause between two frames.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

/// Why an answer's body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The other side broke it off, or sent what is no HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It paused for longer than the idle limit.
    #[error("the body paused for longer than the idle limit")]
    Idle,
}

/// The limit on the pause between two frames. The timer is armed only when a body really pauses.
#[derive(Debug)]
pub(crate) struct Idle {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Idle {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, sleep: None, armed: false }
    }

    /// A frame came: the pause is over.
    pub(crate) fn progress(&mut self) {
        self.armed = false;
    }

    /// No frame yet: ready when the pause has been too long.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = || Instant::now() + self.limit;
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                if !self.armed {
                    sleep.as_mut().reset(deadline());
                }
                sleep
            }
            none => none.insert(Box::pin(sleep_until(deadline()))),
        };
        self.armed = true;
        sleep.as_mut().poll(cx)
    }
}

/// Polls a frame within the idle limit.
pub(crate) fn poll_frame_within(
    body: &mut Incoming,
    idle: &mut Idle,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    match Pin::new(body).poll_frame(cx) {
        Poll::Ready(frame) => {
            idle.progress();
            Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
        }
        Poll::Pending => {
            ready!(idle.poll_expired(cx));
            Poll::Ready(Some(Err(BodyError::Idle)))
        }
    }
}
