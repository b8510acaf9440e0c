//! A segment file: a header, then frames. And how one is read that a crash or a bad disk went over.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::codec::{self, Frame, NoFrame};
use super::disk::{DiskFile, read_full};

/// The header of a segment: [`MAGIC`], layout version (u32), segment number (u64), CRC-32C of these.
pub(super) const HEADER_BYTES: usize = 24;

const MAGIC: [u8; 8] = *b"TGJOURNL";
const LAYOUT: u32 = 1;

/// Bytes read at once.
const CHUNK: usize = 256 * 1024;

/// The file name of a segment.
pub(super) fn name(number: u64) -> String {
    format!("{number:016}.seg")
}

/// The number in a segment's file name; `None` for other files.
pub(super) fn number(name: &str) -> Option<u64> {
    name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?.parse().ok()
}

/// The header that a new segment gets.
pub(super) fn header(number: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&LAYOUT.to_le_bytes());
    header[12..20].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The layout version of a header that is newer than this release knows; `None` when it is readable, or no header.
fn newer_layout(bytes: &[u8]) -> Option<u32> {
    let header = bytes.get(..HEADER_BYTES)?;
    let word = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let whole = header.starts_with(&MAGIC) && word(20) == Some(crc32c::crc32c(&header[..20]));
    word(8).filter(|layout| whole && *layout > LAYOUT)
}

/// What a reader came to.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// A frame, and the offset at which it begins.
    Frame(u64, Frame<'a>),
    /// Bytes that are no frame.
    Damage(Damage<'a>),
    /// The end of what there is (so far).
    End,
}

/// Bytes of a segment that are no frame.
#[derive(Debug)]
pub(super) struct Damage<'a> {
    /// Where they begin.
    pub offset: u64,
    /// The bytes themselves.
    pub bytes: &'a [u8],
    /// Whether they are the beginning of a frame whose rest was never written, with nothing behind it.
    pub torn: bool,
}

/// The segment was written by a newer release; its layout version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewerLayout(pub u32);

/// Reads a segment from its beginning, past whatever is damaged.
#[derive(Debug)]
pub(super) struct SegmentReader {
    file: Arc<dyn DiskFile>,
    /// Where `buffer` begins in the file.
    offset: u64,
    buffer: Vec<u8>,
    /// What of `buffer` was given out.
    used: usize,
}

enum Found {
    Frame,
    Damage(Range<usize>, bool),
    End,
}

impl SegmentReader {
    /// A reader at the first frame, or the reason why this release should leave the segment alone.
    pub(super) fn new(file: Arc<dyn DiskFile>) -> io::Result<Result<Self, NewerLayout>> {
        let mut bytes = [0; HEADER_BYTES];
        let there = read_full(&*file, 0, &mut bytes)?;
        if let Some(layout) = newer_layout(&bytes[..there]) {
            return Ok(Err(NewerLayout(layout)));
        }
        // A damaged header is no loss: frames are found by their own marks.
        let intact = there == HEADER_BYTES && bytes.starts_with(&MAGIC);
        let offset = if intact || there < HEADER_BYTES { there as u64 } else { 0 };
        Ok(Ok(Self { file, offset, buffer: Vec::new(), used: 0 }))
    }

    /// The next thing before the offset `limit`, which is as far as the writer got.
    pub(super) fn next(&mut self, limit: u64) -> io::Result<Step<'_>> {
        let found = self.look(limit)?;
        let start = self.used;
        let at = self.offset + start as u64;
        Ok(match found {
            Found::End => Step::End,
            Found::Damage(range, torn) => {
                self.used = range.end;
                Step::Damage(Damage { offset: at, bytes: &self.buffer[range], torn })
            }
            Found::Frame => match codec::decode(&self.buffer[start..]) {
                Ok(frame) => {
                    self.used = start + frame.size();
                    Step::Frame(at, frame)
                }
                Err(_) => Step::End,
            },
        })
    }

    /// Goes back to the frame at `offset`, which was the last that [`SegmentReader::next`] gave.
    pub(super) fn rewind(&mut self, offset: u64) {
        self.used = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(self.used).min(self.used);
    }

    fn look(&mut self, limit: u64) -> io::Result<Found> {
        let torn = loop {
            match codec::decode(&self.buffer[self.used..]) {
                Ok(_) => return Ok(Found::Frame),
                Err(NoFrame::Incomplete(needed)) => {
                    if !self.fill(needed, limit)? {
                        if self.used == self.buffer.len() {
                            return Ok(Found::End);
                        }
                        break true;
                    }
                }
                Err(NoFrame::Damaged) => break false,
            }
        };
        // Rare: so the rest of the segment may be in memory for it.
        while self.fill(usize::MAX, limit)? {}
        Ok(match codec::find(&self.buffer, self.used + 1) {
            Some(next) => Found::Damage(self.used..next, false),
            None => Found::Damage(self.used..self.buffer.len(), torn),
        })
    }

    /// Reads on towards having `needed` bytes; `false` when there are no more before `limit`.
    fn fill(&mut self, needed: usize, limit: u64) -> io::Result<bool> {
        self.buffer.drain(..self.used);
        self.offset += self.used as u64;
        self.used = 0;
        let have = self.buffer.len();
        let left = limit.saturating_sub(self.offset + have as u64);
        let wanted = needed
            .saturating_sub(have)
            .clamp(CHUNK, 8 * CHUNK)
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        self.buffer.resize(have + wanted, 0);
        match read_full(&*self.file, self.offset + have as u64, &mut self.buffer[have..]) {
            Ok(read) => {
                self.buffer.truncate(have + read);
                Ok(read > 0)
            }
            Err(e) => {
                self.buffer.truncate(have);
                Err(e)
            }
        }
    }
}
