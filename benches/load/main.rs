//! The load run: what a request and a stream cost through Tollgate, against nginx as a plain proxy, in one run.
//!
//! The target has one core; the load, the upstream and Postgres share another, so that what is measured is the
//! target alone. CPU is what the kernel charged to the target's process, all its threads, between two readings.
//! Rounds are interleaved and a ratio is taken within a round, because the machine's own speed drifts.
//!
//! `make bench-load`, or `cargo bench --bench load -- --seconds 5 --rounds 3 --connections 64 --streams 200`;
//! `--only nginx` leaves Tollgate out. `--rates 100,1000,10000` measures something else: what Postgres is asked at each
//! rate of requests, over 100 tenants; `--catch-up 1000000` how much slower answers are while so many events are shipped,
//! at the first of `--rates` (1,000 a second); `--soak 900` how honest callers fare beside attackers, for so many seconds.
//! `TOLLGATE=/path/to/tollgate` measures another build than this tree's.

mod attacks;
mod catch_up;
mod client;
mod report;
mod soak;
mod statements;
mod target;
mod upstream;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tollgate::store::{self, PrivatePostgres, Store};

use self::client::Load;
use self::report::{RequestRow, StreamRow};
use self::target::{Target, pin_myself};

/// The core that the target has for itself.
const TARGET_CORE: usize = 0;
/// The core of everything else.
const LOAD_CORE: usize = 1;

/// Before a measurement: connections made, caches warm.
const WARM_UP: Duration = Duration::from_millis(700);

