//! Compressed answers, decoded on the side for the meter alone.
//!
//! 1. Memory: a decoder's window (32 KiB for gzip and deflate, 8 MiB at most for zstd, 16 MiB for brotli, which is the
//!    most that its format has) and one output buffer. What is decoded is read at once and kept nowhere.
//! 2. Work: a body that grows beyond [`MAX_RATIO`] times what of it has come, once it is large enough for that to
//!    matter, is a bomb, and is decoded no further. (Where it is noticed is the one thing that the chunks decide.)
//!    And what one step decodes is little ([`STEP`]), so that whoever else waits for this thread has its turn.
//! 3. A fault of the encoding ends the reading, never the answer.
//! 4. The bytes have the last word: a body that is plainly JSON or an event stream is read as such under the name of a
//!    coding too (what undid the coding left the header), and one that begins as gzip does without a header.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use smallvec::SmallVec;

use super::answer::{Answer, Trouble};
use super::brotli_decoder::{Brotli, BrotliReader};

/// An event stream that repeats its text in every event (the chat service's) is squeezed to a hundredth; what goes
/// beyond this was made to.
const MAX_RATIO: u64 = 200;
/// Below this the ratio is nobody's concern.
const HARMLESS: u64 = 8 << 20;
/// RFC 9659: a `zstd` content coding needs no larger window than 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;
const BROTLI_BUFFER: usize = 4096;
/// How many decoded bytes end a step: to parse them takes a fraction of a millisecond. It may be more by what a decoder
/// gives at once (128 KiB, a block of zstd).
const STEP: u64 = 64 << 10;
/// How many calls of a decoder end a step: what decodes to nothing (empty members) is work too.
const CALLS: usize = 64;
/// The first byte of gzip (RFC 1952, 2.3.1): a control character with which no text begins.
const GZIP: u8 = 0x1f;
/// How many first bytes show that a body is plain text after all: of compressed ones not so many are ASCII.
const PROOF: usize = 8;

/// The answer behind a decoder, and what has come through.
struct Guard {
    /// None once it was taken out: what a decoder still writes when it is dropped goes nowhere.
    answer: Option<Box<Answer>>,
    decoded: u64,
    allowed: u64,
    exceeded: bool,
}

