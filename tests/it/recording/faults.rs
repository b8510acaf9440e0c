//! Faults of disk and process, by their numbers in the table of faults.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tollgate::record::codec::{self, HEADER_BYTES};
use tollgate::record::{
    Config, Content, Durability, Inspected, Journal, Recorder, Records, SinkError, inspect,
};
use tollgate::telemetry::Metrics;

use super::faulty::{FaultyDisk, Op, errno};
use super::fixture::{FakeSink, audit, config, intent, number, numbers, one, usage};
use crate::harness::within;

fn replayed(journal: &Journal) -> Vec<u64> {
    let mut records = Vec::new();
    journal.replay(&mut |record| records.push(record.clone()));
    numbers(&records)
}

/// The records, and what may have been some.
fn contents(dir: &Path) -> Vec<Inspected> {
    let mut all = Vec::new();
    inspect(dir, &mut |found| {
        if !matches!(found.what, Content::Mark(_)) {
            all.push(found);
        }
        true
    })
    .unwrap();
    all
}

async fn journal_of(dir: &Path, records: u64) -> Vec<Inspected> {
    let (recorder, journal) = Journal::open(config(dir), Metrics::new()).unwrap();
    for n in 0..records {
        assert_eq!(recorder.record(one(usage(n))).await, Durability::Journaled);
    }
    drop(journal);
    contents(dir)
}

fn change(dir: &Path, place: &Inspected, change: impl FnOnce(&mut Vec<u8>, usize)) -> PathBuf {
    let path = dir.join(&place.segment);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes, usize::try_from(place.offset).unwrap());
    std::fs::write(&path, bytes).unwrap();
    path
}

fn open_on(disk: &FaultyDisk, config: Config) -> (Recorder, Journal, Arc<Metrics>) {
    let metrics = Metrics::new();
    let (recorder, journal) = Journal::open_on(Arc::new(disk.clone()), config, Arc::clone(&metrics)).unwrap();
    (recorder, journal, metrics)
}

/// The disk is well again: waits until the writer, which tries by itself, has found out.
async fn recovery(disk: &FaultyDisk) {
    let before = disk.written();
    disk.heal();
    disk.until(|written| written.groups > before.groups).await;
}

#[tokio::test]
async fn fault_76_a_torn_last_record_is_cut_off_and_reported() {
    let dir = TempDir::new().unwrap();
    let places = journal_of(dir.path(), 5).await;
    let last = &places[4];
    let path = change(dir.path(), last, |bytes, offset| bytes.truncate(offset + 40));
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    assert_eq!(replayed(&journal), [0, 1, 2, 3]);
    assert_eq!(journal.opened().torn_bytes, 40);
    assert_eq!(std::fs::metadata(path).unwrap().len(), last.offset);
    assert_eq!(journal.opened().damaged, 0);
}

#[tokio::test]
async fn fault_77_a_flipped_bit_costs_one_record_which_is_counted_and_kept_aside() {
    for at in [0, 5, 9, 16, 21, HEADER_BYTES + 30] {
        let dir = TempDir::new().unwrap();
        let places = journal_of(dir.path(), 5).await;
        let mut damaged = Vec::new();
        change(dir.path(), &places[2], |bytes, offset| {
            bytes[offset + at] ^= 4;
            damaged = bytes[offset..offset + usize::try_from(places[2].length).unwrap()].to_vec();
        });
        let metrics = Metrics::new();
        let (_, journal) = Journal::open(config(dir.path()), Arc::clone(&metrics)).unwrap();
        assert_eq!(replayed(&journal), [0, 1, 3, 4], "byte {at}");
        assert_eq!(metrics.events_damaged.get(), 1);
        let sink = FakeSink::willing();
        let stop = CancellationToken::new();
        stop.cancel();
        journal.ship(sink.clone(), stop, Duration::from_secs(10)).await;
        assert_eq!(sink.written(), [0, 1, 3, 4]);
        assert_eq!(metrics.events_damaged.get(), 1, "met again, it is not counted again");
        let kept: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join("damaged.jsonl")).unwrap())
                .unwrap();
        use base64::Engine as _;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(kept["bytes"].as_str().unwrap()).unwrap();
        assert_eq!(bytes, damaged);
        drop(journal);
        let again = Metrics::new();
        let (_, journal) = Journal::open(config(dir.path()), Arc::clone(&again)).unwrap();
        assert_eq!((journal.state().records, again.events_damaged.get()), (0, 0));
    }
}

