//! Reading a metered request's body within bounds, so that it can be inspected and then forwarded as it came.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::Read;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::body::{BodyError, Idle, poll_frame_within};
use super::failure::Failure;

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
    let coding = Coding::of(headers)?;
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
        Coding::Identity => raw,
        // Inflating is work: off the reactor. The bound on the result bounds the time too.
        coding => tokio::task::spawn_blocking(move || coding.decode(&raw, limit))
            .await
            .map_err(|_| Failure::UnsupportedEncoding)?
            .map_err(|error| match error {
                DecodeError::TooLarge => too_large(),
                DecodeError::Corrupt => Failure::UnsupportedEncoding,
            })?,
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

/// A request body's `Content-Encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

#[derive(Debug, PartialEq, Eq)]
enum DecodeError {
    TooLarge,
    Corrupt,
}

impl Coding {
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Ok(Coding::Identity) };
        if values.next().is_some() {
            return Err(Failure::UnsupportedEncoding);
        }
        let named = |name: &str| value.as_bytes().trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if named("identity") || named("") => Ok(Coding::Identity),
            () if named("gzip") || named("x-gzip") => Ok(Coding::Gzip),
            () if named("deflate") => Ok(Coding::Deflate),
            () if named("br") => Ok(Coding::Brotli),
            () if named("zstd") => Ok(Coding::Zstd),
            () => Err(Failure::UnsupportedEncoding),
        }
    }

    fn decode(self, raw: &[u8], limit: usize) -> Result<Bytes, DecodeError> {
        match self {
            Coding::Identity => Ok(Bytes::copy_from_slice(raw)),
            Coding::Gzip => take(flate2::read::MultiGzDecoder::new(raw), limit),
            // RFC 9110 §8.4.1.2 means zlib; some clients send raw deflate.
            Coding::Deflate => {
                take(flate2::read::ZlibDecoder::new(raw), limit).or_else(|error| match error {
                    DecodeError::Corrupt => take(flate2::read::DeflateDecoder::new(raw), limit),
                    DecodeError::TooLarge => Err(error),
                })
            }
            Coding::Brotli => take(brotli::Decompressor::new(raw, 4096), limit),
            Coding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(raw).map_err(|_| DecodeError::Corrupt)?;
                // 8 MiB, what RFC 9659 allows in HTTP.
                decoder.window_log_max(23).map_err(|_| DecodeError::Corrupt)?;
                take(decoder, limit)
            }
        }
    }
}

fn take(decoder: impl Read, limit: usize) -> Result<Bytes, DecodeError> {
    let mut plain = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(|_| DecodeError::Corrupt)?;
    if plain.len() > limit {
        return Err(DecodeError::TooLarge);
    }
    Ok(plain.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn fault_24_an_encoded_body_is_decoded_for_inspection() {
        assert_eq!(Coding::Gzip.decode(&gzip(b"{}"), 10), Ok(Bytes::from_static(b"{}")));
        let zstd = zstd::encode_all(&b"{}"[..], 1).unwrap();
        assert_eq!(Coding::Zstd.decode(&zstd, 10), Ok(Bytes::from_static(b"{}")));
    }

    #[test]
    fn a_bomb_in_a_request_is_too_large_and_never_inflated_whole() {
        assert_eq!(Coding::Gzip.decode(&gzip(&vec![0; 50_000_000]), 1000), Err(DecodeError::TooLarge));
    }

    #[test]
    fn a_corrupt_body_is_said_to_be_so() {
        assert_eq!(Coding::Gzip.decode(b"not gzip", 10), Err(DecodeError::Corrupt));
        assert_eq!(Coding::Brotli.decode(&[0xff; 40], 10), Err(DecodeError::Corrupt));
    }
}
