//! A database that is away at the start, dies in the middle, hangs: callers are answered all the same.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{UNLIMITED, came_to, core, counters_equal_events, json_rows, own_server, rows};
use crate::harness::{TestGateway, Upstream, answer, batch, batch_answer, gateway, request, within};

async fn service() -> Upstream {
    Upstream::answering(|_| answer(200).json(&batch_answer(10))).await
}

/// The state of a part, as `/readyz` tells it.
fn state<'a>(readiness: &'a Value, part: &str) -> &'a Value {
    &readiness["parts"][part]["state"]
}

async fn until_up(gateway: &TestGateway) {
    gateway.until_metric("tollgate_database_up", 1.0).await;
}

async fn until_down(gateway: &TestGateway) {
    within("the outage is noticed", async { while gateway.metric("tollgate_database_up").await > 0.0 {} })
        .await;
}

#[tokio::test]
async fn fault_61_down_at_the_start_it_serves_within_the_limits_journals_and_catches_up() {
    let (server, upstream) = (own_server().await, service().await);
    let database = server.database();
    server.stop();
    let gateway =
        gateway(&upstream, &database).config("[plans.trial]\nchat_messages_per_day = 3\n").start().await;
    for expected in [200, 200, 200, 429] {
        assert_eq!(gateway.ask(batch("tn_early", 1)).await.status, expected);
    }
    let (status, readiness) = gateway.readiness().await;
    assert_eq!((status, &readiness["status"]), (200, &json!("degraded")));
    assert_eq!(state(&readiness, "database"), "down");
    server.restart();
    until_up(&gateway).await;
    let rows = rows(&database, "tn_early", 4).await;
    assert!(rows[..3].iter().all(|row| core(row) == came_to("completed", 200, 10, "reported")));
    assert_eq!(core(&rows[3]), came_to("refused", 429, 0, "none"));
    assert_eq!(gateway.readiness().await.1["status"], json!("ok"));
    assert_eq!(gateway.ask(batch("tn_early", 1)).await.status, 429, "nothing was forgotten, nothing doubled");
    counters_equal_events(&database).await;
    gateway.stop().await;
}

#[tokio::test]
async fn fault_61_down_all_along_everything_stays_in_the_journal_for_the_next_run() {
    let (server, upstream) = (own_server().await, service().await);
    let database = server.database();
    server.stop();
    let first = gateway(&upstream, &database).start().await;
    for _ in 0..5 {
        assert_eq!(first.ask(batch("tn_kept", 1)).await.status, 200);
    }
    let (left, data) = first.stop_leaving_events().await;
    assert_eq!(left, 15, "a usage event and two audit events each");
    server.restart();
    let second = gateway(&upstream, &database).data(data).start().await;
    assert_eq!(rows(&database, "tn_kept", 5).await.len(), 5);
    let limits = second.ask(batch("tn_kept", 1)).await;
    let limits = limits.header("ratelimit").unwrap();
    assert!(limits.contains("\"tokens_per_day\";r=9800;"), "{limits}");
    rows(&database, "tn_kept", 6).await;
    counters_equal_events(&database).await;
    second.stop().await;
}