impl Write for Guard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(answer) = &mut self.answer else { return Ok(bytes.len()) };
        self.decoded += bytes.len() as u64;
        if self.decoded > self.allowed {
            self.exceeded = true;
            return Err(io::Error::other("more than a body of this size should hold"));
        }
        answer.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Decoder {
    Gzip(Box<MultiGzDecoder<Guard>>),
    Zlib(ZlibDecoder<Guard>),
    Deflate(DeflateDecoder<Guard>),
    Brotli(Brotli, Guard),
    Zstd(Box<zstd::stream::write::Decoder<'static, Guard>>),
    /// `deflate`, and its first byte is not here yet, or is alone: zlib's wrapper (RFC 9110, 8.4.1.2) or, as some
    /// servers have it, none.
    UndecidedDeflate(Guard, Option<u8>),
    /// No more is to be read.
    Stopped(Guard),
}

/// A body as it comes over the wire.
pub(super) enum Body {
    /// As it is.
    Plain { answer: Box<Answer>, begun: bool },
    /// In a coding that we can read.
    Encoded(Encoded),
    /// In one that we can't.
    Unknown(Box<Answer>),
    /// Nothing, while it turns from one of these into another.
    Turning,
}

/// A body that is decoded.
pub(super) struct Encoded {
    decoder: Decoder,
    encoded: u64,
    trouble: Option<Trouble>,
    /// The first bytes, until they show whether the coding is there.
    head: Option<SmallVec<[u8; PROOF]>>,
}

impl Body {
    pub(super) fn new(answer: Box<Answer>, content_encoding: Option<&[u8]>) -> Self {
        match single_coding(content_encoding) {
            Ok(None) => Body::Plain { answer, begun: false },
            Ok(Some(coding)) => Self::encoded(&coding, answer, Some(SmallVec::new())),
            Err(Several) => Body::Unknown(answer),
        }
    }

    fn encoded(coding: &[u8], answer: Box<Answer>, head: Option<SmallVec<[u8; PROOF]>>) -> Self {
        match Decoder::new(coding, answer) {
            Ok(decoder) => Body::Encoded(Encoded { decoder, encoded: 0, trouble: None, head }),
            Err(answer) => Body::Unknown(answer),
        }
    }

    /// Reads on, a step of it. `None` when all was read; else how many bytes of `chunk` were taken: the rest is next,
    /// even where nothing is left of it.
    #[inline]
    pub(super) fn step(&mut self, chunk: &[u8]) -> Option<usize> {
        match self {
            Body::Plain { answer, begun: true } => {
                answer.feed(chunk);
                None
            }
            Body::Plain { begun, .. } => {
                let first = chunk.first()?;
                *begun = true;
                if *first == GZIP
                    && let Body::Plain { answer, .. } = std::mem::replace(self, Body::Turning)
                {
                    *self = Self::encoded(b"gzip", answer, None);
                }
                self.step(chunk)
            }
            Body::Encoded(encoded) => {
                let (begun, plain) = encoded.begin(chunk);
                let rest = &chunk[begun..];
                if let Some(answer) = plain {
                    *self = Body::Plain { answer, begun: true };
                    return self.step(rest);
                }
                Some(begun + encoded.step(rest)?)
            }
            Body::Unknown(_) | Body::Turning => None,
        }
    }

    /// The answer as far as it is read.
    pub(super) fn answer(&self) -> Option<&Answer> {
        match self {
            Body::Plain { answer, .. } | Body::Unknown(answer) => Some(answer),
            Body::Encoded(encoded) => encoded.decoder.guard().answer.as_deref(),
            Body::Turning => None,
        }
    }

    /// How many bytes have been decoded.
    #[cfg(test)]
    pub(super) fn decoded(&self) -> u64 {
        if let Body::Encoded(encoded) = self { encoded.decoder.guard().decoded } else { 0 }
    }

    /// The answer, where its bytes are those on the wire.
    pub(super) fn plain(&self) -> Option<&Answer> {
        if let Body::Plain { answer, .. } = self { Some(answer) } else { None }
    }

    /// The answer, before anything of it is read.
    pub(super) fn answer_mut(&mut self) -> Option<&mut Answer> {
        match self {
            Body::Plain { answer, .. } | Body::Unknown(answer) => Some(answer),
            Body::Encoded(encoded) => encoded.decoder.guard_mut().answer.as_deref_mut(),
            Body::Turning => None,
        }
    }

    /// The answer read, and what kept it from being read whole.
    pub(super) fn finish(self) -> (Option<Box<Answer>>, Option<Trouble>) {
        match self {
            Body::Plain { answer, .. } => (Some(answer), None),
            Body::Unknown(answer) => (Some(answer), Some(Trouble::UnknownEncoding)),
            Body::Encoded(encoded) => encoded.finish(),
            Body::Turning => (None, None),
        }
    }
}

impl Encoded {
    /// Takes the first bytes, until they show whether the coding is there: how many, and the answer where it is not.
    fn begin(&mut self, chunk: &[u8]) -> (usize, Option<Box<Answer>>) {
        let Some(head) = &mut self.head else { return (0, None) };
        let taken = chunk.len().min(PROOF - head.len());
        head.extend_from_slice(&chunk[..taken]);
        if head.len() < PROOF {
            return (taken, None);
        }
        (taken, self.end_head())
    }

    /// The first bytes are here: reads them. The answer is handed back where they have no coding.
    fn end_head(&mut self) -> Option<Box<Answer>> {
        let head = self.head.take()?;
        if is_plain(&head) {
            let mut answer = self.decoder.guard_mut().answer.take()?;
            answer.feed(&head);
            return Some(answer);
        }
        let mut rest = &head[..];
        while let Some(taken) = self.step(rest) {
            rest = &rest[taken..];
        }
        None
    }

    fn step(&mut self, chunk: &[u8]) -> Option<usize> {
        if self.trouble.is_some() {
            return None;
        }
        let come = self.encoded + chunk.len() as u64;
        self.decoder.guard_mut().allowed = HARMLESS.max(come.saturating_mul(MAX_RATIO));
        match self.decoder.step(chunk) {
            Ok(taken) => {
                self.encoded += taken.unwrap_or(chunk.len()) as u64;
                taken
            }
            Err(_) => {
                self.stop();
                None
            }
        }
    }

    /// The decoder failed, or was made to: its memory goes back at once.
    fn stop(&mut self) {
        let guard = self.decoder.guard_mut();
        self.trouble = Some(if guard.exceeded { Trouble::Bomb } else { Trouble::CorruptEncoding });
        let guard = guard.take();
        self.decoder = Decoder::Stopped(guard);
    }

    fn finish(mut self) -> (Option<Box<Answer>>, Option<Trouble>) {
        if let Some(answer) = self.end_head() {
            return (Some(answer), None);
        }
        if self.trouble.is_none() && self.decoder.flush().is_err() {
            self.stop();
        }
        (self.decoder.guard_mut().answer.take(), self.trouble)
    }
}

impl Guard {
    fn take(&mut self) -> Guard {
        Guard { answer: self.answer.take(), ..*self }
    }
}

impl Decoder {
    fn new(coding: &[u8], answer: Box<Answer>) -> Result<Self, Box<Answer>> {
        let guard = |answer| Guard { answer: Some(answer), decoded: 0, allowed: HARMLESS, exceeded: false };
        Ok(match coding {
            b"gzip" | b"x-gzip" => Decoder::Gzip(Box::new(MultiGzDecoder::new(guard(answer)))),
            b"deflate" => Decoder::UndecidedDeflate(guard(answer), None),
            b"br" => Decoder::Brotli(Brotli::new(), guard(answer)),
            b"zstd" => {
                let Ok(mut raw) = zstd::stream::raw::Decoder::new() else { return Err(answer) };
                let window = zstd::stream::raw::DParameter::WindowLogMax(ZSTD_WINDOW_LOG);
                if raw.set_parameter(window).is_err() {
                    return Err(answer);
                }
                Decoder::Zstd(Box::new(zstd::stream::write::Decoder::with_decoder(guard(answer), raw)))
            }
            _ => return Err(answer),
        })
    }

    /// Reads on. `None` when all was read; else how many bytes were taken, and there is more to do.
    fn step(&mut self, chunk: &[u8]) -> io::Result<Option<usize>> {
        if let Decoder::UndecidedDeflate(guard, first) = self {
            let (one, two) = match (*first, chunk) {
                (Some(one), [two, ..]) => (one, *two),
                (None, [one, two, ..]) => (*one, *two),
                (None, [one]) => {
                    *first = Some(*one);
                    return Ok(None);
                }
                (_, []) => return Ok(None),
            };
            let held = *first;
            let guard = guard.take();
            *self = if is_zlib(&[one, two]) {
                Decoder::Zlib(ZlibDecoder::new(guard))
            } else {
                Decoder::Deflate(DeflateDecoder::new(guard))
            };
            if let Some(byte) = held {
                self.call(&[byte])?;
            }
        }
        let enough = self.guard().decoded.saturating_add(STEP);
        let mut taken = 0;
        for _ in 0..CALLS {
            let rest = &chunk[taken..];
            if rest.is_empty() && !self.holds_output() {
                return Ok(None);
            }
            if self.guard().decoded >= enough {
                break;
            }
            let count = self.call(rest)?;
            if count == 0 && !self.holds_output() {
                // The coding's own end; what follows is nobody's.
                return Ok(None);
            }
            taken += count;
        }
        Ok(Some(taken))
    }

    /// Calls the decoder once: how many bytes it took. It decodes to 128 KiB at most.
    fn call(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Decoder::Gzip(decoder) => decoder.write(bytes),
            Decoder::Zlib(decoder) => decoder.write(bytes),
            Decoder::Deflate(decoder) => decoder.write(bytes),
            Decoder::Zstd(decoder) => decoder.write(bytes),
            Decoder::Brotli(decoder, guard) => {
                let mut output = [0; BROTLI_BUFFER];
                let (taken, given) = decoder.step(bytes, &mut output)?;
                guard.write_all(&output[..given])?;
                Ok(taken)
            }
            Decoder::UndecidedDeflate(..) | Decoder::Stopped(_) => Ok(0),
        }
    }

    fn holds_output(&self) -> bool {
        matches!(self, Decoder::Brotli(decoder, _) if decoder.holds_output())
    }

    /// Hands on what a decoder holds back. What is missing at the end is not its fault: the body may have been cut.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Decoder::Gzip(decoder) => decoder.flush(),
            Decoder::Zlib(decoder) => decoder.flush(),
            Decoder::Deflate(decoder) => decoder.flush(),
            Decoder::Zstd(decoder) => decoder.flush(),
            Decoder::Brotli(..) | Decoder::UndecidedDeflate(..) | Decoder::Stopped(_) => Ok(()),
        }
    }

    fn guard(&self) -> &Guard {
        match self {
            Decoder::Gzip(decoder) => decoder.get_ref(),
            Decoder::Zlib(decoder) => decoder.get_ref(),
            Decoder::Deflate(decoder) => decoder.get_ref(),
            Decoder::Zstd(decoder) => decoder.get_ref(),
            Decoder::Brotli(_, guard) | Decoder::UndecidedDeflate(guard, _) | Decoder::Stopped(guard) => {
                guard
            }
        }
    }

    fn guard_mut(&mut self) -> &mut Guard {
        match self {
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zlib(decoder) => decoder.get_mut(),
            Decoder::Deflate(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
            Decoder::Brotli(_, guard) | Decoder::UndecidedDeflate(guard, _) | Decoder::Stopped(guard) => {
                guard
            }
        }
    }
}

