//! A request's body on its way in. A service may answer before it has it all, and read on: until the last of it the
//! request is in flight.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::activity::Busy;

/// A request's body.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    /// `None` when no more is to come.
    coming: Option<(Busy, Unread)>,
}

/// Whether something of a request's body was not read.
#[derive(Clone, Debug)]
pub(crate) struct Unread(Arc<AtomicBool>);

impl Unread {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Upload {
    /// The body of the request that is `busy`.
    pub(crate) fn new(body: Incoming, busy: &Busy) -> Self {
        let coming =
            (!body.is_end_stream()).then(|| (busy.for_body(), Unread(Arc::new(AtomicBool::new(true)))));
        Self { body, coming }
    }

    /// Where to see how far it was read; `None` when there is no more to read.
    pub(crate) fn unread(&self) -> Option<Unread> {
        self.coming.as_ref().map(|(_, unread)| unread.clone())
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let ends = match &frame {
            None => true,
            Some(Ok(_)) => self.body.is_end_stream(),
            Some(Err(_)) => false,
        };
        if ends && let Some((_, unread)) = self.coming.take() {
            unread.0.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
