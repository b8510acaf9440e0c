//! How a record lies on the disk.
//!
//! A frame, all integers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..4 | [`MARK`] |
//! | 4..8 | length of the payload |
//! | 8..16 | sequence number, rising: that of the record, or for what is no record that of the next one |
//! | 16 | kind: 1 usage, 2 audit, 3 amendment; no records: 4 intent, 5 mark |
//! | 17 | version of the payload |
//! | 18..20 | zero |
//! | 20..24 | CRC-32C of bytes 4..20 and the payload |
//! | 24.. | payload: MessagePack, records as maps with field names, an intent without names (`compact`), of a mark one number |
//!
//! 1. The mark is no valid UTF-8, and all text in a payload is: so no client can plant a frame inside a string for
//!    the search behind a damaged frame to find.
//! 2. Fields may be added to a payload's struct when they have a default; anything else raises the version, and the
//!    older version stays readable for one release. A stored frame of each version is a test below.
//! 3. A frame that is whole but of a kind or version not known here is never taken for damage, nor dropped.
//! 4. What is no record has no number of its own, so numbers count records. What it means is said in `intents`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::event::Record;
use crate::model::intent::Intent;

use super::compact;

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
const INTENT: u8 = 4;
const MARK_OF_INTENTS: u8 = 5;

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

/// What a frame holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Held {
    /// Something for the sink.
    Record(Record),
    /// An exchange was admitted.
    Intent(Box<Intent>),
    /// Whatever is in flight has its intent above, in this segment, in which there are this many of them.
    Mark(u64),
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
    match record {
        Record::Usage(event) => framed(USAGE, seq, out, |out| payload(event, out)),
        Record::Audit(event) => framed(AUDIT, seq, out, |out| payload(event, out)),
        Record::Amend(amendment) => framed(AMEND, seq, out, |out| payload(amendment, out)),
    }
}

/// The same for an intent; `next_seq` is the number of the next record.
pub fn encode_intent(intent: &Intent, next_seq: u64, out: &mut Vec<u8>) -> Result<usize, Unwritable> {
    framed(INTENT, next_seq, out, |out| compact::write(intent, out).map_err(Unwritable))
}

/// The same for an intent that was encoded before: its payload.
pub(super) fn encode_intent_again(
    encoded: &[u8],
    next_seq: u64,
    out: &mut Vec<u8>,
) -> Result<usize, Unwritable> {
    framed(INTENT, next_seq, out, |out| {
        out.extend_from_slice(encoded);
        Ok(())
    })
}

/// The same for a mark: see [`Held::Mark`].
pub fn encode_mark(intents: u64, next_seq: u64, out: &mut Vec<u8>) -> Result<usize, Unwritable> {
    framed(MARK_OF_INTENTS, next_seq, out, |out| payload(&intents, out))
}

fn framed(
    kind: u8,
    seq: u64,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Unwritable>,
) -> Result<usize, Unwritable> {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    let written = write(out);
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

    /// Whether it is something for the sink; unknown kinds count as that.
    pub fn is_record(&self) -> bool {
        !matches!(self.kind, INTENT | MARK_OF_INTENTS)
    }

    /// What it holds.
    pub fn read(&self) -> Result<Held, Unreadable> {
        match (self.kind, self.version) {
            (USAGE, VERSION) => read(self.payload).map(|event| Held::Record(Record::Usage(event))),
            (AUDIT, VERSION) => read(self.payload).map(|event| Held::Record(Record::Audit(event))),
            (AMEND, VERSION) => read(self.payload).map(|amendment| Held::Record(Record::Amend(amendment))),
            (INTENT, VERSION) => {
                compact::read(self.payload).map(|intent| Held::Intent(Box::new(intent))).map_err(Unreadable)
            }
            (MARK_OF_INTENTS, VERSION) => read(self.payload).map(Held::Mark),
            (kind, version) => Err(Unreadable(format!(
                "kind {kind} version {version} is not known to this release (it knows kinds 1 to 5, version {VERSION})"
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
mod tests;
