//! The soak: honest callers beside every attack at once.
//!
//! First the honest callers alone, which is the calm; then all attacks of `attacks.rs` from other addresses of the
//! loopback net, for so many seconds; then quiet again. Shown are the honest callers' latencies in the calm and in the
//! storm, how many of them were refused or cut off, whether the admin listener still said that it is well, and what
//! memory the gateway held before, at most, and after.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::client::Load;
use super::target::Target;
use super::{Options, upstream};

/// Honest calls a second, all together: far below what one core can do, so that latency is not the queue's.
const HONEST_RATE: u32 = 200;
/// Their connections, and of each of them the tenant.
const HONEST_CALLERS: usize = 20;
const CALM: Duration = Duration::from_secs(30);
/// How long memory may take to be given back.
const AFTER: Duration = Duration::from_secs(30);
/// Between two looks at the gateway's memory and health.
const LOOK: Duration = Duration::from_secs(1);

/// Added to the config of the load run: attackers are told from honest callers by address, and have a plan that they
/// use up.
pub(crate) const CONFIG: &str = r#"
[tenant]
sources = [{ header = "x-tenant-id" }, { json = "/tenantId" }]
trust_header_from = ["127.0.0.1/32"]
plan_query = ""
default_plan = "small"

[plans.small]
chat_messages_per_day = 5

[plans.load]
tokens_per_day = 1000000000000
"#;

/// The plan of the honest callers, by override.
pub(crate) fn overrides() -> String {
    let plan = |number| format!("[overrides.\"{}\"]\nplan = \"load\"\n", tenant(number));
    (0..HONEST_CALLERS).map(plan).collect()
}

fn tenant(number: usize) -> String {
    format!("tn_honest{number:02}")
}

/// Runs it for `options.soak`.
pub(crate) async fn run(
    options: &Options,
    service: &upstream::Upstream,
    scratch: &Path,
    database: &str,
) -> anyhow::Result<()> {
    let storm = options.soak.context("no length of the soak")?;
    let target =
        Target::tollgate(scratch, service.address, database, &(CONFIG.to_owned() + &overrides())).await?;
    let admin = target.admin.context("no admin listener")?;
    let calm = honest(&target, admin, CALM).await.context("in the calm")?;
    println!("calm   {}", calm.line());

    let (exe, at) = (std::env::current_exe()?, format!("{},{admin}", target.address));
    // Of the machine's time they get what is left: honest callers come from other machines.
    let mut attackers = Command::new("nice")
        .args(["-n", "19"])
        .arg(exe)
        .args(["--bench", "--attack", &at])
        .kill_on_drop(true)
        .spawn()
        .context("starting the attackers")?;
    // What is measured is the storm, not its first gust.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stormy = honest(&target, admin, storm).await.context("in the storm")?;
    println!("storm  {}", stormy.line());
    attackers.kill().await?;

    tokio::time::sleep(AFTER).await;
    let after = target.rss_kb()? / 1024;
    println!("after  {after} MiB resident, {AFTER:?} after the last attacker left");
    println!(
        "p99 of the storm is {:.2} times that of the calm; the aim is below 2",
        f64::from(stormy.p99) / f64::from(calm.p99.max(1))
    );
    println!("what the gateway counted:\n{}", counted(admin).await?);
    target.stop().await?;
    ensure!(stormy.failed == 0 && stormy.unwell == 0, "honest callers were harmed");
    Ok(())
}

/// What honest callers saw.
struct Seen {
    calls: u64,
    failed: usize,
    p50: u32,
    p99: u32,
    /// How often the admin listener did not say that it is well.
    unwell: usize,
    first_rss: u64,
    most_rss: u64,
}

impl Seen {
    fn line(&self) -> String {
        format!(
            "{} honest calls, {} failed, p50 {} us, p99 {} us; /healthz failed {} times; {} MiB resident, {} at most",
            self.calls, self.failed, self.p50, self.p99, self.unwell, self.first_rss, self.most_rss
        )
    }
}

async fn honest(target: &Target, admin: SocketAddr, length: Duration) -> anyhow::Result<Seen> {
    let requests: Rc<[_]> =
        (0..HONEST_CALLERS).map(|number| upstream::chat_request_of(&tenant(number))).collect();
    let load = Load::paced(target.address, requests, HONEST_CALLERS, HONEST_RATE);
    load.begin();
    let (mut unwell, mut most_rss) = (0, 0);
    let first_rss = target.rss_kb()? / 1024;
    let end = Instant::now() + length;
    while Instant::now() < end {
        tokio::time::sleep(LOOK).await;
        most_rss = most_rss.max(target.rss_kb()? / 1024);
        if get(admin, "/healthz").await.is_err() {
            unwell += 1;
        }
    }
    let mut latencies = load.latencies();
    // A caller that was refused or cut off ended with an error.
    let (failed, calls) = load.stop_all().await;
    latencies.sort_unstable();
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    let (p50, p99) = (at(0.5), at(0.99));
    Ok(Seen { calls, failed, p50, p99, unwell, first_rss, most_rss })
}

/// Asks the admin listener, as a prober with a limit of a second does.
async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(admin).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{}", answer.lines().next().unwrap_or_default());
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(1), asked).await?
}

/// The counters that tell what became of the attacks.
async fn counted(admin: SocketAddr) -> anyhow::Result<String> {
    let told = [
        "tollgate_replies_total",
        "refused",
        "reject",
        "buffer",
        "slots",
        "timeout",
        "summed",
        "bad_requests",
    ];
    let metrics = get(admin, "/metrics").await?;
    let lines =
        metrics.lines().filter(|line| !line.starts_with('#') && told.iter().any(|name| line.contains(name)));
    let lines: Vec<_> = lines.filter(|line| !line.ends_with(" 0")).map(|line| format!("  {line}")).collect();
    Ok(lines.join("\n"))
}