/// Why a request's body can't be decoded for inspection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A coding that we don't know, or several.
    #[error("the body's content coding is not supported")]
    Unsupported,
    /// It is not what its coding says, or it is cut short.
    #[error("the body is not what its content coding says")]
    Corrupt,
    /// Decoded, it is larger than the limit.
    #[error("the decoded body is too large")]
    TooLarge,
}

/// The plain bytes of a request's body, at most `limit` of them; the body itself where it has no coding.
///
/// # Errors
/// See [`DecodeError`]. No more than `limit` bytes are ever decoded.
pub fn decode_request<'a>(
    body: &'a [u8],
    content_encoding: Option<&[u8]>,
    limit: usize,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    let coding = match single_coding(content_encoding) {
        Ok(None) if body.len() > limit => return Err(DecodeError::TooLarge),
        Ok(None) => return Ok(Cow::Borrowed(body)),
        Ok(Some(coding)) => coding,
        Err(Several) => return Err(DecodeError::Unsupported),
    };
    let reader: Box<dyn Read + '_> = match &coding[..] {
        b"gzip" | b"x-gzip" => Box::new(flate2::read::MultiGzDecoder::new(body)),
        b"deflate" if is_zlib(body) => Box::new(flate2::read::ZlibDecoder::new(body)),
        b"deflate" => Box::new(flate2::read::DeflateDecoder::new(body)),
        b"br" => Box::new(BrotliReader::new(body)),
        b"zstd" => {
            let mut decoder = zstd::stream::read::Decoder::new(body).map_err(|_| DecodeError::Corrupt)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|_| DecodeError::Corrupt)?;
            Box::new(decoder)
        }
        _ => return Err(DecodeError::Unsupported),
    };
    let mut decoded = Vec::new();
    let mut bounded = reader.take(limit as u64 + 1);
    bounded.read_to_end(&mut decoded).map_err(|_| DecodeError::Corrupt)?;
    if decoded.len() > limit { Err(DecodeError::TooLarge) } else { Ok(Cow::Owned(decoded)) }
}

