//! What is measured: a process on a core of its own.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::client::Load;
use super::{TARGET_CORE, upstream};

/// How long a target may take to answer, or to end.
const START: Duration = Duration::from_secs(30);

/// A running target.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// Where it tells its metrics.
    pub(crate) admin: Option<SocketAddr>,
    /// Whether its calls leave rows.
    pub(crate) meters: bool,
    /// From its start.
    pub(crate) first_answer: Duration,
    process: Child,
    pid: u32,
}

/// A folder for all targets' files, which goes away with the value.
pub(crate) fn scratch() -> anyhow::Result<tempfile::TempDir> {
    // Started as root, Tollgate's Postgres runs under another account, which must be able to pass.
    let passable = std::fs::Permissions::from_mode(0o711);
    Ok(tempfile::Builder::new().prefix("tollgate-load-").permissions(passable).tempdir()?)
}

impl Target {
    /// nginx as a plain proxy with kept connections: one process, no log.
    pub(crate) async fn nginx(scratch: &Path, upstream: SocketAddr) -> anyhow::Result<Self> {
        let address = free_address()?;
        let config = scratch.join("nginx.conf");
        std::fs::write(&config, nginx_config(address, upstream))?;
        let mut command = on_its_core(&program("nginx")?);
        command.args(["-e", "stderr", "-c"]).arg(&config).arg("-p").arg(scratch);
        Self::start("nginx", command, address).await
    }

    /// Tollgate with everything on: quotas, metering, the journal, rows in `database`. `callers` is the config of who
    /// calls and on which plan.
    pub(crate) async fn tollgate(
        scratch: &Path,
        upstream: SocketAddr,
        database: &str,
        callers: &str,
    ) -> anyhow::Result<Self> {
        let binary =
            std::env::var_os("TOLLGATE").map_or_else(|| env!("CARGO_BIN_EXE_tollgate").into(), PathBuf::from);
        ensure!(binary.is_file(), "{} is not there: build it first", binary.display());
        let (address, admin) = (free_address()?, free_address()?);
        let config = scratch.join("tollgate.toml");
        std::fs::write(&config, tollgate_config(address, admin, upstream, scratch) + callers)?;
        let with_config = |mut command: Command, what: &str| {
            command.arg(what).arg("--config").arg(&config);
            command
                .env("DATABASE_URL", database)
                .env("ADMIN_TOKEN", "of the load run")
                .env("RUST_LOG", "warn");
            command
        };
        // The tables first, so that its start is that of every day.
        let migrated = with_config(Command::new(&binary), "migrate").stdout(Stdio::null()).status().await?;
        ensure!(migrated.success(), "tollgate migrate failed: {migrated}");
        let started = Self::start("tollgate", with_config(on_its_core(&binary), "serve"), address).await?;
        Ok(Self { admin: Some(admin), ..started })
    }

    async fn start(name: &'static str, mut command: Command, address: SocketAddr) -> anyhow::Result<Self> {
        let began = Instant::now();
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().with_context(|| format!("starting {name}"))?;
        let pid = process.id().context("it ended at once")?;
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = process.try_wait()? {
                anyhow::bail!("{name} ended at its start: {status}");
            }
            ensure!(began.elapsed() < START, "{name} did not listen within {START:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let load = Load::requests(address, upstream::page_request(), 1);
        while load.done() == 0 {
            ensure!(began.elapsed() < START, "{name} did not answer within {START:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let first_answer = began.elapsed();
        load.stop().await?;
        Ok(Self { name, address, admin: None, meters: name == "tollgate", first_answer, process, pid })
    }

    /// CPU time that the kernel charged to it so far, all threads.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // proc(5): utime and stime are the 14th and 15th field; the 2nd, in brackets, can hold blanks.
        let after_name = stat.rsplit_once(')').context("an odd /proc stat")?.1;
        let fields: Vec<u64> = after_name.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
        Ok(fields.iter().sum::<u64>() as f64 / TICKS_PER_SECOND)
    }

    /// Resident memory now, in KB.
    pub(crate) fn rss_kb(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Tells it to end, and waits for it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        run("kill", &["-TERM", &self.pid.to_string()])?;
        let status = tokio::time::timeout(START, self.process.wait()).await.context("it does not end")??;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

/// `USER_HZ`, in which /proc counts: 100 on every architecture that Linux still runs on (proc(5), time(7)).
const TICKS_PER_SECOND: f64 = 100.0;

fn on_its_core(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &TARGET_CORE.to_string()]).arg(program);
    command
}

/// Pins this process, which must have one thread only.
pub(crate) fn pin_myself(core: usize) -> anyhow::Result<()> {
    pin(std::process::id(), core)
}

fn pin(pid: u32, core: usize) -> anyhow::Result<()> {
    run("taskset", &["-acp", &core.to_string(), &pid.to_string()])
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status = std::process::Command::new(program).args(arguments).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("{program} is needed: run scripts/setup --with-bench"))?;
    ensure!(status.success(), "{program} {} failed: {status}", arguments.join(" "));
    Ok(())
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} is not installed: run scripts/setup --with-bench"))
}

fn nginx_config(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "daemon off;
master_process off;
pid nginx.pid;
error_log stderr error;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    keepalive_requests 100000000;
    upstream service {{ server {upstream}; keepalive 512; keepalive_requests 100000000; }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
        location /api/ {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
        }}
    }}
}}
"
    )
}

/// Limits that no tenant reaches, so that each call takes the whole way.
pub(crate) const NO_LIMITS: &str = r#"
[tenant]
sources = [{ header = "x-tenant-id" }]
trust_header_from = ["127.0.0.0/8"]
plan_query = ""
default_plan = "load"

[plans.load]
tokens_per_day = 1000000000000
api_calls_per_minute = 1000000000
chat_messages_per_day = 1000000000000
embeddings_per_day = 1000000000
"#;

fn tollgate_config(listen: SocketAddr, admin: SocketAddr, upstream: SocketAddr, scratch: &Path) -> String {
    format!(
        r#"[server]
listen = "{listen}"
admin_listen = "{admin}"
workers = 1
drain_timeout = "5s"

[upstream]
url = "http://{upstream}"
pool_idle = 512

[data]
dir = {data:?}
journal_max_bytes = "16GiB"

"#,
        data = scratch.join("data")
    )
}
