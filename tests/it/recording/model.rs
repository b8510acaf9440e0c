//! The journal against a model of it, over random operations, crashes and corruptions.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tollgate::record::{
    Config, Content, Durability, Inspected, Journal, Recorder, Records, SinkError, inspect,
};
use tollgate::telemetry::Metrics;

use super::faulty::{FaultyDisk, Op};
use super::fixture::{FakeSink, audit, config, crashed, intent, number, usage};

#[derive(Clone, Debug)]
enum Step {
    /// Records so many, as one group or one by one.
    Append { records: u8, together: bool },
    /// Admits so many exchanges.
    Admit(u8),
    /// Ends so many of those in flight, the youngest first.
    End(u8),
    /// Ships so many batches, or all.
    Ship(Option<u8>),
    /// Closes and opens.
    Reopen,
    /// Dies, loses this part of the last segment's end (in 1/255 of the segment), and opens.
    Crash { torn: u8 },
    /// Dies, has a byte changed at this part of the journal, and opens.
    Corrupt { place: u16, flip: u8 },
    /// The disk does none of these until it is well again.
    Fail(&'static [Op]),
    /// The disk takes so many bytes more.
    Fill(u16),
    /// The disk is well again.
    Heal,
}

/// What a disk does not do, while it does what else there is.
const FAULTS: [&[Op]; 6] = [
    &[Op::Write],
    &[Op::Open],
    &[Op::Sync, Op::SyncDir],
    &[Op::Remove],
    &[Op::Write, Op::Truncate],
    &[Op::Write, Op::Open, Op::Remove, Op::Sync, Op::SyncDir, Op::Truncate],
];

/// Steps on a disk that is well.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..20_u8, any::<bool>()).prop_map(|(records, together)| Step::Append { records, together }),
        3 => (1..4_u8).prop_map(Step::Admit),
        2 => (1..4_u8).prop_map(Step::End),
        2 => proptest::option::of(0..4_u8).prop_map(Step::Ship),
        1 => Just(Step::Reopen),
        1 => prop_oneof![Just(0), any::<u8>()].prop_map(|torn| Step::Crash { torn }),
        1 => (any::<u16>(), 1..=255_u8).prop_map(|(place, flip)| Step::Corrupt { place, flip }),
    ]
}

/// Steps on one that now and then is not.
fn step_in_trouble() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => step(),
        1 => prop::sample::select(&FAULTS[..]).prop_map(Step::Fail),
        1 => (0..4000_u16).prop_map(Step::Fill),
        1 => Just(Step::Heal),
    ]
}

/// What the journal should hold.
#[derive(Default)]
struct Model {
    next: u64,
    /// Journaled, and not known to be in the sink.
    pending: BTreeSet<u64>,
    /// Recorded, and in memory alone, as far as is known.
    held: BTreeSet<u64>,
    /// Of these, and of `in_flight`, those whose intent is journaled: one way or another they come back.
    announced: BTreeSet<u64>,
    /// Admitted in this run, and not ended.
    in_flight: BTreeSet<u64>,
    /// Those that were admitted, ever: an exchange has its number from its admission, not in the order of the journal.
    admitted: BTreeSet<u64>,
    /// Left in flight by a run.
    crashed: BTreeSet<u64>,
    /// In the sink.
    shipped: BTreeSet<u64>,
    /// In a place that was cut off or changed.
    damaged: BTreeSet<u64>,
}

struct Run {
    config: Config,
    disk: FaultyDisk,
    /// The disk is not well.
    troubled: bool,
    /// It was not, since the journal was opened: the writer finds out by itself that it is well again.
    was_troubled: bool,
    /// The journal may get full.
    bounded: bool,
    open: Option<(Recorder, Journal)>,
    model: Model,
}

fn places(dir: &Path) -> Vec<Inspected> {
    let mut all = Vec::new();
    inspect(dir, &mut |found| {
        all.push(found);
        true
    })
    .unwrap();
    all
}

/// The numbers of the records that overlap a part of a segment.
fn hit(places: &[Inspected], segment: &str, from: u64, to: u64) -> Vec<u64> {
    let overlaps = |p: &&Inspected| p.segment == segment && p.offset < to && from < p.offset + p.length;
    places
        .iter()
        .filter(overlaps)
        .filter_map(|place| match &place.what {
            Content::Record { record, .. } => Some(number(record)),
            Content::Intent(intent) => Some(intent.event_id.as_u128() as u64 & 0xffff_ffff),
            Content::Mark(_) | Content::Torn | Content::Unreadable(_) => None,
        })
        .collect()
}