/// The mark behind it shows that the number was given. A reader that met it again, behind that mark, would pass it over.
#[tokio::test]
async fn the_number_of_a_damaged_last_record_is_not_given_to_another() {
    let dir = TempDir::new().unwrap();
    let (recorder, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    recorder.record(one(usage(0))).await;
    recorder.intend(intent(1)).await;
    recorder.intend(intent(2)).await;
    drop(journal);
    // It charges both, and marks its segment.
    drop(Journal::open(config(dir.path()), Metrics::new()).unwrap());
    let places = contents(dir.path());
    let last = places.last().unwrap();
    let damaged = match &last.what {
        Content::Record { record, .. } => number(record),
        other => panic!("{other:?}"),
    };
    change(dir.path(), last, |bytes, offset| bytes[offset + HEADER_BYTES + 30] ^= 1);
    let (recorder, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    recorder.record(one(usage(3))).await;
    drop(journal);
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    let sink = FakeSink::willing();
    let stop = CancellationToken::new();
    stop.cancel();
    journal.ship(sink.clone(), stop, Duration::from_secs(10)).await;
    assert_eq!(sink.written(), [0, 3 - damaged, 3]);
}

#[tokio::test]
async fn a_record_of_a_newer_release_is_kept_aside_and_not_dropped() {
    let dir = TempDir::new().unwrap();
    let places = journal_of(dir.path(), 3).await;
    change(dir.path(), &places[1], |bytes, offset| {
        let end = offset + usize::try_from(places[1].length).unwrap();
        bytes[offset + 17] = 99;
        let fields = crc32c::crc32c(&bytes[offset + 4..offset + 20]);
        let checksum = crc32c::crc32c_append(fields, &bytes[offset + HEADER_BYTES..end]);
        bytes[offset + 20..offset + 24].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(codec::decode(&bytes[offset..]).unwrap().version, 99);
    });
    let metrics = Metrics::new();
    let (_, journal) = Journal::open(config(dir.path()), Arc::clone(&metrics)).unwrap();
    assert_eq!(replayed(&journal), [0, 2]);
    assert_eq!(metrics.events_damaged.get(), 1);
    let kept = std::fs::read_to_string(dir.path().join("damaged.jsonl")).unwrap();
    assert!(kept.contains("version 99 is not known"), "{kept}");
}

/// Some records, a few of them acknowledged, over several segments; what happened up to the crash.
async fn life(disk: &FaultyDisk, config: Config) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let sink = FakeSink::willing();
    let mut journaled = BTreeSet::new();
    if let Ok((recorder, journal)) = Journal::open_on(Arc::new(disk.clone()), config, Metrics::new()) {
        for n in 0..8 {
            // Together with an audit record, whose number is none of the others'.
            let receipt = recorder.record(Records::from_iter([usage(n), audit(1000 + n)]));
            if receipt.await == Durability::Journaled {
                journaled.extend([n, 1000 + n]);
            }
            if n == 5 {
                let stop = CancellationToken::new();
                stop.cancel();
                journal.ship(sink.clone(), stop, Duration::from_secs(10)).await;
            }
        }
        drop(journal);
    }
    (journaled, sink.written_set())
}

#[tokio::test]
async fn fault_78_a_kill_between_any_two_file_operations_starts_cleanly_and_loses_nothing() {
    for fsync_interval in [Duration::ZERO, Duration::from_secs(3600)] {
        for nth in 1.. {
            let dir = TempDir::new().unwrap();
            let config =
                Config { segment_bytes: 2048, fsync_interval, batch_records: 5, ..config(dir.path()) };
            let disk = FaultyDisk::dies_at(nth);
            let (journaled, shipped) = life(&disk, config.clone()).await;
            let (_, journal) = Journal::open(config.clone(), Metrics::new()).unwrap();
            let back = replayed(&journal);
            let unique: BTreeSet<u64> = back.iter().copied().collect();
            assert_eq!(unique.len(), back.len(), "killed at {nth}: none comes back twice");
            let lost: Vec<_> =
                journaled.iter().filter(|n| !unique.contains(n) && !shipped.contains(n)).collect();
            assert!(lost.is_empty(), "killed at {nth}: lost {lost:?}");
            assert_eq!(journal.opened().damaged, 0, "killed at {nth}: what is torn is not damage");
            // And it works on.
            let sink = FakeSink::willing();
            let stop = CancellationToken::new();
            stop.cancel();
            journal.ship(sink.clone(), stop, Duration::from_secs(10)).await;
            assert_eq!(sink.written_set(), unique, "killed at {nth}");
            assert_eq!(sink.written().len(), back.len(), "killed at {nth}");
            assert_eq!(journal.state().records, 0);
            if !disk.died() {
                assert!(nth > 30, "the whole life has {nth} operations");
                break;
            }
        }
    }
}

#[tokio::test]
async fn fault_80_with_the_disk_full_requests_go_on_and_it_recovers_by_itself() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let (recorder, journal, metrics) = open_on(&disk, config(dir.path()));
    recorder.record(one(usage(0))).await;
    disk.leave_space(700);
    let mut outcomes = Vec::new();
    for n in 1..10 {
        outcomes.push(recorder.record(one(usage(n))).await);
    }
    assert_eq!(outcomes.last(), Some(&Durability::Held));
    assert!(!outcomes.contains(&Durability::Lost));
    let state = journal.state();
    assert!(!state.healthy);
    assert!(state.reason.unwrap().contains("No space left on device"));
    assert_eq!((state.records, metrics.events_lost.get(), metrics.journal_healthy.get()), (10, 0, 0));

    recovery(&disk).await;
    assert_eq!(recorder.record(one(usage(10))).await, Durability::Journaled);
    assert!(journal.state().healthy);
    assert_eq!(metrics.journal_healthy.get(), 1);
    drop(journal);
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    assert_eq!(replayed(&journal), (0..=10).collect::<Vec<_>>(), "what was held is on disk, in order");
}

