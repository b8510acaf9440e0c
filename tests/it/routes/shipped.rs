//! Every shipped route, driven through a running gateway.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{audits, of_it, shipped, token, usage};
use crate::harness::{RequestText, Upstream, answer, request};
use crate::postgres::shared;

fn asked(case: &Value) -> RequestText {
    let told = &case["request"];
    let mut asked = request("POST", told["path"].as_str().unwrap());
    if let Some(authorization) = told["authorization"].as_str() {
        asked = asked.header("authorization", authorization);
    }
    if let Some(tenant) = told["tenant"].as_str() {
        let token = token(tenant, told["subject"].as_str());
        asked = asked.header("authorization", &format!("Bearer {token}"));
    }
    match told["multipart"].as_u64() {
        Some(length) => asked
            .header("content-type", "multipart/form-data; boundary=xyz")
            .body(vec![0xff_u8; usize::try_from(length).unwrap()]),
        None => asked.json(&told["body"]),
    }
}

#[tokio::test]
async fn every_shipped_route_leaves_its_usage_row_and_its_audit_events() {
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string("tests/cases/routes/shipped.json").unwrap()).unwrap();
    let next = Arc::new(Mutex::new(Value::Null));
    let answers = next.clone();
    let upstream = Upstream::answering(move |_| {
        let told = answers.lock().unwrap().clone();
        answer(u16::try_from(told["status"].as_u64().unwrap()).unwrap()).json(&told["body"])
    })
    .await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    for case in &cases {
        *next.lock().unwrap() = case["answer"].clone();
        let response = gateway.ask(asked(case)).await;
        assert_eq!(json!(response.status), case["answer"]["status"], "{}", case["what"]);
        assert_eq!(response.json(), case["answer"]["body"], "{}", case["what"]);
    }
    gateway.stop().await;

    let rows = usage(&database).await;
    assert_eq!(rows.len(), cases.len(), "one row for each call");
    let trail = audits(&database).await;
    let mut told = 0;
    for (case, row) in cases.iter().zip(&rows) {
        let what = &case["what"];
        assert_eq!(&of_it(row, &case["usage"]), &case["usage"], "{what}");
        let request_id = &row["request_id"];
        let events: Vec<_> = trail.iter().filter(|event| &event["request_id"] == request_id).collect();
        let expected = case["audit"].as_array().unwrap();
        let seen: Vec<_> =
            events.iter().zip(expected).map(|(event, expected)| of_it(event, expected)).collect();
        assert_eq!((&seen, events.len()), (expected, expected.len()), "{what}");
        told += events.len();
    }
    assert_eq!(trail.len(), told);
    let whole = format!("{rows:?} {trail:?}");
    for secret in ["st_1234567890abcdefghij", "ann@", "ann%40", "nine to five", "2345667", "an-operators-key"]
    {
        assert!(!whole.contains(secret), "{secret} is stored nowhere");
    }
}

#[tokio::test]
async fn the_aggregation_counts_sessions_documents_and_embeddings() {
    let upstream = Upstream::answering(|request| match request.target() {
        "/api/widget/session" => {
            let new = request.json()["visitorId"] == "new";
            answer(if new { 201 } else { 200 }).json(&json!({"sessionId": "s-1"}))
        }
        "/api/embed-batch" => {
            answer(200).json(&json!({"embeddings": [[1], [2]], "usage": {"total_tokens": 9}}))
        }
        "/api/trial/kb/crawl" => answer(500).json(&json!({"error": "down"})),
        _ => answer(200).json(&json!({"ok": true})),
    })
    .await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let bearer = format!("Bearer {}", token("tn_sums", None));
    for visitor in ["new", "old", "new"] {
        let body = json!({"tenantId": "tn_sums", "visitorId": visitor});
        gateway.ask(request("POST", "/api/widget/session").json(&body)).await;
    }
    for (path, body) in [
        ("/api/embed-batch", json!({"texts": ["a", "b"]})),
        ("/api/trial/kb/manual", json!({"title": "t"})),
        ("/api/trial/kb/upload", json!({})),
        ("/api/trial/kb/crawl", json!({"startUrl": "https://x.example"})),
    ] {
        gateway.ask(request("POST", path).header("authorization", &bearer).json(&body)).await;
    }
    gateway.stop().await;
    database.store().aggregate().await.unwrap();
    let columns = "chat_sessions_created, embeddings_generated, embeddings_tokens_used, kb_documents_ingested, \
         kb_documents_failed, api_calls_total, chat_messages_received, total_tokens_used";
    for period in ["hourly", "daily", "monthly"] {
        let sums = database.rows(&format!(
            "SELECT {columns} FROM tenant_usage_metrics WHERE tenant_id = 'tn_sums' AND period_type = '{period}'"
        ));
        assert_eq!(sums, [["2", "2", "9", "2", "1", "7", "0", "9"]], "{period}");
    }
}

#[tokio::test]
async fn a_trial_that_does_not_begin_leaves_no_row_but_an_event_of_nobody() {
    let upstream =
        Upstream::answering(|_| answer(409).json(&json!({"error": "taken", "tenantId": null}))).await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let body = json!({"email": "a@b.example", "businessName": "B", "businessType": "c"});
    let response = gateway.ask(request("POST", "/api/trial/start").json(&body)).await;
    assert_eq!((response.status, response.json()["error"].as_str()), (409, Some("taken")));
    assert_eq!(gateway.metric("tollgate_unnamed_total").await, 1.0);
    gateway.stop().await;
    assert_eq!(usage(&database).await, Vec::<Value>::new());
    let trail = audits(&database).await;
    assert_eq!(trail.len(), 1);
    let expected = json!({"event_type": "api_error", "tenant_id": null, "entity_type": "request",
        "new_values": {"endpoint": "/api/trial/start", "status_code": 409, "outcome": "completed"}});
    assert_eq!(of_it(&trail[0], &expected), expected);
}

#[tokio::test]
async fn a_search_route_counts_its_results() {
    let upstream =
        Upstream::answering(|_| answer(200).json(&json!({"results": [{"id": 1}, {"id": 2}]}))).await;
    let database = shared().migrated();
    let config = "[formats.my-search]\nresults = [\"/results/*\"]\n[formats.my-search.request]\ntext = [\"/query\"]\n\
        [[routes]]\npath = \"/api/search\"\nevent = \"search\"\nformat = \"my-search\"\nreserve_tokens = 0\n";
    let gateway = shipped(&upstream, &database, config).await;
    let bearer = format!("Bearer {}", token("tn_search", None));
    let asked = request("POST", "/api/search").header("authorization", &bearer);
    gateway.ask(asked.json(&json!({"query": "opening hours"}))).await;
    gateway.stop().await;
    let row = &usage(&database).await[0];
    let expected = json!({"event_type": "search", "search_result_count": 2, "search_query_tokens": 2,
        "tokens_consumed": 2, "token_source": "counted"});
    assert_eq!(of_it(row, &expected), expected);
}
