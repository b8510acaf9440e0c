//! Cuts AWS's binary event stream (`application/vnd.amazon.eventstream`) into documents, as Bedrock streams them.
//!
//! A message (Smithy, "Amazon Event Stream specification"): its length, the length of its headers, a checksum of these
//! two; the headers; the payload; a checksum. Numbers are big endian, and no more of a message is held than its
//! headers. The checksums are the client's business: a byte that the network spoilt is no byte that was billed
//! differently.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smallvec::SmallVec;

use super::events::Documents;
use super::pointer::NodeId;
use super::skim::Skimmer;
use super::wanted::{Sink, Wanted};

const PRELUDE: usize = 12;
const CHECKSUM: u32 = 4;
/// The specification's bound of a message.
const MAX_MESSAGE: u32 = 24 << 20;
/// Headers beyond this are none that we look for.
const MAX_HEADERS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Prelude,
    Headers,
    Payload,
    Checksum,
}

/// Where a stream of messages stands.
#[derive(Debug)]
pub(super) struct Frames {
    part: Part,
    /// What of the part is to come.
    left: u32,
    payload: u32,
    prelude: SmallVec<[u8; PRELUDE]>,
    headers: SmallVec<[u8; 256]>,
    failed: bool,
    broken: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            part: Part::Prelude,
            left: PRELUDE as u32,
            payload: 0,
            prelude: SmallVec::new(),
            headers: SmallVec::new(),
            failed: false,
            broken: false,
        }
    }
}

impl Frames {
    /// What came is no such stream.
    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], to: &mut impl Documents) {
        while !self.broken && !bytes.is_empty() {
            let take = bytes.len().min(self.left as usize);
            let (piece, rest) = bytes.split_at(take);
            bytes = rest;
            self.left -= take as u32;
            match self.part {
                Part::Prelude => self.prelude.extend_from_slice(piece),
                Part::Headers => {
                    let room = MAX_HEADERS - self.headers.len();
                    self.headers.extend_from_slice(&piece[..take.min(room)]);
                }
                Part::Payload => to.data(piece),
                Part::Checksum => {}
            }
            while self.left == 0 && !self.broken {
                self.next_part(to);
            }
        }
    }

    /// The stream ended, or broke off.
    pub(super) fn end(&mut self, to: &mut impl Documents) {
        if self.part == Part::Payload {
            self.end_message(to);
        }
    }

    fn next_part(&mut self, to: &mut impl Documents) {
        (self.part, self.left) = match self.part {
            Part::Prelude => {
                let number =
                    |at: usize| self.prelude.get(at..at + 4).and_then(|bytes| bytes.first_chunk().copied());
                let (length, headers) =
                    (number(0).map(u32::from_be_bytes), number(4).map(u32::from_be_bytes));
                let (length, headers) = (length.unwrap_or(0), headers.unwrap_or(0));
                self.prelude.clear();
                let around = (PRELUDE as u32 + CHECKSUM).saturating_add(headers);
                match length.checked_sub(around).filter(|_| length <= MAX_MESSAGE) {
                    Some(payload) => self.payload = payload,
                    None => self.broken = true,
                }
                (Part::Headers, headers)
            }
            Part::Headers => {
                self.begin_payload(to);
                (Part::Payload, self.payload)
            }
            Part::Payload => {
                self.end_message(to);
                (Part::Checksum, CHECKSUM)
            }
            Part::Checksum => (Part::Prelude, PRELUDE as u32),
        };
    }

    fn begin_payload(&mut self, to: &mut impl Documents) {
        let kind = string_header(&self.headers, b":message-type");
        self.failed = matches!(kind, Some(b"exception" | b"error"));
        if string_header(&self.headers, b":event-type") == Some(WRAPPED) {
            to.code(WRAPPED);
        }
        self.headers.clear();
    }

    fn end_message(&mut self, to: &mut impl Documents) {
        to.end(if self.failed { b"error" } else { b"" });
    }
}

/// The event whose payload is `{"bytes": "…"}`: a model's own event in base64 (`InvokeModelWithResponseStream`).
pub(super) const WRAPPED: &[u8] = b"chunk";

/// The value of a header that is a string.
fn string_header<'a>(mut headers: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    loop {
        let (name_length, rest) = headers.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*name_length))?;
        let (kind, rest) = rest.split_first()?;
        let length = match kind {
            0 | 1 => 0,
            2 => 1,
            3 => 2,
            4 => 4,
            5 | 8 => 8,
            9 => 16,
            6 | 7 => 2 + usize::from(u16::from_be_bytes(*rest.first_chunk()?)),
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        if name == wanted {
            return value.get(2..).filter(|_| *kind == 7);
        }
        headers = rest;
    }
}

/// Undoes the wrapping of a payload, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Unwrapper {
    skimmer: Skimmer,
    /// Characters of a group of four that is not whole yet.
    group: SmallVec<[u8; 4]>,
    /// The padding was there: nothing may follow.
    padded: bool,
    bad: bool,
}