#[tokio::test]
async fn fault_80_memory_is_bounded_and_sheds_audit_detail_before_usage() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let (recorder, journal, metrics) = open_on(&disk, config(dir.path()));
    disk.leave_space(0);
    let mut said_lost = 0;
    for n in 0..16_000 {
        let receipt = recorder.record(Records::from_iter([usage(n), audit(100_000 + n)]));
        if n % 50 == 49 {
            said_lost += u64::from(receipt.await == Durability::Lost);
        }
    }
    assert_eq!(said_lost, 0, "an exchange whose usage is kept is not lost");
    let kept_before = journal.state().records;
    assert!(kept_before <= 16_384, "{kept_before}");
    assert_eq!(metrics.events_lost.get(), 32_000 - kept_before);
    recovery(&disk).await;
    assert_eq!(recorder.record(one(usage(16_000))).await, Durability::Journaled);
    drop(journal);
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    let back = replayed(&journal);
    let usage_back = back.iter().filter(|n| **n < 100_000).count() as u64;
    assert_eq!(usage_back, 16_001, "no usage record was lost while there were audit records to lose");
}

#[tokio::test]
async fn fault_80_with_the_disk_full_a_sink_that_answers_still_gets_all() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let (recorder, journal, metrics) = open_on(&disk, config(dir.path()));
    disk.leave_space(0);
    for n in 0..500 {
        assert_eq!(recorder.record(one(usage(n))).await, Durability::Held);
    }
    let sink = FakeSink::willing();
    let stop = CancellationToken::new();
    stop.cancel();
    journal.ship(sink.clone(), stop, Duration::from_secs(10)).await;
    assert_eq!(sink.written_sorted(), (0..500).collect::<Vec<_>>());
    drop(journal);
    assert_eq!(metrics.events_lost.get(), 0);
}

