//! A Postgres of our own, where none is configured: the machine's PostgreSQL programs, a data directory under ours,
//! a Unix socket and nothing else. The same server, SQL and driver as in production, with `fsync` on.
//!
//! 1. One gateway for a directory, by a lock that dies with its holder.
//! 2. It stops when we stop; also when we are killed: a watchdog holds the end of a pipe, and when the pipe breaks it
//!    shuts the server down. Should even that fail, the next start stops what was left over before it starts anew.
//! 3. Only the account that runs the server, and root, can reach the socket: its directory is 0700, so `trust` is
//!    enough and there is no password to keep.
//! 4. A data directory that was not made whole is never used: it is made beside and renamed.

mod account;
mod programs;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::process::{Child, ChildStdin, Command};

use self::account::Account;
use self::programs::Programs;
use crate::record::{create_private_dir, make_private, private_file};

/// How long a start may take. A server that was killed reads its log first.
const START: Duration = Duration::from_secs(60);
/// How long a shutdown may take before it is forced.
const STOP: Duration = Duration::from_secs(30);
/// How long one attempt to connect may take meanwhile.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often we look.
const TICK: Duration = Duration::from_millis(20);
/// A socket's path, its end included: `sockaddr_un.sun_path` is 108 bytes on Linux and 104 on macOS.
const MAX_SOCKET_PATH_BYTES: usize = 103;
/// What PostgreSQL calls the socket of port 5432.
const SOCKET: &str = ".s.PGSQL.5432";
/// When the server's log is set aside at a start.
const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;

/// Why there is no private Postgres; one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The machine has no (recent enough) PostgreSQL server.
    #[error(
        "no PostgreSQL {}+ server programs found: install them (Debian/Ubuntu: `apt-get install postgresql`, macOS: `brew install postgresql`), or set [database] url",
        programs::OLDEST
    )]
    NoPrograms,
    /// The data directory was made by a version that is not there any more.
    #[error(
        "{directory} was made by PostgreSQL {major}, whose server programs are not installed: install PostgreSQL {major}, or set [database] url"
    )]
    OtherVersion {
        /// The data directory.
        directory: String,
        /// The version that made it.
        major: String,
    },
    /// Another process has the directory.
    #[error("{0} is in use by another Tollgate")]
    InUse(String),
    /// The account that must run the server can't reach its directory.
    #[error(
        "PostgreSQL does not run as root, and the account it runs as can't pass through {0}: choose another [data] dir, or set [database] url"
    )]
    Barred(String),
    /// A file could not be made, or a program not be run.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// A program of PostgreSQL's failed; its own words.
    #[error("{0}")]
    Failed(String),
}

/// A running server. Stop it with [`stop`](Self::stop); dropped, it is told to shut down but not waited for.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Child,
    watchdog: Option<(Child, ChildStdin)>,
    sockets: Sockets,
    _lock: File,
}

/// Where the socket is: below our directory, or, when that is too long a path, in a temporary one.
#[derive(Debug)]
enum Sockets {
    Inside(PathBuf),
    Temporary(TempDir),
}

impl Sockets {
    fn path(&self) -> &Path {
        match self {
            Sockets::Inside(path) => path,
            Sockets::Temporary(directory) => directory.path(),
        }
    }
}

impl PrivatePostgres {
    /// Starts the server whose files are in `dir`, making them the first time; returns once it accepts connections.
    pub async fn start(dir: &Path) -> Result<Self, PrivateError> {
        let installed = tokio::task::spawn_blocking(programs::installed).await.unwrap_or_default();
        if installed.is_empty() {
            return Err(PrivateError::NoPrograms);
        }
        let account = Account::other_than_root().map_err(io("choosing an account for PostgreSQL"))?;
        let home = Home::prepare(dir, account)?;
        let programs = home.programs(&installed)?;
        if !home.data().exists() {
            home.initialise(&programs).await?;
        }
        home.stop_leftover().await?;

        let sockets = home.sockets()?;
        let mut server = home.launch(&programs, sockets.path())?;
        let watchdog = server.id().and_then(|pid| home.watch(pid).ok());
        let url = url(sockets.path());
        if let Err(error) = ready(&mut server, &url).await {
            let _ = signal(&server, Signal::QUIT);
            return Err(PrivateError::Failed(format!(
                "PostgreSQL did not start: {error}{}",
                home.last_words()
            )));
        }
        Ok(Self { server, watchdog, sockets, _lock: home.lock })
    }

