//! What can't go its way is set aside as JSON lines, never dropped silently: `damaged.jsonl` and `dead-letter.jsonl`.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::model::event::Record;

use super::disk::{DiskFile, read_full, write_all};

/// The file of frames that could not be read.
pub(super) const DAMAGED: &str = "damaged.jsonl";
/// The file of records that the sink can never write.
pub(super) const DEAD_LETTERS: &str = "dead-letter.jsonl";

/// The longest part of a damaged region that is kept. Longer ones stay in the log as a number only.
const MAX_KEPT_BYTES: usize = 4 << 20;

/// A file of JSON lines that is only ever added to.
#[derive(Debug)]
struct Lines {
    file: Arc<dyn DiskFile>,
    size: u64,
    max_bytes: u64,
}

impl Lines {
    /// Also gives the lines that are there. A last line that was cut short is overwritten.
    fn open(file: Arc<dyn DiskFile>, max_bytes: u64) -> io::Result<(Self, Vec<u8>)> {
        let size = usize::try_from(file.size()?).unwrap_or(usize::MAX);
        let mut text = vec![0; size];
        let there = read_full(&*file, 0, &mut text)?;
        text.truncate(there);
        text.truncate(memchr::memrchr(b'\n', &text).map_or(0, |end| end + 1));
        Ok((Self { file, size: text.len() as u64, max_bytes }, text))
    }

    fn add(&mut self, line: &Value) -> io::Result<()> {
        let mut text = line.to_string();
        text.push('\n');
        if self.size + text.len() as u64 > self.max_bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the file has reached its {} bytes", self.max_bytes),
            ));
        }
        write_all(&*self.file, self.size, text.as_bytes())?;
        self.file.sync()?;
        self.size += text.len() as u64;
        Ok(())
    }
}

/// Frames that are damaged, or that this release can't read, with their bytes.
#[derive(Debug)]
pub(super) struct Damaged {
    lines: Lines,
    /// Segment, offset and checksum of what is in the file: the same damage, met again, is not counted again.
    known: HashSet<(u64, u64, u32)>,
}

impl Damaged {
    pub(super) fn open(file: Arc<dyn DiskFile>, max_bytes: u64) -> io::Result<Self> {
        let (lines, text) = Lines::open(file, max_bytes)?;
        let entries =
            text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let key = |v: Value| {
            let checksum = u32::try_from(v["crc32c"].as_u64()?).ok()?;
            Some((v["segment"].as_u64()?, v["offset"].as_u64()?, checksum))
        };
        Ok(Self { lines, known: entries.filter_map(key).collect() })
    }

    /// Keeps the bytes; `false` when they were kept before. On error they are not kept, and the segment should stay.
    pub(super) fn keep(&mut self, segment: u64, offset: u64, bytes: &[u8], reason: &str) -> io::Result<bool> {
        let checksum = crc32c::crc32c(bytes);
        if self.known.contains(&(segment, offset, checksum)) {
            return Ok(false);
        }
        let kept = bytes.get(..MAX_KEPT_BYTES).unwrap_or(bytes);
        self.lines.add(&json!({
            "at": Timestamp::now().to_string(),
            "reason": reason,
            "segment": segment,
            "offset": offset,
            "length": bytes.len(),
            "crc32c": checksum,
            "bytes": STANDARD.encode(kept),
        }))?;
        self.known.insert((segment, offset, checksum));
        Ok(true)
    }
}

/// Records that the sink can never write. After a crash between keeping one and acknowledging its batch it can be in
/// the file twice: its `event_id` tells.
#[derive(Debug)]
pub(super) struct DeadLetters {
    lines: Lines,
    count: u64,
}

impl DeadLetters {
    pub(super) fn open(file: Arc<dyn DiskFile>, max_bytes: u64) -> io::Result<Self> {
        let (lines, text) = Lines::open(file, max_bytes)?;
        Ok(Self { lines, count: memchr::memchr_iter(b'\n', &text).count() as u64 })
    }

    /// How many are in the file.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Keeps a record, through to the disk.
    pub(super) fn keep(&mut self, record: &Record, reason: &str) -> io::Result<()> {
        self.lines.add(&json!({ "at": Timestamp::now().to_string(), "reason": reason, "record": record }))?;
        self.count += 1;
        Ok(())
    }
}
