//! A request's body, collected whole within bounds: of size, of memory, of pace and of time.
//!
//! While no room is had for what comes next nothing is read: HTTP/2's windows and TCP hold the rest at the client.

use bytes::Bytes;
use http::header::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::budget::Held;
use super::failure::Failure;
use super::pace::{Clock, Pace};
use crate::net::Upload;

/// What one frame may hold of the connection's own buffer: a small body is held with all of it.
const STEP: usize = 8 << 10;

/// A collected body.
#[derive(Debug)]
pub(crate) enum Collected {
    /// All of it. What it holds of the budget goes with the last reference to `data`.
    Whole { data: Bytes, trailers: Option<HeaderMap> },
    /// More than the limit: its beginning, and the rest unread.
    Over { first: Bytes, rest: Upload },
}

/// Collects `body`, at most `limit` bytes of it and the frame that goes beyond them, in memory that `held` is given.
///
/// # Errors
/// 408: too slow. 400: broken off. 413 and 503: see [`Held::grow`].
pub(crate) async fn collect(
    mut body: Upload,
    limit: usize,
    pace: Pace,
    held: &mut Held,
) -> Result<Collected, Failure> {
    let declared = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let mut clock = Clock::new(pace);
    let mut buffer = Buffer::new(declared.unwrap_or(limit).min(limit));
    let mut trailers = None;
    loop {
        let next = timeout_at(clock.deadline(), body.frame()).await;
        let frame = match next.map_err(|_| Failure::BodyTimeout)? {
            None => return Ok(Collected::Whole { data: buffer.take(), trailers }),
            Some(frame) => frame.map_err(|_| Failure::BodyBroken)?,
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        clock.received(data.len());
        let waiting = Instant::now();
        held.grow(buffer.needs(data.len())).await?;
        clock.stood_still(waiting.elapsed());
        buffer.push(data);
        if buffer.len() > limit {
            return Ok(Collected::Over { first: buffer.take(), rest: body });
        }
    }
}

/// What has come. One frame stays what it is; several become one piece, so that thousands of small frames hold no more
/// than their bytes. Nothing is reserved by a declared length: an allocator gives out memory that was written to before,
/// and such memory is held whether its new bytes have come or not.
#[derive(Debug)]
struct Buffer {
    first: Bytes,
    joined: Vec<u8>,
    /// No more bytes than these are to come.
    most: usize,
}

impl Buffer {
    fn new(most: usize) -> Self {
        Self { first: Bytes::new(), joined: Vec::new(), most }
    }

    fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    /// The bytes that it holds when so many more have come: twice as many as before, where it has to grow.
    fn room(&self, more: usize) -> usize {
        let length = self.len() + more;
        match self.joined.capacity() {
            _ if self.len() == 0 => length,
            capacity if capacity >= length => capacity,
            _ => length.max((self.len() * 2).min(self.most)),
        }
    }

    /// The memory that it takes with so many bytes more.
    fn needs(&self, more: usize) -> usize {
        self.room(more).next_multiple_of(STEP)
    }

    fn push(&mut self, more: Bytes) {
        if self.len() == 0 {
            self.first = more;
            return;
        }
        let room = self.room(more.len());
        self.joined.reserve_exact(room - self.joined.len());
        self.joined.extend_from_slice(&std::mem::take(&mut self.first));
        self.joined.extend_from_slice(&more);
    }

    fn take(&mut self) -> Bytes {
        if self.joined.is_empty() {
            std::mem::take(&mut self.first)
        } else {
            std::mem::take(&mut self.joined).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_takes_what_it_holds_whatever_length_it_declares() {
        for (declared, frame, frames) in
            [(8 << 20, 100, 3), (8 << 20, 60_000, 9), (300_000, 30_000, 10), (8 << 20, 1000, 90)]
        {
            let mut buffer = Buffer::new(declared);
            let mut whole = Vec::new();
            for number in 0..frames {
                let data = vec![number; frame];
                let needs = buffer.needs(frame);
                buffer.push(Bytes::from(data.clone()));
                whole.extend(data);
                assert!(needs >= buffer.joined.capacity() && needs >= whole.len(), "what it holds is taken");
                assert!(needs <= 2 * whole.len() + STEP, "{needs} for {} bytes", whole.len());
            }
            assert!(buffer.needs(0) <= declared.next_multiple_of(STEP));
            assert_eq!(buffer.take(), whole);
            assert_eq!((buffer.len(), buffer.take().len()), (0, 0));
        }
    }
}
