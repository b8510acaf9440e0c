//! Limits of cost, of exchanges at once, soft ones, and what clients are told of them.

use serde_json::{Value, json};

use crate::gateway::{json_rows, pick, rows};
use crate::harness::{
    Signal, Step, TestGateway, Upstream, answer, batch, batch_answer, chat, gateway, request,
};
use crate::postgres::{Database, shared};

async fn started(upstream: &Upstream, config: &str) -> (Database<'static>, TestGateway) {
    let database = shared().database();
    let running = gateway(upstream, &database).config(config).start().await;
    (database, running)
}

/// Counters of cost that differ from the sum of what the events cost.
const COST_DRIFT: &str = "SELECT to_jsonb(d) FROM (SELECT tenant_id, settled, \
     (SELECT coalesce(sum(cost_usd), 0) * 1e9 FROM tenant_usage_realtime u WHERE u.tenant_id = q.tenant_id) AS events \
     FROM quota_usage q WHERE dimension LIKE 'cost_usd_per_%') d WHERE settled <> events";

async fn cost_counters(database: &Database<'_>) -> Vec<Value> {
    json_rows(database, "SELECT to_jsonb(q) FROM quota_usage q WHERE dimension LIKE 'cost_usd_per_%'", 1)
        .await
}

#[tokio::test]
async fn two_thousand_tenants_first_calls_at_once_are_all_served() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let (database, gateway) = started(&upstream, "").await;
    let tenants: Vec<String> = (0..2_000).map(|n| format!("tn_first{n}")).collect();
    let calls = tenants.iter().map(|tenant| gateway.ask(chat(tenant, "hi")));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT concat_ws(' ', count(*), count(DISTINCT tenant_id)) FROM tenant_usage_realtime"),
        "2000 2000"
    );
}

#[tokio::test]
async fn a_limit_of_cost_refuses_by_price_and_speaks_in_dollars() {
    let usage = json!({"usage": {"prompt_tokens": 1_000, "completion_tokens": 0}});
    let upstream = Upstream::answering(move |_| answer(200).json(&usage)).await;
    // A message: 150 tokens at 0.60 $/M reserved, 1,000 at 0.15 $/M charged.
    let (database, gateway) = started(&upstream, "[plans.trial]\ncost_usd_per_month = 0.001\n").await;
    let first = gateway.ask(batch("tn_cost", 1)).await;
    let told = [first.header("ratelimit-policy"), first.header("ratelimit")]
        .map(|v| v.unwrap_or_default().to_owned());
    assert!(told[0].contains("\"cost_usd_per_month\";q=1000;qu=\"micro-usd\";w="), "{told:?}");
    assert!(told[1].contains("\"cost_usd_per_month\";r=910;t="), "{told:?}");
    for _ in 0..6 {
        assert_eq!(gateway.ask(batch("tn_cost", 1)).await.status, 200);
    }
    let refused = gateway.ask(batch("tn_cost", 1)).await;
    assert_eq!(refused.status, 429);
    assert_eq!(
        pick(&refused.json(), &["code", "dimension", "limit", "used", "quota_remaining"]),
        [json!("quota_exceeded"), json!("cost_usd_per_month"), json!(0.001), json!(0.00105), json!(0.0)]
    );
    // The operator raises it, in dollars; it works at once.
    let path = "/api/admin/tenants/tn_cost/quota";
    let raised = gateway
        .operate(request("PUT", path).json(&json!({"cost_usd_per_month": 2.5, "reason": "pilot"})))
        .await;
    let quota = &raised.json()["quotas"]["cost_usd_per_month"];
    assert_eq!(pick(quota, &["limit", "used", "origin"]), [json!(2.5), json!(0.00105), json!("admin")]);
    assert_eq!(gateway.ask(batch("tn_cost", 1)).await.status, 200);
    rows(&database, "tn_cost", 9).await;
    let counters = cost_counters(&database).await;
    assert_eq!(pick(&counters[0], &["settled", "limit_value"]), [json!(1_200_000), json!(2_500_000_000_u64)]);
    assert_eq!(json_rows(&database, COST_DRIFT, 0).await, Vec::<Value>::new());
    gateway.stop().await;
}

#[tokio::test]
async fn a_count_that_comes_late_corrects_the_cost_in_the_counter_too() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"response": "A short answer."}))).await;
    let config = "[plans.trial]\ncost_usd_per_day = 1\n[metering]\ncount_wait = \"0ms\"\n";
    let (database, gateway) = started(&upstream, config).await;
    assert_eq!(gateway.ask(chat("tn_late", "How late is it?")).await.status, 200);
    let counted = "SELECT to_jsonb(u) FROM tenant_usage_realtime u WHERE token_source = 'counted'";
    let row = json_rows(&database, counted, 1).await.remove(0);
    assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| tokens < 50), "{row}");
    assert!(cost_counters(&database).await[0]["settled"].as_u64().is_some_and(|cost| cost > 0));
    assert_eq!(json_rows(&database, COST_DRIFT, 0).await, Vec::<Value>::new());
    gateway.stop().await;
}

