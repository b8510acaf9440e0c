//! What is known in memory of the journal: its segments, its newest records, how far the sink has come.
//!
//! 1. Sequence numbers rise by one for each record taken over; they are never used twice, in any run. (But for that of a
//!    damaged record at the journal's end: no frame behind it tells it, nor can any be read by it.)
//! 2. The tail holds the newest records. One that is on disk may be evicted at any time, and is then read from its
//!    segment; one that is not on disk leaves only to the sink, or shed and counted.
//! 3. What is not on disk and aboard a batch of the shipper's is written like what is in the tail, unless it is acknowledged
//!    first: a sink that is away would else keep it in memory alone for as long, on a disk that is well.
//! 4. The lock is held for moving records and numbers, never for a file operation.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::model::event::Record;
use crate::telemetry::Metrics;

use super::recorder::lock;

/// Records on disk that are also kept in memory, for a sink that keeps up.
const TAIL_RECORDS: usize = 8192;
/// The same, in bytes as encoded.
const TAIL_BYTES: usize = 8 << 20;
/// Records kept in memory while they can't be written.
pub(super) const HELD_RECORDS: usize = 16_384;
/// The same, in bytes as encoded.
pub(super) const HELD_BYTES: usize = 16 << 20;

/// One record of the tail.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub seq: u64,
    /// Bytes as encoded.
    pub bytes: usize,
    pub on_disk: bool,
    pub record: Record,
}

/// A segment file.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub path: PathBuf,
    /// As far as it was written.
    pub bytes: u64,
    /// The highest sequence number in it; 0 when it has none.
    pub last_seq: u64,
    /// The writer is done with it.
    pub sealed: bool,
    /// It must not be deleted: this release could not read or set aside all that it holds.
    pub keep: bool,
}

/// The tail, the segments and the counts.
#[derive(Debug, Default)]
pub(super) struct State {
    pub segments: VecDeque<Segment>,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    unwritten: usize,
    unwritten_bytes: usize,
    /// Copies of the records that the shipper took and that are neither on disk nor acknowledged.
    aboard: VecDeque<Entry>,
    /// The highest sequence number that is only on disk.
    evicted: u64,
    /// The last sequence number given.
    pub last_seq: u64,
    /// Everything up to here is acknowledged.
    pub acked: u64,
    /// The last sequence number that the shipper took.
    pub taken: u64,
    /// Records not acknowledged.
    pub records: u64,
    /// The shipper wants to be told when it could take this many.
    wanted: Option<u64>,
    /// Why the journal can't be written just now.
    pub fault: Option<String>,
    /// Exchanges in flight that have an intent.
    pub intents: u64,
    /// Segments from this one on are needed to know what is in flight.
    pub keep_from: u64,
    /// The last segment that was marked; `keep_from` follows when that is synced.
    pub marked: u64,
}

/// What the shipper can do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Records from memory.
    Taken(Vec<Entry>),
    /// It is behind: what lies after `taken` and before `until` is on disk only.
    OnDisk { until: u64 },
    /// Nothing.
    Nothing,
}

/// The state, and who waits for it.
#[derive(Debug)]
pub(super) struct Log {
    state: Mutex<State>,
    ready: Notify,
    metrics: Arc<Metrics>,
    /// When the oldest batch in flight began, in ms since 1970; 0 when there is none.
    oldest_ms: AtomicI64,
    pub damaged: AtomicU64,
    pub dead_letters: AtomicU64,
    /// Why the last batch was not taken.
    pub shipping_fault: Mutex<Option<String>>,
}

impl Log {
    /// `oldest` is when the oldest record that is not acknowledged came.
    pub(super) fn new(state: State, metrics: Arc<Metrics>, oldest: Option<Timestamp>) -> Self {
        let log = Self {
            state: Mutex::new(state),
            ready: Notify::new(),
            metrics,
            oldest_ms: AtomicI64::new(oldest.map_or(0, Timestamp::as_millisecond)),
            damaged: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
            shipping_fault: Mutex::new(None),
        };
        log.with(|_| ());
        log
    }

