//! How a record lies on the disk.
//!
//! A frame, all integers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..4 | [`MARK`] |
//! | 4..8 | length of the payload |
//! | 8..16 | sequence number, rising |
//! | 16 | kind: 1 usage, 2 audit, 3 amendment |
//! | 17 | version of the payload |
//! | 18..20 | zero |
//! | 20..24 | CRC-32C of bytes 4..20 and the payload |
//! | 24.. | payload: MessagePack, structs as maps with field names |
//!
//! 1. The mark is no valid UTF-8, and all text in a payload is: so no client can plant a frame inside a string for
//!    the search behind a damaged frame to find.
//! 2. Fields may be added to a payload's struct when they have a default; anything else raises the version, and the
//!    older version stays readable for one release. A stored frame of each version is a test below.
//! 3. A frame that is whole but of a kind or version not known here is never taken for damage, nor dropped.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::event::Record;

/// The first bytes of a frame.
pub const MARK: [u8; 4] = [0xff, 0xfe, b'T', b'J'];

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 24;

/// The largest payload. A record is some hundred bytes; one that comes near this is a mistake.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// The version that is written.
const VERSION: u8 = 1;

const USAGE: u8 = 1;
const AUDIT: u8 = 2;
const AMEND: u8 = 3;

/// A record as it lies on the disk, its checksum found right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its place in the journal's order.
    pub seq: u64,
    /// What the payload is.
    pub kind: u8,
    /// How the payload is written.
    pub version: u8,
    /// The encoded record.
    pub payload: &'a [u8],
}

/// The bytes do not begin with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFrame {
    /// They end before the frame does; this many bytes are needed, as far as can be told.
    #[error("the frame needs {0} bytes")]
    Incomplete(usize),
    /// They are something else, or were changed.
    #[error("not a frame, or damaged")]
    Damaged,
}

/// A whole frame that this release can't read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

/// A record that can't be framed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unwritable(String);

/// Reads the frame at the beginning of `bytes`. Pure, total, and it allocates nothing.
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>, NoFrame> {
    if !bytes.starts_with(&MARK) {
        return Err(if MARK.starts_with(bytes) {
            NoFrame::Incomplete(HEADER_BYTES)
        } else {
            NoFrame::Damaged
        });
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(NoFrame::Incomplete(HEADER_BYTES));
    };
    let length = u32_at(header, 4) as usize;
    if length > MAX_PAYLOAD_BYTES {
        return Err(NoFrame::Damaged);
    }
    let Some(payload) = rest.get(..length) else {
        return Err(NoFrame::Incomplete(HEADER_BYTES + length));
    };
    let (fields, checksum) = (&header[4..20], u32_at(header, 20));
    if crc32c::crc32c_append(crc32c::crc32c(fields), payload) != checksum {
        return Err(NoFrame::Damaged);
    }
    let mut seq = [0; 8];
    seq.copy_from_slice(&header[8..16]);
    Ok(Frame { seq: u64::from_le_bytes(seq), kind: header[16], version: header[17], payload })
}

/// The next place at or behind `from` where a frame begins.
pub fn find(bytes: &[u8], from: usize) -> Option<usize> {
    let searched = bytes.get(from..)?;
    memchr::memmem::find_iter(searched, &MARK).map(|at| from + at).find(|at| decode(&bytes[*at..]).is_ok())
}

/// Appends a record's frame to `out` and returns its length; `out` is as it was on error.
pub fn encode(record: &Record, seq: u64, out: &mut Vec<u8>) -> Result<usize, Unwritable> {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    let (kind, written) = match record {
        Record::Usage(event) => (USAGE, payload(event, out)),
        Record::Audit(event) => (AUDIT, payload(event, out)),
        Record::Amend(amendment) => (AMEND, payload(amendment, out)),
    };
    let length = out.len() - start - HEADER_BYTES;
    let framed = written.and_then(|()| match u32::try_from(length) {
        Ok(short) if length <= MAX_PAYLOAD_BYTES => Ok(short),
        _ => Err(Unwritable(format!(
            "a record of {length} bytes is over the {MAX_PAYLOAD_BYTES} of the journal"
        ))),
    });
    match framed {
        Ok(short) => {
            seal(&mut out[start..], short, seq, kind, VERSION);
            Ok(HEADER_BYTES + length)
        }
        Err(e) => {
            out.truncate(start);
            Err(e)
        }
    }
}

impl Frame<'_> {
    /// Bytes of the whole frame.
    pub fn size(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Appends the frame as it lay on the disk.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        out.extend_from_slice(self.payload);
        // It was read from a frame, so its length fits.
        seal(&mut out[start..], self.payload.len() as u32, self.seq, self.kind, self.version);
    }

    /// The record in it.
    pub fn record(&self) -> Result<Record, Unreadable> {
        match (self.kind, self.version) {
            (USAGE, VERSION) => read(self.payload).map(Record::Usage),
            (AUDIT, VERSION) => read(self.payload).map(Record::Audit),
            (AMEND, VERSION) => read(self.payload).map(Record::Amend),
            (kind, version) => Err(Unreadable(format!(
                "kind {kind} version {version} is not known to this release (it knows kinds 1 to 3, version {VERSION})"
            ))),
        }
    }
}

