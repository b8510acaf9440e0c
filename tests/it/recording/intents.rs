//! What a dead process leaves of the exchanges that were in flight.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tollgate::model::event::{Outcome, Record};
use tollgate::model::tokens::TokenSource;
use tollgate::record::{Config, Durability, Journal, Recorder, summary};
use tollgate::telemetry::Metrics;

use super::faulty::{FaultyDisk, Op, errno};
use super::fixture::{FakeSink, amendment, audit, config, crashed, intent, numbers, one, usage};
use crate::harness::within;

fn replayed(journal: &Journal) -> Vec<Record> {
    let mut records = Vec::new();
    journal.replay(&mut |record| records.push(record.clone()));
    records
}

fn cut_off(journal: &Journal) -> Vec<u64> {
    numbers(replayed(journal).iter().filter(|record| crashed(record)))
}

fn open(config: &Config) -> (Recorder, Journal) {
    Journal::open(config.clone(), Metrics::new()).unwrap()
}

fn open_on(disk: &FaultyDisk, config: &Config) -> (Recorder, Journal) {
    Journal::open_on(Arc::new(disk.clone()), config.clone(), Metrics::new()).unwrap()
}

/// Ships what there is.
async fn ship(journal: &Journal, sink: &Arc<FakeSink>) {
    ship_within(journal, sink, Duration::from_secs(10)).await;
}

async fn ship_within(journal: &Journal, sink: &Arc<FakeSink>, deadline: Duration) {
    let stop = CancellationToken::new();
    stop.cancel();
    journal.ship(sink.clone(), stop, deadline).await;
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn segments(dir: &Path) -> u64 {
    summary(dir).unwrap().segments.count
}

/// A journal whose process died with 1 and 3 in flight.
async fn left_in_flight(config: &Config) {
    let disk = FaultyDisk::default();
    let (recorder, _journal) = open_on(&disk, config);
    for n in 1..=3 {
        assert_eq!(recorder.intend(intent(n)).await, Durability::Journaled);
    }
    assert_eq!(recorder.record(one(usage(2))).await, Durability::Journaled);
    disk.die();
}

#[tokio::test]
async fn what_was_in_flight_is_charged_its_reservation_once_and_what_had_ended_is_not() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path());
    left_in_flight(&config).await;
    let (_, journal) = open(&config);
    assert_eq!((journal.opened().crashed, journal.opened().records), (2, 3));
    let back = replayed(&journal);
    assert_eq!((numbers(&back), cut_off(&journal)), (vec![2, 1, 3], vec![1, 3]));
    let Record::Usage(event) = &back[1] else { panic!("{:?}", back[1]) };
    let Record::Usage(whole) = usage(1) else { unreachable!() };
    assert_eq!((event.event_id, event.at, &event.tenant_id), (whole.event_id, whole.at, &whole.tenant_id));
    assert_eq!((event.outcome, event.status, event.tokens_consumed), (Outcome::Crashed, None, Some(150)));
    assert_eq!((event.token_source, event.messages, event.lease_run), (TokenSource::Reserved, 1, 3));
    assert_eq!((&event.request_id, &event.chat_session_id), (&whole.request_id, &whole.chat_session_id));
    assert_eq!(event.charges, intent(1).charges);

    let sink = FakeSink::willing();
    ship(&journal, &sink).await;
    assert_eq!((sink.written_sorted(), sink.written_crashed()), (vec![1, 2, 3], vec![1, 3]));
    drop(journal);
    assert_eq!(segments(dir.path()), 0, "nothing is left behind");
    let (_, journal) = open(&config);
    assert_eq!((journal.opened().crashed, replayed(&journal)), (0, vec![]));
}