    /// Reads or changes the state, and shows what came of it.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        let wake = state.wanted.is_some_and(|wanted| state.behind() >= wanted);
        if wake {
            state.wanted = None;
        }
        self.metrics.journal_records.set(i64::try_from(state.records).unwrap_or(i64::MAX));
        self.metrics.journal_bytes.set(i64::try_from(state.bytes()).unwrap_or(i64::MAX));
        self.metrics.journal_intents.set(i64::try_from(state.intents).unwrap_or(i64::MAX));
        self.metrics.journal_healthy.set(i64::from(state.fault.is_none()));
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        result
    }

    /// Waits until the shipper could take at least `wanted` records.
    pub(super) async fn wait_for(&self, wanted: u64) {
        loop {
            let there = self.with(|state| {
                let there = state.behind() >= wanted;
                // A wish that is fulfilled at once would only cost the writer a wake-up.
                state.wanted = (!there).then_some(wanted);
                there
            });
            if there {
                return;
            }
            self.ready.notified().await;
        }
    }

    /// Since when the oldest unacknowledged record has waited.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.with(|state| {
            if state.records == 0 {
                return None;
            }
            match self.oldest_ms.load(Ordering::Relaxed) {
                0 => state.tail.front().map(|entry| at(&entry.record)),
                ms => Timestamp::from_millisecond(ms).ok(),
            }
        })
    }

    /// Notes the first record of the oldest batch in flight.
    pub(super) fn note_oldest(&self, record: Option<&Record>) {
        self.oldest_ms.store(record.map_or(0, |record| at(record).as_millisecond()), Ordering::Relaxed);
    }
}