struct Several;

/// The one coding of a `Content-Encoding`, in lower case; none where the body is as it is.
fn single_coding(content_encoding: Option<&[u8]>) -> Result<Option<Vec<u8>>, Several> {
    let codings = content_encoding.unwrap_or_default().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let mut codings = codings.filter(|coding| !is_no_coding(coding));
    match (codings.next(), codings.next()) {
        (coding, None) => Ok(coding.map(<[u8]>::to_ascii_lowercase)),
        _ => Err(Several),
    }
}

/// Whether what stands in a `Content-Encoding` is no coding at all: nothing, `identity`, the name of a charset, that of
/// a transfer encoding of mail that changes no byte, or a word for "none" (encode/httpx#195,
/// apache/httpcomponents-client#698). What IANA has as codings is in
/// iana.org/assignments/http-parameters, "HTTP Content Coding Registry".
fn is_no_coding(coding: &[u8]) -> bool {
    const NONE: [&str; 16] = [
        "",
        "identity",
        "none",
        "null",
        "undefined",
        "plain",
        "text",
        "raw",
        "binary",
        "7bit",
        "8bit",
        "ascii",
        "us-ascii",
        "latin1",
        "utf8",
        "unicode",
    ];
    const CHARSETS: [&str; 9] =
        ["utf-7", "utf-8", "utf-16", "utf-32", "iso-8859", "iso8859", "windows-125", "cp125", "charset="];
    let coding = coding.trim_ascii().to_ascii_lowercase();
    let coding = coding.strip_prefix(b"\"").and_then(|coding| coding.strip_suffix(b"\"")).unwrap_or(&coding);
    NONE.iter().any(|name| coding == name.as_bytes())
        || CHARSETS.iter().any(|start| coding.starts_with(start.as_bytes()))
}

/// Whether a body that begins like this is plainly JSON or an event stream. Of less than [`PROOF`] bytes, all are asked.
fn is_plain(head: &[u8]) -> bool {
    const STARTS: [&[u8]; 7] = [b"{", b"[", b":", b"data:", b"event:", b"id:", b"retry:"];
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let start = text.trim_ascii_start();
    let ascii = text.iter().all(|byte| byte.is_ascii_whitespace() || byte.is_ascii_graphic());
    ascii
        && !text.is_empty()
        && STARTS.iter().any(|known| start.starts_with(known) || known.starts_with(start))
}

/// RFC 1950: method 8, and a header that 31 divides.
fn is_zlib(start: &[u8]) -> bool {
    matches!(start, [one, two, ..] if one & 0x0f == 8 && (u16::from(*one) << 8 | u16::from(*two)) % 31 == 0)
}
