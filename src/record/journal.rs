//! Opening and closing: the lock, what former runs left, the threads.

use std::convert::Infallible;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::model::event::Record;
use crate::model::intent::Intent;
use crate::telemetry::Metrics;

use super::aside::{DAMAGED, DEAD_LETTERS, Damaged, DeadLetters};
use super::codec::{self, Held};
use super::config::{Config, OpenError};
use super::disk::{Disk, DiskFile, RealDisk};
use super::intents::Unclosed;
use super::log::{Log, Segment, State};
use super::outlet::{Outlet, raw};
use super::parts::{Parts, path, reap};
use super::position::Position;
use super::recorder::{Inbox, Recorder, lock};
use super::segment::{self, NewerLayout, SegmentReader, Step};
use super::shipper;
use super::sink::EventSink;
use super::syncer::{Syncer, Watch};
use super::writer::Writer;

/// The file that is locked.
const LOCK: &str = "lock";
/// The file of the acknowledged position.
pub(super) const POSITION: &str = "position";
/// A journal is cut into at least this many segments, so that a full one gets room by and by.
const SEGMENTS_AT_LEAST: u64 = 4;
/// How long closing waits for the disk.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// The journal and what belongs to it. Share it as an `Arc`.
#[derive(Debug)]
pub struct Journal {
    outlet: Arc<Outlet>,
    opened: Opened,
    /// The events of exchanges that a former run left in flight: a part of what is replayed.
    crashed: Vec<Record>,
    threads: Mutex<Option<Threads>>,
    shipping: tokio::sync::Mutex<()>,
    /// Held for as long as the journal is open.
    lock: Mutex<Option<Arc<dyn DiskFile>>>,
}

/// The writer and its helpers.
#[derive(Debug)]
struct Threads {
    all: Vec<JoinHandle<()>>,
    /// Hangs up when the writer has ended.
    writer_ended: mpsc::Receiver<Infallible>,
}

/// What opening found of former runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Records that were not acknowledged, with those of `crashed`.
    pub records: u64,
    /// Exchanges that were in flight: they are charged what they had reserved.
    pub crashed: u64,
    /// Regions that were damaged or not readable by this release, kept in `damaged.jsonl`.
    pub damaged: u64,
    /// Bytes of records that a crash cut short; nobody was told that these were journaled.
    pub torn_bytes: u64,
    /// The segments that [`Journal::replay`] reads: number and size.
    segments: Vec<(u64, u64)>,
    /// The acknowledged position.
    acked: u64,
}

/// How the journal is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalState {
    /// Whether it can be written.
    pub healthy: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Records that are not acknowledged.
    pub records: u64,
    /// Exchanges in flight whose intents it holds.
    pub open_intents: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// How long ago the oldest unacknowledged record's event was.
    pub oldest_age: Option<Duration>,
    /// Records in the dead-letter file.
    pub dead_letters: u64,
    /// Records found damaged since the start.
    pub damaged: u64,
    /// Why the sink did not take the last batch.
    pub shipping: Option<String>,
}

impl Journal {
    /// Opens (or makes) the journal and starts its writer.
    ///
    /// Refuses when the directory can't be written or another process holds it. A disk that is merely full is no
    /// reason to refuse: the journal starts unhealthy, and recovers.
    pub fn open(config: Config, metrics: Arc<Metrics>) -> Result<(Recorder, Journal), OpenError> {
        Self::open_on(Arc::new(RealDisk), config, metrics)
    }

