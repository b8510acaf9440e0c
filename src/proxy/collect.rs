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
    let mut buffer = Buffer::new(declared.unwrap_or(0).min(limit));
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
/// than their bytes.
#[derive(Debug)]
enum Buffer {
    Frame { data: Bytes, declared: usize },
    Joined(Vec<u8>),
}

impl Buffer {
    fn new(declared: usize) -> Self {
        Buffer::Frame { data: Bytes::new(), declared }
    }

    fn len(&self) -> usize {
        match self {
            Buffer::Frame { data, .. } => data.len(),
            Buffer::Joined(data) => data.len(),
        }
    }

    /// The capacity that it has with so many bytes more. Of a declared length all is reserved at once: pages that nothing
    /// was written to are none.
    fn room(&self, more: usize) -> usize {
        match self {
            Buffer::Frame { data, declared } => (data.len() + more).max(*declared),
            Buffer::Joined(data) if data.len() + more <= data.capacity() => data.capacity(),
            Buffer::Joined(data) => (data.len() + more).max(data.capacity() * 2),
        }
    }

    /// The memory that it takes with so many bytes more.
    fn needs(&self, more: usize) -> usize {
        let length = self.len() + more;
        let bytes = match self {
            Buffer::Frame { .. } => length,
            // Of what was reserved beyond the bytes that are here nothing was touched.
            Buffer::Joined(data) if length <= data.capacity() => length,
            Buffer::Joined(_) => self.room(more),
        };
        bytes.next_multiple_of(STEP)
    }

    fn push(&mut self, more: Bytes) {
        let room = self.room(more.len());
        match self {
            Buffer::Frame { data, .. } if data.is_empty() => *data = more,
            Buffer::Frame { data, .. } => {
                let mut joined = Vec::with_capacity(room);
                joined.extend_from_slice(data);
                joined.extend_from_slice(&more);
                *self = Buffer::Joined(joined);
            }
            Buffer::Joined(data) => {
                data.reserve_exact(room - data.len());
                data.extend_from_slice(&more);
            }
        }
    }

    fn take(&mut self) -> Bytes {
        match self {
            Buffer::Frame { data, .. } => std::mem::take(data),
            Buffer::Joined(data) => std::mem::take(data).into(),
        }
    }
}