#[tokio::test]
async fn fault_62_a_database_that_dies_mid_run_ends_up_with_every_row_once() {
    let (server, upstream) = (own_server().await, service().await);
    let database = server.database();
    let gateway = gateway(&upstream, &database).set(UNLIMITED.0, UNLIMITED.1).start().await;
    let ask = async |from: usize| {
        for number in from..from + 40 {
            let asked = batch("tn_mid_run", 1).header("x-request-id", &format!("r-{number}"));
            assert_eq!(gateway.ask(asked).await.status, 200);
        }
    };
    ask(0).await;
    server.kill();
    ask(40).await;
    server.restart();
    ask(80).await;
    let rows = rows(&database, "tn_mid_run", 120).await;
    let mut ids: Vec<_> = rows.iter().map(|row| row["request_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((rows.len(), ids.len()), (120, 120));
    counters_equal_events(&database).await;
    let settled = "SELECT to_jsonb(sum(settled)::bigint) FROM quota_usage WHERE dimension = 'tokens_per_day'";
    assert_eq!(json_rows(&database, settled, 1).await, [json!(1200)]);
    gateway.stop().await;
}

#[tokio::test]
async fn fault_64_a_hung_database_costs_callers_no_time() {
    let (server, upstream) = (own_server().await, service().await);
    let database = server.database();
    database.rows(
        "CREATE TABLE trial_tenants (tenant_id text PRIMARY KEY, plan_upgraded_to text);
         INSERT INTO trial_tenants VALUES ('tn_hung', 'enterprise')",
    );
    let gateway = gateway(&upstream, &database)
        .set("database.statement_timeout", "300ms")
        .set("database.connect_timeout", "300ms")
        .start()
        .await;
    let mut client = gateway.connect().await;
    let mut ask = async |tenants: &[String]| {
        let mut times = Vec::new();
        for tenant in tenants {
            let begun = Instant::now();
            client.send(batch(tenant, 1)).await;
            assert_eq!(client.read_response().await.status, 200);
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let slow = times.iter().filter(|time| **time > Duration::from_millis(200)).count();
        (times[times.len() / 2], slow)
    };
    let known = vec!["tn_hung".to_owned(); 60];
    ask(&known[..5]).await;
    let (before, _) = ask(&known).await;
    server.pause();
    until_down(&gateway).await;
    // A wait for the database takes 250 ms or more.
    let far_less = Duration::from_millis(100);
    let (during, slow) = ask(&known).await;
    assert!(during < before + far_less, "{before:?} became {during:?}");
    assert!(slow < 6, "{slow} of 60 waited for the database");
    // A tenant whose plan is not known waits for its look-up within the bound (250 ms), and then nobody for a second.
    let strangers: Vec<_> = (0..20).map(|number| format!("tn_stranger_{number}")).collect();
    let (during, slow) = ask(&strangers).await;
    assert!(during < before + far_less, "{before:?} became {during:?}");
    assert!(slow < 6, "{slow} of 20 waited for a look-up");
    server.resume();
    assert_eq!(rows(&database, "tn_hung", 125).await.len(), 125);
    rows(&database, "tn_stranger_19", 1).await;
    counters_equal_events(&database).await;
    gateway.stop().await;
}

#[tokio::test]
async fn closed_refuses_what_is_metered_while_the_database_is_away_and_nothing_else() {
    let (server, upstream) = (own_server().await, service().await);
    let database = server.database();
    let gateway = gateway(&upstream, &database)
        .set("database.on_outage", "closed")
        .set("quota.lease_wait", "5s")
        .start()
        .await;
    assert_eq!(gateway.ask(batch("tn_closed", 1)).await.status, 200);
    rows(&database, "tn_closed", 1).await;
    server.kill();
    until_down(&gateway).await;
    let refused = gateway.ask(batch("tn_closed", 1).header("origin", "https://shop.example")).await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (503, json!("quota_unavailable")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(gateway.ask(request("GET", "/page")).await.status, 200);
    assert_eq!(gateway.readiness().await.0, 503);
    assert_eq!(upstream.requests().len(), 2, "what is refused is not forwarded");
    server.restart();
    within("it serves again", async { while gateway.readiness().await.0 != 200 {} }).await;
    assert_eq!(gateway.ask(batch("tn_closed", 1)).await.status, 200);
    let rows = rows(&database, "tn_closed", 3).await;
    assert_eq!(core(&rows[1]), came_to("refused", 503, 0, "none"));
    assert_eq!(core(&rows[2]), came_to("completed", 200, 10, "reported"));
    counters_equal_events(&database).await;
    gateway.stop().await;
}
