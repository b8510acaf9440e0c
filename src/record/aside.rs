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

/// What is read at once of what is there.
const BLOCK_BYTES: usize = 64 << 10;

/// The longest line that is looked into: one with a region kept whole, in base64, and what is said of it.
const MAX_LINE_BYTES: usize = MAX_KEPT_BYTES / 3 * 4 + (64 << 10);

/// Adds a part to a line; what is beyond the longest line is left out.
fn keep(line: &mut Vec<u8>, part: &[u8]) {
    let room = MAX_LINE_BYTES.saturating_sub(line.len()).min(part.len());
    line.extend_from_slice(part.get(..room).unwrap_or_default());
}

/// A file of JSON lines that is only ever added to.
#[derive(Debug)]
struct Lines {
    file: Arc<dyn DiskFile>,
    size: u64,
    max_bytes: u64,
}

impl Lines {
    /// Calls `each` with every line that is there, one after the other. A last line that was cut short is overwritten.
    fn open(file: Arc<dyn DiskFile>, max_bytes: u64, mut each: impl FnMut(&[u8])) -> io::Result<Self> {
        let mut block = vec![0; BLOCK_BYTES];
        let (mut at, mut size) = (0, 0);
        let mut begun = Vec::new();
        loop {
            let read = read_full(&*file, at, &mut block)?;
            let Some(mut rest) = block.get(..read).filter(|read| !read.is_empty()) else { break };
            while let Some(end) = memchr::memchr(b'\n', rest) {
                let (line, after) = rest.split_at(end);
                size = at + (read - after.len()) as u64 + 1;
                keep(&mut begun, line);
                each(&begun);
                begun.clear();
                rest = after.get(1..).unwrap_or_default();
            }
            keep(&mut begun, rest);
            at += read as u64;
        }
        Ok(Self { file, size, max_bytes })
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

/// What tells damage that was kept from other damage.
#[derive(serde::Deserialize)]
struct Place {
    segment: u64,
    offset: u64,
    crc32c: u32,
}

impl Damaged {
    pub(super) fn open(file: Arc<dyn DiskFile>, max_bytes: u64) -> io::Result<Self> {
        let mut known = HashSet::new();
        let lines = Lines::open(file, max_bytes, |line| {
            if let Ok(Place { segment, offset, crc32c }) = serde_json::from_slice(line) {
                known.insert((segment, offset, crc32c));
            }
        })?;
        Ok(Self { lines, known })
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
        let mut count = 0;
        let lines = Lines::open(file, max_bytes, |_| count += 1)?;
        Ok(Self { lines, count })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::disk::{Disk, RealDisk};

    /// A file that notes the most that was asked of it at once.
    #[derive(Debug)]
    struct Measured(Arc<dyn DiskFile>, std::sync::Mutex<usize>);

    impl DiskFile for Measured {
        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
            self.0.write_at(offset, bytes)
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
            let mut most = self.1.lock().unwrap();
            *most = buffer.len().max(*most);
            self.0.read_at(offset, buffer)
        }

        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }

        fn truncate(&self, size: u64) -> io::Result<()> {
            self.0.truncate(size)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }

        fn lock(&self) -> io::Result<bool> {
            self.0.lock()
        }

        fn unlock(&self) {
            self.0.unlock();
        }

        fn linked(&self) -> io::Result<bool> {
            self.0.linked()
        }
    }

    #[test]
    fn what_was_set_aside_is_read_in_blocks_and_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DAMAGED);
        let open = || RealDisk.open(&path).unwrap();
        let regions = [vec![1; 3 << 20], vec![2; 10], vec![3; 100_000]];
        let mut damaged = Damaged::open(open(), u64::MAX).unwrap();
        for (at, bytes) in regions.iter().enumerate() {
            assert!(damaged.keep(7, at as u64, bytes, "a test").unwrap());
        }
        let whole = open().size().unwrap();
        // What a crash cut short, and a line that nobody reads.
        write_all(&*open(), whole, b"{\"segment\": 7, \"off").unwrap();
        let file = Arc::new(Measured(open(), std::sync::Mutex::new(0)));
        let mut damaged = Damaged::open(file.clone(), u64::MAX).unwrap();
        assert!(*file.1.lock().unwrap() <= BLOCK_BYTES);
        for (at, bytes) in regions.iter().enumerate() {
            assert!(!damaged.keep(7, at as u64, bytes, "a test").unwrap(), "it is known");
        }
        assert_eq!(damaged.lines.size, whole);
        write_all(&*open(), whole, &vec![b'x'; MAX_LINE_BYTES * 2]).unwrap();
        write_all(&*open(), whole + 2 * MAX_LINE_BYTES as u64, b"\n").unwrap();
        assert_eq!(DeadLetters::open(open(), u64::MAX).unwrap().count(), 4);
    }
}
