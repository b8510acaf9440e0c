//! Answers whose client has left, read on for their exact count.
//!
//! Constraints:
//! 1. Only on routes that ask for it, and only for so many answers at once as there is room; what finds no room is let
//!    go as on every other route.
//! 2. Bounded in time and in bytes. Nothing of the answer is kept: a frame is shown to the meter and dropped.
//! 3. Each runs in a task of `Core::tasks`: the stop waits for it, and cuts it when its own limit runs out.
//! 4. Whatever becomes of it, the exchange is recorded once, as one whose client left.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Response;
use http_body::Frame;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use super::drain::Drained;
use super::failure::Failure;
use super::pause::{BodyError, Idle, poll_frame_within};
use super::settlement::Settlement;
use super::watching::Watch;
use crate::telemetry::{Metrics, bump};

/// What is still to come of an answer.
pub(crate) enum Rest {
    /// All of it.
    Unanswered(Sending),
    /// A body, of which a frame may have been read already.
    Body {
        first: Option<Option<Result<Frame<Bytes>, BodyError>>>,
        body: Incoming,
        /// It may not have shown the last frame whole.
        watch: Watch,
    },
}

/// A request on its way, until its answer's head is here.
pub(crate) type Sending = BoxFuture<'static, Result<Response<Incoming>, Failure>>;

/// The client has left: reads the rest in a task of its own where the route says so and there is room, else lets the
/// upstream go at once. Either way the exchange is recorded.
pub(crate) fn client_left(rest: Rest, mut settlement: Settlement) {
    if settlement.ended() || !settlement.was_sent() {
        return;
    }
    let Some((core, limits)) = settlement.drain().map(|(core, limits)| (core.clone(), limits)) else {
        return;
    };
    if std::thread::panicking() || core.cutting.is_cancelled() {
        return;
    }
    let Ok(runtime) = Handle::try_current() else { return };
    let Ok(permit) = core.drains.room.clone().try_acquire_owned() else {
        bump(&core.metrics.drains, "ending", Drained::NoRoom.as_str());
        settlement.drained(Drained::NoRoom);
        return;
    };
    settlement.left();
    let running = Running::new(permit, core.metrics.clone());
    core.clone().tasks.spawn_on(
        async move {
            let _running = running;
            let idle = Idle::new(core.upstream.idle_timeout);
            let reading = read_on(rest, &mut settlement, idle, limits.bytes);
            let drained = tokio::select! {
                biased;
                () = core.cutting.cancelled() => Drained::Stopped,
                read = tokio::time::timeout(limits.time, reading) => read.unwrap_or(Drained::TimeLimit),
            };
            bump(&core.metrics.drains, "ending", drained.as_str());
            settlement.drained(drained);
        },
        &runtime,
    );
}

/// A drain's place among those that run at once.
struct Running {
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Running {
    fn new(permit: OwnedSemaphorePermit, metrics: Arc<Metrics>) -> Self {
        metrics.draining.inc();
        Self { metrics, _permit: permit }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.draining.dec();
    }
}

async fn read_on(rest: Rest, settlement: &mut Settlement, mut idle: Idle, limit: u64) -> Drained {
    let (mut first, mut body, mut watch) = match rest {
        Rest::Body { first, body, watch } => (first, body, watch),
        Rest::Unanswered(sending) => match sending.await {
            Ok(response) if response.status() != http::StatusCode::SWITCHING_PROTOCOLS => {
                let (head, body) = response.into_parts();
                settlement.answered(&head);
                let watch = Watch::new(settlement, &body);
                (None, body, watch)
            }
            _ => return Drained::Broken,
        },
    };
    let mut seen: u64 = 0;
    loop {
        if watch.catch_up(settlement).await {
            return Drained::OverLimit;
        }
        let frame = match first.take() {
            Some(frame) => frame,
            None => poll_fn(|cx| poll_frame_within(&mut body, &mut idle, cx)).await,
        };
        match frame {
            None => return Drained::Whole,
            Some(Err(_)) => return Drained::Broken,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    watch.begin(data);
                    seen = seen.saturating_add(data.len() as u64);
                }
            }
        }
        if watch.catch_up(settlement).await {
            return Drained::OverLimit;
        }
        if seen > limit {
            return Drained::ByteLimit;
        }
        // A service that has everything at hand must not keep the others on this reactor waiting.
        tokio::task::consume_budget().await;
    }
}

/// A request whose client waits for the answer's head: what is dropped before that is a client that left.
pub(crate) struct Call(Option<(Sending, Settlement)>);

impl Call {
    pub(crate) fn new(sending: Sending, settlement: Settlement) -> Self {
        Self(Some((sending, settlement)))
    }
}

impl Future for Call {
    type Output = Option<(Result<Response<Incoming>, Failure>, Settlement)>;

    /// `None` where it was over already.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((sending, _)) = &mut self.0 else { return Poll::Ready(None) };
        let answer = std::task::ready!(sending.as_mut().poll(cx));
        Poll::Ready(self.0.take().map(|(_, settlement)| (answer, settlement)))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some((sending, settlement)) = self.0.take() {
            client_left(Rest::Unanswered(sending), settlement);
        }
    }
}
