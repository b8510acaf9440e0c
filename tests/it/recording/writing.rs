//! Recorder and writer.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tollgate::model::event::Record;
use tollgate::record::{Config, Content, Durability, Journal, Recorder, Records, inspect};
use tollgate::telemetry::Metrics;

use super::fixture::{amendment, audit, config, number, numbers, one, usage};

fn open(config: &Config) -> (Recorder, Journal) {
    Journal::open(config.clone(), Metrics::new()).unwrap()
}

fn replayed(journal: &Journal) -> Vec<Record> {
    let mut records = Vec::new();
    journal.replay(&mut |record| records.push(record.clone()));
    records
}

fn segments(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".seg")).count()
}

#[tokio::test]
async fn what_was_journaled_comes_back_at_the_next_start_as_it_was() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path());
    let (recorder, journal) = open(&config);
    let records = Records::from_iter([usage(1), audit(2), amendment(1)]);
    assert_eq!(recorder.record(records.clone()).await, Durability::Journaled);
    assert_eq!(replayed(&journal), vec![], "they are of this run");
    drop(journal);

    let (_, journal) = open(&config);
    assert_eq!(replayed(&journal), records.to_vec());
    assert_eq!(journal.opened().records, 3);
    assert_eq!(journal.state().records, 3);
    assert!(journal.state().oldest_age.is_some());
}

#[tokio::test]
async fn every_receipt_of_a_group_resolves_and_may_be_dropped() {
    let dir = TempDir::new().unwrap();
    let (recorder, journal) = open(&config(dir.path()));
    let mut receipts = Vec::new();
    for n in 0..1000 {
        let receipt = recorder.record(one(usage(n)));
        if n % 3 > 0 {
            receipts.push(receipt);
        }
    }
    for receipt in &mut receipts {
        assert_eq!(receipt.await, Durability::Journaled);
    }
    // Asked again, a receipt says the same.
    assert_eq!(receipts.pop().unwrap().await, Durability::Journaled);
    assert_eq!(recorder.record(Records::new()).await, Durability::Journaled);
    assert_eq!(journal.state().records, 1000);
}

#[test]
fn many_threads_record_at_once_and_each_has_its_order_kept() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path());
    let (recorder, journal) = open(&config);
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let recorder = recorder.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    for n in 0..250 {
                        let receipt = recorder.record(one(usage(thread * 1000 + n)));
                        assert_eq!(receipt.await, Durability::Journaled);
                    }
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    journal.close();
    drop(journal);

    let (_, journal) = open(&config);
    let back = numbers(&replayed(&journal));
    for thread in 0..4 {
        let own: Vec<u64> = back.iter().copied().filter(|n| n / 1000 == thread).collect();
        assert_eq!(own, (thread * 1000..thread * 1000 + 250).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_closed_journal_takes_nothing_and_says_so() {
    let dir = TempDir::new().unwrap();
    let metrics = Metrics::new();
    let (recorder, journal) = Journal::open(config(dir.path()), Arc::clone(&metrics)).unwrap();
    let before = recorder.record(one(usage(1)));
    journal.close();
    journal.close();
    assert_eq!(before.await, Durability::Journaled);
    assert_eq!(recorder.record(one(usage(2))).await, Durability::Lost);
    assert_eq!(metrics.events_lost.get(), 1);
}

#[tokio::test]
async fn segments_are_begun_as_the_config_says() {
    let dir = TempDir::new().unwrap();
    let config = Config { segment_bytes: 4096, ..config(dir.path()) };
    let (recorder, journal) = open(&config);
    for n in 0..40 {
        recorder.record(one(usage(n))).await;
    }
    let bytes = journal.state().bytes;
    assert!(segments(dir.path()) as u64 >= bytes / 4096, "{} segments", segments(dir.path()));
    drop(journal);
    let (_, journal) = open(&config);
    assert_eq!(numbers(&replayed(&journal)), (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn synced_commits_are_journaled_too() {
    let dir = TempDir::new().unwrap();
    let config = Config { fsync_interval: std::time::Duration::ZERO, ..config(dir.path()) };
    let (recorder, journal) = open(&config);
    assert_eq!(recorder.record(one(usage(1))).await, Durability::Journaled);
    drop(journal);
    assert_eq!(numbers(&replayed(&open(&config).1)), [1]);
}

#[tokio::test]
async fn a_record_that_is_too_large_is_lost_alone_and_counted() {
    let dir = TempDir::new().unwrap();
    let metrics = Metrics::new();
    let (recorder, journal) = Journal::open(config(dir.path()), Arc::clone(&metrics)).unwrap();
    let Record::Usage(mut huge) = usage(1) else { unreachable!() };
    huge.metadata.insert("text".into(), "x".repeat(2 << 20).into());
    let (huge, small) = (recorder.record(one(Record::Usage(huge))), recorder.record(one(usage(2))));
    assert_eq!(huge.await, Durability::Lost);
    assert_eq!(small.await, Durability::Journaled);
    assert_eq!(metrics.events_lost.get(), 1);
    assert_eq!(journal.state().records, 1);
}

#[tokio::test]
async fn a_journal_can_be_looked_at_while_it_is_open() {
    let dir = TempDir::new().unwrap();
    let (recorder, _journal) = open(&config(dir.path()));
    recorder.record(Records::from_iter([usage(1), audit(2)])).await;
    let mut seen = Vec::new();
    inspect(dir.path(), &mut |found| {
        if let Content::Record { acknowledged: false, record, .. } = found.what {
            seen.push(number(&record));
        }
        true
    })
    .unwrap();
    assert_eq!(seen, [1, 2]);
}