#[tokio::test]
async fn a_tenants_slow_streams_leave_the_others_alone() {
    let (begun, go) = (Signal::new(), Signal::new());
    let (told, wait) = (begun.clone(), go.clone());
    let upstream = Upstream::answering(move |request| {
        if request.header("x-slow").is_none() {
            return answer(200).json(&batch_answer(10));
        }
        answer(200)
            .header("content-type", "text/event-stream")
            .chunk("data: {\"content\": \"a\"}\n\n")
            .then(Step::Tell(told.clone()))
            .then(Step::Wait(wait.clone()))
            .chunk("data: {\"done\": true}\n\n")
            .steps()
    })
    .await;
    let (database, gateway) = started(&upstream, "[plans.trial]\nconcurrent_requests = 1\n").await;
    let mut slow = gateway.connect().await;
    slow.send(chat("tn_slow", "take your time").header("x-slow", "1")).await;
    slow.read_head().await;
    begun.wait().await;
    let refused = gateway.ask(batch("tn_slow", 1)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(
        pick(&refused.json(), &["error", "code", "dimension", "limit", "used"]),
        [
            json!("Rate limit exceeded"),
            json!("rate_limited"),
            json!("concurrent_requests"),
            json!(1),
            json!(1)
        ]
    );
    let policy = refused.header("ratelimit-policy").unwrap_or_default();
    assert!(policy.contains("\"concurrent_requests\";q=1;qu=\"concurrent-requests\""), "{policy}");
    assert_eq!(gateway.ask(batch("tn_other", 1)).await.status, 200);
    go.fire();
    slow.read_out().await;
    assert_eq!(gateway.ask(batch("tn_slow", 1)).await.status, 200);
    let recorded = rows(&database, "tn_slow", 3).await;
    let mut refusals = recorded.iter().filter(|row| row["outcome"] == json!("refused"));
    assert_eq!(
        refusals.next().map(|row| &row["metadata"]["refused_by"]),
        Some(&json!("concurrent_requests"))
    );
    gateway.stop().await;
}

#[tokio::test]
async fn over_a_soft_limit_it_passes_is_marked_counted_audited_once_and_raises_an_alert() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
    let config = "[plans.trial]\nchat_messages_per_day = 1\nsoft = [\"chat_messages_per_day\"]\n\
        [alerts]\ninterval = \"1s\"\n";
    let (database, gateway) = started(&upstream, config).await;
    for _ in 0..3 {
        let answer = gateway.ask(batch("tn_soft", 1)).await;
        assert_eq!(answer.status, 200);
        let told = answer.header("ratelimit").unwrap_or_default();
        assert!(!told.contains("chat_messages_per_day"), "a soft limit is none to a client: {told}");
    }
    let recorded = rows(&database, "tn_soft", 3).await;
    let marks: Vec<_> = recorded.iter().map(|row| row["metadata"]["over_soft"].clone()).collect();
    let over = json!(["chat_messages_per_day"]);
    assert_eq!(marks, [Value::Null, over.clone(), over]);
    let query = "SELECT to_jsonb(a) FROM audit_events a WHERE event_type = 'quota_soft_exceeded'";
    let audits = json_rows(&database, query, 1).await;
    assert_eq!(audits.len(), 1);
    assert_eq!(
        pick(&audits[0]["new_values"], &["quota_type", "limit", "used"]),
        [json!("chat_messages_per_day"), json!(1), json!(2)]
    );
    let counted = gateway.metric("tollgate_soft_exceeded_total{dimension=\"chat_messages_per_day\"}").await;
    assert_eq!(counted.to_string(), "2");
    let told = gateway.operate(request("GET", "/api/admin/tenants/tn_soft/quota")).await.json();
    assert_eq!(told["quotas"]["chat_messages_per_day"]["soft"], json!(true));
    gateway.until_metric("tollgate_alerts_total{kind=\"quota_threshold\"}", 1.0).await;
    let alert = json_rows(&database, "SELECT to_jsonb(o) FROM alert_outbox o", 1).await.remove(0);
    assert_eq!(
        pick(&alert, &["tenant_id", "dimension", "threshold", "observed", "reference", "summary"]),
        [
            json!("tn_soft"),
            json!("chat_messages_per_day"),
            json!(100),
            json!(2),
            json!(1),
            json!("chat_messages_per_day: 2 of 1 used, the limit is soft")
        ]
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_route_refuses_in_its_own_words() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
    let config = r#"
[plans.trial]
chat_messages_per_day = 0
[[routes]]
path = "/api/widget/chat"
event = "chat_message"
refusal = '{"message": "{error}", "left": {remaining}, "of": {limit}, "id": "{request_id}"}'
"#;
    let (_database, gateway) = started(&upstream, config).await;
    let refused = gateway.ask(batch("tn_words", 1).header("x-request-id", "r-7")).await;
    assert_eq!((refused.status, refused.header("content-type")), (429, Some("application/json")));
    let expected =
        json!({"message": "Quota exceeded. Please upgrade your plan.", "left": 0, "of": 0, "id": "r-7"});
    assert_eq!(refused.json(), expected);
    assert!(refused.header("retry-after").is_some() && refused.header("ratelimit").is_some());
    gateway.stop().await;
}
