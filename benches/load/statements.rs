//! What Postgres is asked, at several rates of requests: the claim is that rounds of leases do not grow with them.
//!
//! Requests come at even distances, in turn of 100 tenants, however long the answers take; `achieved` says whether the
//! machine kept up. Rounds of leases are Tollgate's own count. Transactions are Postgres's, of everything there is:
//! rounds, batches of events (a batch is as large as what came while the last one was written), heartbeats, looks.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tollgate::store::{self, Store};

use super::Options;
use super::client::Load;
use super::target::Target;
use super::upstream::chat_request_of;

const TENANTS: usize = 100;

/// Before a measurement: the pace of each tenant is known, and leases are as large as it wants.
const SETTLE: Duration = Duration::from_secs(3);

/// Counts so far.
#[derive(Clone, Copy)]
struct Counts {
    at: Instant,
    rounds: f64,
    asks: f64,
    transactions: f64,
}

/// Measures at each of the rates.
pub(crate) async fn run(
    options: &Options,
    upstream: SocketAddr,
    scratch: &Path,
    database: &str,
) -> anyhow::Result<()> {
    let tollgate = Target::tollgate(scratch, upstream, database, super::target::NO_LIMITS).await?;
    let admin = tollgate.admin.context("Tollgate has an admin listener")?;
    let store = Store::new(&store::Config {
        url: database.to_owned(),
        pool_size: 1,
        connect_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(30),
    })?;
    println!("{TENANTS} tenants, {} s at each rate, {} connections", options.seconds, options.connections);
    println!(
        "{:>12}{:>12}{:>10}{:>10}{:>16}{:>14}{:>16}",
        "requests/s", "achieved", "p50 ms", "p99 ms", "lease rounds/s", "leases/s", "transactions/s"
    );
    let requests: Rc<[&'static str]> =
        (0..TENANTS).map(|number| chat_request_of(&format!("tn_load{number:02}"))).collect();
    for rate in &options.rates {
        ensure!(*rate > 0, "a rate of 0");
        let load = Load::paced(tollgate.address, requests.clone(), options.connections, *rate);
        sleep(SETTLE).await;
        let (before, done) = (counts(admin, &store).await?, load.begin());
        sleep(Duration::from_secs_f64(options.seconds)).await;
        let achieved = (load.done() - done) as f64 / load.elapsed().as_secs_f64();
        let after = counts(admin, &store).await?;
        let (mut latencies, _) = load.stop().await?;
        ensure!(!latencies.is_empty(), "no answer came");
        latencies.sort_unstable();
        let at = |share: f64| f64::from(latencies[((latencies.len() - 1) as f64 * share) as usize]) / 1e3;
        let seconds = (after.at - before.at).as_secs_f64();
        println!(
            "{rate:>12}{achieved:>12.0}{:>10.2}{:>10.2}{:>16.1}{:>14.1}{:>16.1}",
            at(0.5),
            at(0.99),
            (after.rounds - before.rounds) / seconds,
            (after.asks - before.asks) / seconds,
            (after.transactions - before.transactions) / seconds,
        );
    }
    tollgate.stop().await
}

async fn counts(admin: SocketAddr, store: &Store) -> anyhow::Result<Counts> {
    let page = metrics(admin).await?;
    let metric = |name: &str| -> anyhow::Result<f64> {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name} on /metrics"))?.trim().parse()?)
    };
    let (rounds, asks) =
        (metric("tollgate_lease_rounds_total{result=\"ok\"}")?, metric("tollgate_leases_asked_total")?);
    let client = store.client().await?;
    // A backend tells its counts at most once a second; over some seconds that evens out.
    let query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    let transactions: i64 = client.query_one(query, &[]).await?.try_get(0)?;
    Ok(Counts { at: Instant::now(), rounds, asks, transactions: transactions as f64 })
}

/// What `/metrics` says.
pub(crate) async fn metrics(admin: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: load.example\r\nconnection: close\r\n\r\n").await?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// The instants at which one of `count` connections sends, so that all together send `rate` a second.
pub(crate) struct Pace {
    next: Instant,
    every: Duration,
}

impl Pace {
    pub(crate) fn new(number: usize, count: usize, rate: u32) -> Self {
        let every = Duration::from_secs_f64(count as f64 / f64::from(rate));
        Self { next: Instant::now() + every.mul_f64(number as f64 / count as f64), every }
    }

    /// Waits for the next instant. One that was missed is not made up for by more than a burst of one.
    pub(crate) async fn wait(&mut self) {
        sleep_until(self.next).await;
        self.next = (self.next + self.every).max(Instant::now() - self.every);
    }
}