#[tokio::test]
async fn fault_80_what_is_held_and_under_way_to_a_sink_that_is_away_is_written_when_there_is_room() {
    let dir = TempDir::new().unwrap();
    let (disk, sink) = (FaultyDisk::default(), FakeSink::away());
    let (recorder, journal, _) = open_on(&disk, config(dir.path()));
    disk.leave_space(0);
    for n in 0..20 {
        assert_eq!(recorder.record(one(usage(n))).await, Durability::Held);
    }
    let journal = Arc::new(journal);
    let shipping = tokio::spawn({
        let (journal, sink) = (journal.clone(), sink.clone());
        async move { journal.ship(sink, CancellationToken::new(), Duration::ZERO).await }
    });
    sink.until(|sink| sink.calls() > 0).await;
    within("what is held is written", recovery(&disk)).await;
    assert_eq!(recorder.record(one(usage(20))).await, Durability::Journaled);
    assert!(journal.state().healthy);
    disk.die();
    shipping.abort();
    let _ = shipping.await;
    drop(journal);
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    assert_eq!(replayed(&journal), (0..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_journal_at_its_bound_holds_the_newest_in_memory_until_the_sink_makes_room() {
    let dir = TempDir::new().unwrap();
    let config = Config { max_bytes: 32 << 10, segment_bytes: 8 << 10, ..config(dir.path()) };
    let metrics = Metrics::new();
    let (recorder, journal) = Journal::open(config.clone(), Arc::clone(&metrics)).unwrap();
    let mut outcomes = Vec::new();
    for n in 0..200 {
        outcomes.push(recorder.record(one(usage(n))).await);
    }
    assert_eq!((outcomes[0], outcomes[199]), (Durability::Journaled, Durability::Held));
    let state = journal.state();
    assert!(state.bytes <= config.max_bytes, "{}", state.bytes);
    assert!(state.reason.unwrap().contains("has reached its 32768 bytes"));
    let sink = FakeSink::willing();
    let stop = CancellationToken::new();
    stop.cancel();
    journal.ship(sink.clone(), stop, Duration::from_secs(10)).await;
    assert_eq!(sink.written_sorted(), (0..200).collect::<Vec<_>>());
    assert_eq!(recorder.record(one(usage(200))).await, Durability::Journaled);
    assert!(journal.state().healthy);
    assert_eq!(metrics.events_lost.get(), 0);
}

#[tokio::test]
async fn a_failing_disk_is_left_for_a_new_segment() {
    for (failing, fsync_interval) in [(Op::Write, Duration::from_secs(3600)), (Op::Sync, Duration::ZERO)] {
        let dir = TempDir::new().unwrap();
        let config = Config { fsync_interval, ..config(dir.path()) };
        let disk = FaultyDisk::default();
        let (recorder, journal, _) = open_on(&disk, config.clone());
        recorder.record(one(usage(0))).await;
        disk.fail(move |op, path| {
            let segment = path.extension().is_some_and(|e| e == "seg");
            (op == failing && segment).then(|| errno(Errno::IO))
        });
        assert_eq!(recorder.record(one(usage(1))).await, Durability::Held);
        assert!(journal.state().reason.unwrap().contains("Input/output error"));
        recovery(&disk).await;
        assert_eq!(recorder.record(one(usage(2))).await, Durability::Journaled);
        drop(journal);
        let (_, journal) = Journal::open(config, Metrics::new()).unwrap();
        assert_eq!(replayed(&journal), [0, 1, 2]);
    }
}

#[tokio::test]
async fn a_background_sync_that_fails_is_an_alarm_and_recovers() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let config = Config { fsync_interval: Duration::from_millis(1), ..config(dir.path()) };
    let (recorder, journal, _) = open_on(&disk, config);
    // The sync of the first record fails: not that of the mark before it, nor any of the next segment.
    let seen = disk.clone();
    disk.fail(move |op, _| {
        let written = seen.written();
        (op == Op::Sync && written.groups == 2 && written.headers == 1).then(|| errno(Errno::IO))
    });
    assert_eq!(recorder.record(one(usage(0))).await, Durability::Journaled);
    disk.until(|written| written.headers == 2).await;
    assert_eq!(recorder.record(one(usage(1))).await, Durability::Journaled);
    assert!(journal.state().healthy);
    let segments: BTreeSet<_> = contents(dir.path()).into_iter().map(|found| found.segment).collect();
    assert_eq!(segments.len(), 2, "what comes after is in a segment of its own");
}

#[tokio::test]
async fn a_disk_that_hangs_lets_the_waiting_go() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let (recorder, journal, metrics) = open_on(&disk, config(dir.path()));
    disk.hang();
    assert_eq!(recorder.record(one(usage(0))).await, Durability::Held);
    assert_eq!(recorder.record(one(usage(1))).await, Durability::Held);
    assert!(journal.state().reason.unwrap().contains("has not returned"));
    recovery(&disk).await;
    assert_ne!(recorder.record(one(usage(2))).await, Durability::Lost);
    drop(journal);
    assert_eq!(metrics.events_lost.get(), 0);
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    assert_eq!(replayed(&journal), [0, 1, 2]);
}

#[tokio::test]
async fn a_segment_that_is_deleted_under_the_writer_is_written_again_from_memory() {
    let dir = TempDir::new().unwrap();
    let config = Config { fsync_interval: Duration::from_millis(1), ..config(dir.path()) };
    let disk = FaultyDisk::default();
    let (recorder, journal, _) = open_on(&disk, config.clone());
    for n in 0..5 {
        recorder.record(one(usage(n))).await;
    }
    std::fs::remove_dir_all(dir.path()).unwrap();
    recorder.record(one(usage(5))).await;
    disk.until(|written| written.headers == 2 && written.groups > 6).await;
    drop(journal);
    let (_, journal) = Journal::open(config, Metrics::new()).unwrap();
    assert_eq!(replayed(&journal), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn fault_81_a_journal_that_another_process_holds_is_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    let refused = Journal::open(config(dir.path()), Metrics::new()).unwrap_err().to_string();
    assert!(refused.contains("held by another process"), "{refused}");
    assert!(refused.contains(&dir.path().display().to_string()));
    drop(journal);
    Journal::open(config(dir.path()), Metrics::new()).unwrap();
}

#[test]
fn fault_81_a_directory_that_cannot_be_written_is_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = Journal::open(config(&file.join("journal")), Metrics::new()).unwrap_err().to_string();
    assert!(
        refused.contains(&file.display().to_string()) && refused.contains("Not a directory"),
        "{refused}"
    );

    let disk = FaultyDisk::default();
    disk.fail(|op, path| (op == Op::Open && path.extension().is_some()).then(|| errno(Errno::ROFS)));
    let refused = Journal::open_on(Arc::new(disk), config(dir.path()), Metrics::new())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("Read-only file system") && refused.contains("[data] dir"), "{refused}");
}

