//! The one thread that writes segments.
//!
//! Each turn takes over all that queued while the last turn ran, encodes it into one buffer, writes that with one
//! call, moves the records into the tail and resolves the receipts: group commit without a timer. Encoding happens
//! here and not where records are handed over, because it costs the same there and the reactors have the better use
//! for their time.
//!
//! When a write fails, records stay in memory, within bounds, and are written when a retry succeeds: into a new
//! segment, because what a failed write left of the old one is nobody's promise.

use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::event::Record;

use super::alarm::Alarm;
use super::codec;
use super::disk::{DiskFile, write_all};
use super::log::{Entry, Segment};
use super::parts::{Parts, reap};
use super::recorder::{Group, Handed, Turn};
use super::segment;
use super::syncer::SyncFault;

/// Bytes of one write: a larger group is written in several.
const WRITE_BYTES: usize = 1 << 20;
/// The first and the longest wait before a failed disk is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The journal can't take a group.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it has reached its {0} bytes and the sink takes nothing")]
    Full(u64),
    #[error("{0}")]
    Failed(#[from] io::Error),
}

#[derive(Debug)]
struct Active {
    file: Arc<dyn DiskFile>,
    number: u64,
    offset: u64,
    first_seq: u64,
}

/// The thread's own state.
#[derive(Debug)]
pub(super) struct Writer {
    parts: Arc<Parts>,
    active: Option<Active>,
    next_number: u64,
    next_seq: u64,
    buffer: Vec<u8>,
    entries: Vec<Entry>,
    /// When to try again, and how long to wait after that; `None` while all is well.
    retry: Option<(Instant, Duration)>,
    failing: Alarm,
    shedding: Alarm,
}

/// Which receipt a record belongs to, for the rare case that it is shed in its own turn.
#[derive(Debug, Default)]
struct Owners {
    /// The first sequence number of each, and whether it has more than audit records.
    firsts: Vec<(u64, bool)>,
    lost: Vec<u32>,
}

impl Owners {
    fn lose(&mut self, seq: u64, audit: bool) {
        let Some(index) = self.firsts.partition_point(|(first, _)| *first <= seq).checked_sub(1) else {
            return;
        };
        // Losing the detail of an exchange whose usage is kept is counted, but its receipt need not say so.
        if !audit || !self.firsts[index].1 {
            self.lost.push(index as u32);
        }
    }
}

impl Writer {
    pub(super) fn new(parts: Arc<Parts>, next_number: u64, next_seq: u64) -> Self {
        Self {
            parts,
            active: None,
            next_number,
            next_seq,
            buffer: Vec::new(),
            entries: Vec::new(),
            retry: None,
            failing: Alarm::default(),
            shedding: Alarm::default(),
        }
    }

