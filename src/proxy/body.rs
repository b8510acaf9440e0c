//! Bodies in both directions: never collected, never copied.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::failure::Failure;
use super::pause::{BodyError, Idle, poll_frame_within};
use super::tap::{Tap, Tapped};

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Body {
    /// None.
    Empty,
    /// Made or held whole.
    Whole(Option<Bytes>),
    /// The upstream's, as it comes.
    Passing(Incoming, Idle),
    /// The upstream's, watched by a meter.
    Tapped(Box<Tap>),
}

impl Body {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Body::Whole(Some(bytes))
    }
}

impl From<Tapped> for Body {
    fn from(tapped: Tapped) -> Self {
        match tapped {
            Tapped::Empty => Body::Empty,
            Tapped::Settled(bytes) => Body::whole(bytes),
            Tapped::Open(tap) => Body::Tapped(tap),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Passing(body, idle) => poll_frame_within(body, idle, cx),
            Body::Tapped(tap) => tap.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Whole(bytes) => bytes.is_none(),
            Body::Passing(body, _) => body.is_end_stream(),
            Body::Tapped(tap) => tap.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Passing(body, _) => body.size_hint(),
            Body::Tapped(tap) => tap.size_hint(),
        }
    }
}

/// Whether the client's body broke while it was being forwarded: then the failure is the client's, not the upstream's.
#[derive(Clone, Debug)]
pub(crate) struct ClientFault {
    what: Arc<AtomicU8>,
    /// The bound on its body.
    limit: Option<u64>,
}

const BROKEN: u8 = 1;
const TOO_LARGE: u8 = 2;

impl ClientFault {
    fn raise(&self, what: u8) {
        self.what.store(what, Ordering::Relaxed);
    }

    /// What the client did, if it did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self.what.load(Ordering::Relaxed) {
            0 => None,
            TOO_LARGE => {
                let limit = usize::try_from(self.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
                Some(Failure::BodyTooLarge { limit })
            }
            _ => Some(Failure::BodyBroken),
        }
    }
}

/// Why the body of a request could not be forwarded to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    /// The client broke it off.
    #[error(transparent)]
    Client(#[from] BodyError),
    /// It is larger than the route lets through.
    #[error("the body is larger than the route lets through")]
    TooLarge,
}

/// The body of a request to the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// The client's, as it comes.
    Passing(Passing),
    /// Read for inspection; the same frames again.
    Read(VecDeque<Frame<Bytes>>),
}

/// A client's body on its way.
#[derive(Debug)]
pub(crate) struct Passing {
    /// What has been read of it already.
    first: VecDeque<Frame<Bytes>>,
    body: Incoming,
    idle: Idle,
    /// How many bytes may still come.
    left: Option<u64>,
    fault: Option<ClientFault>,
}

impl RequestBody {
    /// The client's body as it comes, and where to see whether it broke.
    pub(crate) fn passing(body: Incoming, idle: Duration) -> (Self, Option<ClientFault>) {
        Self::rest(VecDeque::new(), body, idle, None)
    }

    /// What was read of the client's body already, and then the rest as it comes, at most `limit` bytes of it.
    pub(crate) fn rest(
        first: VecDeque<Frame<Bytes>>,
        body: Incoming,
        idle: Duration,
        limit: Option<u64>,
    ) -> (Self, Option<ClientFault>) {
        let fault = (!body.is_end_stream()).then(|| ClientFault { what: Arc::default(), limit });
        let passing = Passing { first, body, idle: Idle::new(idle), left: limit, fault: fault.clone() };
        (RequestBody::Passing(passing), fault)
    }
}

impl Passing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(frame) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = match ready!(poll_frame_within(&mut self.body, &mut self.idle, cx)) {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.raise(BROKEN);
                return Poll::Ready(Some(Err(error.into())));
            }
        };
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => {
                    self.raise(TOO_LARGE);
                    return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn raise(&self, what: u8) {
        if let Some(fault) = &self.fault {
            fault.raise(what);
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.first.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        match self.body.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + held),
            None => SizeHint::default(),
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match self.get_mut() {
            RequestBody::Passing(passing) => passing.poll_frame(cx),
            RequestBody::Read(frames) => Poll::Ready(frames.pop_front().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Passing(passing) => passing.first.is_empty() && passing.body.is_end_stream(),
            RequestBody::Read(frames) => frames.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Passing(passing) => passing.size_hint(),
            RequestBody::Read(frames) => {
                let mut total = 0;
                for frame in frames {
                    match frame.data_ref() {
                        Some(data) => total += data.len() as u64,
                        // Trailers need a chunked message, which an exact length would rule out.
                        None => return SizeHint::default(),
                    }
                }
                SizeHint::with_exact(total)
            }
        }
    }
}