    /// How to connect. Holds no secret.
    pub fn url(&self) -> String {
        url(self.sockets.path())
    }

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        self.server.id()
    }

    /// Shuts the server down, connections and all, and waits for it.
    pub async fn stop(mut self) {
        // The watchdog first, so that it does not act on the pipe that closes.
        if let Some((mut watchdog, _pipe)) = self.watchdog.take() {
            let _ = watchdog.kill().await;
        }
        let _ = signal(&self.server, Signal::INT);
        if tokio::time::timeout(STOP, self.server.wait()).await.is_err() {
            tracing::warn!("the private Postgres did not shut down in {STOP:?}: forcing it");
            let _ = signal(&self.server, Signal::QUIT);
            let _ = tokio::time::timeout(STOP, self.server.wait()).await;
        }
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // After stop() this finds a process that was waited for, and does nothing.
        let _ = signal(&self.server, Signal::INT);
    }
}

/// SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one.
fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    match child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        Some(pid) => Ok(kill_process(pid, signal)?),
        None => Ok(()),
    }
}

fn url(sockets: &Path) -> String {
    format!(
        "postgres://tollgate@/postgres?host={}",
        utf8_percent_encode(&sockets.to_string_lossy(), NON_ALPHANUMERIC)
    )
}

/// Waits until the server accepts a connection; an error when it ends instead, or takes too long.
async fn ready(server: &mut Child, url: &str) -> Result<(), String> {
    let deadline = Instant::now() + START;
    loop {
        let connect = tokio_postgres::connect(url, tokio_postgres::NoTls);
        let last = match tokio::time::timeout(ATTEMPT, connect).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => super::pool::describe(&error),
            Err(_) => String::from("it accepts, but does not answer"),
        };
        match server.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Err(format!("it ended with {status}")),
            Err(error) => return Err(error.to_string()),
        }
        if Instant::now() > deadline {
            return Err(format!("no answer in {START:?} ({last})"));
        }
        tokio::time::sleep(TICK).await;
    }
}

fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> PrivateError {
    move |error| PrivateError::Io { what: what.into(), error }
}

/// The directory of a private server, locked.
struct Home {
    directory: PathBuf,
    account: Option<Account>,
    lock: File,
}

