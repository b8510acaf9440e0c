//! A database in trouble: what the store tells the shipper, and that nothing is lost or counted twice for it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tollgate::record::{EventSink, SinkError};
use tollgate::store::SchemaState;

use super::records::{chat, usage};
use crate::postgres::{self, Server, shared};

#[track_caller]
fn transient(result: Result<(), SinkError>) -> String {
    match result {
        Err(SinkError::Transient(why)) => why,
        other => panic!("expected a transient error, got {other:?}"),
    }
}

/// Passes bytes on to `port` until the client has sent COMMIT and the server has answered; the answer is lost.
fn lose_the_answer_to_commit(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut down_from, mut down_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let (committed, hush) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(n @ 1..) = down_from.read(&mut buffer) {
                if hush.try_recv().is_ok() {
                    // Read until the server is done with COMMIT, and say nothing of it.
                    let done = |bytes: &[u8]| bytes.windows(6).any(|window| window == b"COMMIT");
                    let mut answer = buffer[..n].to_vec();
                    while !done(&answer) {
                        let n = down_from.read(&mut buffer).unwrap();
                        answer.extend_from_slice(&buffer[..n]);
                    }
                    let _ = down_to.shutdown(std::net::Shutdown::Both);
                    return;
                }
                down_to.write_all(&buffer[..n]).unwrap();
            }
        });
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = client.read(&mut buffer) {
            if buffer[..n].windows(6).any(|window| window == b"COMMIT") {
                committed.send(()).unwrap();
            }
            server.write_all(&buffer[..n]).unwrap();
        }
    });
    own
}

#[tokio::test]
async fn fault_63_a_lost_answer_to_commit_is_recognised_on_replay() {
    let database = shared().migrated();
    let port = lose_the_answer_to_commit(shared().port());
    let behind = postgres::store(
        &format!("postgres://postgres@127.0.0.1:{port}/{}", database.name()),
        Duration::from_secs(5),
    );
    let batch = [usage(chat("tn_lost", 10, Timestamp::now()))];
    transient(behind.write(&batch).await);
    assert_eq!(
        database.one("SELECT count(*) FROM tenant_usage_realtime"),
        "1",
        "it was committed all the same"
    );
    database.store().write(&batch).await.unwrap();
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "1");
    assert_eq!(database.one("SELECT settled FROM quota_usage WHERE dimension = 'tokens_per_day'"), "10");
}

#[tokio::test]
async fn fault_62_a_crash_in_mid_run_loses_and_doubles_nothing() {
    let server = Server::start();
    let database = server.migrated();
    let store = database.store();
    let batch = |tokens| [usage(chat("tn_crash", tokens, Timestamp::now()))];
    let (first, second) = (batch(1), batch(2));
    store.write(&first).await.unwrap();
    server.kill();
    transient(store.write(&second).await);
    server.restart();
    store.write(&first).await.unwrap();
    store.write(&second).await.unwrap();
    assert_eq!(
        database.rows("SELECT count(*), sum(tokens_consumed) FROM tenant_usage_realtime"),
        [["2", "3"]]
    );
    assert_eq!(database.one("SELECT settled FROM quota_usage WHERE dimension = 'tokens_per_day'"), "3");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn fault_64_a_hung_server_is_given_up_on_in_time() {
    let server = Server::start();
    let database = server.migrated();
    let store = database.store_with(Duration::from_millis(300));
    let batch = [usage(chat("tn_hung", 5, Timestamp::now()))];
    store.write(&batch).await.unwrap();
    server.pause();
    let began = Instant::now();
    transient(store.write(&batch).await);
    transient(store.write(&batch).await);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    server.resume();
    database.store().write(&batch).await.unwrap();
    assert_eq!(database.one("SELECT settled FROM quota_usage WHERE dimension = 'tokens_per_day'"), "5");
}

#[tokio::test]
async fn fault_74_a_locked_table_is_waited_for_no_longer_than_a_statement_may_take() {
    let database = shared().migrated();
    let store = database.store_with(Duration::from_millis(300));
    let locker = database.connect().await;
    locker.batch_execute("BEGIN; LOCK TABLE tenant_usage_realtime IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let batch = [usage(chat("tn_lock", 5, Timestamp::now()))];
    let why = transient(store.write(&batch).await);
    assert!(why.contains("57014"), "{why}");
    locker.batch_execute("ROLLBACK").await.unwrap();
    store.write(&batch).await.unwrap();
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "1");
}

#[tokio::test]
async fn fault_67_a_read_only_database_is_tried_again_later() {
    let database = shared().migrated();
    database.rows(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name()));
    let batch = [usage(chat("tn_ro", 5, Timestamp::now()))];
    let why = transient(database.store().write(&batch).await);
    assert!(why.contains("25006"), "{why}");
}