impl Run {
    fn open(&mut self) {
        self.disk = FaultyDisk::default();
        (self.troubled, self.was_troubled) = (false, false);
        let disk = Arc::new(self.disk.clone());
        let (recorder, journal) = Journal::open_on(disk, self.config.clone(), Metrics::new()).unwrap();
        let (mut back, mut cut_off) = (Vec::new(), BTreeSet::new());
        journal.replay(&mut |record| {
            back.push(number(record));
            cut_off.extend(crashed(record).then_some(number(record)));
        });
        let ordered: Vec<u64> = back.iter().copied().filter(|n| !self.model.admitted.contains(n)).collect();
        assert!(ordered.is_sorted(), "in order: {back:?}");
        let records = back.len();
        let back: BTreeSet<u64> = back.into_iter().collect();
        assert_eq!(back.len(), records, "each once");
        let left = mem::take(&mut self.model.in_flight);
        let announced = mem::take(&mut self.model.announced);
        let held = mem::take(&mut self.model.held);
        let without = |numbers: &BTreeSet<u64>, there: &BTreeSet<u64>| -> Vec<u64> {
            let whole = announced.difference(&self.model.damaged).copied();
            whole.filter(|n| numbers.contains(n) && !there.contains(n)).collect()
        };
        let uncharged = without(&left, &cut_off);
        assert!(uncharged.is_empty(), "in flight, and not charged: {uncharged:?}");
        let forgotten = without(&held, &back);
        assert!(forgotten.is_empty(), "neither there nor charged: {forgotten:?}");
        let ended = |n: &&u64| {
            let model = &self.model;
            model.pending.contains(n) && !model.crashed.contains(n) && !model.damaged.contains(n)
        };
        let wronged: Vec<_> = cut_off.iter().filter(ended).collect();
        assert!(wronged.is_empty(), "journaled as ended, and crashed all the same: {wronged:?}");
        self.model.crashed.extend(&cut_off);
        let missing: Vec<_> =
            self.model.pending.difference(&back).filter(|n| !self.model.damaged.contains(n)).collect();
        assert!(missing.is_empty(), "lost: {missing:?}");
        // A damaged event leaves its intent, which counts as soon as the mark behind it is damaged, too.
        let model = &self.model;
        let damaged_event = |n| model.damaged.contains(&n) && cut_off.contains(&n);
        let known = |n: &u64| {
            model.pending.contains(n)
                || model.shipped.contains(n)
                || left.contains(n)
                || held.contains(n)
                || damaged_event(*n)
        };
        assert!(back.iter().all(known), "never recorded: {back:?}");
        assert_eq!(journal.state().records, back.len() as u64);
        // From here on the journal is held to what it has shown.
        self.model.pending = back;
        self.open = Some((recorder, journal));
    }

    fn die(&mut self) {
        self.disk.die();
        self.open = None;
    }

    /// Waits until the writer has found out that the disk is well.
    fn recovered(&self) {
        let (_, journal) = self.open.as_ref().unwrap();
        let began = Instant::now();
        while !journal.state().healthy {
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", journal.state());
            std::thread::yield_now();
        }
    }

