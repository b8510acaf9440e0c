//! The tap: an answer's body on its way to the client, watched by a meter.
//!
//! Constraints:
//! 1. Frames go on as they come, unchanged and unbuffered. Only what ends the answer is held, until its event is in
//!    the journal: the end of the stream, the trailers, or the frame that completes a declared length (a client that
//!    counts bytes has seen the whole answer with that frame). So is the frame with a stream's own last event (OpenAI's
//!    `[DONE]`), by which a client knows the end as well; where the body's end is not right behind it, it goes on.
//!    A frame that decodes to much is held while it is read, in steps (`watching`): its end may be one of these.
//! 2. A body ends in one of six ways, and each is told to the settlement once: end of stream, end with trailers, end
//!    with the frame that completes it, an error, dropped, or already over when it began. A seventh is our own: cut at
//!    the tenant's limit.

use std::fmt;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::cutting::Step;
use super::draining::{Rest, client_left};
use super::pause::{BodyError, Idle, poll_frame_within};
use super::settlement::Settlement;
use super::watching::Watch;
use crate::model::event::Outcome;

/// How long a stream's last event waits for the end of its body, which a service writes with it or right after it.
const BODY_END_WAIT: Duration = Duration::from_millis(2);

/// A watched body.
#[derive(Debug)]
pub(crate) struct Tap {
    /// Gone once the rest is another's to read.
    upstream: Option<Incoming>,
    idle: Idle,
    state: State,
}

/// An answer's body, tapped.
#[derive(Debug)]
pub(crate) enum Tapped {
    /// There is none, and the exchange is settled.
    Empty,
    /// It was here whole, and the exchange is settled.
    Settled(Bytes),
    /// The rest is watched.
    Open(Box<Tap>),
}

type FrameResult = Result<Frame<Bytes>, BodyError>;

enum State {
    /// Frames pass. The first may have been read already, when the answer's head was.
    Flowing {
        first: Option<Option<FrameResult>>,
        settlement: Settlement,
        watch: Watch,
        /// The frame that is being shown to the settlement.
        shown: Option<Bytes>,
        closing: Closing,
    },
    /// The end is held until its event is in the journal.
    Ending {
        settling: BoxFuture<'static, ()>,
        /// The stream's last event.
        closing: Option<Bytes>,
        last: Option<FrameResult>,
    },
    /// What comes last may be seen.
    Ended(Option<FrameResult>),
    Over,
}

/// Whether a stream has come to its own end.
enum Closing {
    NotYet,
    /// With this, which waits for the end of the body.
    With(Bytes, Idle),
    /// And the client has seen it.
    Seen,
}

impl Closing {
    /// The frame with the last event, when it goes on before the body's end: something follows it, or nothing for too
    /// long. What follows is left in `first`.
    fn poll_release(
        &mut self,
        upstream: &mut Incoming,
        first: &mut Option<Option<FrameResult>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Bytes>> {
        let Closing::With(data, patience) = self else { return Poll::Ready(None) };
        match ready!(poll_frame_within(upstream, patience, cx)) {
            Some(Err(BodyError::Idle)) => {}
            Some(Ok(more)) if more.is_data() => *first = Some(Some(Ok(more))),
            last => {
                *first = Some(last);
                return Poll::Ready(None);
            }
        }
        let data = std::mem::take(data);
        *self = Closing::Seen;
        Poll::Ready(Some(data))
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Flowing { .. } => "flowing",
            State::Ending { .. } => "ending",
            State::Ended(_) => "ended",
            State::Over => "over",
        })
    }
}

/// Taps an answer's body.
///
/// An answer that is already here whole, and says what it used, is settled at once: head and body then leave in one
/// write. Otherwise the head leaves now, and the tap watches the rest.
pub(crate) async fn tap(mut upstream: Incoming, mut settlement: Settlement, idle: Duration) -> Tapped {
    if upstream.is_end_stream() {
        settlement.finish(Outcome::Completed).await;
        return Tapped::Empty;
    }
    let mut watch = Watch::new(&settlement, &upstream);
    let (mut first, mut shown) = (None, None);
    match upstream.frame().now_or_never() {
        Some(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) if upstream.is_end_stream() => {
                watch.begin(&data);
                if watch.step(&mut settlement) == Step::Done {
                    return settle(upstream, data, settlement, idle).await;
                }
                shown = Some(data);
            }
            Ok(data) => first = Some(Some(Ok(Frame::data(data)))),
            Err(frame) => first = Some(Some(Ok(frame))),
        },
        Some(other) => first = Some(other.map(|frame| frame.map_err(BodyError::Broken))),
        None => {}
    }
    let state = State::Flowing { first, settlement, watch, shown, closing: Closing::NotYet };
    Tapped::Open(Box::new(Tap::new(upstream, idle, state)))
}

/// Settles an answer that is here whole, and was read.
async fn settle(upstream: Incoming, data: Bytes, mut settlement: Settlement, idle: Duration) -> Tapped {
    if !settlement.conclude() {
        settlement.finish(Outcome::Completed).await;
        return Tapped::Settled(data);
    }
    let settling = settlement.finish(Outcome::Completed).boxed();
    let state = State::Ending { settling, closing: None, last: Some(Ok(Frame::data(data))) };
    Tapped::Open(Box::new(Tap::new(upstream, idle, state)))
}

