//! The one thread that writes segments.
//!
//! Each turn takes over all that queued while the last turn ran, encodes it into one buffer, writes that with one
//! call, moves the records into the tail and resolves the receipts: group commit without a timer. Encoding happens
//! here and not where records are handed over, because it costs the same there and the reactors have the better use
//! for their time.
//!
//! When a write fails, records stay in memory, within bounds, and are written when a retry succeeds: into a new
//! segment, because what a failed write left of the old one is nobody's promise.
//!
//! It also knows what is in flight, and marks each segment with it: see `intents`.

use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::model::event::Record;
use crate::model::intent::Intent;

use super::alarm::Alarm;
use super::codec;
use super::disk::{DiskFile, write_all};
use super::intents::Intents;
use super::log::{Entry, Segment};
use super::parts::{Parts, reap};
use super::recorder::{Group, Handed, Handover, Turn};
use super::segment;
use super::syncer::SyncFault;

/// Bytes of one write: a larger group is written in several.
const WRITE_BYTES: usize = 1 << 20;
/// The part of a segment that intents carried into it may take.
const INTENTS_PART: u64 = 4;
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
    /// Intents in it.
    intents: u64,
    marked: bool,
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
    intents: Intents,
    /// Intents in `buffer`, and how many bytes they have.
    opening: Vec<(Uuid, Box<[u8]>)>,
    opening_bytes: usize,
    /// Events in `buffer`.
    closing: Vec<Uuid>,
    /// What was taken over earlier waits in memory, so no mark would be true.
    behind: bool,
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
        let most_bytes = usize::try_from(parts.config.segment_bytes / INTENTS_PART).unwrap_or(usize::MAX);
        Self {
            parts,
            active: None,
            next_number,
            next_seq,
            buffer: Vec::new(),
            entries: Vec::new(),
            intents: Intents::new(most_bytes),
            opening: Vec::new(),
            opening_bytes: 0,
            closing: Vec::new(),
            behind: false,
            retry: None,
            failing: Alarm::default(),
            shedding: Alarm::default(),
        }
    }

    /// Opens the first segment, to see that it can be done, and writes what became of the exchanges that the former run
    /// left in flight; only then is the segment marked, and with it the former run's forgotten. A disk that is full is
    /// noted as a turn would note it.
    pub(super) fn begin(&mut self, crashed: &[Record]) -> io::Result<()> {
        match self.rotate() {
            Err(e) if no_space(&e) => self.fail(&Refusal::Failed(e)),
            begun => begun?,
        }
        self.behind = true;
        let mut owners = Owners::default();
        for record in crashed {
            self.encode(record.clone(), &mut owners);
            self.chunk_if_large(&mut owners);
        }
        self.chunk(&mut owners);
        self.catch_up();
        Ok(())
    }

    /// Nothing waits in memory: the segment can be marked.
    fn catch_up(&mut self) {
        if self.retry.is_some() {
            return;
        }
        self.behind = false;
        if let Err(refusal) = self.mark(self.next_seq) {
            self.fail(&refusal);
        }
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
        for batch in batches.drain(..) {
            match batch {
                Handover::Records(records) => {
                    let usage = records.iter().any(|record| !matches!(record, Record::Audit(_)));
                    owners.firsts.push((self.next_seq, usage));
                    for record in records {
                        self.encode(record, &mut owners);
                        journaled &= self.chunk_if_large(&mut owners);
                    }
                }
                Handover::Intent(intent) => {
                    // It has no number, and nobody asks what became of it.
                    owners.firsts.push((self.next_seq, false));
                    self.encode_intent(&intent);
                    journaled &= self.chunk_if_large(&mut owners);
                }
            }
        }
        journaled &= self.chunk(&mut owners);
        // Its room is used again.
        handed.batches = batches;
        self.came_back();
        self.resolve(group.as_deref(), journaled, owners);
    }

    /// Gives the record its number.
    fn encode(&mut self, record: Record, owners: &mut Owners) {
        let seq = self.next_seq;
        self.next_seq += 1;
        if let Record::Usage(event) = &record {
            self.closing.push(event.event_id);
        }
        match codec::encode(&record, seq, &mut self.buffer) {
            Ok(bytes) => self.entries.push(Entry { seq, bytes, on_disk: false, record }),
            Err(why) => self.refuse_record(seq, &record, &why, owners),
        }
    }

    fn encode_intent(&mut self, intent: &Intent) {
        let start = self.buffer.len();
        let encoded = codec::encode_intent(intent, self.next_seq, &mut self.buffer);
        let payload = self.buffer.get(start + codec::HEADER_BYTES..).unwrap_or_default();
        if encoded.is_ok() && self.intents.have_room(self.opening_bytes + payload.len()) {
            self.opening_bytes += payload.len();
            self.opening.push((intent.event_id, payload.into()));
        } else {
            self.buffer.truncate(start);
            self.parts.metrics.intents_left_out.inc();
        }
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

    fn chunk_if_large(&mut self, owners: &mut Owners) -> bool {
        self.buffer.len() < WRITE_BYTES || self.chunk(owners)
    }

    /// Writes what is encoded and moves its records into the tail; `false` when they are in memory only.
    fn chunk(&mut self, owners: &mut Owners) -> bool {
        let seqs = self.entries.first().zip(self.entries.last()).map(|(first, last)| (first.seq, last.seq));
        if self.buffer.is_empty() && self.closing.is_empty() {
            return true;
        }
        let mut written = false;
        // Order is kept: nothing is written before what is held from earlier.
        if self.retry.is_none() {
            let buffer = mem::take(&mut self.buffer);
            match self.append(&buffer, seqs) {
                Ok(()) => written = true,
                Err(refusal) => self.fail(&refusal),
            }
            self.buffer = buffer;
        }
        self.buffer.clear();
        self.follow(written);
        let entries = self.entries.drain(..);
        let intents = self.intents.len() as u64;
        let shed = self.parts.log.with(|state| {
            state.last_seq = seqs.map_or(state.last_seq, |(_, last)| last);
            state.intents = intents;
            state.push(entries.map(|entry| Entry { on_disk: written, ..entry }));
            state.shed()
        });
        self.count_shed(&shed, owners);
        written
    }

    /// Takes up what the intents and events of the buffer say, once it is written, or could not be.
    fn follow(&mut self, written: bool) {
        let active = self.active.as_mut().filter(|_| written);
        let segment = active.as_ref().map_or(0, |active| active.number);
        if let Some(active) = active {
            active.intents += self.opening.len() as u64;
        }
        for (event_id, payload) in self.opening.drain(..) {
            self.intents.open(event_id, payload, segment);
        }
        self.opening_bytes = 0;
        for event_id in self.closing.drain(..) {
            self.intents.close(event_id);
        }
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

    /// Appends encoded frames to the active segment, starting another when it is full. `seqs` are the first and the last
    /// number of their records.
    fn append(&mut self, bytes: &[u8], seqs: Option<(u64, u64)>) -> Result<(), Refusal> {
        let config = &self.parts.config;
        let (max_bytes, segment_bytes) = (config.max_bytes, config.segment_bytes);
        let needed = bytes.len() as u64;
        let turns = self
            .active
            .as_ref()
            .is_none_or(|a| a.offset > segment::HEADER_BYTES as u64 && a.offset + needed > segment_bytes);
        let carried = if turns { self.intents.frame_bytes() + 2 * segment::HEADER_BYTES as u64 } else { 0 };
        let next_seq = seqs.map_or(self.next_seq, |(first, _)| first);
        if self.parts.log.with(|state| state.bytes()) + needed + carried > max_bytes {
            self.make_room(needed + carried, next_seq)?;
        }
        if turns {
            self.rotate()?;
        }
        if !self.behind && self.active.as_ref().is_some_and(|active| !active.marked) {
            self.mark(next_seq)?;
        }
        self.write(bytes, seqs)
    }

    /// Writes frames at the end of the active segment.
    fn write(&mut self, bytes: &[u8], seqs: Option<(u64, u64)>) -> Result<(), Refusal> {
        let each_commit = self.parts.config.fsync_interval.is_zero();
        let Some(active) = &mut self.active else { return Err(io::Error::other("no segment").into()) };
        let written = write_all(&*active.file, active.offset, bytes)
            .and_then(|()| if each_commit { active.file.sync() } else { Ok(()) });
        if let Err(e) = written {
            // Cut off what may be half a frame. Where that fails, too, readers will find it torn.
            let _ = active.file.truncate(active.offset);
            self.abandon();
            return Err(e.into());
        }
        active.offset += bytes.len() as u64;
        if let Some((first, _)) = seqs.filter(|_| active.first_seq == 0) {
            active.first_seq = first;
        }
        let (number, offset, trouble) = (active.number, active.offset, self.retry.is_some());
        self.parts.log.with(|state| {
            if let Some(segment) = state.segments.back_mut().filter(|segment| segment.number == number) {
                segment.bytes = offset;
                segment.last_seq = seqs.map_or(segment.last_seq, |(_, last)| last);
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

    /// Carries what is in flight into the active segment, unless it is there, and marks it. The segments before are then
    /// not needed for that any more: at once when nothing is in flight, else when it is synced.
    fn mark(&mut self, next_seq: u64) -> Result<(), Refusal> {
        let Some(active) = &self.active else { return Ok(()) };
        let (number, mut intents) = (active.number, active.intents);
        let mut frames = Vec::new();
        for payload in self.intents.outside(number) {
            // It was framed once before, so this can't fail.
            intents += u64::from(codec::encode_intent_again(payload, next_seq, &mut frames).is_ok());
        }
        if active.marked && frames.is_empty() {
            return Ok(());
        }
        let marked = codec::encode_mark(intents, next_seq, &mut frames);
        marked.map_err(|why| io::Error::other(why.to_string()))?;
        self.write(&frames, None)?;
        self.intents.carried_to(number);
        if let Some(active) = &mut self.active {
            (active.intents, active.marked) = (intents, true);
        }
        let at_once = self.intents.len() == 0 || self.parts.config.fsync_interval.is_zero();
        self.parts.log.with(|state| {
            state.marked = number;
            if at_once {
                state.keep_from(number);
            }
        });
        reap(&self.parts);
        Ok(())
    }

    /// The journal is at its bound: lets go the active segment, if the sink has all of it.
    fn make_room(&mut self, needed: u64, next_seq: u64) -> Result<(), Refusal> {
        let log = &self.parts.log;
        if !self.behind
            && log.with(|state| {
                state.segments.back().is_some_and(|s| s.last_seq > 0 && s.last_seq <= state.acked)
            })
        {
            self.rotate()?;
            self.mark(next_seq)?;
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
        self.active = Some(Active { file, number, offset: bytes, first_seq: 0, intents: 0, marked: false });
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
        Ok(())
    }

    /// Notes that the journal can't be written, and when to try again.
    fn fail(&mut self, refusal: &Refusal) {
        self.behind = true;
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
        let recovered = self.write_held().and_then(|()| self.mark(self.next_seq));
        self.came_back();
        match recovered {
            Ok(()) => {
                (self.retry, self.behind) = (None, false);
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
            let appended = if buffer.is_empty() { Ok(()) } else { self.append(&buffer, Some((first, last))) };
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
        match synced.and_then(|()| self.parts.disk.sync_dir(&self.parts.config.dir)) {
            Ok(()) => {
                let over = self.intents.len() == 0 && !self.behind;
                self.parts.log.with(|state| {
                    // What can't be read or deleted may hold intents: the last mark says that they are over.
                    let over = over && state.segments.iter().all(|segment| !segment.keep);
                    state.keep_from(if over { u64::MAX } else { state.marked });
                });
            }
            Err(e) => tracing::error!(error = %e, "the journal's last sync failed"),
        }
        self.abandon();
    }
}

/// Whether an error only says that the disk is full.
fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
