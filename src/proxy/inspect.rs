//! Reading a metered request's body within bounds, so that it can be inspected and then forwarded as it came.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::failure::Failure;
use super::pause::{BodyError, Idle, poll_frame_within};
use crate::meter::{DecodeError, decode_request};

/// A body read whole: the frames to forward, and the bytes to look at.
#[derive(Debug)]
pub(crate) struct ReadBody {
    /// As they came, for the upstream.
    pub(crate) frames: VecDeque<Frame<Bytes>>,
    /// The same as one piece, decoded; shares the frame's memory when there was one frame and no encoding.
    pub(crate) plain: Bytes,
}

/// Reads the body, at most `limit` bytes of it.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Incoming,
    limit: usize,
    idle: Duration,
) -> Result<ReadBody, Failure> {
    let too_large = || Failure::BodyTooLarge { limit };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let coding = coding(headers)?;
    let mut idle = Idle::new(idle);
    let mut frames = VecDeque::new();
    let mut length = 0;
    while let Some(frame) = poll_fn(|cx| poll_frame_within(&mut body, &mut idle, cx)).await {
        let frame = frame.map_err(|error| match error {
            BodyError::Idle => Failure::BodyTimeout,
            BodyError::Broken(_) => Failure::BodyBroken,
        })?;
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > limit {
            return Err(too_large());
        }
        frames.push_back(frame);
    }
    let raw = gather(&frames, length);
    let plain = match coding {
        None => raw,
        // Inflating is work: off the reactor. The bound on the result bounds the time too.
        Some(coding) => tokio::task::spawn_blocking(move || decode(raw, &coding, limit))
            .await
            .map_err(|_| Failure::UnsupportedEncoding)??,
    };
    Ok(ReadBody { frames, plain })
}

fn gather(frames: &VecDeque<Frame<Bytes>>, length: usize) -> Bytes {
    let mut pieces = frames.iter().filter_map(Frame::data_ref);
    match (pieces.next(), pieces.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only.clone(),
        (Some(first), Some(second)) => {
            let mut whole = BytesMut::with_capacity(length);
            for piece in [first, second].into_iter().chain(pieces) {
                whole.extend_from_slice(piece);
            }
            whole.freeze()
        }
    }
}

/// The body's coding, where it has one. Listed in several header lines, it is none that can be undone.
fn coding(headers: &HeaderMap) -> Result<Option<HeaderValue>, Failure> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    match (values.next(), values.next()) {
        (first, None) => Ok(first.cloned()),
        (_, Some(_)) => Err(Failure::UnsupportedEncoding),
    }
}

fn decode(raw: Bytes, coding: &HeaderValue, limit: usize) -> Result<Bytes, Failure> {
    match decode_request(&raw, Some(coding.as_bytes()), limit) {
        Ok(Cow::Borrowed(_)) => Ok(raw.clone()),
        Ok(Cow::Owned(plain)) => Ok(plain.into()),
        Err(DecodeError::TooLarge) => Err(Failure::BodyTooLarge { limit }),
        Err(DecodeError::Unsupported | DecodeError::Corrupt) => Err(Failure::UnsupportedEncoding),
    }
}
