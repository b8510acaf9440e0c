//! A real Postgres for the tests: one server for the whole process, a fresh database for each test; and servers of a
//! test's own, to be stopped, killed, paused and started again.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::NoTls;
use tollgate::store::{Config, Store};

/// A Postgres server on loopback. User `postgres`, no password.
pub(crate) struct Server {
    directory: TempDir,
    port: u16,
    settings: Vec<(String, String)>,
    running: Mutex<Option<Running>>,
    migrated: OnceLock<()>,
}

struct Running {
    server: Child,
    /// Shuts the server down and removes its files when this process ends without doing so (statics are never
    /// dropped): its read ends with the pipe.
    watchdog: Child,
    _pipe: ChildStdin,
}

/// A database of one test's own.
pub(crate) struct Database<'a> {
    server: &'a Server,
    name: String,
}

static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The server that all tests share. Not for faults.
pub(crate) fn shared() -> &'static Server {
    static SHARED: LazyLock<Server> =
        LazyLock::new(|| Server::start_with(&[("fsync", "off"), ("max_connections", "500")]));
    &SHARED
}

impl Server {
    /// A server of the test's own, as an operator would run it.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with settings of `postgresql.conf`.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().prefix("tollgate-test-pg-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if let Some((uid, gid)) = account() {
            chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let server = Self {
            directory,
            port: free_port(),
            settings,
            running: Mutex::default(),
            migrated: OnceLock::new(),
        };
        let initdb = run_as("initdb")
            .arg("-D")
            .arg(server.data())
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"])
            .output()
            .unwrap();
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        server.restart();
        server
    }

    /// Starts it (again), on the same port; returns once it accepts connections.
    pub(crate) fn restart(&self) {
        let mut running = self.running.lock().unwrap();
        assert!(running.is_none(), "it runs already");
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let mut command = run_as("postgres");
        command.arg("-D").arg(self.data());
        let own = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", self.directory.path().display().to_string()),
            ("timezone", "Europe/Berlin".to_owned()),
        ];
        for (name, value) in
            own.iter().map(|(n, v)| (*n, v)).chain(self.settings.iter().map(|(n, v)| (n.as_str(), v)))
        {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let mut server =
            command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0).spawn().unwrap();
        let mut watchdog = Command::new("/bin/sh")
            .args(["-c", "read _; kill -INT \"$1\" && sleep 1; kill -QUIT \"$1\"; rm -rf \"$2\"", "watchdog"])
            .arg(server.id().to_string())
            .arg(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_ready(server.id()) {
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(server.try_wait().unwrap().is_none(), "Postgres ended: {}", log());
            assert!(Instant::now() < deadline, "Postgres did not start: {}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        let pipe = watchdog.stdin.take().unwrap();
        *running = Some(Running { server, watchdog, _pipe: pipe });
    }

    /// Shuts it down; connections are ended.
    pub(crate) fn stop(&self) {
        self.end(Signal::INT);
    }

    /// As a crash ends it: nothing is flushed, connections break.
    pub(crate) fn kill(&self) {
        // SIGQUIT ends the backends with the postmaster, and they leave the shared memory; nothing is written.
        self.end(Signal::QUIT);
    }

    /// Stops answering, without ending connections. (Linux: elsewhere only new connections are held up.)
    pub(crate) fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Answers again.
    pub(crate) fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    /// An empty database.
    pub(crate) fn database(&self) -> Database<'_> {
        self.create("template1")
    }

    /// A database that has the schema already.
    pub(crate) fn migrated(&self) -> Database<'_> {
        self.migrated.get_or_init(|| {
            let template = Database { server: self, name: "migrated".to_owned() };
            self.psql("postgres", "CREATE DATABASE migrated");
            for file in migrations() {
                template.file(&file);
            }
        });
        self.create("migrated")
    }

    /// How to connect to a database by name, as `user` (`user:password`).
    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Its TCP port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory, to change `pg_hba.conf` in or put certificates.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Writes a file into the data directory as the server wants it: its own, and private.
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.data().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some((uid, gid)) = account() {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        path
    }

    fn create(&self, template: &str) -> Database<'_> {
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}"));
        Database { server: self, name }
    }

    fn psql(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        let output = self.psql_with(database, &["-c", sql]);
        assert!(output.status.success(), "{sql}\n{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.split('\u{1f}').map(str::to_owned).collect()).collect()
    }

    fn psql_with(&self, database: &str, arguments: &[&str]) -> Output {
        Command::new(programs().join("psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-F",
                "\u{1f}",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
            ])
            .args(["-p", &self.port.to_string(), "-d", database])
            .args(arguments)
            .env("PGTZ", "UTC")
            .output()
            .unwrap()
    }

    /// The eighth line of `postmaster.pid` says how far the server is.
    fn is_ready(&self, pid: u32) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        lines.next().is_some_and(|line| line == pid.to_string())
            && lines.nth(6).is_some_and(|line| line.trim() == "ready")
    }

    fn end(&self, how: Signal) {
        let mut running = self.running.lock().unwrap().take().expect("it runs");
        running.watchdog.kill().unwrap();
        running.watchdog.wait().unwrap();
        kill_process(Pid::from_child(&running.server), how).unwrap();
        running.server.wait().unwrap();
    }

    /// The postmaster and its backends, each in a session of its own.
    fn signal_all(&self, signal: Signal) {
        let running = self.running.lock().unwrap();
        let postmaster = running.as_ref().expect("it runs").server.id();
        let children =
            fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
        let pids =
            children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([postmaster.cast_signed()]);
        for pid in pids {
            // A backend may have ended in between.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running.lock().is_ok_and(|running| running.is_some()) {
            self.resume();
            self.kill();
        }
    }
}

