//! An answer's body that keeps its request in flight.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::activity::Busy;
use super::taking::Taking;

/// What an HTTP/2 stream is given at once: as much as a frame of it holds.
const PIECE: usize = 16 << 10;

/// What it may be given whole though it is all that there is: what it then holds for a client that never reads.
const SMALL: usize = 1 << 10;

/// An answer's body; its request is in flight for as long as it is there.
#[derive(Debug)]
pub(crate) struct Held<B> {
    body: B,
    _busy: Busy,
    /// Of an HTTP/2 stream.
    taking: Option<Arc<Taking>>,
    /// What it gave and the stream has not been given yet.
    rest: Bytes,
}

impl<B> Held<B> {
    pub(crate) fn new(body: B, busy: Busy) -> Self {
        Self { body, _busy: busy, taking: Taking::of_task(), rest: Bytes::new() }
    }

    /// The next piece of `data` for an HTTP/2 stream. The stream is done once it holds the last, whether the client has a
    /// window for it or not, and asks for a piece only when there is a window for all before it: so the last is small, and
    /// a client that takes nothing is noticed.
    fn piece(&mut self, mut data: Bytes) -> Bytes {
        let length = match data.len() {
            all @ ..=SMALL => all,
            all @ ..=PIECE => all - 1,
            _ => PIECE,
        };
        self.rest = data.split_off(length);
        data
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Held<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(taking) = self.taking.clone() else { return Pin::new(&mut self.body).poll_frame(cx) };
        taking.asked();
        if !self.rest.is_empty() {
            taking.gave();
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(Frame::data(self.piece(rest)))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        taking.gave();
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                Ok(data) => Frame::data(self.piece(data)),
                Err(frame) => frame,
            })),
            other => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (of_body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut all = SizeHint::new();
        all.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            all.set_upper(upper + rest);
        }
        all
    }
}
