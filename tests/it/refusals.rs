//! What refusals leave behind: never more than calls do, and all of them counted.

use std::collections::BTreeMap;

use serde_json::json;

use crate::harness::{Step, Upstream, answer, batch, batch_answer, chat, gateway, request};
use crate::postgres::shared;

#[tokio::test]
async fn refusals_past_the_first_are_one_row_and_every_sum_still_counts_them() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).set("plans.trial.chat_messages_per_day", "2").start().await;
    let mut answered = BTreeMap::new();
    for _ in 0..200 {
        *answered.entry(running.ask(chat("tn_loud", "hi")).await.status).or_insert(0) += 1;
    }
    // A batch that is larger than its limit is refused before anything is used: tenants can be made up for it.
    for n in 0..30 {
        *answered.entry(running.ask(batch(&format!("tn_made_up_{n}"), 3)).await.status).or_insert(0) += 1;
    }
    assert_eq!(answered.keys().copied().collect::<Vec<_>>(), [200, 429]);
    let refused = answered[&429];
    assert!(running.metric("tollgate_refusals_total{dimension=\"chat_messages_per_day\"}").await > 0.0);
    running.stop().await;
    let rows = "FROM tenant_usage_realtime WHERE outcome = 'refused'";
    let sum = "coalesce((metadata ->> 'refusals')::bigint, 1)";
    assert_eq!(database.one(&format!("SELECT sum({sum}) {rows}")), refused.to_string());
    // The minute may have turned once or twice on the way.
    let loud: i64 =
        database.one(&format!("SELECT count(*) {rows} AND tenant_id = 'tn_loud'")).parse().unwrap();
    assert!((21..=80).contains(&loud), "{loud} rows");
    let audits = database.one(
        "SELECT sum(coalesce((new_values ->> 'refusals')::bigint, 1)) FROM audit_events
         WHERE event_type = 'quota_exceeded'",
    );
    assert_eq!(audits, refused.to_string());
    database.rows("SELECT * FROM aggregate_usage_metrics()");
    for period in ["hourly", "daily", "monthly"] {
        let told = database.one(&format!(
            "SELECT concat_ws(' ', sum(api_calls_total), sum(api_calls_rate_limited), sum(quota_exceeded_count))
             FROM tenant_usage_metrics WHERE period_type = '{period}'"
        ));
        assert_eq!(told, format!("230 {refused} {refused}"), "{period}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_leaves_a_row_where_its_tenant_is_known_without_it() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).start().await;
    let large = running.ask(chat("tn_large", &"x".repeat(9 << 20))).await;
    assert_eq!((large.status, large.json()["code"].as_str()), (413, Some("body_too_large")));
    assert!(large.json()["request_id"].is_string());
    let zipped = running
        .ask(
            request("POST", "/api/widget/chat")
                .header("x-tenant-id", "tn_coded")
                .header("content-encoding", "rot13")
                .body("x"),
        )
        .await;
    assert_eq!(zipped.status, 415);
    running.stop().await;
    let rows = database.one(
        "SELECT string_agg(concat_ws(' ', tenant_id, api_status_code, outcome, metadata ->> 'refused_by'), ', '
            ORDER BY event_timestamp) FROM tenant_usage_realtime",
    );
    assert_eq!(rows, "tn_large 413 refused body_too_large, tn_coded 415 refused unsupported_encoding");
    assert_eq!(database.one("SELECT count(*) FROM quota_usage"), "0");
}

#[tokio::test]
async fn an_answer_that_is_not_http_has_a_code_of_its_own() {
    let upstream = Upstream::answering(|_| vec![Step::send("HTTP/1.1 200 OK\r\nbad header\r\n\r\n")]).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).start().await;
    for path in ["/api/widget/chat", "/elsewhere"] {
        let body = json!({"sessionId": "s", "message": "hi"});
        let asked = request("POST", path).header("x-tenant-id", "tn_one").json(&body);
        let answer = running.ask(asked).await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (502, Some("upstream_invalid")),
            "{path}"
        );
    }
    running.stop().await;
    assert_eq!(
        database.one("SELECT concat_ws(' ', api_status_code, outcome) FROM tenant_usage_realtime"),
        "502 upstream_error"
    );
}

/// A visitor knows of no tenants, tokens and gateways.
#[tokio::test]
async fn what_visitors_read_is_worded_for_them() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).start().await;
    let asked = [
        request("POST", "/api/widget/chat").body("not json"),
        request("POST", "/api/widget/chat").header("content-encoding", "rot13").body("x"),
        request("TRACE", "/"),
        chat("tn_one", &"x".repeat(9 << 20)),
    ];
    for asked in asked {
        let answer = running.ask(asked).await;
        let (error, detail) = (answer.json()["error"].clone(), answer.json()["detail"].clone());
        let words = error.as_str().unwrap().to_lowercase();
        for word in ["tenant", "token", "gateway", "json", "encoding", "bytes", "upstream", "quota", "header"]
        {
            assert!(!words.contains(word), "{words}");
        }
        assert!(detail.is_string(), "{}", answer.json());
    }
    running.stop().await;
}
