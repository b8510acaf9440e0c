//! The way out of the journal: batches behind the writer, from memory when the sink keeps up, else from the segments;
//! and their acknowledgement.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::model::event::Record;

use super::aside::{Damaged, DeadLetters};
use super::codec::Held;
use super::log::{Entry, Next, Segment};
use super::parts::{Parts, reap};
use super::position::Position;
use super::recorder::lock;
use super::segment::{NewerLayout, SegmentReader, Step};

/// Bytes of payload in a batch read from disk.
const BATCH_BYTES: usize = 4 << 20;
/// How often one segment may fail to be read before it is passed over (and kept).
const READ_TRIES: u32 = 5;

/// Some records, in order, that are the shipper's to deliver.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What the sink gets.
    pub records: Vec<Record>,
    /// For each: sequence number, bytes as encoded, on disk.
    marks: Vec<(u64, usize, bool)>,
    /// Everything up to here is done when the batch is.
    pub last_seq: u64,
}

impl Batch {
    fn push(&mut self, entry: Entry) {
        self.last_seq = self.last_seq.max(entry.seq);
        self.marks.push((entry.seq, entry.bytes, entry.on_disk));
        self.records.push(entry.record);
    }

    fn into_entries(self) -> Vec<Entry> {
        let entry = |(record, (seq, bytes, on_disk))| Entry { seq, bytes, on_disk, record };
        self.records.into_iter().zip(self.marks).map(entry).collect()
    }
}

/// Where the reading of segments stands.
#[derive(Debug, Default)]
struct Cursor {
    reader: Option<(u64, SegmentReader)>,
    /// What was read last is this; if the log's `taken` is another, the place must be found again.
    at_seq: u64,
    /// The segment that can't be read, and how often that was tried.
    failing: Option<(u64, u32)>,
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Outlet {
    pub parts: Arc<Parts>,
    cursor: Mutex<Cursor>,
    position: Mutex<Position>,
    damaged: Mutex<Damaged>,
    dead_letters: Mutex<DeadLetters>,
}

impl Outlet {
    pub(super) fn new(
        parts: Arc<Parts>,
        position: Position,
        damaged: Damaged,
        dead_letters: DeadLetters,
    ) -> Self {
        parts.log.dead_letters.store(dead_letters.count(), Ordering::Relaxed);
        Self {
            parts,
            cursor: Mutex::default(),
            position: Mutex::new(position),
            damaged: Mutex::new(damaged),
            dead_letters: Mutex::new(dead_letters),
        }
    }

    /// The next records from memory, at once; `None` when they must be read from disk: see [`Outlet::read`].
    pub(super) fn take(&self, most: usize) -> Option<Batch> {
        match self.parts.log.with(|state| state.take(most)) {
            Next::Nothing => Some(Batch::default()),
            Next::Taken(entries) => {
                let mut batch = Batch::default();
                entries.into_iter().for_each(|entry| batch.push(entry));
                Some(batch)
            }
            Next::OnDisk { .. } => None,
        }
    }