#[tokio::test]
async fn a_second_death_at_any_operation_of_the_start_neither_doubles_nor_loses_them() {
    for fsync_interval in [Duration::ZERO, Duration::from_secs(3600)] {
        let first = TempDir::new().unwrap();
        left_in_flight(&Config { fsync_interval, ..config(first.path()) }).await;
        for nth in 1.. {
            let dir = TempDir::new().unwrap();
            copy(first.path(), dir.path());
            let config = Config { fsync_interval, ..config(dir.path()) };
            let disk = FaultyDisk::dies_at(nth);
            let sink = FakeSink::willing();
            if let Ok((_, journal)) = Journal::open_on(Arc::new(disk.clone()), config.clone(), Metrics::new())
            {
                // Of a dead disk nothing more comes.
                ship_within(&journal, &sink, Duration::from_millis(20)).await;
            }
            let (_, journal) = open(&config);
            let back = numbers(&replayed(&journal));
            assert_eq!(back.iter().collect::<BTreeSet<_>>().len(), back.len(), "killed at {nth}: {back:?}");
            ship(&journal, &sink).await;
            assert_eq!(sink.written_set(), BTreeSet::from([1, 2, 3]), "killed at {nth}");
            assert_eq!(
                sink.written_crashed().into_iter().collect::<BTreeSet<_>>(),
                BTreeSet::from([1, 3]),
                "killed at {nth}"
            );
            if !disk.died() {
                assert!(nth > 20, "the start has {nth} operations");
                break;
            }
        }
    }
}

/// Exchanges that overlap, over several segments, some of which are shipped and deleted: which were admitted and which
/// had ended, as far as the journal has said so, up to the crash.
async fn life(disk: &FaultyDisk, config: Config) -> (BTreeSet<u64>, BTreeSet<u64>, Arc<FakeSink>) {
    let sink = FakeSink::willing();
    let (mut admitted, mut ended) = (BTreeSet::new(), BTreeSet::new());
    if let Ok((recorder, journal)) = Journal::open_on(Arc::new(disk.clone()), config, Metrics::new()) {
        for n in 0..9 {
            if recorder.intend(intent(n)).await == Durability::Journaled {
                admitted.insert(n);
            }
            // 0 and 7 outlive it; the others end two later.
            if let Some(before) = n.checked_sub(2).filter(|before| ![0, 7].contains(before))
                && recorder.record([usage(before), audit(1000 + before)].into_iter().collect()).await
                    == Durability::Journaled
            {
                ended.insert(before);
            }
            if n == 5 || n == 7 {
                ship(&journal, &sink).await;
            }
        }
    }
    (admitted, ended, sink)
}

