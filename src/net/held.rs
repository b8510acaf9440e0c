//! An answer's body that keeps its request in flight.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};

use super::activity::Busy;
use super::taking::Taking;

/// An answer's body; its request is in flight for as long as it is there.
#[derive(Debug)]
pub(crate) struct Held<B> {
    body: B,
    _busy: Busy,
    /// Of an HTTP/2 stream.
    taking: Option<Arc<Taking>>,
}

impl<B> Held<B> {
    pub(crate) fn new(body: B, busy: Busy) -> Self {
        Self { body, _busy: busy, taking: Taking::of_task() }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if let Some(taking) = &self.taking {
            taking.asked();
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(taking) = &self.taking {
            taking.gave();
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