/// Fills in the header of a frame whose payload is there.
fn seal(frame: &mut [u8], length: u32, seq: u64, kind: u8, version: u8) {
    let (header, payload) = frame.split_at_mut(HEADER_BYTES);
    header[..4].copy_from_slice(&MARK);
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&seq.to_le_bytes());
    header[16] = kind;
    header[17] = version;
    header[18..20].fill(0);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[4..20]), payload);
    header[20..24].copy_from_slice(&checksum.to_le_bytes());
}

fn payload<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    rmp_serde::encode::write_named(out, value).map_err(|e| Unwritable(e.to_string()))
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Unreadable> {
    rmp_serde::from_slice(payload).map_err(|e| Unreadable(e.to_string()))
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    /// An event as the API of version 1 knew it: what it is read as must not change with the release.
    fn record(kind: &str) -> Record {
        let charge = json!({
            "dimension": "tokens_per_day", "window_start": 1_800_000_000_000_000_u64,
            "window_end": 1_800_086_400_000_000_u64, "amount": -5, "limit": 10_000
        });
        let usage = json!({ "input": 120, "cached_input": 20, "cache_write_input": null, "output": 380, "reasoning": null, "total": null });
        let id = "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f";
        let value = match kind {
            "usage" => json!({
                "kind": "usage", "event_id": id, "tenant_id": "tn_ab12cd", "event_type": "chat_message",
                "at": 1_800_000_001_000_001_u64, "method": "POST", "endpoint": "/api/widget/chat", "status": 200,
                "response_time_us": 830_000, "first_byte_us": 210_000, "chat_session_id": "s-1", "usage": usage,
                "tokens_consumed": 500, "token_source": "reported", "messages": 1, "embeddings": 0,
                "model": "gpt-4o-mini", "outcome": "completed", "streamed": true, "cost_nanousd": 246_000,
                "request_id": "r-1", "metadata": { "flag": "x", "n": 1.5 }, "charges": [charge]
            }),
            "audit" => json!({
                "kind": "audit", "event_id": id, "tenant_id": null, "event_type": "security_violation",
                "category": "security", "entity_type": "request", "entity_id": null, "action": "execute",
                "actor": "visitor", "actor_id": null, "old_values": null, "new_values": { "a": [1, "ü", true] },
                "summary": null, "result": "failure", "error_message": "no", "ip_address": "2001:db8::7",
                "user_agent": "curl", "request_id": "r-1", "at": 1_800_000_001_000_001_u64
            }),
            _ => json!({
                "kind": "amend", "event_id": id, "tenant_id": "tn_ab12cd", "at": 1_800_000_001_000_001_u64,
                "usage": usage, "tokens_consumed": 7, "token_source": "counted", "cost_nanousd": 1, "charges": [charge]
            }),
        };
        serde_json::from_value(value).unwrap()
    }

    fn frame_of(record: &Record, seq: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(record, seq, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        for kind in ["usage", "audit", "amend"] {
            let bytes = frame_of(&record(kind), 42);
            let frame = decode(&bytes).unwrap();
            assert_eq!((frame.seq, frame.size(), frame.version), (42, bytes.len(), VERSION));
            assert_eq!(frame.record().unwrap(), record(kind));
            let mut again = Vec::new();
            frame.write_to(&mut again);
            assert_eq!(again, bytes);
        }
    }

    /// Frames as version 1 wrote them. When this fails, journals of the last release can't be read: give the new
    /// fields defaults, or raise the version and keep a reader for the old one. Never change the stored frames.
    #[test]
    fn frames_that_an_earlier_release_wrote_are_read() {
        let stored: Vec<_> =
            include_str!("frames-v1.txt").lines().filter_map(|line| line.split_once(' ')).collect();
        assert_eq!(stored.len(), 3);
        for (kind, stored) in stored {
            let bytes = STANDARD.decode(stored).unwrap();
            assert_eq!(decode(&bytes).unwrap().record().unwrap(), record(kind), "{kind}");
        }
    }

    #[test]
    fn any_changed_byte_and_any_missing_end_is_noticed() {
        let whole = frame_of(&record("usage"), 7);
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert!(decode(&changed).is_err(), "byte {at}");
            assert!(matches!(decode(&whole[..at]), Err(NoFrame::Incomplete(_))), "cut at {at}");
        }
    }

    #[test]
    fn the_search_finds_the_next_frame_and_is_not_fooled_by_text() {
        let mut bytes = frame_of(&record("usage"), 1);
        let second = bytes.len();
        bytes.extend(frame_of(&record("audit"), 2));
        assert_eq!(find(&bytes, 1), Some(second));
        assert_eq!(find(&bytes, second + 1), None);
        assert!(
            MARK.contains(&0xff),
            "a byte that UTF-8 never has (RFC 3629, section 1), so no text can hold the mark"
        );
    }

    #[test]
    fn what_is_too_large_leaves_the_buffer_as_it_was() {
        let Record::Audit(mut event) = record("audit") else { unreachable!() };
        event.user_agent = Some("x".repeat(MAX_PAYLOAD_BYTES));
        let mut bytes = vec![1, 2, 3];
        assert!(encode(&Record::Audit(event), 1, &mut bytes).is_err());
        assert_eq!(bytes, [1, 2, 3]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let mut framed = MARK.to_vec();
            framed.extend(&bytes);
            for bytes in [&bytes, &framed] {
                let _ = decode(bytes);
                let _ = find(bytes, 0);
                for kind in 0..5 {
                    let _ = Frame { seq: 1, kind, version: VERSION, payload: bytes }.record();
                }
            }
        }
    }
}
