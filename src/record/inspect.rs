//! Looking at a journal without touching it, while its process runs or after it died.

use std::io;
use std::path::Path;

use crate::model::event::Record;

use super::disk::{Disk, RealDisk};
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
    /// Bytes that are no record to this release, and why.
    Unreadable(String),
}

/// Calls `each` with all that lies in the journal in `dir`, in order, until it says `false`. Takes no lock and changes
/// nothing; of a journal that is being written, the newest record can look cut short.
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
                    let reason = if damage.torn { "cut short" } else { "damaged" };
                    (damage.offset, damage.bytes.len(), Content::Unreadable(reason.into()))
                }
                Step::Frame(offset, frame) => {
                    let (seq, acknowledged) = (frame.seq, frame.seq <= acked);
                    let what = match frame.record() {
                        Ok(record) => Content::Record { seq, acknowledged, record },
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