    /// Opens the first segment, to see that it can be done.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.rotate()
    }

    /// As a turn would note it.
    pub(super) fn begin_failing(&mut self, why: io::Error) {
        self.fail(&Refusal::Failed(why));
    }

    /// Writes until the inbox is closed and empty.
    pub(super) fn run(mut self) {
        let mut handed = Handed::default();
        loop {
            let turn = self.parts.inbox.take(&mut handed, self.retry.map(|(at, _)| at));
            self.heed_syncer();
            let kicked = mem::take(&mut handed.kicked);
            if self.retry.is_some_and(|(at, _)| kicked || at <= Instant::now()) {
                self.recover();
            }
            if !handed.batches.is_empty() {
                self.group(&mut handed);
            }
            if turn == Turn::Closed {
                break;
            }
        }
        self.finish();
    }

    /// One group: everything that was handed over since the last.
    fn group(&mut self, handed: &mut Handed) {
        let group = handed.group.take();
        let mut owners = Owners::default();
        let mut journaled = true;
        self.parts.watch.begin(group.as_ref());
        let mut batches = mem::take(&mut handed.batches);
        for batch in &batches {
            owners
                .firsts
                .push((self.next_seq, batch.iter().any(|record| !matches!(record, Record::Audit(_)))));
            self.next_seq += batch.len() as u64;
        }
        let first = owners.firsts.first().map_or(self.next_seq, |(first, _)| *first);
        for (seq, record) in (first..).zip(batches.drain(..).flatten()) {
            match codec::encode(&record, seq, &mut self.buffer) {
                Ok(bytes) => self.entries.push(Entry { seq, bytes, on_disk: false, record }),
                Err(why) => self.refuse_record(seq, &record, &why, &mut owners),
            }
            if self.buffer.len() >= WRITE_BYTES {
                journaled &= self.chunk(&mut owners);
            }
        }
        journaled &= self.chunk(&mut owners);
        // Its room is used again.
        handed.batches = batches;
        self.came_back();
        self.resolve(group.as_deref(), journaled, owners);
    }

    /// Tells the watch that nothing hangs; and the log, if it had been told otherwise.
    fn came_back(&self) {
        if self.parts.watch.end() && self.retry.is_none() {
            self.parts.log.with(|state| state.fault = None);
        }
    }

    fn resolve(&self, group: Option<&Group>, journaled: bool, mut owners: Owners) {
        owners.lost.sort_unstable();
        owners.lost.dedup();
        if let Some(group) = group {
            group.resolve(journaled, owners.lost);
        }
    }

    fn refuse_record(&mut self, seq: u64, record: &Record, why: &codec::Unwritable, owners: &mut Owners) {
        self.parts.metrics.events_lost.inc();
        if self.shedding.ring() {
            tracing::error!(event_id = %record.event_id(), reason = %why, "a record can't be journaled and is lost");
        }
        owners.lose(seq, matches!(record, Record::Audit(_)));
    }

    /// Writes what is encoded and moves its records into the tail; `false` when they are in memory only.
    fn chunk(&mut self, owners: &mut Owners) -> bool {
        let Some(last) = self.entries.last().map(|entry| entry.seq) else { return true };
        let first = self.entries.first().map_or(last, |entry| entry.seq);
        let mut written = false;
        // Order is kept: nothing is written before what is held from earlier.
        if self.retry.is_none() {
            let buffer = mem::take(&mut self.buffer);
            match self.append(&buffer, first, last) {
                Ok(()) => written = true,
                Err(refusal) => self.fail(&refusal),
            }
            self.buffer = buffer;
        }
        self.buffer.clear();
        let entries = self.entries.drain(..);
        let shed = self.parts.log.with(|state| {
            state.last_seq = last;
            state.push(entries.map(|entry| Entry { on_disk: written, ..entry }));
            state.shed()
        });
        self.count_shed(&shed, owners);
        written
    }

    fn count_shed(&mut self, shed: &[(u64, bool)], owners: &mut Owners) {
        if shed.is_empty() {
            return;
        }
        self.parts.metrics.events_lost.inc_by(shed.len() as u64);
        shed.iter().for_each(|(seq, audit)| owners.lose(*seq, *audit));
        if self.shedding.ring() {
            let usage = shed.iter().filter(|(_, audit)| !audit).count();
            tracing::error!(
                audit = shed.len() - usage,
                usage,
                "records are being lost: the journal can't be written and memory for them is full"
            );
        }
    }

    /// Appends encoded frames to the active segment, starting another when it is full.
    fn append(&mut self, bytes: &[u8], first: u64, last: u64) -> Result<(), Refusal> {
        let config = &self.parts.config;
        let (max_bytes, segment_bytes, each_commit) =
            (config.max_bytes, config.segment_bytes, config.fsync_interval.is_zero());
        let needed = bytes.len() as u64;
        if self.parts.log.with(|state| state.bytes()) + needed > max_bytes {
            self.make_room(needed)?;
        }
        if self
            .active
            .as_ref()
            .is_none_or(|a| a.offset > segment::HEADER_BYTES as u64 && a.offset + needed > segment_bytes)
        {
            self.rotate()?;
        }
        let Some(active) = &mut self.active else { return Err(io::Error::other("no segment").into()) };
        let written = write_all(&*active.file, active.offset, bytes)
            .and_then(|()| if each_commit { active.file.sync() } else { Ok(()) });
        if let Err(e) = written {
            // Cut off what may be half a frame. Where that fails, too, readers will find it torn.
            let _ = active.file.truncate(active.offset);
            self.abandon();
            return Err(e.into());
        }
        active.offset += needed;
        if active.first_seq == 0 {
            active.first_seq = first;
        }
        let (number, offset, trouble) = (active.number, active.offset, self.retry.is_some());
        self.parts.log.with(|state| {
            if let Some(segment) = state.segments.back_mut().filter(|segment| segment.number == number) {
                (segment.bytes, segment.last_seq) = (offset, last);
            }
            if !trouble {
                state.fault = None;
            }
        });
        if !each_commit {
            self.parts.syncer.written();
        }
        Ok(())
    }

    /// The journal is at its bound: lets go the active segment, if the sink has all of it.
    fn make_room(&mut self, needed: u64) -> Result<(), Refusal> {
        let log = &self.parts.log;
        if log
            .with(|state| state.segments.back().is_some_and(|s| s.last_seq > 0 && s.last_seq <= state.acked))
        {
            self.abandon();
        }
        reap(&self.parts);
        let max_bytes = self.parts.config.max_bytes;
        if self.parts.log.with(|state| state.bytes()) + needed > max_bytes {
            return Err(Refusal::Full(max_bytes));
        }
        Ok(())
    }

    /// Seals the active segment.
    fn abandon(&mut self) {
        self.active = None;
        self.parts.syncer.turn_to(None);
        self.parts.log.with(|state| state.segments.iter_mut().for_each(|segment| segment.sealed = true));
    }

    /// Starts a new segment.
    fn rotate(&mut self) -> io::Result<()> {
        self.abandon();
        let number = self.next_number;
        self.next_number += 1;
        let path = self.parts.config.dir.join(segment::name(number));
        let begun = start_segment(&self.parts, &path, number);
        let file = match begun {
            Ok(file) => file,
            Err(e) => {
                let _ = self.parts.disk.remove(&path);
                return Err(e);
            }
        };
        self.parts.syncer.turn_to(Some((number, Arc::clone(&file))));
        let bytes = segment::HEADER_BYTES as u64;
        self.active = Some(Active { file, number, offset: bytes, first_seq: 0 });
        self.parts.log.with(|state| {
            state.segments.push_back(Segment {
                number,
                path,
                bytes,
                last_seq: 0,
                sealed: false,
                keep: false,
            });
        });
        reap(&self.parts);
        Ok(())
    }

    /// Notes that the journal can't be written, and when to try again.
    fn fail(&mut self, refusal: &Refusal) {
        let delay = self.retry.map_or(RETRY.0, |(_, delay)| delay);
        self.retry = Some((Instant::now() + delay, (delay * 2).min(RETRY.1)));
        let reason =
            format!("the journal in {} can't be written: {refusal}", self.parts.config.dir.display());
        if self.failing.ring() {
            tracing::error!(%reason, "records are kept in memory");
        }
        self.parts.log.with(|state| state.fault = Some(reason));
    }

    /// Tries to write what is held in memory; all is well again when that is done.
    fn recover(&mut self) {
        let recovered = self.write_held();
        self.came_back();
        match recovered {
            Ok(()) => {
                self.retry = None;
                self.parts.log.with(|state| state.fault = None);
                if self.failing.clear() {
                    tracing::info!("the journal can be written again");
                }
                self.shedding.clear();
            }
            Err(refusal) => self.fail(&refusal),
        }
    }

    fn write_held(&mut self) -> Result<(), Refusal> {
        self.parts.watch.begin(None);
        if self.active.is_none() {
            let _ = self.parts.disk.create_dir(&self.parts.config.dir);
            self.rotate()?;
        }
        loop {
            // Much to write is not stuck: each part has its own time.
            self.parts.watch.begin(None);
            let mut buffer = mem::take(&mut self.buffer);
            buffer.clear();
            let (mut first, mut last) = (0, 0);
            self.parts.log.with(|state| {
                state.unwritten(|entry| {
                    // Each was encoded once before, so this can't fail.
                    if codec::encode(&entry.record, entry.seq, &mut buffer).is_ok() {
                        first = if first == 0 { entry.seq } else { first };
                        last = entry.seq;
                    }
                    buffer.len() < WRITE_BYTES / 4
                });
            });
            let appended = if buffer.is_empty() { Ok(()) } else { self.append(&buffer, first, last) };
            let done = buffer.is_empty();
            self.buffer = buffer;
            self.buffer.clear();
            appended?;
            if done {
                return Ok(());
            }
            self.parts.log.with(|state| state.written(first, last));
        }
    }

    /// Takes up what a background sync found.
    fn heed_syncer(&mut self) {
        if self.parts.config.fsync_interval.is_zero() {
            return;
        }
        match self.parts.syncer.fault() {
            None => {}
            Some(SyncFault::Failed(why)) => {
                self.abandon();
                self.fail(&Refusal::Failed(io::Error::other(format!("sync failed: {why}"))));
            }
            // One that was sealed, shipped and deleted by ourselves while it was synced is no fault.
            Some(SyncFault::Unlinked(number)) if self.active.as_ref().is_none_or(|a| a.number != number) => {}
            Some(SyncFault::Unlinked(_)) => {
                if let Some(active) = self.active.take() {
                    self.parts.log.with(|state| {
                        state.forget(active.number);
                        if active.first_seq > 0 {
                            state.unwrite(active.first_seq);
                        }
                    });
                }
                self.abandon();
                self.fail(&Refusal::Failed(io::Error::other("the segment being written was deleted")));
            }
        }
    }

    /// A last try to write what is held, and a sync.
    fn finish(&mut self) {
        if self.retry.is_some() {
            self.recover();
        }
        let left = self.parts.log.with(|state| {
            let mut left = 0_u64;
            state.unwritten(|_| {
                left += 1;
                true
            });
            left
        });
        if left > 0 {
            self.parts.metrics.events_lost.inc_by(left);
            tracing::error!(records = left, "lost: the journal could not be written until the end");
        }
        let synced = self.active.as_ref().map_or(Ok(()), |active| active.file.sync());
        if let Err(e) = synced.and_then(|()| self.parts.disk.sync_dir(&self.parts.config.dir)) {
            tracing::error!(error = %e, "the journal's last sync failed");
        }
        self.abandon();
    }
}

fn start_segment(parts: &Parts, path: &Path, number: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = parts.disk.open(path)?;
    // A leftover of the same name would be of a run that never got to use it.
    file.truncate(0)?;
    write_all(&*file, 0, &segment::header(number))?;
    if parts.config.fsync_interval.is_zero() {
        file.sync()?;
        parts.disk.sync_dir(&parts.config.dir)?;
    }
    Ok(file)
}
