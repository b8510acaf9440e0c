//! The journal's cost: encoding, and recording to a resolved receipt.
//!
//! `cargo bench --bench journal`; the figures of the decision page come from here.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use jiff::Timestamp;
use tollgate::model::event::{EventType, Outcome, Record, UsageEvent};
use tollgate::model::quota::{Charge, Dimension};
use tollgate::model::tenant::TenantId;
use tollgate::model::tokens::{TokenSource, TokenUsage};
use tollgate::record::{Config, Journal, Recorder, Records, codec};
use tollgate::telemetry::Metrics;
use uuid::Uuid;

fn usage(n: u64) -> Record {
    let at = Timestamp::from_second(1_800_000_000).unwrap_or_default();
    let charge =
        |dimension| Charge { dimension, window_start: at, window_end: at, amount: 500, limit: Some(10_000) };
    Record::Usage(Box::new(UsageEvent {
        event_id: Uuid::from_u128(u128::from(n)),
        tenant_id: TenantId::parse("tn_ab12cd").expect("an id"),
        event_type: EventType::ChatMessage,
        at,
        method: "POST".into(),
        endpoint: "/api/widget/chat".into(),
        status: Some(200),
        response_time_us: 830_000,
        first_byte_us: Some(210_000),
        chat_session_id: Some("0d6a2f2e-5f0e-4d0c-9a53-0b8f6c1d2e3f".into()),
        usage: TokenUsage { input: Some(120), output: Some(380), ..TokenUsage::default() },
        tokens_consumed: Some(500),
        token_source: TokenSource::Reported,
        messages: 1,
        embeddings: 0,
        model: Some("gpt-4o-mini".into()),
        outcome: Outcome::Completed,
        streamed: false,
        cost_nanousd: 246_000,
        request_id: "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f".into(),
        metadata: serde_json::Map::new(),
        charges: Dimension::STANDARD.map(charge).to_vec(),
        lease_run: 0,
    }))
}

fn one(n: u64) -> Records {
    Records::from_iter([usage(n)])
}

fn journal(dir: &Path) -> (Recorder, Journal) {
    let config = Config {
        dir: dir.to_owned(),
        max_bytes: 16 << 30,
        segment_bytes: 64 << 20,
        fsync_interval: Duration::from_secs(1),
        batch_records: 500,
        batch_linger: Duration::from_millis(20),
    };
    Journal::open(config, Metrics::new()).expect("a journal")
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one record");
    let record = usage(7);
    let mut buffer = Vec::with_capacity(4096);
    let size = codec::encode(&record, 1, &mut buffer).expect("it fits");
    group.throughput(Throughput::Bytes(size as u64));
    group.bench_function("encode", |b| {
        b.iter(|| {
            buffer.clear();
            codec::encode(black_box(&record), 1, &mut buffer)
        });
    });
    let frame = buffer.clone();
    group.bench_function("decode", |b| b.iter(|| codec::decode(black_box(&frame)).map(|frame| frame.read())));
    let Record::Usage(event) = &record else { return };
    let mut json = Vec::with_capacity(4096);
    group.bench_function("as JSON, for comparison", |b| {
        b.iter(|| {
            json.clear();
            serde_json::to_writer(&mut json, black_box(event))
        });
    });
    println!("a frame has {size} bytes; as JSON the payload would have {}", json.len());
    group.finish();
}

fn recording(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let (recorder, _journal) = journal(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("record");
    group.measurement_time(Duration::from_secs(3));
    group.bench_function("and wait, one at a time", |b| {
        b.iter_batched(
            || one(1),
            |records| runtime.block_on(recorder.record(records)),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("and wait, 64 at a time", |b| {
        let batch = || (0..64).map(one).collect::<Vec<_>>();
        b.iter_batched(
            batch,
            |batch| {
                runtime.block_on(async {
                    let receipts: Vec<_> =
                        batch.into_iter().map(|records| recorder.record(records)).collect();
                    for receipt in receipts {
                        receipt.await;
                    }
                });
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Exchanges that make a record and either hand it over and wait for the receipt, or just go on.
async fn exchanges(recorder: Option<Recorder>, rate: Option<u64>, total: u64) -> Vec<Duration> {
    const TASKS: u64 = 64;
    let began = Instant::now();
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let recorder = recorder.clone();
        tasks.push(tokio::spawn(async move {
            let mut waits = Vec::new();
            for n in 0..total / TASKS {
                if let Some(rate) = rate {
                    let due = Duration::from_nanos((n * TASKS + task) * 1_000_000_000 / rate);
                    tokio::time::sleep_until((began + due).into()).await;
                }
                let start = Instant::now();
                let records = one(n);
                match &recorder {
                    Some(recorder) => drop(recorder.record(records).await),
                    None => drop(black_box(records)),
                }
                waits.push(start.elapsed());
            }
            waits
        }));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap_or_default());
    }
    waits.sort_unstable();
    waits
}

/// CPU of the whole process in µs a record, with the journal and without it.
fn cpu_at(rate: Option<u64>, seconds: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let (recorder, journal) = journal(dir.path());
    let total = rate.map_or(1_000_000, |rate| rate * seconds);
    let run = |recorder: Option<Recorder>| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (began, before) = (Instant::now(), cpu());
        let waits = runtime.block_on(exchanges(recorder, rate, total));
        let micros = (cpu() - before).as_secs_f64() * 1e6 / waits.len() as f64;
        (waits, micros, began.elapsed())
    };
    let (_, without, _) = run(None);
    let (waits, with, took) = run(Some(recorder));
    let at = |part: f64| waits[(((waits.len() - 1) as f64) * part) as usize];
    println!(
        "{:>10}: {:>7.0} records/s; CPU a record {:.2} µs, without journal {:.2}, so journal {:.2}; receipt after p50 {:?}, p99 {:?}",
        rate.map_or("saturation".into(), |rate| format!("{rate}/s")),
        waits.len() as f64 / took.as_secs_f64(),
        with,
        without,
        with - without,
        at(0.5),
        at(0.99),
    );
    journal.close();
}

/// What the process has spent, all threads.
fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.unsigned_abs() as u32)
}

fn main() {
    for rate in [1_000, 5_000, 20_000] {
        cpu_at(Some(rate), 3);
    }
    cpu_at(None, 0);
    let mut criterion = Criterion::default().configure_from_args();
    encoding(&mut criterion);
    recording(&mut criterion);
    criterion.final_summary();
}