impl State {
    /// What former runs left: all of it is on disk only.
    pub(super) fn resume(segments: Vec<Segment>, last_seq: u64, acked: u64, records: u64) -> Self {
        let segments = segments.into();
        Self { segments, last_seq, evicted: last_seq, acked, taken: acked, records, ..Self::default() }
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// How many records wait for the shipper; more than there are where numbers are missing.
    pub(super) fn behind(&self) -> u64 {
        self.tail.back().map_or(self.evicted, |entry| entry.seq.max(self.evicted)).saturating_sub(self.taken)
    }

    /// Adds records to the tail.
    pub(super) fn push(&mut self, entries: impl Iterator<Item = Entry>) {
        for entry in entries {
            self.records += 1;
            self.tail_bytes += entry.bytes;
            if !entry.on_disk {
                self.unwritten += 1;
                self.unwritten_bytes += entry.bytes;
            }
            self.tail.push_back(entry);
        }
        self.evict();
    }

    /// Drops from the front what is on disk, until the tail is within its bounds.
    fn evict(&mut self) {
        while self.tail.len() - self.unwritten > TAIL_RECORDS
            || self.tail_bytes - self.unwritten_bytes > TAIL_BYTES
        {
            if !self.tail.front().is_some_and(|entry| entry.on_disk) {
                return;
            }
            let Some(entry) = self.tail.pop_front() else { return };
            self.tail_bytes -= entry.bytes;
            self.evicted = self.evicted.max(entry.seq);
        }
    }

    /// Calls `each` with the records that are in memory only, oldest first, until it says `false`.
    pub(super) fn unwritten(&self, each: impl FnMut(&Entry) -> bool) {
        // They are at the end, but for those that the shipper's batches were put back in front of.
        let _ = self.aboard.iter().chain(&self.tail).filter(|entry| !entry.on_disk).all(each);
    }

    /// Notes that the records of these numbers are on disk.
    pub(super) fn written(&mut self, first: u64, last: u64) {
        self.aboard.retain(|entry| entry.seq < first || entry.seq > last);
        let start = self.tail.partition_point(|entry| entry.seq < first);
        for entry in self.tail.range_mut(start..).take_while(|entry| entry.seq <= last) {
            if !entry.on_disk {
                entry.on_disk = true;
                self.unwritten -= 1;
                self.unwritten_bytes -= entry.bytes;
            }
        }
        self.evict();
    }

    /// Notes that what was written from `first` on is not on disk after all, as far as it is still in memory.
    pub(super) fn unwrite(&mut self, first: u64) {
        let start = self.tail.partition_point(|entry| entry.seq < first);
        for entry in self.tail.range_mut(start..) {
            if entry.on_disk {
                entry.on_disk = false;
                self.unwritten += 1;
                self.unwritten_bytes += entry.bytes;
            }
        }
    }

    /// Drops what is over the bounds of memory: the oldest audit records first, then the oldest others. Returns what
    /// was dropped: sequence number, and whether it was an audit record.
    pub(super) fn shed(&mut self) -> Vec<(u64, bool)> {
        let mut shed = Vec::new();
        if self.unwritten <= HELD_RECORDS && self.unwritten_bytes <= HELD_BYTES {
            return shed;
        }
        // An eighth more than needed, so that the next group does not walk the tail again.
        let (records, bytes) = (HELD_RECORDS / 8 * 7, HELD_BYTES / 8 * 7);
        for audit_only in [true, false] {
            if !audit_only && self.unwritten <= HELD_RECORDS && self.unwritten_bytes <= HELD_BYTES {
                break;
            }
            let (mut left, mut left_bytes) = (self.unwritten, self.unwritten_bytes);
            self.tail.retain(|entry| {
                let audit = matches!(entry.record, Record::Audit(_));
                let drop = (left > records || left_bytes > bytes) && !entry.on_disk && (audit || !audit_only);
                if drop {
                    left -= 1;
                    left_bytes -= entry.bytes;
                    shed.push((entry.seq, audit));
                }
                !drop
            });
            self.tail_bytes -= self.unwritten_bytes - left_bytes;
            (self.unwritten, self.unwritten_bytes) = (left, left_bytes);
        }
        self.records -= shed.len() as u64;
        shed
    }

    /// Takes up to `most` records for a batch.
    pub(super) fn take(&mut self, most: usize) -> Next {
        let Some(front) = self.tail.front() else {
            return if self.evicted > self.taken {
                Next::OnDisk { until: self.evicted + 1 }
            } else {
                Next::Nothing
            };
        };
        if front.seq != self.taken + 1 && self.evicted > self.taken {
            return Next::OnDisk { until: front.seq.min(self.evicted + 1) };
        }
        let mut batch = Vec::with_capacity(most.min(self.tail.len()));
        while batch.len() < most
            && self.tail.front().is_some_and(|e| e.seq == self.taken + 1 || self.evicted <= self.taken)
        {
            let Some(entry) = self.tail.pop_front() else { break };
            self.tail_bytes -= entry.bytes;
            if !entry.on_disk {
                self.unwritten -= 1;
                self.unwritten_bytes -= entry.bytes;
                self.aboard.push_back(entry.clone());
            }
            self.taken = entry.seq;
            batch.push(entry);
        }
        Next::Taken(batch)
    }

    /// Notes that what is on disk was read up to `seq`.
    pub(super) fn took_from_disk(&mut self, seq: u64) {
        self.taken = self.taken.max(seq);
    }

    /// Gives a batch back that was not acknowledged: what was taken is what was acknowledged, again.
    pub(super) fn put_back(&mut self, batch: Vec<Entry>) {
        let aboard: HashSet<u64> = self.aboard.drain(..).map(|entry| entry.seq).collect();
        for mut entry in batch.into_iter().rev() {
            entry.on_disk |= !aboard.contains(&entry.seq);
            self.tail_bytes += entry.bytes;
            if !entry.on_disk {
                self.unwritten += 1;
                self.unwritten_bytes += entry.bytes;
            }
            self.tail.push_front(entry);
        }
        self.taken = self.acked;
    }

    /// Notes the acknowledgement of `records` records up to `seq`.
    pub(super) fn acknowledge(&mut self, seq: u64, records: u64) {
        self.acked = self.acked.max(seq);
        while self.aboard.front().is_some_and(|entry| entry.seq <= self.acked) {
            self.aboard.pop_front();
        }
        self.records = self.records.saturating_sub(records);
    }

    /// The mark of segment `marked` is on disk to stay: what lies before is not needed to know what is in flight. `true`
    /// where that was not known.
    pub(super) fn keep_from(&mut self, marked: u64) -> bool {
        let news = marked > self.keep_from;
        self.keep_from = self.keep_from.max(marked);
        news
    }

    /// The sealed segments that nobody needs any more; they stay listed until [`State::forget`].
    pub(super) fn done_segments(&self) -> Vec<Segment> {
        let done = |segment: &&Segment| {
            segment.sealed
                && !segment.keep
                && segment.last_seq <= self.acked
                && segment.number < self.keep_from
        };
        self.segments.iter().filter(done).cloned().collect()
    }

    /// A segment was deleted.
    pub(super) fn forget(&mut self, number: u64) {
        self.segments.retain(|segment| segment.number != number);
    }
}

/// When what a record tells of happened.
pub(super) fn at(record: &Record) -> Timestamp {
    match record {
        Record::Usage(event) => event.at,
        Record::Audit(event) => event.at,
        Record::Amend(amendment) => amendment.at,
    }
}
