//! From a full journal to Postgres: events a second, as after an outage.
//!
//! `cargo bench --bench shipping -- --exchanges 200000`; each exchange is a usage event charged to four counters, of one of
//! `--tenants` tenants, in batches of `--batch`; with `--audited` it has the two audit events of a chat as well. Postgres runs on the same machine,
//! as the gateway's private one does, and its share of the cores is part of the figure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tollgate::model::event::{AuditEvent, Record};
use tollgate::model::tenant::TenantId;
use tollgate::record::{Config, Journal, Records};
use tollgate::store::{self, PrivatePostgres, Store};
use tollgate::telemetry::Metrics;
use uuid::Uuid;

use self::exchange::usage;

#[path = "shared/exchange.rs"]
mod exchange;

struct Options {
    exchanges: u64,
    tenants: u64,
    /// Records in a batch; 1,000 by default, as `data.journal_batch_records`.
    batch: usize,
    audited: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options { exchanges: 100_000, tenants: 100, batch: 1000, audited: false };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(name) = arguments.next() {
        let mut number = || -> anyhow::Result<u64> {
            arguments.next().context("a number is missing")?.parse().context("no number")
        };
        match name.as_str() {
            "--exchanges" => options.exchanges = number()?,
            "--tenants" => options.tenants = number()?,
            "--batch" => options.batch = usize::try_from(number()?)?,
            "--audited" => options.audited = true,
            _ => bail!("unknown: {name}"),
        }
    }
    Ok(options)
}

fn audit(kind: &str, tenant: &TenantId, at: Timestamp) -> Record {
    let mut event = AuditEvent::new(Uuid::now_v7(), at, kind, "business", "create");
    event.tenant_id = Some(tenant.clone());
    event.new_values = Some(serde_json::json!({"message_count": 1, "tokens": 1}));
    Record::Audit(Box::new(event))
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(options()?))
}

async fn measure(options: Options) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let postgres = PrivatePostgres::start(&scratch.path().join("postgres")).await?;
    let store = Store::new(&store::Config {
        url: postgres.url(),
        pool_size: 8,
        connect_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(30),
    })?
    .with_replica_id("bench");
    store.migrate().await?;

    let config = Config {
        dir: scratch.path().join("journal"),
        max_bytes: 16 << 30,
        segment_bytes: 16 << 20,
        fsync_interval: Duration::from_secs(1),
        batch_records: options.batch,
        batch_linger: Duration::from_millis(50),
    };
    let (recorder, journal) = Journal::open(config, Metrics::new())?;
    let tenants = (0..options.tenants).map(|number| TenantId::parse(&format!("tn_{number}")));
    let tenants = tenants.collect::<Result<Vec<_>, _>>().context("a tenant's id")?;
    let now = Timestamp::now();
    for (number, tenant) in (0..options.exchanges).zip(tenants.iter().cycle()) {
        let mut records = Records::new();
        records.push(usage(number, tenant, now));
        if options.audited {
            records.push(audit("chat_session_created", tenant, now));
            records.push(audit("chat_message_sent", tenant, now));
        }
        recorder.record(records).await;
    }
    let records = journal.state().records;
    println!(
        "{} exchanges, {records} records in the journal ({} MB)",
        options.exchanges,
        journal.state().bytes >> 20
    );

    let began = Instant::now();
    let stop = CancellationToken::new();
    // Stopped at once, it ships what is there.
    stop.cancel();
    journal.ship(Arc::new(store.clone()), stop, Duration::from_secs(3600)).await;
    let took = began.elapsed();
    ensure!(journal.state().records == 0, "something is left");
    let row = store.client().await?.query_one("SELECT count(*) FROM tenant_usage_realtime", &[]).await?;
    let rows: i64 = row.try_get(0)?;
    ensure!(rows.cast_unsigned() == options.exchanges, "{rows} rows");
    let a_second = |count: u64| count as f64 / took.as_secs_f64();
    println!(
        "{took:.2?}: {:.0} usage events a second, {:.0} records a second",
        a_second(options.exchanges),
        a_second(records)
    );
    tokio::task::spawn_blocking(move || journal.close()).await?;
    store.close();
    postgres.stop().await;
    Ok(())
}
