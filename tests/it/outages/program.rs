//! The built program as a process of its own: for what only a process can suffer.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Client, request, within};

/// A program that serves.
pub(crate) struct Program {
    pub(crate) address: SocketAddr,
    pub(super) admin: SocketAddr,
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// What a program that does not start leaves.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: ExitStatus,
    pub(super) log: String,
}

/// Writes a config for `upstream` and `database` into `data`, which holds everything else too; `more` are tables and
/// keys after `[server]`'s.
pub(crate) fn configure(data: &Path, upstream: &str, database: &str, server: &str, more: &str) {
    let dir = data.join("data");
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nworkers = 2\n{server}\n\
         [upstream]\nurl = \"{upstream}\"\n[database]\nurl = \"{database}\"\n\
         [data]\ndir = \"{}\"\n\
         [tenant]\nsources = [{{ header = \"x-tenant-id\" }}]\ntrust_header_from = [\"127.0.0.0/8\"]\n\
         default_plan = \"enterprise\"\n{more}",
        dir.display()
    );
    std::fs::write(data.join("tollgate.toml"), config).unwrap();
}

fn command(data: &Path, limits: &str) -> Command {
    // The shell sets the limits and is replaced by the program.
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(format!("{limits} exec \"$0\" serve --config \"$1\""))
        .arg(env!("CARGO_BIN_EXE_tollgate"))
        .arg(data.join("tollgate.toml"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Starts the program on a config that must keep it from serving, and waits for its end.
pub(super) async fn refused(data: &Path, variables: &[(&str, &str)]) -> Refusal {
    let ended = command(data, "").envs(variables.iter().copied()).output();
    let output = within("the program refuses to start", ended).await.unwrap();
    assert!(output.stdout.is_empty(), "it says that it is ready");
    Refusal { status: output.status, log: String::from_utf8_lossy(&output.stderr).into_owned() }
}

impl Program {
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_limited(data, "").await
    }

    /// Starts it under limits of the shell's, such as `ulimit -n 64;`.
    pub(super) async fn start_limited(data: &Path, limits: &str) -> Self {
        Self::of(&mut command(data, limits)).await
    }

    /// Starts it with a socket for clients that listens already, as systemd does: as descriptor 3, told by the environment.
    pub(super) async fn start_on(data: &Path, listen: &TcpListener) -> Self {
        let mut command = command(data, "exec 3<&0 </dev/null; export LISTEN_PID=$$;");
        command.stdin(Stdio::from(OwnedFd::from(listen.try_clone().unwrap())));
        Self::of(command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "listen")).await
    }

    async fn of(command: &mut Command) -> Self {
        let mut process = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let told = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                told.lock().unwrap().push(line);
            }
        });
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = within("the program is ready", lines.next_line()).await.unwrap();
        let ready = ready.unwrap_or_else(|| panic!("it does not start: {:#?}", log.lock().unwrap()));
        let address = |name: &str| {
            let word = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {ready:?}"))
        };
        Self { address: address("listen"), admin: address("admin"), process, log }
    }

    /// The lines of its log that hold `what`.
    pub(crate) fn logged(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    /// Its log.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// When it logged the lines that hold `what`.
    pub(super) fn logged_at(&self, what: &str) -> Vec<jiff::Timestamp> {
        let lines = self.log.lock().unwrap();
        let lines = lines.iter().filter(|line| line.contains(what));
        let parsed = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        parsed.map(|line| line["timestamp"].as_str().unwrap().parse().unwrap()).collect()
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = Client::ask(self.admin, request("GET", "/metrics")).await.text();
        let line = page.lines().find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with(' ')));
        line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0.0)
    }

    /// Sets how many files it may have open from now on: prlimit(1), at most as many as it was started with.
    pub(super) fn limit_files(&self, most: u64, hard: u64) {
        let mut prlimit = std::process::Command::new("prlimit");
        prlimit.arg(format!("--pid={}", self.process.id().unwrap())).arg(format!("--nofile={most}:{hard}"));
        assert!(prlimit.status().unwrap().success());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.process.id().expect("it runs");
        kill_process(Pid::from_raw(id.cast_signed()).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        within("the program ends", self.process.wait()).await.unwrap()
    }

    /// The most memory that it ever held, in bytes.
    pub(super) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}
