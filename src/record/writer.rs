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
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::event::Record;
use crate::model::intent::Intent;

use super::alarm::Alarm;
use super::appender::{Appender, Exchanges, Refusal};
use super::codec;
use super::log::Entry;
use super::parts::Parts;
use super::recorder::{Group, Handed, Handover, Turn};
use super::syncer::SyncFault;

/// Bytes of one write: a larger group is written in several.
const WRITE_BYTES: usize = 1 << 20;
/// The first and the longest wait before a failed disk is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The thread's own state.
#[derive(Debug)]
pub(super) struct Writer {
    parts: Arc<Parts>,
    appender: Appender,
    next_seq: u64,
    buffer: Vec<u8>,
    entries: Vec<Entry>,
    /// Of the exchanges in `buffer`.
    exchanges: Exchanges,
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
            appender: Appender::new(Arc::clone(&parts), next_number),
            parts,
            next_seq,
            buffer: Vec::new(),
            entries: Vec::new(),
            exchanges: Exchanges::default(),
            retry: None,
            failing: Alarm::default(),
            shedding: Alarm::default(),
        }
    }

    /// Opens the first segment, to see that it can be done, and writes what became of the exchanges that the former run
    /// left in flight; only then is the segment marked, and with it the former run's forgotten. A disk that is full is
    /// noted as a turn would note it.
    pub(super) fn begin(&mut self, crashed: &[Record]) -> io::Result<()> {
        match self.appender.rotate() {
            Err(e) if no_space(&e) => self.fail(&Refusal::Failed(e)),
            begun => begun?,
        }
        self.appender.behind = true;
        let mut owners = Owners::default();
        self.appender.hold_until(self.next_seq - 1 + crashed.len() as u64);
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
        self.appender.behind = false;
        if let Err(refusal) = self.appender.mark(self.next_seq) {
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
            self.exchanges.close(event.event_id);
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
        if encoded.is_err() || !self.appender.open(&mut self.exchanges, intent.event_id, payload) {
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
        if self.buffer.is_empty() && self.exchanges.is_empty() {
            return true;
        }
        let next_seq = seqs.map_or(self.next_seq, |(first, _)| first);
        let mut written = false;
        // Order is kept: nothing is written before what is held from earlier.
        if self.retry.is_none() {
            let buffer = mem::take(&mut self.buffer);
            match self.appender.append(&buffer, seqs, next_seq) {
                Ok(()) => written = true,
                Err(refusal) => self.fail(&refusal),
            }
            self.buffer = buffer;
        }
        self.buffer.clear();
        self.appender.follow(&mut self.exchanges, written, seqs.map_or(0, |(_, last)| last));
        let entries = self.entries.drain(..);
        let intents = self.appender.in_flight();
        let shed = self.parts.log.with(|state| {
            state.last_seq = seqs.map_or(state.last_seq, |(_, last)| last);
            state.intents = intents;
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

    /// Notes that the journal can't be written, and when to try again.
    fn fail(&mut self, refusal: &Refusal) {
        self.appender.behind = true;
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
        let recovered = self.write_held().and_then(|()| self.appender.mark(self.next_seq));
        self.came_back();
        match recovered {
            Ok(()) => {
                (self.retry, self.appender.behind) = (None, false);
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
        self.appender.let_go();
        if self.appender.number().is_none() {
            let _ = self.parts.disk.create_dir(&self.parts.config.dir);
            self.appender.rotate()?;
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
            let done = buffer.is_empty();
            let appended =
                if done { Ok(()) } else { self.appender.append(&buffer, Some((first, last)), first) };
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
                self.appender.abandon();
                self.fail(&Refusal::Failed(io::Error::other(format!("sync failed: {why}"))));
            }
            // One that was sealed, shipped and deleted by ourselves while it was synced is no fault.
            Some(SyncFault::Unlinked(number)) if self.appender.number() != Some(number) => {}
            Some(SyncFault::Unlinked(_)) => {
                self.appender.unlinked();
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
        self.appender.finish();
    }
}

/// Whether an error only says that the disk is full.
fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