    /// The next records from disk (or memory, if they are there by now). Blocks on the disk. Empty only when there
    /// are none; an error is worth another try.
    pub(super) fn read(&self, most: usize) -> io::Result<Batch> {
        let mut cursor = lock(&self.cursor);
        loop {
            let (next, taken) = self.parts.log.with(|state| (state.take(most), state.taken));
            let until = match next {
                Next::Nothing => return Ok(Batch::default()),
                Next::Taken(entries) => {
                    let mut batch = Batch::default();
                    entries.into_iter().for_each(|entry| batch.push(entry));
                    return Ok(batch);
                }
                Next::OnDisk { until } => until,
            };
            let batch = self.read_segments(&mut cursor, taken, until, most)?;
            // Nothing found means that nothing is there: shed, damaged, or deleted.
            let read_to = if batch.records.is_empty() { until - 1 } else { batch.last_seq };
            self.parts.log.with(|state| state.took_from_disk(read_to));
            cursor.at_seq = read_to;
            if !batch.records.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn read_segments(&self, cursor: &mut Cursor, taken: u64, until: u64, most: usize) -> io::Result<Batch> {
        if cursor.at_seq != taken {
            cursor.reader = None;
        }
        let mut batch = Batch::default();
        let mut bytes = 0;
        let mut after = cursor.reader.as_ref().map_or(0, |(number, _)| *number);
        // Segments that end before what is wanted are passed over, but for the one that is being read.
        while let Some(segment) = self.segment_from(after, taken) {
            after = segment.number;
            let going_on = cursor.reader.as_ref().is_some_and(|(number, _)| *number == segment.number);
            if !going_on {
                cursor.reader = self.open(cursor, &segment)?.map(|reader| (segment.number, reader));
            }
            let Some((_, reader)) = &mut cursor.reader else {
                after += 1;
                continue;
            };
            let skip = if going_on { 0 } else { taken };
            let mut damage: Option<(u64, Vec<u8>, &str)> = None;
            loop {
                let step = reader.next(segment.bytes);
                let passed = matches!(&step, Ok(Step::Frame(_, frame)) if frame.seq <= skip.saturating_add(1) && skip > 0);
                // Damage among what was taken before is none of ours.
                if let Some((offset, bytes, reason)) = damage.take().filter(|_| !passed) {
                    self.keep(&segment, offset, &bytes, reason, 1);
                }
                match step {
                    Err(e) => {
                        cursor.reader = None;
                        self.unreadable(cursor, &segment, &e);
                        return if batch.records.is_empty() { Err(e) } else { Ok(batch) };
                    }
                    Ok(Step::End) => break,
                    Ok(Step::Damage(found)) => {
                        let reason = if found.torn { "cut short" } else { "damaged" };
                        damage = Some((found.offset, found.bytes.to_vec(), reason));
                    }
                    Ok(Step::Frame(_, frame)) if frame.seq <= skip => {}
                    Ok(Step::Frame(_, frame)) if !frame.is_record() => {}
                    Ok(Step::Frame(offset, frame)) if frame.seq >= until => {
                        // It is in memory, but by the time that it is wanted it may not be.
                        reader.rewind(offset);
                        return Ok(batch);
                    }
                    Ok(Step::Frame(offset, frame)) => match frame.read() {
                        Ok(Held::Intent(_) | Held::Mark(_)) => {}
                        Ok(Held::Record(record)) => {
                            bytes += frame.size();
                            batch.push(Entry { seq: frame.seq, bytes: frame.size(), on_disk: true, record });
                            if batch.records.len() >= most || bytes >= BATCH_BYTES {
                                return Ok(batch);
                            }
                        }
                        Err(why) => {
                            let raw = raw(&frame);
                            self.keep(&segment, offset, &raw, &why.to_string(), 1);
                        }
                    },
                }
            }
            if self
                .parts
                .log
                .with(|state| state.segments.back().is_some_and(|last| last.number == segment.number))
            {
                return Ok(batch);
            }
            cursor.reader = None;
            after += 1;
        }
        Ok(batch)
    }

    /// The first segment numbered `from` or higher that has something after `taken`, or is `from` itself.
    fn segment_from(&self, from: u64, taken: u64) -> Option<Segment> {
        let wanted =
            |s: &&Segment| s.number >= from && (s.last_seq > taken || (from > 0 && s.number == from));
        self.parts.log.with(|state| state.segments.iter().find(wanted).cloned())
    }

    fn open(&self, cursor: &mut Cursor, segment: &Segment) -> io::Result<Option<SegmentReader>> {
        match self.parts.disk.read(&segment.path).and_then(SegmentReader::new) {
            Ok(Ok(reader)) => Ok(Some(reader)),
            Ok(Err(NewerLayout(_))) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tracing::error!(segment = %segment.path.display(), "a segment of the journal was deleted before it was shipped");
                self.parts.log.with(|state| state.forget(segment.number));
                Ok(None)
            }
            Err(e) => {
                if self.unreadable(cursor, segment, &e) {
                    Ok(None)
                } else {
                    Err(e)
                }
            }
        }
    }

    /// Counts a failed read; `true` when the segment has had its tries, and is passed over and kept.
    fn unreadable(&self, cursor: &mut Cursor, segment: &Segment, error: &io::Error) -> bool {
        let tries = match cursor.failing {
            Some((number, tries)) if number == segment.number => tries + 1,
            _ => 1,
        };
        cursor.failing = Some((segment.number, tries));
        let give_up = tries >= READ_TRIES;
        if give_up {
            tracing::error!(segment = %segment.path.display(), %error, "a segment of the journal can't be read; it is kept and passed over");
            self.parts.metrics.events_damaged.inc();
            self.parts.log.damaged.fetch_add(1, Ordering::Relaxed);
            self.parts.log.with(|state| {
                if let Some(listed) = state.segments.iter_mut().find(|s| s.number == segment.number) {
                    // With no numbers left in it, it is not looked at again in this run.
                    (listed.keep, listed.last_seq) = (true, 0);
                }
            });
        }
        give_up
    }

    /// Sets bytes aside that are no record to this release, and counts them as `records`, once.
    pub(super) fn keep(&self, segment: &Segment, offset: u64, bytes: &[u8], reason: &str, records: u64) {
        let kept = lock(&self.damaged).keep(segment.number, offset, bytes, reason);
        let segment_path = segment.path.display();
        match kept {
            Ok(false) => {}
            Ok(true) => {
                self.count_damaged(records);
                tracing::error!(segment = %segment_path, offset, length = bytes.len(), reason, "unreadable bytes of the journal are kept in damaged.jsonl");
            }
            Err(e) => {
                self.count_damaged(records);
                tracing::error!(segment = %segment_path, offset, length = bytes.len(), reason, error = %e, "unreadable bytes of the journal can't be kept aside; their segment stays");
                self.parts.log.with(|state| {
                    if let Some(listed) = state.segments.iter_mut().find(|s| s.number == segment.number) {
                        listed.keep = true;
                    }
                });
            }
        }
    }

    fn count_damaged(&self, records: u64) {
        self.parts.metrics.events_damaged.inc_by(records);
        self.parts.log.damaged.fetch_add(records, Ordering::Relaxed);
    }

    /// Keeps a record that the sink can never write. Blocks on the disk.
    pub(super) fn bury(&self, record: &Record, reason: &str) -> io::Result<()> {
        let mut dead_letters = lock(&self.dead_letters);
        dead_letters.keep(record, reason)?;
        self.parts.metrics.events_dead.inc();
        self.parts.log.dead_letters.store(dead_letters.count(), Ordering::Relaxed);
        Ok(())
    }

    /// Notes that a batch, and all before it, is done; deletes the segments that are done with it. Blocks on the disk.
    pub(super) fn acknowledge(&self, last_seq: u64, records: u64) {
        self.parts.log.with(|state| state.acknowledge(last_seq, records));
        // A position that can't be written costs a batch sent twice after a restart; the sink recognises it.
        if let Err(e) = lock(&self.position).store(last_seq) {
            tracing::warn!(error = %e, "the acknowledged position can't be written");
        }
        {
            // A segment that is open keeps its room on the disk when it is deleted.
            let mut cursor = lock(&self.cursor);
            let unread = |number| {
                self.parts.log.with(|state| {
                    state.segments.iter().any(|s| s.number == number && s.last_seq > state.acked)
                })
            };
            cursor.reader.take_if(|(number, _)| !unread(*number));
        }
        reap(&self.parts);
        if self.parts.log.with(|state| state.fault.is_some()) {
            self.parts.inbox.kick();
        }
    }

    /// Gives back what was taken and not acknowledged; the batches in the order they were taken in.
    pub(super) fn put_back(&self, batches: impl DoubleEndedIterator<Item = Batch>) {
        let mut cursor = lock(&self.cursor);
        cursor.reader = None;
        let mut entries: Vec<Entry> = Vec::new();
        batches.for_each(|batch| entries.extend(batch.into_entries()));
        self.parts.log.with(|state| state.put_back(entries));
    }
}

/// A frame's bytes as they lay in the file.
pub(super) fn raw(frame: &super::codec::Frame<'_>) -> Vec<u8> {
    let mut raw = Vec::with_capacity(frame.size());
    frame.write_to(&mut raw);
    raw
}
