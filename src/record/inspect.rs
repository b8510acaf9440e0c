//! Looking at a journal without touching it, while its process runs or after it died.

use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;

use crate::model::event::Record;
use crate::model::intent::Intent;

use super::aside::{DAMAGED, DEAD_LETTERS};
use super::codec::Held;
use super::disk::{Disk, RealDisk};
use super::intents::Unclosed;
use super::journal::{POSITION, segment_numbers};
use super::position;
use super::segment::{self, SegmentReader, Step};

/// Something that lies in a journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspected {
    /// The segment's file name.
    pub segment: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Bytes that it takes.
    pub length: u64,
    /// What it is.
    pub what: Content,
}

/// What lies at a place of a journal.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A record.
    Record {
        /// Its sequence number.
        seq: u64,
        /// Whether the sink has acknowledged it.
        acknowledged: bool,
        /// The record.
        record: Record,
    },
    /// An exchange was admitted.
    Intent(Box<Intent>),
    /// Whatever is in flight has its intent above, in this segment, in which there are this many of them.
    Mark(u64),
    /// Bytes that are the beginning of a record with nothing behind it.
    Torn,
    /// Bytes that are no record to this release, and why.
    Unreadable(String),
}

/// Calls `each` with all that lies in the journal in `dir`, in order, until it says `false`. Takes no lock and changes
/// nothing; of a journal that is being written, the newest record can look torn.
pub fn inspect(dir: &Path, each: &mut dyn FnMut(Inspected) -> bool) -> io::Result<()> {
    let disk = RealDisk;
    let acked = match disk.read(&dir.join(POSITION)) {
        Ok(file) => position::peek(&*file)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    for number in segment_numbers(&disk, dir)? {
        let name = segment::name(number);
        let file = match disk.read(&dir.join(&name)) {
            Ok(file) => file,
            // It was acknowledged just now.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let size = file.size()?;
        let mut found =
            |offset, length, what| each(Inspected { segment: name.clone(), offset, length, what });
        let mut reader = match SegmentReader::new(file)? {
            Ok(reader) => reader,
            Err(segment::NewerLayout(layout)) => {
                if !found(
                    0,
                    size,
                    Content::Unreadable(format!("segment layout {layout} is newer than this release")),
                ) {
                    return Ok(());
                }
                continue;
            }
        };
        loop {
            let (offset, length, what) = match reader.next(size)? {
                Step::End => break,
                Step::Damage(damage) => {
                    let what =
                        if damage.torn { Content::Torn } else { Content::Unreadable("damaged".into()) };
                    (damage.offset, damage.bytes.len(), what)
                }
                Step::Frame(offset, frame) => {
                    let (seq, acknowledged) = (frame.seq, frame.seq <= acked);
                    let what = match frame.read() {
                        Ok(Held::Record(record)) => Content::Record { seq, acknowledged, record },
                        Ok(Held::Intent(intent)) => Content::Intent(intent),
                        Ok(Held::Mark(intents)) => Content::Mark(intents),
                        Err(why) => Content::Unreadable(why.to_string()),
                    };
                    (offset, frame.size(), what)
                }
            };
            if !found(offset, length as u64, what) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// How a journal is, as far as its files tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segment files, and their bytes.
    pub segments: Files,
    /// Records that the sink has not acknowledged, and their bytes.
    pub unacknowledged: Files,
    /// When the oldest of them happened.
    pub oldest: Option<Timestamp>,
    /// Exchanges in flight; of a journal whose process died: to be charged at the next start.
    pub open_intents: u64,
    /// Since when the oldest of them is in flight.
    pub oldest_intent: Option<Timestamp>,
    /// Regions of the segments that are no record to this release, and their bytes.
    pub damaged: Files,
    /// Bytes at the end that are the beginning of a record.
    pub torn_bytes: u64,
    /// What was set aside as damaged, up to now, and the bytes of it.
    pub set_aside: Files,
    /// Records that the sink can never write.
    pub dead_letters: u64,
}

/// How many, and how many bytes they have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Files {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// Sums up the journal in `dir`. Reads all of it, in little memory; takes no lock and changes nothing.
pub fn summary(dir: &Path) -> io::Result<Summary> {
    let mut summary = Summary::default();
    let mut unclosed = Unclosed::default();
    let mut segment = String::new();
    inspect(dir, &mut |found| {
        if found.segment != segment {
            unclosed.segment();
            segment.clone_from(&found.segment);
        }
        // Only at the end of the newest one it may be a write in progress.
        let torn = std::mem::take(&mut summary.torn_bytes);
        if torn > 0 {
            summary.damaged.add(torn);
        }
        match found.what {
            Content::Record { acknowledged, record, .. } => {
                if let Record::Usage(event) = &record {
                    unclosed.event(event.event_id);
                }
                if !acknowledged {
                    summary.unacknowledged.add(found.length);
                    let at = super::log::at(&record);
                    summary.oldest = Some(summary.oldest.map_or(at, |oldest| oldest.min(at)));
                }
            }
            Content::Intent(intent) => unclosed.intent(intent.event_id, intent.at),
            Content::Mark(intents) => unclosed.mark(intents),
            Content::Torn => summary.torn_bytes = found.length,
            Content::Unreadable(_) => summary.damaged.add(found.length),
        }
        true
    })?;
    summary.open_intents = unclosed.len() as u64;
    summary.oldest_intent = unclosed.into_open().into_iter().min();
    for number in segment_numbers(&RealDisk, dir)? {
        match std::fs::metadata(dir.join(segment::name(number))) {
            Ok(file) => summary.segments.add(file.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    lines(&dir.join(DEAD_LETTERS), |_| summary.dead_letters += 1)?;
    lines(&dir.join(DAMAGED), |line| {
        let length = serde_json::from_slice::<Value>(line).ok().and_then(|line| line["length"].as_u64());
        summary.set_aside.add(length.unwrap_or(0));
    })?;
    Ok(summary)
}

/// Calls `each` with every whole line of a file, if there is one.
fn lines(path: &Path, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        if line.ends_with(b"\n") {
            each(&line);
        }
        line.clear();
    }
    Ok(())
}
