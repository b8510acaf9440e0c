//! Reading a metered request's body within bounds, so that it can be inspected and then forwarded as it came; or
//! leaving it unread.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::body::{ClientFault, RequestBody};
use super::config::{BodyConfig, RouteConfig};
use super::failure::Failure;
use super::pause::{BodyError, Idle, poll_frame_within};
use super::uninspected::{Uninspected, is_lenient};
use crate::meter::{DecodeError, decode_request};

/// A body, read as far as it is to be read.
#[derive(Debug)]
pub(crate) struct ReadBody {
    /// As it came, for the upstream.
    pub(crate) forward: RequestBody,
    /// Where to see whether what is still to come of it broke.
    pub(crate) fault: Option<ClientFault>,
    /// All of it as one piece, decoded; shares the frame's memory when there was one frame and no encoding. `None` where
    /// it is not to be read, or can't be.
    pub(crate) plain: Option<Bytes>,
    /// Why it was not read, where there is one.
    pub(crate) unread: Option<Uninspected>,
}

impl ReadBody {
    /// One of which nothing is known but why.
    pub(crate) fn unread(why: Uninspected) -> Self {
        Self { forward: RequestBody::Read(VecDeque::new()), fault: None, plain: None, unread: Some(why) }
    }
}

/// Reads a body as `route` has it. Where what can't be inspected is charged or passes, it is streamed.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    route: &RouteConfig,
    idle: Duration,
) -> Result<ReadBody, Failure> {
    match route.body {
        BodyConfig::Json { max_bytes } => {
            inspectable(headers, body, max_bytes, idle, is_lenient(route)).await
        }
        BodyConfig::Opaque { max_bytes } => {
            if let Some(limit) = max_bytes.filter(|limit| body.size_hint().lower() > *limit) {
                return Err(Failure::BodyTooLarge { limit: usize::try_from(limit).unwrap_or(usize::MAX) });
            }
            let unread = (!body.is_end_stream()).then_some(Uninspected::Opaque);
            let (forward, fault) = RequestBody::rest(VecDeque::new(), body, idle, max_bytes);
            Ok(ReadBody { forward, fault, plain: None, unread })
        }
    }
}

/// Reads the body, at most `limit` bytes of it. What can't be inspected is refused, unless the route is `lenient`:
/// then the rest of it passes unread.
async fn inspectable(
    headers: &HeaderMap,
    mut body: Incoming,
    limit: usize,
    idle: Duration,
    lenient: bool,
) -> Result<ReadBody, Failure> {
    let unread = |frames, body, why| {
        let (forward, fault) = RequestBody::rest(frames, body, idle, None);
        Ok(ReadBody { forward, fault, plain: None, unread: Some(Uninspected::Unread(why)) })
    };
    let coding = match coding(headers) {
        Ok(coding) => coding,
        Err(failure) if lenient => return unread(VecDeque::new(), body, failure),
        Err(failure) => return Err(failure),
    };
    if body.size_hint().lower() > limit as u64 {
        return match lenient {
            true => unread(VecDeque::new(), body, Failure::BodyTooLarge { limit }),
            false => Err(Failure::BodyTooLarge { limit }),
        };
    }
    let mut pause = Idle::new(idle);
    let mut frames = VecDeque::new();
    let mut length = 0;
    while let Some(frame) = poll_fn(|cx| poll_frame_within(&mut body, &mut pause, cx)).await {
        let frame = frame.map_err(|error| match error {
            BodyError::Idle => Failure::BodyTimeout,
            BodyError::Broken(_) => Failure::BodyBroken,
        })?;
        length += frame.data_ref().map_or(0, Bytes::len);
        frames.push_back(frame);
        if length > limit {
            return match lenient {
                true => unread(frames, body, Failure::BodyTooLarge { limit }),
                false => Err(Failure::BodyTooLarge { limit }),
            };
        }
    }
    let raw = gather(&frames, length);
    let plain = match coding {
        None => Ok(raw),
        // Inflating is work: off the reactor. The bound on the result bounds the time too.
        Some(coding) => tokio::task::spawn_blocking(move || decode(raw, &coding, limit))
            .await
            .unwrap_or(Err(Failure::UnsupportedEncoding)),
    };
    let forward = RequestBody::Read(frames);
    match plain {
        Ok(plain) => Ok(ReadBody { forward, fault: None, plain: Some(plain), unread: None }),
        Err(failure) if lenient => {
            Ok(ReadBody { forward, fault: None, plain: None, unread: Some(Uninspected::Unread(failure)) })
        }
        Err(failure) => Err(failure),
    }
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
