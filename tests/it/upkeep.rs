//! What operators do by command: counters checked against their events, processes listed and taken for dead.

use std::process::{Command, Output};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{
    Client, Signal, Step, Upstream, answer, batch, batch_answer, chat, gateway, request, within,
};
use crate::postgres::{Database, shared};

/// Runs the program on `database`.
fn tollgate(database: &Database<'_>, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", database.url())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Dimensions beside the standard ones, a zone that is not UTC, and a route in shadow.
const MIXED: &str = r#"
[plans.mixed]
time_zone = "Pacific/Auckland"
tokens_per_day = 100000
tokens_per_month = 1000000
api_calls_per_hour = 1000
cost_usd_per_day = 5.0
[overrides.tn_zone]
plan = "mixed"
[overrides.tn_poor]
chat_messages_per_day = 2
[[routes]]
path = "/api/widget/chat"
methods = ["POST"]
event = "chat_message"
[[routes]]
path = "/shadow"
methods = ["POST"]
event = "chat_message"
enforce = "shadow"
[[routes]]
path = "/api/embed-batch"
methods = ["POST"]
event = "embedding"
"#;

#[tokio::test]
async fn counters_are_the_sum_of_their_events_after_mixed_traffic_and_one_that_was_tampered_with_is_found() {
    let called = Signal::new();
    let tells = called.clone();
    let upstream = Upstream::answering(move |request| match request.target() {
        "/api/embed-batch" => {
            answer(200).json(&json!({"embeddings": [[1], [2]], "usage": {"total_tokens": 9}}))
        }
        _ if String::from_utf8_lossy(&request.body).contains("fail") => answer(500).json(&json!({})),
        // No tokens are reported: they are counted, and late.
        _ if String::from_utf8_lossy(&request.body).contains("count") => {
            answer(200).json(&json!({"reply": "a reply of some words"}))
        }
        _ if String::from_utf8_lossy(&request.body).contains("hang") => {
            let begun = answer(200).chunks(["{"]).then(Step::Tell(tells.clone()));
            begun.then(Step::UntilPeerGone(Signal::new())).unended()
        }
        _ => answer(200).json(&batch_answer(25)),
    })
    .await;
    let database = shared().migrated();
    let gateway = gateway(&upstream, &database).config(MIXED).set("metering.count_wait", "0s").start().await;
    for tenant in ["tn_plain", "tn_zone", "tn_poor"] {
        for _ in 0..3 {
            gateway.ask(batch(tenant, 1)).await;
        }
        gateway.ask(batch(tenant, 2)).await;
        gateway.ask(chat(tenant, "count these words")).await;
        gateway.ask(chat(tenant, "fail")).await;
        let body = json!({"sessionId": "session-0001", "message": "in the shadow"});
        gateway.ask(request("POST", "/shadow").header("x-tenant-id", tenant).json(&body)).await;
        let texts = json!({"texts": ["a", "b"]});
        gateway.ask(request("POST", "/api/embed-batch").header("x-tenant-id", tenant).json(&texts)).await;
    }
    let mut leaving = Client::connect(gateway.address).await;
    leaving.send(chat("tn_plain", "hang")).await;
    within("the call has reached the service", called.wait()).await;
    drop(leaving);
    within("its client's leaving is noticed", async {
        while gateway.metric("tollgate_exchanges").await > 0.0 {}
    })
    .await;
    gateway.stop().await;

    let outcomes = database.rows("SELECT DISTINCT outcome FROM tenant_usage_realtime ORDER BY 1");
    assert_eq!(outcomes, [["client_aborted"], ["completed"], ["refused"]]);
    let counted = "SELECT count(*) > 0 FROM tenant_usage_realtime WHERE token_source = 'counted'";
    assert_eq!(database.one(counted), "t", "late counts have amended their rows");
    let sound = tollgate(&database, &["verify-quota"]);
    assert!(sound.status.success(), "{}", stdout(&sound));
    let drift = database.store().drift(Some(Timestamp::now())).await.unwrap();
    assert_eq!((drift.drifted, drift.total), (0, 0));
    assert!(drift.counters >= 9, "{drift:?}");
    let cost = "SELECT sum(settled) > 0 FROM quota_usage WHERE dimension = 'cost_usd_per_day'";
    assert_eq!(database.one(cost), "t", "cost is a counter like others");
    // A call that waited for its lease while the minute turned is charged to the new minute, and its row is of the old one.
    let needlessly = database.rows(
        "SELECT event_timestamp, metadata FROM tenant_usage_realtime
         WHERE metadata ? 'charged' AND tenant_id <> 'tn_zone'
           AND date_trunc('minute', event_timestamp)
               = (metadata -> 'charged' ->> 'api_calls_per_minute')::timestamptz",
    );
    assert_eq!(
        needlessly,
        Vec::<Vec<String>>::new(),
        "only rows that do not say it by themselves keep what they were charged to"
    );

    database.rows(
        "UPDATE quota_usage SET settled = settled + 7
         WHERE tenant_id = 'tn_zone' AND dimension = 'tokens_per_month'",
    );
    database
        .rows("DELETE FROM quota_usage WHERE tenant_id = 'tn_plain' AND dimension = 'embeddings_per_day'");
    let tampered = tollgate(&database, &["verify-quota", "--json"]);
    assert_eq!(tampered.status.code(), Some(1));
    let told: Value = serde_json::from_str(&stdout(&tampered)).unwrap();
    let found = |at: usize| ["tenant", "dimension", "drift"].map(|name| told["worst"][at][name].clone());
    assert_eq!(found(0), [json!("tn_zone"), json!("tokens_per_month"), json!(7)]);
    assert_eq!(found(1), [json!("tn_plain"), json!("embeddings_per_day"), json!(-2)]);
    assert_eq!((&told["drifted"], &told["drift"]), (&json!(2), &json!(9)));
    assert_eq!(database.store().drift(Some(Timestamp::now())).await.unwrap().total, 7);

    // What is older than its events is not compared.
    database.rows("UPDATE usage_aggregation_state SET retained_from = now() + interval '1 minute'");
    assert!(tollgate(&database, &["verify-quota"]).status.success());
}

#[tokio::test]
async fn the_aggregation_shows_the_drift_of_the_windows_that_run() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(25))).await;
    let database = shared().migrated();
    let gateway = gateway(&upstream, &database).start().await;
    gateway.ask(batch("tn_gauge", 1)).await;
    gateway.until_metric("tollgate_events_written_total", 1.0).await;
    let aggregate = async || {
        let ask = request("POST", "/api/admin/metrics/aggregate")
            .header("x-cron-secret", "cron-secret-of-the-tests");
        assert_eq!(gateway.operate(ask).await.status, 200);
        gateway.metric("tollgate_quota_drift").await
    };
    assert_eq!(aggregate().await, 0.0);
    database.rows("UPDATE quota_usage SET settled = settled - 5 WHERE dimension = 'tokens_per_day'");
    assert_eq!(aggregate().await, 5.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_replica_is_listed_retired_only_when_silent_or_by_force_and_recovers_if_it_lives() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(25))).await;
    let database = shared().migrated();
    let gateway = gateway(&upstream, &database).start().await;
    assert_eq!(gateway.ask(batch("tn_lease", 1)).await.status, 200);
    gateway.until_metric("tollgate_lease_rounds_total{result=\"ok\"}", 1.0).await;
    let replicas = database.store().replicas().await.unwrap();
    let [replica] = &replicas[..] else { panic!("{replicas:?}") };
    assert_eq!((replica.state.as_str(), replica.leases > 0), ("live", true));
    assert!(replica.outstanding.contains_key("tokens"), "{replica:?}");
    let listed = stdout(&tollgate(&database, &["replicas"]));
    assert!(listed.contains(&replica.id) && listed.contains("tokens="), "{listed}");

    let id = replica.id.as_str();
    let refused = tollgate(&database, &["replicas", "retire", id]);
    assert_eq!(refused.status.code(), Some(1), "it lives");
    assert_eq!(tollgate(&database, &["replicas", "retire", "nobody"]).status.code(), Some(1));
    let run = replica.run;
    let retired = tollgate(&database, &["replicas", "retire", id, "--force"]);
    assert!(retired.status.success() && stdout(&retired).contains("is retired"), "{retired:?}");
    gateway.until_metric("tollgate_lease_rounds_total{result=\"void\"}", 1.0).await;
    within("the new run lives", async {
        loop {
            let replica = database.store().replicas().await.unwrap().remove(0);
            if replica.state == "live" && replica.run > run {
                break;
            }
        }
    })
    .await;
    assert_eq!(gateway.ask(batch("tn_lease", 1)).await.status, 200, "it is served under the new run");
    gateway.stop().await;

    database.rows("UPDATE gateway_replicas SET heartbeat_at = now() - interval '11 seconds'");
    assert!(tollgate(&database, &["replicas", "retire", id]).status.success(), "silent for long enough");
    assert_eq!(database.one("SELECT state FROM gateway_replicas"), "retired");
    assert_eq!(database.one("SELECT count(*) FROM quota_leases"), "0");
}