#[tokio::test]
async fn fault_78_a_kill_between_any_two_file_operations_charges_what_was_in_flight_once() {
    for fsync_interval in [Duration::ZERO, Duration::from_secs(3600)] {
        for nth in 1.. {
            let dir = TempDir::new().unwrap();
            let config =
                Config { segment_bytes: 4096, fsync_interval, batch_records: 5, ..config(dir.path()) };
            let disk = FaultyDisk::dies_at(nth);
            let (admitted, ended, sink) = life(&disk, config.clone()).await;
            let before = sink.written_set();
            let (_, journal) = open(&config);
            let (back, crashed) = (numbers(&replayed(&journal)), cut_off(&journal));
            let unique: BTreeSet<u64> = back.iter().copied().collect();
            assert_eq!(unique.len(), back.len(), "killed at {nth}: none comes back twice");
            // What was shipped from memory alone, while nothing could be written, comes again: the sink knows its id.
            let wronged: Vec<_> = crashed.iter().filter(|n| ended.contains(n)).collect();
            assert!(wronged.is_empty(), "killed at {nth}: ended, and crashed all the same: {wronged:?}");
            let lost: Vec<_> =
                admitted.iter().filter(|n| !unique.contains(n) && !before.contains(n)).collect();
            assert!(lost.is_empty(), "killed at {nth}: admitted and not accounted for: {lost:?}");
            ship(&journal, &sink).await;
            assert_eq!(journal.state().records, 0);
            drop(journal);
            let (_, journal) = open(&config);
            assert_eq!((journal.opened().crashed, journal.opened().damaged), (0, 0), "killed at {nth}");
            if !disk.died() {
                assert!(nth > 40, "the whole life has {nth} operations");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_long_stream_outlives_its_segment_which_is_deleted_all_the_same() {
    for fsync_interval in [Duration::ZERO, Duration::from_millis(1)] {
        let dir = TempDir::new().unwrap();
        let config = Config { segment_bytes: 4096, fsync_interval, ..config(dir.path()) };
        let disk = FaultyDisk::default();
        let (recorder, journal) = open_on(&disk, &config);
        recorder.intend(intent(0)).await;
        let sink = FakeSink::willing();
        for n in 1..=100 {
            recorder.intend(intent(n)).await;
            recorder.record(one(usage(n))).await;
            if n % 10 == 0 {
                ship(&journal, &sink).await;
            }
        }
        // With a sync now and then, what is shipped is deleted after the next sync.
        within("all segments but the last are deleted", async {
            while segments(dir.path()) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(journal.state().open_intents, 1);
        disk.die();
        drop(journal);
        let (_, journal) = open(&config);
        assert_eq!(cut_off(&journal), [0]);
    }
}

#[tokio::test]
async fn an_exchange_that_began_while_the_disk_was_full_is_known_once_it_is_not() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let config = config(dir.path());
    let (recorder, journal) = open_on(&disk, &config);
    assert_eq!(recorder.intend(intent(1)).await, Durability::Journaled);
    disk.leave_space(0);
    assert_eq!(recorder.intend(intent(2)).await, Durability::Held);
    assert_eq!(recorder.record(one(usage(1))).await, Durability::Held);
    let before = disk.written();
    disk.heal();
    disk.until(|written| written.groups >= before.groups + 2).await;
    assert_eq!(recorder.record(one(usage(3))).await, Durability::Journaled);
    disk.die();
    drop(journal);
    let (_, journal) = open(&config);
    assert_eq!((numbers(&replayed(&journal)), cut_off(&journal)), (vec![1, 3, 2], vec![2]));
}

#[tokio::test]
async fn what_carries_an_intent_lets_go_of_older_segments_only_when_it_is_synced() {
    let dir = TempDir::new().unwrap();
    let never = Duration::from_secs(3600);
    let config = Config { segment_bytes: 4096, fsync_interval: never, ..config(dir.path()) };
    let (recorder, journal) = open(&config);
    let sink = FakeSink::willing();
    for (in_flight, kept) in [(false, 1), (true, 2)] {
        if in_flight {
            recorder.intend(intent(0)).await;
        }
        for n in 1..=20 {
            recorder.record(one(usage(n))).await;
        }
        ship(&journal, &sink).await;
        assert!(segments(dir.path()) >= kept, "{} segments", segments(dir.path()));
        assert!(in_flight || segments(dir.path()) == 1, "{} segments", segments(dir.path()));
    }
}

#[tokio::test]
async fn a_death_at_any_write_of_a_recovery_leaves_the_event_or_the_intent() {
    for allowed in 0..4 {
        let dir = TempDir::new().unwrap();
        let config = config(dir.path());
        let disk = FaultyDisk::default();
        let (left, refused) = (Arc::new(AtomicU64::new(u64::MAX)), watch::Sender::new(0));
        let (writes, no) = (Arc::clone(&left), refused.clone());
        disk.fail(move |op, _| {
            if op != Op::Write || writes.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                return None;
            }
            no.send_modify(|refused| *refused += 1);
            Some(errno(Errno::NOSPC))
        });
        let (recorder, journal) = open_on(&disk, &config);
        assert_eq!(recorder.intend(intent(1)).await, Durability::Journaled);
        left.store(0, SeqCst);
        assert_eq!(recorder.record(one(usage(1))).await, Durability::Held);
        let before = *refused.borrow();
        left.store(allowed, SeqCst);
        // Header, event and mark are three writes; where they are allowed, it is the next record that is refused.
        if allowed >= 3 {
            within("it recovers", async {
                while !journal.state().healthy {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert_eq!(recorder.record(one(audit(102))).await, Durability::Held);
        }
        refused.subscribe().wait_for(|now| *now > before).await.unwrap();
        disk.die();
        drop(journal);
        let (_, journal) = open(&config);
        let back = numbers(&replayed(&journal));
        assert_eq!(back.iter().filter(|n| **n == 1).count(), 1, "after {allowed} writes: {back:?}");
        assert_eq!(cut_off(&journal).is_empty(), allowed >= 2, "after {allowed} writes: {back:?}");
    }
}

#[tokio::test]
async fn with_the_disk_full_at_the_start_what_was_in_flight_waits_in_memory_and_on_the_disk() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path());
    left_in_flight(&config).await;
    let disk = FaultyDisk::default();
    disk.leave_space(30);
    let (_, journal) = open_on(&disk, &config);
    assert_eq!((cut_off(&journal), journal.state().records), (vec![1, 3], 3));
    assert!(!journal.state().healthy);
    disk.die();
    drop(journal);
    let (_, journal) = open(&config);
    assert_eq!(cut_off(&journal), [1, 3]);
}

#[tokio::test]
async fn more_than_there_is_room_for_are_left_out_and_counted() {
    let dir = TempDir::new().unwrap();
    let config = Config { segment_bytes: 4096, ..config(dir.path()) };
    let metrics = Metrics::new();
    let disk = FaultyDisk::default();
    let (recorder, journal) =
        Journal::open_on(Arc::new(disk.clone()), config.clone(), Arc::clone(&metrics)).unwrap();
    for n in 0..50 {
        recorder.intend(intent(n)).await;
    }
    let known = journal.state().open_intents;
    assert!((1..50).contains(&known), "{known}");
    assert_eq!(metrics.intents_left_out.get(), 50 - known);
    for n in 0..50 {
        recorder.record(one(usage(n))).await;
    }
    assert_eq!((journal.state().open_intents, metrics.journal_intents.get()), (0, 0));
    disk.die();
    drop(journal);
    assert_eq!(cut_off(&open(&config).1), Vec::<u64>::new());
}

/// Written by the release before intents: usage 0 and 1 with an audit event, which are acknowledged; usage 2 and 3 with
/// an audit event each, a correction of 3, and usage 4 in a segment of its own.
#[tokio::test]
async fn a_journal_that_the_release_before_intents_wrote_is_read_and_shipped() {
    let dir = TempDir::new().unwrap();
    copy(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/journal/before-intents")), dir.path());
    let (recorder, journal) = open(&config(dir.path()));
    let expected = [usage(2), audit(102), usage(3), audit(103), amendment(3), usage(4)];
    assert_eq!(replayed(&journal), expected);
    assert_eq!((journal.opened().records, journal.opened().damaged, journal.opened().crashed), (6, 0, 0));
    recorder.intend(intent(5)).await;
    recorder.record(one(usage(5))).await;
    let sink = FakeSink::willing();
    ship(&journal, &sink).await;
    assert_eq!(sink.written_sorted(), [2, 3, 3, 4, 5, 102, 103]);
    drop(journal);
    assert_eq!(segments(dir.path()), 0);
}

#[tokio::test]
async fn what_fills_a_disk_is_let_go_once_it_is_shipped_and_no_exchange_needs_its_intent() {
    let dir = TempDir::new().unwrap();
    let config = Config { fsync_interval: Duration::ZERO, ..config(dir.path()) };
    let (disk, sink) = (FaultyDisk::default(), FakeSink::willing());
    let (recorder, journal) = open_on(&disk, &config);
    assert_eq!(recorder.intend(intent(1)).await, Durability::Journaled);
    assert_eq!(recorder.record(one(usage(2))).await, Durability::Journaled);
    // There is no room for another byte until the first segment is deleted.
    let first = dir.path().join("0000000000000001.seg");
    let fills = first.clone();
    disk.fail(move |op, path| {
        let segment = path.extension().is_some_and(|e| e == "seg");
        (op == Op::Write && segment && fills.exists()).then(|| errno(Errno::NOSPC))
    });
    assert_eq!(recorder.record(one(usage(3))).await, Durability::Held);
    ship(&journal, &sink).await;
    // The writer was told of that before it gets this.
    assert_eq!(recorder.record(one(usage(4))).await, Durability::Held);
    assert!(first.exists(), "exchange 1 has nothing but its intent");
    assert_eq!(recorder.record(one(usage(1))).await, Durability::Held);
    assert!(first.exists(), "what closed it is in memory only");
    ship(&journal, &sink).await;
    assert_eq!(recorder.record(one(usage(5))).await, Durability::Journaled);
    assert!(!first.exists());
    assert!(journal.state().healthy);
    assert_eq!(sink.written_sorted(), [1, 2, 3, 4]);
    disk.die();
    drop(journal);
    let (_, journal) = open(&config);
    assert_eq!((numbers(&replayed(&journal)), cut_off(&journal)), (vec![5], vec![]));
}
