//! A Postgres of our own.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use tollgate::store::{PrivateError, PrivatePostgres, SCHEMA_VERSION};

use crate::postgres::store;

/// A directory that the server's account can reach: those of `tempfile` are private.
fn reachable() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("tollgate-test-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn lives(pid: u32) -> bool {
    // A process that has ended but is nobody's child to wait for still has a number, and no arguments.
    let ended = std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty());
    !ended && test_kill_process(Pid::from_raw(pid.cast_signed()).unwrap()).is_ok()
}

async fn one(url: &str, sql: &str) -> String {
    let client = store(url, Duration::from_secs(10)).client().await.unwrap();
    let row = client.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn it_keeps_what_it_holds_over_a_restart_and_listens_on_no_port() {
    let directory = reachable();
    let home = directory.path().join("postgres");
    let first = PrivatePostgres::start(&home).await.unwrap();
    let pid = first.pid().unwrap();
    store(&first.url(), Duration::from_secs(10)).migrate().await.unwrap();
    assert_eq!(
        one(&first.url(), "current_setting('listen_addresses') || current_setting('fsync')").await,
        "on"
    );
    first.stop().await;
    assert!(!lives(pid));

    let second = PrivatePostgres::start(&home).await.unwrap();
    assert_eq!(
        one(&second.url(), "SELECT max(version) FROM tollgate_schema").await,
        SCHEMA_VERSION.to_string()
    );
    second.stop().await;
}

#[tokio::test]
async fn a_directory_is_one_gateways_only() {
    let directory = reachable();
    let first = PrivatePostgres::start(directory.path()).await.unwrap();
    let error = PrivatePostgres::start(directory.path()).await.unwrap_err();
    assert!(matches!(error, PrivateError::InUse(_)), "{error}");
    first.stop().await;
}

#[tokio::test]
async fn a_data_directory_with_a_long_path_has_its_socket_elsewhere() {
    let directory = reachable();
    let home = directory.path().join("d".repeat(100));
    let server = PrivatePostgres::start(&home).await.unwrap();
    assert_eq!(one(&server.url(), "SELECT 1").await, "1");
    server.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_that_outlived_its_gateway_is_stopped_first() {
    let directory = reachable();
    let first = PrivatePostgres::start(directory.path()).await.unwrap();
    let (url, command) =
        (first.url(), std::fs::read_to_string(format!("/proc/{}/cmdline", first.pid().unwrap())).unwrap());
    first.stop().await;
    // The same server, with neither a gateway nor a watchdog.
    let owner = std::fs::metadata(directory.path().join("data")).unwrap();
    let mut command = command.split_terminator('\0');
    let mut leftover = std::process::Command::new(command.next().unwrap())
        .args(command)
        .current_dir(directory.path())
        .uid(owner.uid())
        .gid(owner.gid())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err() {
        tokio::task::yield_now().await;
    }
    let second = PrivatePostgres::start(directory.path()).await.unwrap();
    assert!(leftover.wait().unwrap().success(), "it was shut down in good order");
    assert_eq!(one(&second.url(), "SELECT 1").await, "1");
    second.stop().await;
}

#[tokio::test]
async fn a_process_id_that_is_now_somebody_elses_is_left_alone() {
    let directory = reachable();
    let home = directory.path().join("postgres");
    PrivatePostgres::start(&home).await.unwrap().stop().await;
    let mut bystander = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
    let pid = bystander.id().unwrap();
    std::fs::write(home.join("data/postmaster.pid"), format!("{pid}\n{}\n", home.join("data").display()))
        .unwrap();
    let started = PrivatePostgres::start(&home).await;
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander still runs");
    if let Ok(server) = started {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_data_directory_that_was_not_finished_is_made_anew() {
    let directory = reachable();
    let unfinished = directory.path().join("data.new");
    std::fs::create_dir_all(&unfinished).unwrap();
    std::fs::write(unfinished.join("PG_VERSION"), "15\n").unwrap();
    let server = PrivatePostgres::start(directory.path()).await.unwrap();
    assert!(!unfinished.exists());
    server.stop().await;
}

#[tokio::test]
async fn data_of_a_version_that_is_gone_is_reported() {
    let directory = reachable();
    std::fs::create_dir_all(directory.path().join("data")).unwrap();
    std::fs::write(directory.path().join("data/PG_VERSION"), "9\n").unwrap();
    let error = PrivatePostgres::start(directory.path()).await.unwrap_err().to_string();
    assert!(error.contains("PostgreSQL 9") && error.contains("[database] url"), "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn as_root_a_directory_out_of_reach_is_named() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = reachable();
    let closed = directory.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = PrivatePostgres::start(&closed.join("postgres")).await.unwrap_err().to_string();
    assert!(error.contains(Path::new("closed").to_str().unwrap()), "{error}");
}
