//! What names no tenant passes the routes around the chat as if they were not metered.

use serde_json::{Value, json};

use super::{audits, shipped, token, usage};
use crate::harness::{Ended, RequestText, Upstream, answer, request};
use crate::postgres::shared;

const ROUTES: [&str; 9] = [
    "/api/widget/session",
    "/api/embed-batch",
    "/api/trial/branding",
    "/api/trial/kb/upload",
    "/api/trial/kb/crawl",
    "/api/trial/kb/manual",
    "/api/trial/start?tenantId=",
    "/api/admin/trials/not%20an%20id/upgrade",
    "/api/admin/trials/not%20an%20id/extend",
];

/// Bodies and headers of calls that name nobody.
fn calls(path: &str) -> Vec<RequestText> {
    let post = || request("POST", path);
    vec![
        post().json(&json!({"some": "thing"})),
        post().json(&json!({"tenantId": "no such id"})),
        post().body(""),
        post().body("no JSON"),
        post().header("authorization", "Bearer somebody-elses-key").json(&json!({})),
        post().header("authorization", "Basic dXNlcjpwYXNz").json(&json!({})),
        post().header("content-type", "multipart/form-data; boundary=x").body("--x\r\n\r\n\0\r\n--x--"),
    ]
}

/// The same, where a body that can't be read could have named somebody.
fn unreadable(path: &str) -> Vec<(u16, RequestText)> {
    let post = || request("POST", path);
    let large = || format!("{{\"texts\": [\"{}\"]}}", "x".repeat(9 << 20));
    vec![
        (400, post().body("{'tenantId': 'tn_one'}")),
        (415, post().header("content-encoding", "gzip").body("no gzip")),
        (415, post().header("content-encoding", "zip").body("{}")),
        (413, post().body(large())),
        (413, post().chunked([large()])),
    ]
}

#[tokio::test]
async fn a_call_that_names_no_tenant_passes_as_it_came_and_leaves_nothing() {
    let upstream =
        Upstream::answering(|_| answer(418).header("X-Own", "1").json(&json!({"their": "own"}))).await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    for path in ROUTES.into_iter().filter(|path| !path.starts_with("/api/trial/start")) {
        for (place, call) in calls(path).into_iter().enumerate() {
            let sent = call.bytes();
            let response = gateway.ask(sent.clone()).await;
            assert_eq!((response.status, response.ended), (418, Ended::Clean), "{path}, call {place}");
            assert_eq!((response.header("x-own"), response.header("ratelimit")), (Some("1"), None));
            assert_eq!(response.json(), json!({"their": "own"}));
            let seen = upstream.requests().pop().unwrap();
            assert!(seen.complete && seen.target() == path, "{path}, call {place}");
            let end = sent.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            assert!(seen.body == sent[end..], "{path}, call {place}: the same bytes");
        }
    }
    gateway.stop().await;
    let mut audits = audits(&database).await;
    // What the gateway says of itself, after a while without an aggregation, is not of these calls.
    audits.retain(|event| event["event_type"] != "alert_raised");
    assert_eq!((usage(&database).await, audits), (Vec::<Value>::new(), Vec::new()));
}

#[tokio::test]
async fn a_call_that_could_name_a_tenant_where_it_cannot_be_read_does_not_pass() {
    let upstream = Upstream::answering(|_| answer(418).json(&json!({"their": "own"}))).await;
    let database = shared().migrated();
    let sources = "[{ json = \"/tenantId\" }]";
    let gateway = crate::harness::gateway(&upstream, &database).sources(sources).start().await;
    for path in ["/api/widget/session", "/api/embed-batch", "/api/trial/branding", "/api/trial/kb/manual"] {
        for (status, call) in unreadable(path) {
            assert_eq!(gateway.ask(call.bytes()).await.status, status, "{path}");
        }
    }
    assert!(upstream.requests().is_empty());
    for path in ["/api/trial/start", "/api/trial/kb/upload", "/api/admin/trials/not%20an%20id/upgrade"] {
        for (_, call) in unreadable(path) {
            assert_eq!(gateway.ask(call.bytes()).await.status, 418, "{path}: no body names a tenant there");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_trial_can_begin_with_any_body_and_any_token() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"tenantId": "tn_any"}))).await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let calls = calls("/api/trial/start");
    for call in &calls {
        assert_eq!(gateway.ask(call.bytes()).await.status, 200);
    }
    gateway.stop().await;
    assert_eq!(usage(&database).await.len(), calls.len());
}

#[tokio::test]
async fn a_body_that_is_too_large_to_inspect_is_charged_the_worst_where_its_token_names_the_tenant() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"embeddings": []}))).await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "[plans.trial]\nembeddings_per_day = 1500\n").await;
    let body = format!("{{\"texts\": [\"{}\"]}}", "x".repeat(9 << 20));
    let bearer = format!("Bearer {}", token("tn_large", None));
    let asked = request("POST", "/api/embed-batch").header("authorization", &bearer).chunked([&body]);
    assert_eq!(gateway.ask(asked).await.status, 200);
    assert_eq!(upstream.requests()[0].body, body.as_bytes());
    gateway.stop().await;
    let row = &usage(&database).await[0];
    assert_eq!(
        (&row["tenant_id"], &row["embeddings"], &row["metadata"]["request_unread"]),
        (&json!("tn_large"), &json!(1000), &json!("body_too_large"))
    );
}

#[tokio::test]
async fn a_route_refuses_what_names_nobody_where_it_says_so_and_so_does_the_chat() {
    let upstream = Upstream::start().await;
    let database = shared().migrated();
    let config = "[[routes]]\npath = \"/strict\"\nunidentified = \"reject\"\n[[routes]]\npath = \"/lax\"\nunidentified = \"pass\"\n\
        [[routes]]\npath = \"/plain\"\n";
    let gateway = shipped(&upstream, &database, config).await;
    let status = async |path: &str, authorization: &str| {
        let asked = request("POST", path).header("authorization", authorization).json(&json!({}));
        gateway.ask(asked).await.status
    };
    for (path, unnamed, forged) in [("/strict", 400, 401), ("/lax", 200, 200), ("/plain", 400, 401)] {
        assert_eq!(status(path, "Basic x").await, unnamed, "{path}");
        assert_eq!(status(path, "Bearer x").await, forged, "{path}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn quotas_that_are_only_watched_refuse_nobody_and_enforced_ones_do() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"ok": true}))).await;
    let database = shared().migrated();
    let config = "[plans.trial]\napi_calls_per_minute = 1\n";
    let gateway = shipped(&upstream, &database, config).await;
    let bearer = format!("Bearer {}", token("tn_watch", None));
    let branding = || {
        request("POST", "/api/trial/branding").header("authorization", &bearer).json(&json!({"tone": "x"}))
    };
    let extend = || request("POST", "/api/admin/trials/tn_watch/extend").json(&json!({"days": 1}));
    assert_eq!(gateway.ask(branding()).await.status, 200);
    assert_eq!(gateway.ask(branding()).await.status, 429);
    assert_eq!(gateway.ask(extend()).await.status, 200);
    gateway.stop().await;
    let refused: Vec<_> =
        audits(&database).await.into_iter().filter(|event| event["event_type"] == "quota_exceeded").collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(
        refused[0]["new_values"],
        json!({"quota_type": "api_calls_per_minute", "limit": 1, "used": 1, "needed": 1, "exceeded_by": 1})
    );
}
