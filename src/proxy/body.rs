//! Bodies in both directions: never collected, never copied.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

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
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientFault(Arc<AtomicBool>);

impl ClientFault {
    fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body of a request to the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// The client's, as it comes.
    Passing(Incoming, Idle, Option<ClientFault>),
    /// Read for inspection; the same frames again.
    Read(VecDeque<Frame<Bytes>>),
}

impl RequestBody {
    /// The client's body as it comes, and where to see whether it broke.
    pub(crate) fn passing(body: Incoming, idle: Duration) -> (Self, Option<ClientFault>) {
        let fault = (!body.is_end_stream()).then(ClientFault::default);
        (RequestBody::Passing(body, Idle::new(idle), fault.clone()), fault)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            RequestBody::Passing(body, idle, fault) => {
                let frame = ready!(poll_frame_within(body, idle, cx));
                if let (Some(Err(_)), Some(fault)) = (&frame, fault) {
                    fault.raise();
                }
                Poll::Ready(frame)
            }
            RequestBody::Read(frames) => Poll::Ready(frames.pop_front().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Passing(body, ..) => body.is_end_stream(),
            RequestBody::Read(frames) => frames.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Passing(body, ..) => body.size_hint(),
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
