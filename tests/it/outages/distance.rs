//! A database that is far away, cut off now and then, or out of breath: recording goes on behind the answers.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::NoTls;

use super::{UNLIMITED, counters_equal_events, own_server, rows};
use crate::harness::{
    Cable, TestGateway, Upstream, answer, batch, batch_answer, gateway, gateway_to, within,
};
use crate::postgres::{Database, shared};

async fn service() -> Upstream {
    Upstream::answering(|_| answer(200).json(&batch_answer(10))).await
}

/// A gateway whose way to `database` is `cable`.
async fn through(cable: &Cable, upstream: &Upstream, database: &Database<'_>) -> TestGateway {
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", cable.port(), database.name());
    gateway_to(&upstream.url(), &url)
        .set(UNLIMITED.0, UNLIMITED.1)
        .set("database.connect_timeout", "5s")
        .set("data.journal_batch_records", "100")
        .start()
        .await
}

/// Calls of `tenant` one after the other, each with its number as its id.
async fn ask(gateway: &TestGateway, tenant: &str, calls: std::ops::Range<usize>) {
    let mut client = gateway.connect().await;
    for call in calls {
        client.send(batch(tenant, 1).header("x-request-id", &format!("r-{call}"))).await;
        assert_eq!(client.read_response().await.status, 200);
    }
}

/// Every call has its row, once.
async fn each_once(database: &Database<'_>, tenant: &str, calls: usize) {
    let rows = rows(database, tenant, calls).await;
    let mut ids: Vec<_> = rows.iter().map(|row| row["request_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((rows.len(), ids.len()), (calls, calls));
    counters_equal_events(database).await;
}

#[tokio::test]
async fn fault_65_with_300_ms_a_round_trip_batches_grow_to_their_bound_and_no_further() {
    let (database, upstream) = (shared().migrated(), service().await);
    let cable = Cable::new(shared().port(), Duration::from_millis(150)).await;
    let gateway = through(&cable, &upstream, &database).await;
    ask(&gateway, "tn_far", 0..400).await;
    each_once(&database, "tn_far", 400).await;
    // A call is three records. What wrote a row is its transaction.
    let batches = "SELECT count(DISTINCT xmin::text) <= 40 FROM tenant_usage_realtime";
    assert_eq!(database.one(batches), "t", "they grow");
    let most = "SELECT max(n) <= 100 FROM (
        SELECT count(*) AS n FROM (SELECT xmin FROM tenant_usage_realtime UNION ALL SELECT xmin FROM audit_events) t
        GROUP BY xmin::text) t";
    assert_eq!(database.one(most), "t", "to their bound");
    gateway.stop().await;
}

#[tokio::test]
async fn a_cable_that_is_cut_again_and_again_loses_and_doubles_nothing() {
    let (database, upstream) = (shared().migrated(), service().await);
    let cable = Cable::new(shared().port(), Duration::from_millis(2)).await;
    let gateway = through(&cable, &upstream, &database).await;
    for cut in 0..12 {
        ask(&gateway, "tn_cut", cut * 40..cut * 40 + 20).await;
        cable.cut();
        ask(&gateway, "tn_cut", cut * 40 + 20..cut * 40 + 40).await;
        cable.mend();
    }
    each_once(&database, "tn_cut", 480).await;
    gateway.stop().await;
}

#[tokio::test]
async fn fault_66_a_full_or_panicking_database_is_tried_again_until_it_takes_all() {
    let (server, upstream) = (own_server().await, service().await);
    let database = server.migrated();
    let gateway = gateway(&upstream, &database).set(UNLIMITED.0, UNLIMITED.1).start().await;
    ask(&gateway, "tn_full", 0..20).await;
    rows(&database, "tn_full", 20).await;
    // What the server says when a table can't be extended.
    database.rows(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
         END $$;
         CREATE TRIGGER full_disk BEFORE INSERT ON tenant_usage_realtime EXECUTE FUNCTION full_disk()",
    );
    ask(&gateway, "tn_full", 20..40).await;
    gateway.until_metric("tollgate_ship_retries_total", 2.0).await;
    assert_eq!(gateway.metric("tollgate_events_dead_total").await, 0.0, "no event is at fault");
    database.rows("DROP TRIGGER full_disk ON tenant_usage_realtime");
    each_once(&database, "tn_full", 40).await;

    // A server process that dies takes all the others with it, and recovers, as after a PANIC.
    let process = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'tollgate%' LIMIT 1";
    let process = Pid::from_raw(database.one(process).parse().unwrap()).unwrap();
    kill_process(process, Signal::KILL).unwrap();
    ask(&gateway, "tn_full", 40..60).await;
    within("the database has recovered", async {
        while tokio_postgres::connect(&database.url(), NoTls).await.is_err() {}
    })
    .await;
    each_once(&database, "tn_full", 60).await;
    gateway.stop().await;
}