#[tokio::test]
async fn fault_81_a_disk_that_is_only_full_at_the_start_is_no_reason_to_refuse() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    disk.leave_space(0);
    let (recorder, journal, _) = open_on(&disk, config(dir.path()));
    assert!(!journal.state().healthy);
    assert_eq!(recorder.record(one(usage(0))).await, Durability::Held);
    recovery(&disk).await;
    assert_eq!(recorder.record(one(usage(1))).await, Durability::Journaled);
    assert!(journal.state().healthy);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_cannot_be_kept_holds_its_batch() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let (recorder, journal, metrics) = open_on(&disk, config(dir.path()));
    recorder.record(Records::from_iter([usage(0), usage(1)])).await;
    disk.fail(|op, path| {
        let letters = path.file_name().is_some_and(|name| name == "dead-letter.jsonl");
        (op == Op::Write && letters).then(|| io::Error::from(Errno::NOSPC))
    });
    let sink = FakeSink::new(|batch| match batch.iter().any(|record| number(record) == 0) {
        true => Err(SinkError::Poison("never".into())),
        false => Ok(()),
    });
    let stop = CancellationToken::new();
    stop.cancel();
    journal.ship(sink.clone(), stop.clone(), Duration::from_secs(5)).await;
    assert_eq!((journal.state().records, metrics.events_dead.get()), (2, 0), "nothing is acknowledged");
    disk.heal();
    journal.ship(sink.clone(), stop, Duration::from_secs(5)).await;
    assert_eq!((journal.state().records, metrics.events_dead.get()), (0, 1));
    assert_eq!(sink.written(), [1]);
}