impl Tap {
    fn new(upstream: Incoming, idle: Duration, state: State) -> Self {
        Self { upstream: Some(upstream), idle: Idle::new(idle), state }
    }

    /// The next frame, or the end once it may be seen.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        loop {
            match &mut self.state {
                State::Flowing { first, settlement, watch, shown, closing } => {
                    let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
                    let frame = match shown.take() {
                        Some(data) => Some(Ok(Frame::data(data))),
                        None => {
                            if let Some(data) = ready!(closing.poll_release(upstream, first, cx)) {
                                return Poll::Ready(Some(Ok(Frame::data(data))));
                            }
                            let frame = match first.take() {
                                Some(read) => read,
                                None => ready!(poll_frame_within(upstream, &mut self.idle, cx)),
                            };
                            if let Some(data) =
                                frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref())
                            {
                                watch.begin(data);
                            }
                            frame
                        }
                    };
                    if watch.is_behind() {
                        match watch.step(settlement) {
                            Step::Done => {}
                            Step::Behind(_) => {
                                *shown = data_of(frame);
                                return give_way(cx);
                            }
                            Step::Cut(kept) => {
                                self.cut();
                                let Some(data) = data_of(frame).filter(|_| kept > 0) else { continue };
                                return Poll::Ready(Some(Ok(Frame::data(data.slice(..kept)))));
                            }
                        }
                    }
                    let frame = match frame {
                        Some(Ok(passing)) if passing.is_data() && !upstream.is_end_stream() => {
                            if !matches!(closing, Closing::NotYet) || !settlement.ended() {
                                return Poll::Ready(Some(Ok(passing)));
                            }
                            let data = passing.into_data().unwrap_or_default();
                            *closing = Closing::With(data, Idle::new(BODY_END_WAIT));
                            continue;
                        }
                        last => last,
                    };
                    let outcome = match &frame {
                        Some(Ok(_)) | None => Outcome::Completed,
                        Some(Err(BodyError::Idle)) => Outcome::Timeout,
                        Some(Err(BodyError::Broken(_))) => Outcome::UpstreamError,
                    };
                    let State::Flowing { settlement, closing, .. } =
                        std::mem::replace(&mut self.state, State::Over)
                    else {
                        return Poll::Ready(None);
                    };
                    let closing = if let Closing::With(data, _) = closing { Some(data) } else { None };
                    let settling = settlement.finish(outcome).boxed();
                    self.state = State::Ending { settling, closing, last: frame };
                }
                State::Ending { settling, closing, last } => {
                    ready!(settling.as_mut().poll(cx));
                    let (closing, last) = (closing.take(), last.take());
                    let Some(data) = closing else {
                        self.state = State::Over;
                        return Poll::Ready(last);
                    };
                    self.state = if last.is_some() { State::Ended(last) } else { State::Over };
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                State::Ended(last) => {
                    let last = last.take();
                    self.state = State::Over;
                    return Poll::Ready(last);
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }

    /// Ends the stream between two events, with one more that says so, and lets the upstream go.
    fn cut(&mut self) {
        let State::Flowing { mut settlement, watch, .. } = std::mem::replace(&mut self.state, State::Over)
        else {
            return;
        };
        self.upstream = None;
        let mut event = settlement.cut_event();
        if watch.within_event() {
            // The first line end may be the second half of one that is there.
            event = [b"\n\n", &event[..]].concat().into();
        }
        let last = Some(Ok(Frame::data(event)));
        self.state = State::Ending { settling: settlement.finish(Outcome::Cut).boxed(), closing: None, last };
    }

    /// Whether nothing more comes, and the settlement is done.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// What is still to come: what the upstream announces, and what is held here.
    pub(crate) fn size_hint(&self) -> SizeHint {
        let length = |frame: &Option<FrameResult>| match frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        let held = match &self.state {
            State::Flowing { first, shown, closing, .. } => {
                let closing = if let Closing::With(data, _) = closing { data.len() } else { 0 };
                first.as_ref().map_or(0, length) + shown.as_ref().map_or(0, Bytes::len) + closing
            }
            State::Ending { closing, last, .. } => closing.as_ref().map_or(0, Bytes::len) + length(last),
            State::Ended(_) | State::Over => 0,
        } as u64;
        match self.upstream.as_ref().and_then(|upstream| upstream.size_hint().exact()) {
            Some(rest) => SizeHint::with_exact(rest + held),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Tap {
    /// The client has left.
    fn drop(&mut self) {
        if let (State::Flowing { first, settlement, watch, .. }, Some(body)) =
            (std::mem::replace(&mut self.state, State::Over), self.upstream.take())
        {
            client_left(Rest::Body { first, body, watch }, settlement);
        }
    }
}

fn data_of(frame: Option<FrameResult>) -> Option<Bytes> {
    frame?.ok()?.into_data().ok()
}

/// To be polled again when all the others have had their turn, and news from the network has been looked for. (A task
/// that wakes itself has its turn before that.)
fn give_way<T>(cx: &mut Context<'_>) -> Poll<T> {
    let _pending = pin!(tokio::task::yield_now()).poll(cx);
    Poll::Pending
}