impl Home {
    fn prepare(dir: &Path, account: Option<Account>) -> Result<Self, PrivateError> {
        let shown = dir.display().to_string();
        let told = || io(shown.clone());
        create_private_dir(dir).map_err(told())?;
        // PostgreSQL changes into its data directory: a relative path would mean something else there.
        let directory = dir.canonicalize().map_err(told())?;
        let lock = private_file().create(true).truncate(false).write(true).open(directory.join("lock"));
        let lock = lock.map_err(told())?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(PrivateError::InUse(shown)),
            Err(error) => return Err(told()(error.into())),
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).map_err(told())?;
        if let Some(account) = account {
            account.own(&directory).map_err(told())?;
            if let Some(bar) = account.barred_by(&directory).map_err(told())? {
                return Err(PrivateError::Barred(bar.display().to_string()));
            }
        }
        Ok(Self { directory, account, lock })
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("postgres.log")
    }

    /// The newest programs; where there is data already, those of the version that made it.
    fn programs(&self, installed: &[Programs]) -> Result<Programs, PrivateError> {
        let version = fs::read_to_string(self.data().join("PG_VERSION")).ok();
        let fit = match version.as_deref().map(str::trim) {
            None => installed.first(),
            Some(major) => installed.iter().find(|programs| programs.major.to_string() == major),
        };
        fit.cloned().ok_or_else(|| PrivateError::OtherVersion {
            directory: self.data().display().to_string(),
            major: version.unwrap_or_default().trim().to_owned(),
        })
    }

    /// A program that runs as the server's account, in a process group of its own: a Ctrl-C at the terminal is for
    /// us, and the server must outlive the drain that follows.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory).stdin(Stdio::null()).process_group(0);
        // What the environment says to other PostgreSQL clients is not meant for this server.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    async fn initialise(&self, programs: &Programs) -> Result<(), PrivateError> {
        let unfinished = self.directory.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(io(unfinished.display().to_string()))?;
        }
        let initdb = programs.directory.join("initdb");
        let output = self
            .command(&initdb)
            .arg("--pgdata")
            .arg(&unfinished)
            .args(["--username=tollgate", "--auth-local=trust", "--auth-host=reject"])
            .args(["--encoding=UTF8", "--locale=C"])
            .output()
            .await
            .map_err(io(initdb.display().to_string()))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(PrivateError::Failed(format!("initdb failed: {}", words.trim())));
        }
        fs::rename(&unfinished, self.data()).map_err(io(unfinished.display().to_string()))
    }

    /// Stops a server of ours that outlived a former run.
    async fn stop_leftover(&self) -> Result<(), PrivateError> {
        let Some(pid) = self.leftover() else { return Ok(()) };
        tracing::info!(
            pid = pid.as_raw_nonzero().get(),
            "stopping the private Postgres that a former run left"
        );
        for how in [Signal::INT, Signal::QUIT] {
            let _ = kill_process(pid, how);
            let deadline = Instant::now() + STOP;
            while Instant::now() < deadline {
                if test_kill_process(pid).is_err() || self.leftover().is_none() {
                    return Ok(());
                }
                tokio::time::sleep(TICK).await;
            }
        }
        let pid = pid.as_raw_nonzero();
        Err(PrivateError::Failed(format!("a PostgreSQL of a former run (process {pid}) does not stop")))
    }

    /// The process that `postmaster.pid` names, if it is a server with this data directory: after a reboot the
    /// number may be anybody's.
    fn leftover(&self) -> Option<Pid> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok().and_then(Pid::from_raw)?;
        let data = self.data();
        let data = data.to_str()?;
        arguments(pid).iter().any(|argument| argument == data).then_some(pid)
    }

    fn sockets(&self) -> Result<Sockets, PrivateError> {
        let inside = self.directory.join("run");
        // Commas and quotes mean something in unix_socket_directories.
        let plain = inside.to_str().is_some_and(|path| {
            path.len() + 1 + SOCKET.len() <= MAX_SOCKET_PATH_BYTES
                && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+~@".contains(&b))
        });
        let sockets = if plain {
            create_private_dir(&inside).map_err(io(inside.display().to_string()))?;
            Sockets::Inside(inside)
        } else {
            let made = tempfile::Builder::new().prefix("tollgate-").tempdir_in("/tmp");
            Sockets::Temporary(made.map_err(io("a directory for the socket in /tmp"))?)
        };
        let path = sockets.path();
        let told = || io(path.display().to_string());
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(told())?;
        if let Some(account) = self.account {
            account.own(path).map_err(told())?;
        }
        Ok(sockets)
    }

    fn launch(&self, programs: &Programs, sockets: &Path) -> Result<Child, PrivateError> {
        let path = self.log();
        let told = || io(path.display().to_string());
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_LOG_BYTES) {
            fs::rename(&path, self.directory.join("postgres.log.1")).map_err(told())?;
        }
        let log = private_file().create(true).append(true).open(&path).map_err(told())?;
        make_private(&log, &path);
        let postgres = programs.directory.join("postgres");
        self.command(&postgres)
            .arg("-D")
            .arg(self.data())
            .arg("-c")
            .arg(format!("unix_socket_directories={}", sockets.display()))
            .args(["-c", "listen_addresses=", "-c", "port=5432", "-c", "unix_socket_permissions=0700"])
            .args(["-c", "max_connections=50", "-c", "timezone=UTC", "-c", "log_timezone=UTC"])
            .args(["-c", "fsync=on", "-c", "cluster_name=tollgate", "-c", "logging_collector=off"])
            .stdout(log.try_clone().map_err(told())?)
            .stderr(log)
            .spawn()
            .map_err(io(postgres.display().to_string()))
    }

    /// Starts the watchdog: it reads from a pipe that only we hold, so its read ends when we do, however we do.
    fn watch(&self, server: u32) -> io::Result<(Child, ChildStdin)> {
        let mut watchdog = self
            .command("/bin/sh")
            .args(["-c", "read _; kill -INT \"$1\" 2>/dev/null", "tollgate-watchdog", &server.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        match watchdog.stdin.take() {
            Some(pipe) => Ok((watchdog, pipe)),
            None => Err(io::Error::other("no pipe")),
        }
    }

    /// The end of the server's log.
    fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let mut log = File::open(self.log())?;
            let from = log.metadata()?.len().saturating_sub(2000);
            log.seek(SeekFrom::Start(from))?;
            let mut end = Vec::new();
            log.read_to_end(&mut end)?;
            Ok(String::from_utf8_lossy(&end).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        if lines.is_empty() {
            return String::new();
        }
        let lines: Vec<_> = lines.into_iter().rev().collect();
        format!("; the end of {}:\n{}", self.log().display(), lines.join("\n"))
    }
}

/// The arguments of a running process; empty when it can't be told.
fn arguments(pid: Pid) -> Vec<String> {
    let pid = pid.as_raw_nonzero();
    if let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) {
        return line
            .split(|b| *b == 0)
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
    }
    // No /proc: macOS. Arguments with spaces in them are taken apart, and then not recognised; the server's own
    // check of its lock file reports that case.
    let output =
        std::process::Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output();
    let line = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn when_the_gateway_dies_the_watchdog_shuts_the_server_down() {
        let home = tempfile::Builder::new().prefix("tollgate-test-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut postgres = PrivatePostgres::start(&home.path().join("postgres")).await.unwrap();
        let (_watchdog, pipe) = postgres.watchdog.take().unwrap();
        // What the kernel does with the open files of a process that is killed.
        drop(pipe);
        assert!(postgres.server.wait().await.unwrap().success());
    }
}
