//! Audit rules of the operator's own.

use serde_json::{Value, json};

use super::{audits, of_it, shipped, token};
use crate::harness::{Upstream, answer, request};
use crate::postgres::shared;

const RULES: &str = r#"
[[audit]]
events = ["api_call"]
event_type = "call_failed"
category = "error"
entity_type = "call"
entity = { answer = "/callId" }
action = "execute"
when = ["5xx", "404"]
actor = "system"
new_values = { status = "status", method = "method", why = { answer = "/why", mask = false } }
summary = "{method} failed with {status}: {why}"

[[routes]]
path = "/calls/{call}"
event = "api_call"
format = "none"
reserve_tokens = 0

[[routes.audit]]
event_type = "call_made"
category = "configuration_change"
entity_type = "call"
entity = { path = "call" }
action = "update"
when = "success"
new_values = { password = { request = "/password" }, to = { request = "/to" }, plain = { request = "/to", mask = false }, call = { path = "call" } }
"#;

#[tokio::test]
async fn rules_say_what_is_told_of_what_and_when() {
    let upstream = Upstream::answering(|request| match request.target() {
        "/calls/c-1" => answer(200).json(&json!({"callId": "other"})),
        "/calls/c-2" => answer(503).json(&json!({"callId": 7, "why": "ann@example.com"})),
        _ => answer(400).json(&json!({})),
    })
    .await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, RULES).await;
    let bearer = format!("Bearer {}", token("tn_rules", Some("ann")));
    for call in ["c-1", "c-2", "c-3"] {
        let body = json!({"password": "hunter2", "to": "+49 171 2345667"});
        gateway
            .ask(request("PUT", &format!("/calls/{call}")).header("authorization", &bearer).json(&body))
            .await;
    }
    gateway.stop().await;
    let trail = audits(&database).await;
    let expected = [
        json!({"event_type": "call_made", "entity_type": "call", "entity_id": "c-1", "actor_type": "tenant", "actor_id": "ann",
            "result": "success", "changes_summary": null, "old_values": null,
            "new_values": {"password": "***", "to": "+49…67", "plain": "+49 171 2345667", "call": "c-1"}}),
        json!({"event_type": "call_failed", "entity_type": "call", "entity_id": "7", "actor_type": "system", "actor_id": null,
            "result": "failure", "error_message": "the service answered 503",
            "changes_summary": "PUT failed with 503: ann@example.com",
            "new_values": {"status": 503, "method": "PUT", "why": "ann@example.com"}}),
    ];
    let seen: Vec<Value> =
        trail.iter().zip(&expected).map(|(event, expected)| of_it(event, expected)).collect();
    assert_eq!(
        (&seen[..], trail.len()),
        (&expected[..], 2),
        "and the list of the file replaced the shipped one"
    );
}

#[tokio::test]
async fn a_late_count_is_told_with_the_event_that_tells_it() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"reply": "We open at nine."}))).await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "[metering]\ncount_wait = \"0s\"\n").await;
    let bearer = format!("Bearer {}", token("tn_late", None));
    let body = json!({"sessionId": "s-1", "message": "when do you open?"});
    gateway.ask(request("POST", "/api/widget/chat").header("authorization", &bearer).json(&body)).await;
    gateway.stop().await;
    let trail = audits(&database).await;
    let told: Vec<_> =
        trail.iter().map(|event| (event["event_type"].clone(), event["new_values"].clone())).collect();
    let tokens = database.one("SELECT tokens_consumed FROM tenant_usage_realtime").parse::<u64>().unwrap();
    assert_eq!(
        told,
        [
            (json!("chat_message_received"), json!({"message_length": 17})),
            (json!("chat_response_sent"), json!({"tokens_used": tokens}))
        ]
    );
    assert!(tokens < 150, "the count, and not what was reserved");
}