#[tokio::test]
async fn fault_68_too_many_connections_is_tried_again_later() {
    let database = shared().migrated();
    let role = format!("crowded_{}", database.name());
    database.rows(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 0"));
    let store = postgres::store(&shared().url(&role, database.name()), Duration::from_secs(5));
    let why = transient(store.write(&[usage(chat("tn_full", 5, Timestamp::now()))]).await);
    assert!(why.contains("53300"), "{why}");
}

#[tokio::test]
async fn fault_69_a_terminated_connection_is_replaced() {
    let database = shared().migrated();
    let store = database.store();
    let batch = |tokens| [usage(chat("tn_term", tokens, Timestamp::now()))];
    store.write(&batch(1)).await.unwrap();
    database.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tollgate' AND datname = current_database()");
    let next = batch(2);
    // Whether the pool knows already that its connection is gone is a matter of a moment.
    if let Err(error) = store.write(&next).await {
        transient(Err(error));
        store.write(&next).await.unwrap();
    }
    assert_eq!(database.one("SELECT sum(tokens_consumed) FROM tenant_usage_realtime"), "3");
}

#[tokio::test]
async fn fault_71_a_missing_schema_is_said_and_nothing_is_dropped_for_it() {
    let database = shared().database();
    let store = database.store();
    let batch = [usage(chat("tn_none", 5, Timestamp::now()))];
    let why = transient(store.write(&batch).await);
    assert!(why.contains("42P01"), "{why}");
    let state = store.schema_state().await.unwrap();
    assert_eq!(state, SchemaState::Missing);
    assert!(state.to_string().contains("tollgate migrate"));
    store.migrate().await.unwrap();
    store.write(&batch).await.unwrap();
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "1");
}

#[tokio::test]
async fn fault_72_a_wrong_password_is_told_without_the_password() {
    let server = Server::start();
    let database = server.migrated();
    database.rows("CREATE ROLE app LOGIN PASSWORD 'right'");
    server.put(
        "pg_hba.conf",
        b"host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    );
    server.stop();
    server.restart();
    let store = postgres::store(&server.url("app:s3cret%3Fword", database.name()), Duration::from_secs(5));
    let why = transient(store.write(&[usage(chat("tn_pw", 5, Timestamp::now()))]).await);
    assert!(why.contains("password authentication failed") && why.contains("127.0.0.1"), "{why}");
    assert!(!why.contains("s3cret") && !format!("{store:?}").contains("s3cret"), "{why}");
}

#[tokio::test]
async fn fault_73_a_bad_row_is_told_apart_and_the_others_land() {
    let database = shared().migrated();
    database.rows("ALTER TABLE tenant_usage_realtime ADD CONSTRAINT no_poison CHECK (model <> 'poison')");
    let store = database.store();
    let now = Timestamp::now();
    let mut bad = chat("tn_bad", 1, now);
    bad.model = Some("poison".into());
    let batch = [usage(chat("tn_bad", 2, now)), usage(bad), usage(chat("tn_bad", 4, now))];
    match store.write(&batch).await {
        Err(SinkError::Poison(why)) => assert!(why.contains("no_poison"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(database.one("SELECT count(*) FROM quota_usage"), "0", "nothing of a refused batch is there");
    store.write(&batch[..1]).await.unwrap();
    store.write(&batch[2..]).await.unwrap();
    assert_eq!(database.one("SELECT settled FROM quota_usage WHERE dimension = 'tokens_per_day'"), "6");
}

#[tokio::test]
async fn fault_61_a_store_without_its_database_is_made_and_says_so_when_asked() {
    let store = postgres::store("postgres://nobody:s3cret@127.0.0.1:1/none", Duration::from_secs(1));
    let error = store.ping().await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1/none") && !error.contains("s3cret"), "{error}");
}