impl Unwrapper {
    /// What these bytes of the payload hold of the wrapped document, and whether all so far is base64. What comes before a
    /// fault is undone, and nothing after it: the same in one piece as in many.
    pub(super) fn feed<A: Clone>(&mut self, bytes: &[u8], wanted: &Wanted<A>) -> (Vec<u8>, bool) {
        let Self { group, padded, bad, .. } = self;
        let mut plain = Plain { group, padded, bad, bytes: Vec::new() };
        self.skimmer.feed(bytes, wanted, &mut plain);
        (plain.bytes, !self.bad)
    }

    /// Ready for the next payload.
    pub(super) fn reset(&mut self) {
        self.skimmer.reset();
        self.group.clear();
        self.padded = false;
        self.bad = false;
    }
}

struct Plain<'a> {
    group: &'a mut SmallVec<[u8; 4]>,
    padded: &'a mut bool,
    bad: &'a mut bool,
    bytes: Vec<u8>,
}

impl Plain<'_> {
    /// Undoes whole groups of four.
    fn undo(&mut self, groups: &[u8]) {
        if *self.bad || groups.is_empty() {
            return;
        }
        let before = self.bytes.len();
        if !*self.padded && STANDARD.decode_vec(groups, &mut self.bytes).is_ok() {
            *self.padded = groups.ends_with(b"=");
            return;
        }
        self.bytes.truncate(before);
        for group in groups.chunks(4) {
            let before = self.bytes.len();
            if *self.padded || STANDARD.decode_vec(group, &mut self.bytes).is_err() {
                self.bytes.truncate(before);
                *self.bad = true;
                return;
            }
            *self.padded = group.ends_with(b"=");
        }
    }
}

impl Sink for Plain<'_> {
    fn wants_text(&self) -> bool {
        true
    }

    fn begin_text(&mut self, _node: NodeId) {}

    fn text(&mut self, _node: NodeId, mut encoded: &[u8]) {
        while !self.group.is_empty() && self.group.len() < 4 {
            let Some((byte, rest)) = encoded.split_first() else { return };
            self.group.push(*byte);
            encoded = rest;
        }
        let group = std::mem::take(self.group);
        let whole = encoded.len() - encoded.len() % 4;
        self.undo(&group);
        self.undo(&encoded[..whole]);
        self.group.extend_from_slice(&encoded[whole..]);
    }

    fn string(&mut self, _node: NodeId, _value: Option<&[u8]>) {}
    fn scalar(&mut self, _node: NodeId, _raw: Option<&[u8]>) {}
    fn container(&mut self, _node: NodeId, _empty: bool) {}
    fn mark(&mut self, _node: NodeId) {}
    fn replaced(&mut self, _node: NodeId) {
        *self.bad = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::pointer::Tree;
    use super::super::wanted::want;
    use super::*;

    /// What is undone, and whether that is all.
    fn unwrapped(payload: &str, length: usize) -> (Vec<u8>, bool) {
        let tree = Tree::new(&[(vec!["bytes".to_owned()], ())]).unwrap();
        let wanted = Wanted::new(tree, |()| want::TEXT);
        let mut unwrapper = Unwrapper::default();
        let (mut all, mut whole) = (Vec::new(), true);
        for piece in payload.as_bytes().chunks(length) {
            let (plain, sound) = unwrapper.feed(piece, &wanted);
            all.extend(plain);
            whole = sound;
        }
        (all, whole)
    }

    #[test]
    fn a_wrapped_document_is_unwrapped_however_it_comes() {
        for length in [1, 2, 3, 5, 100] {
            let plain = unwrapped(r#"{"p": "abc", "bytes": "eyJhIjogMX0=", "q": [1]}"#, length);
            assert_eq!(plain, (br#"{"a": 1}"#.to_vec(), true), "{length}");
            // Found by fuzzing: padding within, which whole groups don't see.
            let broken = [
                ("eyJhIjogMX0=eyJh", "{\"a\": 1}"),
                ("e%Jh", ""),
                ("=yJh", ""),
                ("eyJhIjog%MX0=eyJhIjog", "{\"a\": "),
            ];
            for (bad, before) in broken {
                let plain = unwrapped(&format!(r#"{{"bytes": "{bad}"}}"#), length);
                assert_eq!(plain, (before.as_bytes().to_vec(), false), "{bad} by {length}");
            }
        }
    }

    #[test]
    fn headers_of_every_kind_are_stepped_over() {
        let mut headers = Vec::new();
        for (kind, value) in [(0u8, 0usize), (1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (8, 8), (9, 16)] {
            headers.extend([1, b'x', kind]);
            headers.extend(vec![7; value]);
        }
        headers.extend(b"\x01y\x06\x00\x02ab\x01z\x07\x00\x03end");
        assert_eq!(string_header(&headers, b"z"), Some(&b"end"[..]));
        assert_eq!(string_header(&headers, b"y"), None);
        assert_eq!(string_header(&headers[..headers.len() - 1], b"z"), None);
    }
}
