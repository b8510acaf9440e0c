//! Journal to sink.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tollgate::model::event::Record;
use tollgate::record::{Config, Journal, Recorder, Records, SinkError};
use tollgate::telemetry::Metrics;

use super::fixture::{FakeSink, amendment, audit, config, number, one, usage};

struct Shipping {
    recorder: Recorder,
    journal: Arc<Journal>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Shipping {
    fn start(config: Config, sink: &Arc<FakeSink>) -> Self {
        let metrics = Metrics::new();
        let (recorder, journal) = Journal::open(config, Arc::clone(&metrics)).unwrap();
        let journal = Arc::new(journal);
        let stop = CancellationToken::new();
        let (ships, sink, stopped) = (Arc::clone(&journal), Arc::clone(sink), stop.clone());
        let task = tokio::spawn(async move { ships.ship(sink, stopped, Duration::from_secs(10)).await });
        Self { recorder, journal, metrics, stop, task }
    }

    async fn stop(self) -> Arc<Metrics> {
        self.stop.cancel();
        self.task.await.unwrap();
        self.journal.close();
        self.metrics
    }
}

fn left_in(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn dead_letters(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("dead-letter.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn all_is_shipped_once_and_in_order_and_nothing_is_left_behind() {
    let dir = TempDir::new().unwrap();
    let sink = FakeSink::willing();
    let shipping = Shipping::start(Config { segment_bytes: 16 << 10, ..config(dir.path()) }, &sink);
    for n in 0..1000 {
        let receipt = shipping.recorder.record(one(usage(n)));
        if n % 10 == 0 {
            receipt.await;
        }
    }
    let metrics = shipping.stop().await;
    assert_eq!(sink.written_set(), (0..1000).collect());
    assert_eq!(sink.written().len(), 1000);
    assert_eq!(metrics.events_written.get(), 1000);
    assert_eq!(metrics.events_lost.get(), 0);
    assert_eq!(metrics.journal_records.get(), 0);
    assert!(left_in(dir.path()).iter().all(|name| !name.ends_with(".seg")), "{:?}", left_in(dir.path()));
}

#[tokio::test]
async fn what_a_former_run_left_is_shipped_and_the_rest_is_not_shipped_again() {
    let dir = TempDir::new().unwrap();
    let config = Config { batch_records: 10, ..config(dir.path()) };
    let sink = FakeSink::willing();
    let shipping = Shipping::start(config.clone(), &sink);
    for n in 0..50 {
        shipping.recorder.record(one(usage(n))).await;
    }
    sink.until(|sink| sink.written().len() == 50).await;
    sink.answer_with(|_| Err(SinkError::Transient("away".into())));
    for n in 50..100 {
        shipping.recorder.record(one(usage(n))).await;
    }
    shipping.task.abort();
    let _ = shipping.task.await;
    shipping.journal.close();
    drop(shipping.journal);

    let second = FakeSink::willing();
    Shipping::start(config, &second).stop().await;
    let shipped = second.written();
    assert!(
        shipped.iter().copied().collect::<BTreeSet<_>>().is_superset(&(50..100).collect()),
        "{shipped:?}"
    );
    // At most what was in flight is sent again: four batches.
    assert!(shipped.len() <= 50 + 40, "{}", shipped.len());
}

#[tokio::test]
async fn a_sink_that_was_away_gets_all_from_disk_when_it_is_back() {
    let dir = TempDir::new().unwrap();
    let sink = FakeSink::away();
    let shipping = Shipping::start(Config { segment_bytes: 256 << 10, ..config(dir.path()) }, &sink);
    // More than the tail in memory holds.
    for n in 0..12_000 {
        let receipt = shipping.recorder.record(one(usage(n)));
        if n % 100 == 0 {
            receipt.await;
        }
    }
    shipping.recorder.record(one(usage(12_000))).await;
    let state = shipping.journal.state();
    assert_eq!(state.records, 12_001);
    assert!(state.healthy);
    sink.until(|sink| sink.calls() > 0).await;
    assert_eq!(shipping.journal.state().shipping.as_deref(), Some("away"));
    sink.answer_with(|_| Ok(()));
    let metrics = shipping.stop().await;
    assert_eq!(sink.written_set(), (0..=12_000).collect());
    assert_eq!(sink.written().len(), 12_001);
    assert_eq!(metrics.events_lost.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn retries_wait_longer_each_time_up_to_five_seconds() {
    let dir = TempDir::new().unwrap();
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let sink = FakeSink::new(move |_| {
        noted.lock().unwrap().push(Instant::now());
        Err(SinkError::Transient("busy".into()))
    });
    let shipping = Shipping::start(config(dir.path()), &sink);
    shipping.recorder.record(one(usage(1))).await;
    sink.until(|sink| sink.calls() >= 14).await;
    // There may be more: paused time runs on whenever only the writer's thread has something to do.
    let waits: Vec<Duration> = times.lock().unwrap().windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (tries, wait) in waits.iter().enumerate() {
        let full = Duration::from_millis(50 << tries.min(7)).min(Duration::from_secs(5));
        let slack = Duration::from_millis(2);
        assert!(*wait + slack >= full / 2 && *wait <= full + slack, "try {tries}: {wait:?} of {full:?}");
    }
    assert_eq!(shipping.metrics.ship_retries.get(), sink.calls());
    sink.answer_with(|_| Ok(()));
    shipping.stop().await;
    assert_eq!(sink.written(), [1]);
}

#[tokio::test(start_paused = true)]
async fn stopping_gives_up_at_the_deadline_and_leaves_the_rest_for_the_next_start() {
    let dir = TempDir::new().unwrap();
    let sink = FakeSink::away();
    let shipping = Shipping::start(config(dir.path()), &sink);
    for n in 0..250 {
        shipping.recorder.record(one(usage(n))).await;
    }
    let began = Instant::now();
    shipping.stop().await;
    assert!(began.elapsed() >= Duration::from_secs(10) && began.elapsed() < Duration::from_secs(11));
    let sink = FakeSink::willing();
    Shipping::start(config(dir.path()), &sink).stop().await;
    assert_eq!(sink.written_sorted(), (0..250).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn shipping_may_be_taken_up_again_after_it_was_stopped() {
    let dir = TempDir::new().unwrap();
    let away = FakeSink::away();
    let (recorder, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    for n in 0..250 {
        recorder.record(one(usage(n))).await;
    }
    let stop = CancellationToken::new();
    stop.cancel();
    journal.ship(away, stop.clone(), Duration::from_secs(1)).await;
    let sink = FakeSink::willing();
    journal.ship(sink.clone(), stop, Duration::from_secs(1)).await;
    assert_eq!(sink.written_set(), (0..250).collect());
    assert_eq!(sink.written().len(), 250);
}

#[tokio::test]
async fn fault_73_poison_is_found_by_halving_and_set_aside_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let poison = |record: &Record| [7, 8, 63].contains(&number(record));
    let sink = FakeSink::new(move |batch| match batch.iter().find(|record| poison(record)) {
        Some(record) => Err(SinkError::Poison(format!("value out of range in {}", number(record)))),
        None => Ok(()),
    });
    let shipping = Shipping::start(config(dir.path()), &sink);
    for n in 0..100 {
        shipping.recorder.record(one(usage(n))).await;
    }
    let journal = Arc::clone(&shipping.journal);
    let metrics = shipping.stop().await;
    let others: Vec<u64> = (0..100).filter(|n| ![7, 8, 63].contains(n)).collect();
    assert_eq!(sink.written_sorted(), others, "the others land, in order");
    assert_eq!(metrics.events_dead.get(), 3);
    assert_eq!(journal.state().dead_letters, 3);
    let letters = dead_letters(dir.path());
    assert_eq!(letters.len(), 3);
    let letter = letters.iter().find(|letter| letter["reason"] == "value out of range in 63").unwrap();
    assert_eq!(serde_json::from_value::<Record>(letter["record"].clone()).unwrap(), usage(63));
    drop(journal);
    let (_, journal) = Journal::open(config(dir.path()), Metrics::new()).unwrap();
    assert_eq!((journal.state().dead_letters, journal.state().records), (3, 0));
}

#[tokio::test]
async fn an_amendment_is_never_in_flight_with_the_event_that_it_corrects() {
    let dir = TempDir::new().unwrap();
    let in_flight = Arc::new(AtomicU64::new(0));
    let (first_try, overlapped) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let (flying, wrong) = (Arc::clone(&in_flight), Arc::clone(&overlapped));
    // The batch with the event is refused a few times, so that a later batch could overtake it.
    let sink = FakeSink::new(move |batch| {
        let has_event = batch.iter().any(|r| matches!(r, Record::Usage(_)) && number(r) == 3);
        let has_amendment = batch.iter().any(|r| matches!(r, Record::Amend(_)));
        if has_event && first_try.fetch_add(1, Ordering::SeqCst) < 3 {
            flying.store(1, Ordering::SeqCst);
            return Err(SinkError::Transient("deadlock".into()));
        }
        if has_event {
            flying.store(0, Ordering::SeqCst);
        }
        if has_amendment && flying.load(Ordering::SeqCst) == 1 {
            wrong.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let shipping = Shipping::start(Config { batch_records: 4, ..config(dir.path()) }, &sink);
    for n in 0..8 {
        shipping.recorder.record(one(usage(n))).await;
    }
    shipping.recorder.record(Records::from_iter([amendment(3), audit(9), audit(10), audit(11)])).await;
    shipping.stop().await;
    assert_eq!(overlapped.load(Ordering::SeqCst), 0);
    assert_eq!(sink.written().len(), 12);
}