impl Database<'_> {
    /// How to connect.
    pub(crate) fn url(&self) -> String {
        self.server.url("postgres", &self.name)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The rows of a query, by psql, as text.
    pub(crate) fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        self.server.psql(&self.name, sql)
    }

    /// The first column of the first row, as text.
    pub(crate) fn one(&self, sql: &str) -> String {
        self.rows(sql).into_iter().flatten().next().unwrap_or_else(|| panic!("no row: {sql}"))
    }

    /// Runs a file as an operator would.
    pub(crate) fn file(&self, path: &Path) {
        let output = self.server.psql_with(&self.name, &["-f", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}\n{}", path.display(), String::from_utf8_lossy(&output.stderr));
    }

    /// A connection with nothing of ours in between.
    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A store on it, with the given bound for each statement.
    pub(crate) fn store_with(&self, statement_timeout: Duration) -> Store {
        store(&self.url(), statement_timeout)
    }

    /// A store on it.
    pub(crate) fn store(&self) -> Store {
        self.store_with(Duration::from_secs(10))
    }
}

/// A store at `url`, for replica `test`.
pub(crate) fn store(url: &str, statement_timeout: Duration) -> Store {
    let connect_timeout = statement_timeout.min(Duration::from_secs(5));
    let config = Config { url: url.to_owned(), pool_size: 4, connect_timeout, statement_timeout };
    Store::new(&config).unwrap().with_replica_id("test")
}

/// The migrations' files, in order.
pub(crate) fn migrations() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| !file.ends_with("rollback.sql"));
    files.sort();
    files
}

/// Where the newest server's programs are.
pub(crate) fn programs() -> &'static Path {
    static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
        let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut found: Vec<_> = debian
            .filter_map(|entry| {
                Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
            })
            .filter(|(_, directory)| directory.join("initdb").exists())
            .collect();
        found.sort();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let newest = found.pop().map(|(_, directory)| directory);
        newest
            .or_else(|| std::env::split_paths(&path).find(|directory| directory.join("initdb").exists()))
            .expect("PostgreSQL server programs (apt-get install postgresql, or brew install postgresql)")
    });
    &PROGRAMS
}

/// As root, PostgreSQL must run as somebody else.
fn account() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        passwd.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned))
    };
    let line = find("postgres").or_else(|| find("nobody")).expect("a user that is not root");
    let mut fields = line.split(':').skip(1).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

fn run_as(program: &str) -> Command {
    let mut command = Command::new(programs().join(program));
    command.current_dir("/tmp").stdin(Stdio::null());
    if let Some((uid, gid)) = account() {
        command.uid(uid).gid(gid);
    }
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