/// What to run.
struct Options {
    seconds: f64,
    rounds: usize,
    connections: usize,
    streams: usize,
    with_tollgate: bool,
    /// Requests a second, to count statements at; none: the load run.
    rates: Vec<u32>,
    /// Events in the journal to catch up with.
    catch_up: Option<u64>,
    /// How long attackers attack.
    soak: Option<Duration>,
    /// The listeners that this process attacks, and does nothing else.
    attack: Option<(SocketAddr, SocketAddr)>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` starts benches too, without this; there it is enough that it compiles.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let options = options(&arguments)?;
    ensure!(
        cfg!(target_os = "linux"),
        "the load run reads /proc and pins processes to cores: it needs Linux"
    );
    // An attacker is started on the core of the load.
    let cores = std::thread::available_parallelism()?.get();
    ensure!(options.attack.is_some() || cores > 1, "the load run needs two cores");
    // Before the runtime: it must not have a thread yet.
    pin_myself(LOAD_CORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(run(options)))
}

fn options(arguments: &[String]) -> anyhow::Result<Options> {
    let mut options = Options {
        seconds: 5.0,
        rounds: 3,
        connections: 64,
        streams: 200,
        with_tollgate: true,
        rates: Vec::new(),
        catch_up: None,
        soak: None,
        attack: None,
    };
    let mut rest = arguments.iter().filter(|argument| *argument != "--bench");
    while let Some(name) = rest.next() {
        let value = rest.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--seconds" => options.seconds = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            "--connections" => options.connections = value.parse()?,
            "--streams" => options.streams = value.parse()?,
            "--rates" => options.rates = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--catch-up" => options.catch_up = Some(value.parse()?),
            "--soak" => options.soak = Some(Duration::from_secs(value.parse()?)),
            "--attack" => {
                let (public, admin) = value.split_once(',').context("--attack takes two addresses")?;
                options.attack = Some((public.parse()?, admin.parse()?));
            }
            "--only" if value == "nginx" => options.with_tollgate = false,
            _ => bail!("unknown: {name} {value}"),
        }
    }
    Ok(options)
}

async fn run(options: Options) -> anyhow::Result<()> {
    if let Some((public, admin)) = options.attack {
        return attacks::run(public, admin).await;
    }
    let upstream = upstream::start().await?;
    let scratch = target::scratch()?;
    // A child of this process, and so on its core.
    let postgres = PrivatePostgres::start(&scratch.path().join("postgres")).await?;
    let outcome = if options.soak.is_some() {
        Box::pin(soak::run(&options, &upstream, scratch.path(), &postgres.url())).await
    } else if let Some(events) = options.catch_up {
        Box::pin(catch_up::run(&options, events, upstream.address, scratch.path(), &postgres.url())).await
    } else if options.rates.is_empty() {
        Box::pin(with_postgres(&options, &upstream, scratch.path(), &postgres.url())).await
    } else {
        Box::pin(statements::run(&options, upstream.address, scratch.path(), &postgres.url())).await
    };
    postgres.stop().await;
    outcome
}

async fn with_postgres(
    options: &Options,
    upstream: &upstream::Upstream,
    scratch: &Path,
    database: &str,
) -> anyhow::Result<()> {
    let mut targets = vec![Target::nginx(scratch, upstream.address).await?];
    if options.with_tollgate {
        targets.push(Target::tollgate(scratch, upstream.address, database, target::NO_LIMITS).await?);
    }
    println!(
        "{} connections, {} s a run, {} rounds; {} streams of one event each {:?}",
        options.connections,
        options.seconds,
        options.rounds,
        options.streams,
        upstream::EVENT_INTERVAL
    );
    for target in &targets {
        let started = target.first_answer.as_secs_f64() * 1e3;
        println!(
            "{}: first answer {started:.0} ms after its start, {} KB resident",
            target.name,
            target.rss_kb()?
        );
    }

    let mut metered_calls = 0;
    // First, so that the memory of a stream is not found in what a busier run left behind.
    let mut rows: Vec<StreamRow> = targets.iter().map(|target| StreamRow::new(target.name)).collect();
    for _ in 0..options.rounds {
        for (target, row) in targets.iter().zip(&mut rows) {
            let (run, calls) = measure_streams(target, upstream, options).await?;
            row.add(run);
            metered_calls += if target.meters { calls } else { 0 };
        }
    }
    println!("\nStreams: POST of a batch, streamed\n{}", report::streams(&rows));

    for (title, request, metered) in [
        ("Pass-through: GET, answer of 1 KB", upstream::page_request(), false),
        ("Metered: POST of a batch, answer of 1 KB that reports its tokens", upstream::chat_request(), true),
    ] {
        let mut rows = vec![RequestRow::new("direct")];
        rows.extend(targets.iter().map(|target| RequestRow::new(target.name)));
        for _ in 0..options.rounds {
            rows[0].add(measure_requests(upstream.address, None, request, options).await?.0);
            for (target, row) in targets.iter().zip(&mut rows[1..]) {
                let (run, calls) = measure_requests(target.address, Some(target), request, options).await?;
                row.add(run);
                metered_calls += if metered && target.meters { calls } else { 0 };
            }
        }
        println!("\n{title}\n{}", report::requests(&rows));
    }

    for target in targets {
        target.stop().await?;
    }
    if options.with_tollgate {
        let rows = rows_written(database).await?;
        println!("Metered calls that were answered: {metered_calls}; rows in Postgres: {rows}");
        ensure!(rows == metered_calls, "every metered call must have its row");
    }
    Ok(())
}

async fn rows_written(database: &str) -> anyhow::Result<u64> {
    let store = Store::new(&store::Config {
        url: database.to_owned(),
        pool_size: 1,
        connect_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(30),
    })?;
    let row = store.client().await?.query_one("SELECT count(*) FROM tenant_usage_realtime", &[]).await?;
    Ok(row.try_get::<_, i64>(0)?.cast_unsigned())
}

async fn measure_requests(
    address: SocketAddr,
    target: Option<&Target>,
    request: &'static str,
    options: &Options,
) -> anyhow::Result<(report::Requests, u64)> {
    let load = Load::requests(address, request, options.connections);
    tokio::time::sleep(WARM_UP).await;
    let (before, cpu_before) = (load.begin(), target.map(Target::cpu_seconds).transpose()?);
    tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
    let cpu_after = target.map(Target::cpu_seconds).transpose()?;
    let count = load.done() - before;
    let elapsed = load.elapsed();
    let (mut latencies, calls) = load.stop().await?;
    ensure!(count > 0, "no answer came");
    latencies.sort_unstable();
    let at = |share: f64| f64::from(latencies[((latencies.len() - 1) as f64 * share) as usize]) / 1e3;
    let cpu = cpu_before.zip(cpu_after).map(|(before, after)| (after - before) * 1e6 / count as f64);
    let per_second = count as f64 / elapsed.as_secs_f64();
    Ok((report::Requests { per_second, p50_ms: at(0.5), p99_ms: at(0.99), cpu_us: cpu }, calls))
}

async fn measure_streams(
    target: &Target,
    upstream: &upstream::Upstream,
    options: &Options,
) -> anyhow::Result<(report::Streams, u64)> {
    upstream.let_streams_run();
    let empty = target.rss_kb()?;
    let mut load = Load::streams(target.address, upstream::stream_request(), options.streams);
    load.all_begun().await?;
    tokio::time::sleep(WARM_UP).await;
    let (before, cpu_before) = (load.begin(), target.cpu_seconds()?);
    tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
    let cpu = target.cpu_seconds()? - cpu_before;
    let count = load.done() - before;
    let elapsed = load.elapsed();
    let grown = target.rss_kb()?.saturating_sub(empty);
    upstream.end_streams();
    let (_, calls) = load.stop().await?;
    let run = report::Streams {
        events_per_second: count as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu * 1e6 / count as f64,
        kb_per_stream: grown as f64 / options.streams as f64,
    };
    Ok((run, calls))
}