    async fn take(&mut self, step: Step) {
        let may_hold = self.was_troubled || self.bounded;
        match step {
            Step::Append { records, together } => {
                let (recorder, _) = self.open.as_ref().unwrap();
                let numbers = self.model.next..self.model.next + u64::from(records);
                let record = |n: u64| if n.is_multiple_of(3) { audit(n) } else { usage(n) };
                let receipts: Vec<_> = if together {
                    vec![recorder.record(numbers.clone().map(record).collect())]
                } else {
                    numbers.clone().map(|n| recorder.record(Records::from_iter([record(n)]))).collect()
                };
                self.model.next = numbers.end;
                let mut left = numbers;
                for receipt in receipts {
                    let its = left.by_ref().take(if together { usize::from(records) } else { 1 });
                    match receipt.await {
                        Durability::Journaled => self.model.pending.extend(its),
                        Durability::Held if may_hold => self.model.held.extend(its),
                        other => panic!("{other:?}"),
                    }
                }
            }
            Step::Admit(exchanges) => {
                let (recorder, journal) = self.open.as_ref().unwrap();
                // As many as there is room for in a segment of this size.
                let room = 5 - self.model.in_flight.len() as u64;
                let numbers = self.model.next..self.model.next + u64::from(exchanges).min(room);
                for n in numbers.clone() {
                    match recorder.intend(intent(n)).await {
                        Durability::Journaled => {
                            self.model.announced.insert(n);
                        }
                        Durability::Held if may_hold => {}
                        other => panic!("{other:?}"),
                    }
                }
                self.model.next = numbers.end;
                self.model.admitted.extend(numbers.clone());
                self.model.in_flight.extend(numbers);
                assert_eq!(journal.state().open_intents, self.model.in_flight.len() as u64);
            }
            Step::End(exchanges) => {
                let (recorder, journal) = self.open.as_ref().unwrap();
                for _ in 0..exchanges {
                    let Some(n) = self.model.in_flight.pop_last() else { break };
                    match recorder.record(Records::from_iter([usage(n)])).await {
                        Durability::Journaled => self.model.pending.insert(n),
                        Durability::Held if may_hold => self.model.held.insert(n),
                        other => panic!("{other:?}"),
                    };
                }
                assert_eq!(journal.state().open_intents, self.model.in_flight.len() as u64);
            }
            Step::Ship(batches) => {
                let (_, journal) = self.open.as_ref().unwrap();
                let left = std::sync::atomic::AtomicU64::new(batches.map_or(u64::MAX, u64::from));
                let sink = FakeSink::new(move |_| {
                    use std::sync::atomic::Ordering::SeqCst;
                    let taken = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
                    taken.map(|_| ()).map_err(|_| SinkError::Transient("enough".into()))
                });
                let stop = CancellationToken::new();
                stop.cancel();
                journal.ship(sink.clone(), stop, Duration::from_millis(200)).await;
                let written = sink.written_set();
                let unknown: Vec<_> = written.iter().filter(|n| **n >= self.model.next).collect();
                assert!(unknown.is_empty());
                self.model.shipped.extend(&written);
                if batches.is_none() {
                    let recorded = self.model.pending.union(&self.model.held);
                    let missing: Vec<_> = recorded.filter(|n| !self.model.shipped.contains(n)).collect();
                    assert!(missing.is_empty(), "not shipped: {missing:?}");
                    assert_eq!(journal.state().records, 0);
                }
                self.model.pending.retain(|n| !self.model.shipped.contains(n));
                self.model.held.retain(|n| !self.model.shipped.contains(n));
            }
            Step::Reopen => {
                self.open = None;
                if !self.troubled && !self.bounded {
                    self.model.pending.append(&mut self.model.held);
                }
                self.open();
            }
            Step::Crash { torn } => {
                self.die();
                let places = places(&self.config.dir);
                if let Some(last) = places.last() {
                    let path = self.config.dir.join(&last.segment);
                    let size = std::fs::metadata(&path).unwrap().len();
                    let keep = size - size * u64::from(torn) / 255;
                    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(keep).unwrap();
                    self.model.damaged.extend(hit(&places, &last.segment, keep, size));
                }
                self.open();
            }
            Step::Corrupt { place, flip } => {
                self.die();
                let places = places(&self.config.dir);
                let sizes: BTreeMap<&str, u64> = places
                    .iter()
                    .map(|p| {
                        (
                            p.segment.as_str(),
                            std::fs::metadata(self.config.dir.join(&p.segment)).unwrap().len(),
                        )
                    })
                    .collect();
                let mut at = sizes.values().sum::<u64>() * u64::from(place) / 65_536;
                for (segment, size) in sizes {
                    if at < size {
                        let path = self.config.dir.join(segment);
                        let mut bytes = std::fs::read(&path).unwrap();
                        bytes[usize::try_from(at).unwrap()] ^= flip;
                        std::fs::write(&path, bytes).unwrap();
                        self.model.damaged.extend(hit(&places, segment, at, at + 1));
                        break;
                    }
                    at -= size;
                }
                self.open();
            }
            Step::Fail(faults) => {
                (self.troubled, self.was_troubled) = (true, true);
                self.disk.fail(|op, _| faults.contains(&op).then(|| io::Error::from(Errno::IO)));
            }
            Step::Fill(bytes) => {
                (self.troubled, self.was_troubled) = (true, true);
                self.disk.leave_space(bytes.into());
            }
            Step::Heal => {
                self.troubled = false;
                self.disk.heal();
                if !self.bounded {
                    self.recovered();
                    self.model.pending.append(&mut self.model.held);
                    self.model.announced.extend(&self.model.in_flight);
                }
            }
        }
    }
}

/// Takes the steps with a journal of small segments.
fn run(steps: impl IntoIterator<Item = Step>, synced: bool, bounded: bool) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let dir = TempDir::new().unwrap();
        let config = Config {
            segment_bytes: 6000,
            max_bytes: if bounded { 20_000 } else { 64 << 20 },
            batch_records: 7,
            fsync_interval: Duration::from_secs(if synced { 0 } else { 3600 }),
            ..config(dir.path())
        };
        let mut run = Run {
            config,
            disk: FaultyDisk::default(),
            troubled: false,
            was_troubled: false,
            bounded,
            open: None,
            model: Model::default(),
        };
        run.open();
        for step in steps {
            run.take(step).await;
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_journaled_and_not_damaged_comes_back_once_and_in_order_and_what_was_in_flight_is_charged(
        steps in proptest::collection::vec(step(), 1..25),
        synced in any::<bool>(),
    ) {
        run(steps, synced, false);
    }

    #[test]
    fn the_same_holds_on_a_disk_that_fails_and_fills_and_in_a_journal_that_does(
        steps in proptest::collection::vec(step_in_trouble(), 1..25),
        synced in any::<bool>(),
        bounded in any::<bool>(),
    ) {
        run(steps, synced, bounded);
    }
}
