//! The gateway's own answers are readable to the pages that the service lets read its own, with cookies too.

use serde_json::json;

use crate::harness::{Response, TestGateway, Upstream, answer, batch_answer, chat, gateway, request};
use crate::postgres::{Database, shared};

const SHOP: &str = "https://shop.example";
const OTHER: &str = "https://other.example";

/// A service that lets the pages of one shop read its answers with cookies, and everybody's without.
async fn open(config: &str) -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(|seen| match seen.header("origin").as_deref() {
        Some(SHOP) => answer(200)
            .header("access-control-allow-origin", SHOP)
            .header("access-control-allow-credentials", "true")
            .json(&batch_answer(7)),
        _ => answer(200).header("access-control-allow-origin", "*").json(&batch_answer(7)),
    })
    .await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).config(config).start().await;
    (upstream, database, gateway)
}

/// What a page may read: of whom, and whether with cookies.
fn readable(response: &Response) -> (Option<&str>, Option<&str>) {
    (response.header("access-control-allow-origin"), response.header("access-control-allow-credentials"))
}

#[tokio::test]
async fn a_refusal_is_readable_with_cookies_where_the_services_answers_are() {
    let (_upstream, _database, gateway) = open("[plans.trial]\nchat_messages_per_day = 1\n").await;
    let from = |origin: &str| chat("tn_cors", "hi").header("origin", origin).header("cookie", "sid=1");
    let refused = request("POST", "/api/widget/chat").header("origin", SHOP).body("no JSON");
    let early = gateway.ask(refused.clone()).await;
    assert_eq!(
        (early.status, readable(&early)),
        (400, (Some(SHOP), None)),
        "nothing is known of the service yet"
    );
    assert_eq!(gateway.ask(from(SHOP)).await.status, 200);
    let over = gateway.ask(from(SHOP)).await;
    assert_eq!((over.status, readable(&over)), (429, (Some(SHOP), Some("true"))));
    let unread = gateway.ask(refused).await;
    assert_eq!((unread.status, readable(&unread)), (400, (Some(SHOP), Some("true"))));
    let other = gateway.ask(from(OTHER)).await;
    assert_eq!(
        (other.status, readable(&other)),
        (429, (Some(OTHER), None)),
        "no page but those that it named"
    );
    let none = gateway.ask(chat("tn_cors", "hi")).await;
    assert_eq!((none.status, readable(&none)), (429, (None, None)));
    let elsewhere = request("POST", "/api/embed-batch").header("origin", SHOP).body("{'");
    assert_eq!(readable(&gateway.ask(elsewhere).await).1, None, "another route may have other rules");
    gateway.stop().await;
}

#[tokio::test]
async fn a_preflight_tells_before_the_first_answer_does() {
    let (_upstream, _database, gateway) = open("").await;
    let preflight = request("OPTIONS", "/api/widget/chat")
        .header("origin", SHOP)
        .header("access-control-request-method", "POST");
    assert_eq!(gateway.ask(preflight).await.status, 200);
    let refused =
        gateway.ask(request("POST", "/api/widget/chat").header("origin", SHOP).body("no JSON")).await;
    assert_eq!((refused.status, readable(&refused)), (400, (Some(SHOP), Some("true"))));
    gateway.stop().await;
}

#[tokio::test]
async fn the_services_own_rate_limits_are_joined_with_the_gateways() {
    let upstream = Upstream::answering(|_| {
        answer(200)
            .header("RateLimit", "\"svc\";r=9;t=60")
            .header("RateLimit-Policy", "\"svc\";q=10;w=60")
            .header("X-RateLimit-Limit", "10")
            .header("Retry-After", "7")
            .json(&json!({"reply": "hi"}))
    })
    .await;
    let database = shared().database();
    let limit = "[plans.trial]\nchat_messages_per_day = 5\n";
    let gateway = gateway(&upstream, &database).config(limit).start().await;
    let response = gateway.ask(chat("tn_limits", "hi")).await;
    let items = |name: &str| {
        let lines = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        lines.map(|header| header.value.clone()).collect::<Vec<_>>()
    };
    let state = items("ratelimit");
    assert!(state.len() == 1 && state[0].starts_with("\"svc\";r=9;t=60, \""), "{state:?}");
    assert!(state[0].contains("\"chat_messages_per_day\";r=4;"), "{state:?}");
    let policy = items("ratelimit-policy");
    assert!(policy.len() == 1 && policy[0].starts_with("\"svc\";q=10;w=60, \""), "{policy:?}");
    assert_eq!(
        (response.header("x-ratelimit-limit"), response.header("retry-after")),
        (Some("10"), Some("7"))
    );
    gateway.stop().await;
}