    /// The same on another file system.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        mut config: Config,
        metrics: Arc<Metrics>,
    ) -> Result<(Recorder, Journal), OpenError> {
        let dir = config.dir.clone();
        let refuse = |e: io::Error| {
            OpenError(format!(
                "the journal directory {} can't be used: {e}; make it a directory that this user may write, or set another [data] dir",
                dir.display()
            ))
        };
        config.segment_bytes = config.segment_bytes.min(config.max_bytes / SEGMENTS_AT_LEAST).max(1);
        disk.create_dir(&dir).map_err(refuse)?;
        let lock = disk.open(&path(&config, LOCK)).map_err(refuse)?;
        if !lock.lock().map_err(refuse)? {
            return Err(OpenError(format!(
                "the journal directory {} is held by another process; stop that one, or give this one another [data] dir",
                dir.display()
            )));
        }
        let journal = Self::start(disk, config, metrics, lock).map_err(refuse)?;
        let recorder = Recorder::new(Arc::clone(&journal.outlet.parts.inbox));
        Ok((recorder, journal))
    }

    fn start(
        disk: Arc<dyn Disk>,
        config: Config,
        metrics: Arc<Metrics>,
        lock: Arc<dyn DiskFile>,
    ) -> io::Result<Self> {
        let (position, acked) = Position::load(disk.open(&path(&config, POSITION))?)?;
        let damaged = Damaged::open(disk.open(&path(&config, DAMAGED))?, config.max_bytes)?;
        let dead_letters = DeadLetters::open(disk.open(&path(&config, DEAD_LETTERS))?, config.max_bytes)?;
        let mut found = Found { opened: Opened { acked, ..Opened::default() }, ..Found::default() };
        for number in segment_numbers(&*disk, &config.dir)? {
            found.survey(&*disk, &config, number)?;
        }
        let crashed: Vec<Record> = mem::take(&mut found.unclosed)
            .into_open()
            .into_iter()
            .map(|intent| Record::Usage(Box::new(intent.crashed())))
            .collect();
        let last_seq = found.segments.iter().map(|s| s.last_seq).max().unwrap_or(0).max(acked);
        let next_number = found.segments.last().map_or(0, |s| s.number) + 1;
        let mut opened = found.opened;
        let state = State::resume(found.segments, last_seq, acked, opened.records);
        let parts = Arc::new(Parts {
            log: Log::new(state, Arc::clone(&metrics), found.oldest),
            inbox: Arc::new(Inbox::new(Arc::clone(&metrics))),
            syncer: Syncer::new(Arc::clone(&disk), config.dir.clone(), config.fsync_interval),
            watch: Watch::default(),
            disk,
            config,
            metrics,
        });
        let outlet = Arc::new(Outlet::new(Arc::clone(&parts), position, damaged, dead_letters));
        for (segment, offset, bytes, reason, records) in &found.damage {
            outlet.keep(segment, *offset, bytes, reason, *records);
        }
        opened.damaged = parts.log.damaged.load(Ordering::Relaxed);
        opened.crashed = crashed.len() as u64;
        opened.records += opened.crashed;
        let next_seq = found.next_seq.max(last_seq + 1);
        let mut writer = Writer::new(Arc::clone(&parts), next_number, next_seq);
        writer.begin(&crashed)?;
        let threads = Mutex::new(Some(spawn(&parts, writer)?));
        if opened.records > 0 || opened.torn_bytes > 0 {
            tracing::info!(
                records = opened.records,
                crashed = opened.crashed,
                damaged = opened.damaged,
                torn_bytes = opened.torn_bytes,
                "the journal holds records of a former run"
            );
        }
        Ok(Self {
            outlet,
            opened,
            crashed,
            threads,
            shipping: tokio::sync::Mutex::new(()),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// What opening found of former runs.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Calls `each` with every record that a former run left unacknowledged, in order, and then with the events of the
    /// exchanges that it left in flight. Reads the disk, so it blocks; call it before [`Journal::ship`].
    pub fn replay(&self, each: &mut dyn FnMut(&Record)) {
        let parts = &self.outlet.parts;
        for (number, bytes) in &self.opened.segments {
            let path = parts.config.dir.join(segment::name(*number));
            let replayed = parts.disk.read(&path).and_then(|file| {
                let Ok(mut reader) = SegmentReader::new(file)? else { return Ok(()) };
                loop {
                    match reader.next(*bytes)? {
                        Step::End => return Ok(()),
                        Step::Damage(_) => {}
                        Step::Frame(_, frame) if frame.seq <= self.opened.acked || !frame.is_record() => {}
                        Step::Frame(_, frame) => {
                            if let Ok(Held::Record(record)) = frame.read() {
                                each(&record);
                            }
                        }
                    }
                }
            });
            if let Err(e) = replayed {
                tracing::error!(segment = %path.display(), error = %e, "a segment of a former run can't be replayed");
            }
        }
        self.crashed.iter().for_each(each);
    }

    /// Ships until `stop`, then what is left until `deadline` after it; returns when nothing is left or time is up.
    ///
    /// One call at a time: a second waits for the first.
    pub async fn ship(&self, sink: Arc<dyn EventSink>, stop: CancellationToken, deadline: Duration) {
        let _alone = self.shipping.lock().await;
        shipper::ship(&self.outlet, sink, stop, deadline).await;
    }

    /// The sequence numbers of the last record that was journaled, and of the last up to which all were acknowledged.
    pub fn reached(&self) -> (u64, u64) {
        self.outlet.parts.log.with(|state| (state.last_seq, state.acked))
    }

    /// How the journal is. Cheap.
    pub fn state(&self) -> JournalState {
        let log = &self.outlet.parts.log;
        let (reason, records, open_intents, bytes) =
            log.with(|state| (state.fault.clone(), state.records, state.intents, state.bytes()));
        let since =
            |then: Timestamp| Duration::try_from(Timestamp::now().duration_since(then)).unwrap_or_default();
        JournalState {
            healthy: reason.is_none(),
            reason,
            records,
            open_intents,
            bytes,
            oldest_age: log.oldest().map(since),
            dead_letters: log.dead_letters.load(Ordering::Relaxed),
            damaged: log.damaged.load(Ordering::Relaxed),
            shipping: lock(&log.shipping_fault).clone(),
        }
    }

    /// Writes and syncs what was handed over, and stops the writer. What is recorded afterwards is lost (and counted).
    ///
    /// Blocks until the disk has it, or for 10 seconds on one that hangs: call it from `spawn_blocking`. Once is enough;
    /// dropping the journal does it, too.
    pub fn close(&self) {
        let parts = &self.outlet.parts;
        parts.inbox.close();
        let Some(threads) = lock(&self.threads).take() else { return };
        let written = threads.writer_ended.recv_timeout(CLOSE_WITHIN);
        parts.syncer.stop();
        parts.watch.stop();
        if let Err(RecvTimeoutError::Timeout) = written {
            // Left to itself, with the lock: it may still write.
            tracing::error!(
                records = parts.log.with(|state| state.records),
                "closing the journal was given up: the disk hangs"
            );
            return;
        }
        if threads.all.into_iter().any(|thread| thread.join().is_err()) {
            tracing::error!("a thread of the journal panicked");
        }
        reap(parts);
        if let Some(held) = lock(&self.lock).take() {
            held.unlock();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(parts: &Arc<Parts>, writer: Writer) -> io::Result<Threads> {
    let (alive, writer_ended) = mpsc::channel::<Infallible>();
    let write = move || {
        // Dropped when the thread ends, however it does.
        let _alive = alive;
        writer.run();
    };
    let mut all = vec![thread::Builder::new().name("journal".into()).spawn(write)?];
    let watching = Arc::clone(parts);
    let watch = move || watching.watch.run(&watching.inbox, &watching.log);
    all.push(thread::Builder::new().name("journal-watch".into()).spawn(watch)?);
    if !parts.config.fsync_interval.is_zero() {
        let syncing = Arc::clone(parts);
        let sync = move || {
            let log = &syncing.log;
            let synced = |mark| {
                if log.with(|state| state.keep_from(mark)) {
                    reap(&syncing);
                }
            };
            syncing.syncer.run(&syncing.inbox, || log.with(|state| state.marked), synced);
        };
        all.push(thread::Builder::new().name("journal-sync".into()).spawn(sync)?);
    }
    Ok(Threads { all, writer_ended })
}

/// The numbers of a directory's segments, in order.
pub(super) fn segment_numbers(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = disk.list(dir)?.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What a survey of the segments has found so far.
#[derive(Debug, Default)]
struct Found {
    opened: Opened,
    segments: Vec<Segment>,
    /// The first sequence number that was not given, as far as frames show: that of a damaged record is given, too.
    next_seq: u64,
    oldest: Option<Timestamp>,
    unclosed: Unclosed<Intent>,
    /// Segment, offset, bytes, reason, records.
    damage: Vec<(Segment, u64, Vec<u8>, String, u64)>,
}

impl Found {
    /// Reads one segment through: counts what is to be shipped, follows what is in flight, notes what is damaged, cuts
    /// off what is torn.
    fn survey(&mut self, disk: &dyn Disk, config: &Config, number: u64) -> io::Result<()> {
        let path = config.dir.join(segment::name(number));
        let file = disk.read(&path)?;
        let size = file.size()?;
        let mut segment = Segment { number, path, bytes: size, last_seq: 0, sealed: true, keep: false };
        let mut reader = match SegmentReader::new(file)? {
            Ok(reader) => reader,
            Err(NewerLayout(layout)) => {
                tracing::error!(segment = %segment.path.display(), layout, "a segment was written by a newer release; it is kept, and not shipped");
                segment.keep = true;
                self.segments.push(segment);
                return Ok(());
            }
        };
        let acked = self.opened.acked;
        let before = self.segments.iter().map(|s| s.last_seq).max().unwrap_or(0).max(acked);
        let mut pending: Option<(u64, Vec<u8>, bool)> = None;
        self.unclosed.segment();
        loop {
            match reader.next(size)? {
                Step::End => break,
                Step::Damage(damage) => pending = Some((damage.offset, damage.bytes.to_vec(), damage.torn)),
                Step::Frame(offset, frame) => {
                    if let Some((at, bytes, _)) = pending.take() {
                        // By the numbers that are missing; those of records that were shed are missing, too.
                        let at_most = (bytes.len() / codec::HEADER_BYTES).max(1) as u64;
                        let lost =
                            frame.seq.saturating_sub(segment.last_seq.max(before) + 1).clamp(1, at_most);
                        if frame.seq > acked + 1 {
                            self.damage.push((segment.clone(), at, bytes, "damaged".into(), lost));
                        }
                    }
                    if frame.is_record() {
                        segment.last_seq = segment.last_seq.max(frame.seq);
                    }
                    self.next_seq = self.next_seq.max(frame.seq.saturating_add(u64::from(frame.is_record())));
                    let wanted = frame.is_record() && frame.seq > acked;
                    if !wanted && frame.is_record() && self.unclosed.is_empty() {
                        continue;
                    }
                    match frame.read() {
                        Ok(Held::Intent(intent)) => self.unclosed.intent(intent.event_id, *intent),
                        Ok(Held::Mark(intents)) => self.unclosed.mark(intents),
                        Ok(Held::Record(record)) => {
                            if let Record::Usage(event) = &record {
                                self.unclosed.event(event.event_id);
                            }
                            if wanted {
                                self.opened.records += 1;
                                self.oldest = self.oldest.or(Some(super::log::at(&record)));
                            }
                        }
                        Err(why) if frame.seq > acked => {
                            self.damage.push((segment.clone(), offset, raw(&frame), why.to_string(), 1))
                        }
                        Err(_) => {}
                    }
                }
            }
        }
        if let Some((at, bytes, torn)) = pending {
            if torn {
                tracing::warn!(segment = %segment.path.display(), offset = at, bytes = bytes.len(), "a record that was cut short is cut off");
                self.opened.torn_bytes += bytes.len() as u64;
                // It is read over all the same when it can't be cut.
                if disk.open(&segment.path).and_then(|file| file.truncate(at)).is_ok() {
                    segment.bytes = at;
                }
            } else {
                self.damage.push((segment.clone(), at, bytes, "damaged".into(), 1));
            }
        }
        if segment.last_seq > acked {
            self.opened.segments.push((number, segment.bytes));
        }
        self.segments.push(segment);
        Ok(())
    }
}
