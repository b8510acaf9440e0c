//! Alerts: raised once for each window over all replicas, delivered signed, tried again, and told in the audit trail.

mod delivery;
mod noticing;

use aws_lc_rs::hmac;
use serde_json::Value;

use crate::harness::{Answer, Request, TestGateway, Upstream, answer, batch, batch_answer, request};

const SECRET: &str = "the-webhook-secret-of-the-tests";

/// Ten messages a day, nothing else limited, and looks in quick succession.
const QUICK: &str = r#"
[plans.trial]
tokens_per_day = "unlimited"
api_calls_per_minute = "unlimited"
chat_messages_per_day = 10
embeddings_per_day = "unlimited"

[alerts]
interval = "50ms"
retry_first = "50ms"
webhook_timeout = "5s"
"#;

async fn service() -> Upstream {
    Upstream::answering(|_| answer(200).json(&batch_answer(10))).await
}

fn ok() -> Answer {
    answer(204)
}

/// Calls one after the other, on one replica: with another, the last units could be out on its lease.
async fn calls(gateway: &TestGateway, tenant: &str, count: usize) {
    for n in 0..count {
        assert_eq!(gateway.ask(batch(tenant, 1)).await.status, 200, "call {n}");
    }
}

/// The alert that a delivery brings, once its signature holds, as a receiver would verify it.
fn verified(delivery: &Request) -> Value {
    let header = |name| delivery.header(name).unwrap_or_else(|| panic!("no {name}: {}", delivery.head));
    let timestamp = header("x-tollgate-timestamp");
    let age = jiff::Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap();
    assert!((0..60).contains(&age), "{age} s old");
    let hex = header("x-tollgate-signature").strip_prefix("sha256=").unwrap().to_owned();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let signature: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let signed = [timestamp.as_bytes(), b".", &delivery.body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hmac::verify(&key, &signed, &signature).expect("the signature holds");
    assert_eq!((delivery.method(), header("content-type").as_str()), ("POST", "application/json"));
    let body = delivery.json();
    assert_eq!(body["id"].as_str(), Some(header("x-tollgate-alert-id").as_str()));
    body
}

/// The list of alerts, as an operator sees it.
async fn listed(gateway: &TestGateway, query: &str) -> Vec<Value> {
    let answer = gateway.operate(request("GET", &format!("/api/admin/alerts{query}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["alerts"].as_array().unwrap().clone()
}

/// Waits until this replica itself has looked so many times more.
async fn looked_again(gateway: &TestGateway, times: f64) {
    let name = "tollgate_alert_looks_total{result=\"ok\"}";
    gateway.until_metric(name, gateway.metric(name).await + times).await;
}
