//! Bodies in both directions: never collected, never copied.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;

use super::failure::Failure;
use super::pace::{Pace, PaceError, Paced};
use super::pause::{BodyError, Idle, poll_frame_within};
use super::tap::{Tap, Tapped};
use crate::net::Upload;

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

/// What the sender of a request sees of its body on the way: how far it is, and whether the client broke it (then the
/// failure is the client's, not the upstream's).
#[derive(Clone, Debug)]
pub(crate) struct BodyWatch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    fault: AtomicU8,
    /// The bound on the body.
    limit: Option<u64>,
    awaits_client: AtomicBool,
    over: AtomicBool,
    ended: Notify,
}

const BROKEN: u8 = 1;
const TOO_LARGE: u8 = 2;
const SLOW: u8 = 3;

impl BodyWatch {
    fn new(limit: Option<u64>) -> Self {
        Self(Arc::new(Watched {
            fault: AtomicU8::new(0),
            limit,
            awaits_client: AtomicBool::new(false),
            over: AtomicBool::new(false),
            ended: Notify::new(),
        }))
    }

    fn raise(&self, what: u8) {
        self.0.fault.store(what, Ordering::Relaxed);
    }

    /// All of it is on its way, or no more will be.
    fn end(&self) {
        self.0.over.store(true, Ordering::Relaxed);
        self.0.ended.notify_one();
    }

    /// Whether all of it is on its way.
    pub(crate) fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Relaxed)
    }

    /// Ready when all of it is on its way. For one who waits.
    pub(crate) async fn over(&self) {
        while !self.is_over() {
            self.0.ended.notified().await;
        }
    }

    /// Whether it stands still because nothing comes from the client.
    pub(crate) fn awaits_client(&self) -> bool {
        self.0.awaits_client.load(Ordering::Relaxed)
    }

    /// What the client did, if it did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self.0.fault.load(Ordering::Relaxed) {
            0 => None,
            TOO_LARGE => {
                let limit = usize::try_from(self.0.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
                Some(Failure::BodyTooLarge { limit })
            }
            SLOW => Some(Failure::BodyTimeout),
            _ => Some(Failure::BodyBroken),
        }
    }
}

/// Why the body of a request could not be forwarded to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    /// The client broke it off, or was too slow.
    #[error(transparent)]
    Client(#[from] PaceError),
    /// It is larger than the route lets through.
    #[error("the body is larger than the route lets through")]
    TooLarge,
}

/// The body of a request to the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// The client's, as it comes.
    Passing(Passing),
    /// Read whole for inspection.
    Read { data: Bytes, trailers: Option<HeaderMap>, watch: Option<BodyWatch> },
}

/// A client's body on its way.
#[derive(Debug)]
pub(crate) struct Passing {
    /// What has been read of it already.
    first: Bytes,
    body: Paced,
    /// How many bytes may still come.
    left: Option<u64>,
    watch: Option<BodyWatch>,
}

impl RequestBody {
    /// None at all.
    pub(crate) fn empty() -> Self {
        RequestBody::Read { data: Bytes::new(), trailers: None, watch: None }
    }

    /// The client's body as it comes, and where to see whether it broke.
    pub(crate) fn passing(body: Upload, pace: Pace) -> (Self, Option<BodyWatch>) {
        Self::rest(Bytes::new(), body, pace, None)
    }

    /// A body that was read whole.
    pub(crate) fn read(data: Bytes, trailers: Option<HeaderMap>) -> (Self, Option<BodyWatch>) {
        let watch = (!data.is_empty()).then(|| BodyWatch::new(None));
        (RequestBody::Read { data, trailers, watch: watch.clone() }, watch)
    }

    /// What was read of the client's body already, and then the rest as it comes, at most `limit` bytes of it.
    pub(crate) fn rest(
        first: Bytes,
        body: Upload,
        pace: Pace,
        limit: Option<u64>,
    ) -> (Self, Option<BodyWatch>) {
        let watch = (!body.is_end_stream()).then(|| BodyWatch::new(limit));
        let body = Paced::new(body, pace);
        let passing = Passing { first, body, left: limit, watch: watch.clone() };
        (RequestBody::Passing(passing), watch)
    }
}

impl Passing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))));
        }
        let polled = self.body.poll_frame(cx);
        if let Some(watch) = &self.watch {
            watch.0.awaits_client.store(polled.is_pending(), Ordering::Relaxed);
        }
        let frame = match ready!(polled) {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.raise(if matches!(error, PaceError::Slow) { SLOW } else { BROKEN });
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
        if let Some(watch) = &self.watch {
            watch.raise(what);
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.first.len() as u64;
        match self.body.body.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + held),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.end();
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
            RequestBody::Read { data, watch, .. } if !data.is_empty() => {
                if let Some(watch) = watch {
                    watch.end();
                }
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))))
            }
            RequestBody::Read { trailers, .. } => {
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Passing(passing) => passing.first.is_empty() && passing.body.body.is_end_stream(),
            RequestBody::Read { data, trailers, .. } => data.is_empty() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Passing(passing) => passing.size_hint(),
            // Trailers need a chunked message, which an exact length would rule out.
            RequestBody::Read { trailers: Some(_), .. } => SizeHint::default(),
            RequestBody::Read { data, .. } => SizeHint::with_exact(data.len() as u64),
        }
    }
}
