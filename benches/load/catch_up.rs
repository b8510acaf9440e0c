//! Catching up while serving: how much slower answers are while a journal of many events, as an outage of Postgres leaves
//! it behind, is shipped.
//!
//! The journal is filled before Tollgate starts. Requests come at even distances; their latencies are taken until the
//! journal is empty, and then for as long again with nothing but their own events to ship.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tollgate::model::tenant::TenantId;
use tollgate::record::{Config, Journal, Records};
use tollgate::telemetry::Metrics;

use self::exchange::usage;
use super::Options;
use super::client::Load;
use super::statements::metrics;
use super::target::Target;
use super::upstream::chat_request_of;

#[path = "../shared/exchange.rs"]
mod exchange;

const TENANTS: usize = 100;

/// So few records are what requests leave behind all the time.
const EMPTY: f64 = 3000.0;

/// Measures with a journal of `events`, and then without.
pub(crate) async fn run(
    options: &Options,
    events: u64,
    upstream: SocketAddr,
    scratch: &Path,
    database: &str,
) -> anyhow::Result<()> {
    let filled = Instant::now();
    fill(&scratch.join("data").join("journal"), events).await?;
    println!("{events} events in the journal after {:.1?}", filled.elapsed());
    let tollgate = Target::tollgate(scratch, upstream, database, super::target::NO_LIMITS).await?;
    println!("first answer {:.0?} after the start", tollgate.first_answer);
    let admin = tollgate.admin.context("Tollgate has an admin listener")?;
    let requests: Rc<[&'static str]> = (0..TENANTS).map(|number| chat_request_of(&tenant(number))).collect();
    let rate = options.rates.first().copied().unwrap_or(1000);
    println!("{rate} requests/s of {TENANTS} tenants, {} connections", options.connections);
    println!("{:>14}{:>10}{:>12}{:>10}{:>10}{:>14}", "", "s", "requests/s", "p50 ms", "p99 ms", "events/s");
    let load = Load::paced(tollgate.address, requests, options.connections, rate);
    sleep(Duration::from_secs(2)).await;

    let (done, began, before) = (load.begin(), Instant::now(), depth(admin).await?);
    ensure!(before > EMPTY, "it is over before the measurement began: take more events");
    while depth(admin).await? > EMPTY {
        sleep(Duration::from_millis(200)).await;
    }
    let took = began.elapsed();
    report("catching up", &load, done, took, Some(before / took.as_secs_f64()))?;
    sleep(Duration::from_secs(1)).await;
    let (done, began) = (load.begin(), Instant::now());
    sleep(took.max(Duration::from_secs_f64(options.seconds))).await;
    report("caught up", &load, done, began.elapsed(), None)?;
    load.stop().await?;
    tollgate.stop().await
}

fn report(
    what: &str,
    load: &Load,
    before: u64,
    took: Duration,
    events_per_second: Option<f64>,
) -> anyhow::Result<()> {
    let achieved = (load.done() - before) as f64 / took.as_secs_f64();
    let mut latencies = load.latencies();
    ensure!(!latencies.is_empty(), "no answer came");
    latencies.sort_unstable();
    let at = |share: f64| f64::from(latencies[((latencies.len() - 1) as f64 * share) as usize]) / 1e3;
    let events = events_per_second.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
    println!(
        "{what:>14}{:>10.1}{achieved:>12.0}{:>10.2}{:>10.2}{events:>14}",
        took.as_secs_f64(),
        at(0.5),
        at(0.99)
    );
    Ok(())
}

/// Records that wait in the journal.
async fn depth(admin: SocketAddr) -> anyhow::Result<f64> {
    let page = metrics(admin).await?;
    let line = page.lines().find_map(|line| line.strip_prefix("tollgate_journal_records "));
    Ok(line.context("no tollgate_journal_records on /metrics")?.trim().parse()?)
}

fn tenant(number: usize) -> String {
    format!("tn_load{number:02}")
}

async fn fill(dir: &Path, events: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let config = Config {
        dir: dir.to_owned(),
        max_bytes: 16 << 30,
        segment_bytes: 16 << 20,
        fsync_interval: Duration::from_secs(1),
        batch_records: 1000,
        batch_linger: Duration::from_millis(50),
    };
    let (recorder, journal) = Journal::open(config, Metrics::new())?;
    let tenants = (0..TENANTS).map(|number| TenantId::parse(&tenant(number)));
    let tenants = tenants.collect::<Result<Vec<_>, _>>().context("a tenant's id")?;
    let now = Timestamp::now();
    let mut last = None;
    for (number, tenant) in (0..events).zip(tenants.iter().cycle()) {
        let receipt = recorder.record(Records::from_iter([usage(number, tenant, now)]));
        match last.take() {
            // Not more than so many in memory.
            Some(receipt) if number % 1000 == 0 => drop(receipt.await),
            _ => drop(last.replace(receipt)),
        }
    }
    if let Some(receipt) = last {
        let _durability = receipt.await;
    }
    ensure!(journal.state().records == events, "{} of {events} are in the journal", journal.state().records);
    tokio::task::spawn_blocking(move || journal.close()).await?;
    Ok(())
}
