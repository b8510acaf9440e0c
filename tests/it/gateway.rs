//! The main job: a widget's call goes in, and the right row stands in Postgres a moment later.

use serde_json::{Value, json};

use crate::harness::{
    Client, Ended, Header, Signal, Step, TestGateway, Upstream, answer, batch, batch_answer, chat, gateway,
    request, within,
};
use crate::postgres::{Database, shared};

/// The usage rows of a tenant, oldest first, as JSON; waits for `count` of them.
pub(crate) async fn rows(database: &Database<'_>, tenant: &str, count: usize) -> Vec<Value> {
    let query = format!(
        "SELECT to_jsonb(u) FROM tenant_usage_realtime u WHERE tenant_id = '{tenant}' ORDER BY event_timestamp, event_id"
    );
    json_rows(database, &query, count).await
}

/// What `query` (one JSON column) returns, once it returns at least `count` rows.
pub(crate) async fn json_rows(database: &Database<'_>, query: &str, count: usize) -> Vec<Value> {
    let client = database.connect().await;
    within("the rows", async {
        loop {
            let rows = client.query(query, &[]).await.expect("a query of the test");
            if rows.len() >= count {
                return rows.iter().map(|row| row.get(0)).collect();
            }
        }
    })
    .await
}

async fn audits(database: &Database<'_>, tenant: &str, count: usize) -> Vec<Value> {
    let query = format!(
        "SELECT to_jsonb(a) FROM audit_events a WHERE tenant_id = '{tenant}' ORDER BY timestamp, event_id"
    );
    json_rows(database, &query, count).await
}

/// Every counter equals the sum of the events that were charged to it.
async fn counters_equal_events(database: &Database<'_>) {
    let drift = json_rows(database, "SELECT to_jsonb(d) FROM (
                 SELECT tenant_id, settled, (SELECT coalesce(sum(coalesce((metadata ->> 'charged_tokens')::bigint, tokens_consumed)), 0) FROM tenant_usage_realtime u
                     WHERE u.tenant_id = q.tenant_id) AS events
                 FROM quota_usage q WHERE dimension = 'tokens_per_day') d WHERE settled <> events",
            0,
        )
        .await;
    assert_eq!(drift, Vec::<Value>::new());
}

pub(crate) fn pick(row: &Value, columns: &[&str]) -> Vec<Value> {
    columns.iter().map(|column| row[*column].clone()).collect()
}

const CORE: [&str; 5] = ["tokens_consumed", "api_status_code", "outcome", "token_source", "streamed"];

async fn both(
    script: impl Fn() -> Vec<Step> + Send + Sync + 'static,
) -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(move |_| script()).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).start().await;
    (upstream, database, running)
}

#[tokio::test]
async fn what_is_not_metered_reaches_the_other_side_as_it_came() {
    let (upstream, _database, gateway) = both(|| {
        answer(203)
            .header("X-Odd-Case", "1")
            .header("Set-Cookie", "a=1")
            .header("Set-Cookie", "b=2")
            .body("body")
    })
    .await;
    let asked = request("PUT", "/some/page?x=1&y=%20z")
        .header("X-Custom-Case", "v")
        .header("Accept-Language", "de")
        .header("x-many", "1")
        .header("x-many", "2")
        .body("payload");
    let response = gateway.ask(asked).await;
    assert_eq!((response.status, response.text().as_str(), response.ended), (203, "body", Ended::Clean));
    assert!(response.headers.contains(&Header::new("X-Odd-Case", "1")), "{}", response.head);
    let cookies: Vec<_> =
        response.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("set-cookie")).collect();
    assert_eq!(cookies, [&Header::new("Set-Cookie", "a=1"), &Header::new("Set-Cookie", "b=2")]);
    let seen = &upstream.requests()[0];
    assert_eq!(
        (seen.method(), seen.target(), &*seen.body),
        ("PUT", "/some/page?x=1&y=%20z", &b"payload"[..])
    );
    assert!(seen.headers().contains(&Header::new("X-Custom-Case", "v")), "{}", seen.head);
    let many: Vec<_> = seen.headers().into_iter().filter(|h| h.name == "x-many").map(|h| h.value).collect();
    assert_eq!(many, ["1", "2"]);
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("http"));
    assert!(seen.header("x-request-id").is_some_and(|id| id.len() == 36));
    gateway.stop().await;
}

#[tokio::test]
async fn a_single_answer_is_counted_and_audited() {
    let (_upstream, database, gateway) = both(|| {
        answer(200).json(&json!({"reply": "We are open from nine to five.", "sources": [], "metadata": {}}))
    })
    .await;
    let response =
        gateway.ask(chat("tn_one", "what are your opening hours?").header("x-request-id", "r-1")).await;
    assert_eq!(
        (response.status, response.json()["reply"].as_str()),
        (200, Some("We are open from nine to five."))
    );
    assert_eq!(response.header("x-request-id"), Some("r-1"));
    assert!(response.header("ratelimit").is_some_and(|value| value.contains("\"tokens_per_day\";r=9850;t=")));
    let row = &rows(&database, "tn_one", 1).await[0];
    // 6 + 8 tokens by o200k_base, as tiktoken counts them.
    assert_eq!(pick(row, &CORE), [json!(14), json!(200), json!("completed"), json!("counted"), json!(false)]);
    assert_eq!(
        pick(row, &["input_tokens", "output_tokens", "chat_session_id", "request_id", "api_endpoint"]),
        [json!(6), json!(8), json!("session-0001"), json!("r-1"), json!("/api/widget/chat")]
    );
    let trail = audits(&database, "tn_one", 2).await;
    let kinds: Vec<_> = trail.iter().map(|event| event["event_type"].as_str().unwrap_or_default()).collect();
    assert_eq!(kinds, ["chat_message_received", "chat_response_sent"]);
    assert_eq!(trail[0]["new_values"], json!({"message_length": 28}));
    assert_eq!(trail[1]["new_values"], json!({"tokens_used": 14}));
    counters_equal_events(&database).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_batch_is_charged_what_it_reports() {
    let (_upstream, database, gateway) = both(|| answer(200).json(&batch_answer(512))).await;
    let response = gateway.ask(batch("tn_batch", 3)).await;
    assert_eq!(response.json()["totalTokens"], json!(512));
    let row = &rows(&database, "tn_batch", 1).await[0];
    assert_eq!(
        pick(row, &CORE),
        [json!(512), json!(200), json!("completed"), json!("reported"), json!(false)]
    );
    let counter = json_rows(&database, "SELECT to_jsonb(settled) FROM quota_usage WHERE tenant_id = 'tn_batch' AND dimension = 'chat_messages_per_day'", 1)
        .await;
    assert_eq!(counter, [json!(3)]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_streamed_answer_leaves_as_it_arrives_and_is_counted_at_its_end() {
    let go = Signal::new();
    let script_go = go.clone();
    let (_upstream, database, gateway) = both(move || {
        answer(200)
            .events([&json!({"token": "Hello ", "partial": "Hello "})])
            .then(Step::Wait(script_go.clone()))
            .events([
                &json!({"token": "there.", "partial": "Hello there."}),
                &json!({"done": true, "final": "Hello there.", "confidence": 0.9, "metadata": {}, "sources": []}),
            ])
            .steps()
    })
    .await;
    let mut client = gateway.connect().await;
    client.send(chat("tn_sse", "hi")).await;
    client.read_head().await;
    let first = client.read_up_to(b"\n\n").await;
    assert!(
        String::from_utf8_lossy(&first).contains("Hello "),
        "the first event is here before the last exists"
    );
    go.fire();
    assert_eq!(client.read_out().await, Ended::Clean);
    let row = &rows(&database, "tn_sse", 1).await[0];
    assert_eq!(pick(row, &CORE), [json!(4), json!(200), json!("completed"), json!("counted"), json!(true)]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_streamed_batch_is_charged_the_sum_of_its_events() {
    let event =
        |tokens: u64| json!({"reply": "ok", "tokens_used": tokens, "latency_ms": 5, "status": "success"});
    let (_upstream, database, gateway) =
        both(move || answer(200).events([&event(100), &event(23)]).steps()).await;
    let response = gateway.ask(batch("tn_sseb", 2)).await;
    assert_eq!(response.ended, Ended::Clean);
    let row = &rows(&database, "tn_sseb", 1).await[0];
    assert_eq!(
        pick(row, &CORE),
        [json!(123), json!(200), json!("completed"), json!("reported"), json!(true)]
    );
    gateway.stop().await;
}

#[tokio::test]
async fn over_quota_is_refused_readably_and_the_service_never_hears_of_it() {
    let (upstream, database, gateway) = both(|| answer(200).json(&batch_answer(10_000))).await;
    assert_eq!(gateway.ask(batch("tn_quota", 1)).await.status, 200);
    let refused = gateway.ask(batch("tn_quota", 1).header("origin", "https://shop.example")).await;
    assert_eq!(refused.status, 429);
    let body = refused.json();
    assert_eq!(body["error"], json!("Quota exceeded. Please upgrade your plan."));
    assert_eq!(
        pick(&body, &["code", "dimension", "limit", "used", "quota_remaining"]),
        [json!("quota_exceeded"), json!("tokens_per_day"), json!(10_000), json!(10_000), json!(0)]
    );
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://shop.example"));
    assert!(
        refused.header("access-control-expose-headers").is_some_and(|value| value.contains("Retry-After"))
    );
    assert!(
        refused.header("retry-after").is_some_and(|value| value.parse::<u64>().is_ok_and(|s| s <= 86_400))
    );
    assert_eq!(upstream.requests().len(), 1);
    let recorded = rows(&database, "tn_quota", 2).await;
    assert_eq!(
        pick(&recorded[1], &CORE),
        [json!(0), json!(429), json!("refused"), json!("none"), json!(false)]
    );
    let trail = audits(&database, "tn_quota", 3).await;
    let exceeded = trail.iter().find(|event| event["event_type"] == json!("quota_exceeded"));
    assert_eq!(exceeded.map(|event| event["new_values"]["exceeded_by"].clone()), Some(json!(150)));
    counters_equal_events(&database).await;
    gateway.stop().await;
}

#[tokio::test]
async fn fault_59_at_the_last_unit_exactly_the_limit_passes() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(1))).await;
    let database = shared().database();
    let gateway =
        gateway(&upstream, &database).config("[plans.trial]\nchat_messages_per_day = 7\n").start().await;
    let asked = (0..27).map(|_| gateway.ask(batch("tn_race", 1)));
    let statuses: Vec<u16> = futures_util::future::join_all(asked).await.iter().map(|r| r.status).collect();
    let passed = statuses.iter().filter(|status| **status == 200).count();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!((passed, refused, upstream.requests().len()), (7, 20, 7));
    assert_eq!(rows(&database, "tn_race", 27).await.len(), 27);
    gateway.stop().await;
}

#[tokio::test]
async fn a_restart_forgets_nothing() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(9_000))).await;
    let database = shared().database();
    let first = gateway(&upstream, &database).start().await;
    assert_eq!(first.ask(batch("tn_restart", 1)).await.status, 200);
    let data = first.stop().await;
    let second = gateway(&upstream, &database).data(data).start().await;
    assert_eq!(second.ask(batch("tn_restart", 1)).await.status, 200, "900 tokens were left");
    let third = second.ask(batch("tn_restart", 1)).await;
    assert_eq!((third.status, third.json()["used"].clone()), (429, json!(18_000)));
    second.stop().await;
}

#[tokio::test]
async fn shadow_lets_through_and_records_what_it_would_have_refused_and_off_only_meters() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(20_000))).await;
    let database = shared().database();
    let routes = |enforce: &str| {
        format!(
            "[[routes]]\npath = \"/api/widget/chat\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\nenforce = \"{enforce}\"\nformat = \"auto\"\nreserve_tokens = 150\n"
        )
    };
    let shadow = gateway(&upstream, &database).config(&routes("shadow")).start().await;
    let statuses =
        [shadow.ask(batch("tn_shadow", 1)).await.status, shadow.ask(batch("tn_shadow", 1)).await.status];
    assert_eq!(statuses, [200, 200]);
    let recorded = rows(&database, "tn_shadow", 2).await;
    assert_eq!(recorded[1]["metadata"]["would_refuse"], json!("tokens_per_day"));
    assert_eq!(recorded[0]["metadata"]["would_refuse"], json!(null));
    let data = shadow.stop().await;
    let off = gateway(&upstream, &database).config(&routes("off")).data(data).start().await;
    assert_eq!(off.ask(batch("tn_shadow", 1)).await.status, 200);
    assert_eq!(rows(&database, "tn_shadow", 3).await[2]["metadata"]["would_refuse"], json!(null));
    off.stop().await;
}

#[tokio::test]
async fn options_is_never_metered() {
    let (upstream, _database, gateway) =
        both(|| answer(204).header("access-control-allow-origin", "*").steps()).await;
    let response =
        gateway.ask(request("OPTIONS", "/api/widget/chat").header("origin", "https://shop.example")).await;
    assert_eq!((response.status, upstream.requests().len()), (204, 1));
    assert_eq!(response.header("ratelimit"), None);
    gateway.stop().await;
}

#[tokio::test]
async fn an_upgrade_is_passed_through_and_then_bytes_both_ways() {
    let upstream = Upstream::answering(|_| {
        vec![
            Step::send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello from behind"),
            Step::UntilPeerGone(Signal::new()),
        ]
    })
    .await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).set("server.upgrades", "echo").start().await;
    let mut client = gateway.connect().await;
    client.send(request("GET", "/socket").header("connection", "upgrade").header("upgrade", "echo")).await;
    let head = client.read_head().await;
    assert_eq!((head.status, head.header("upgrade")), (101, Some("echo")));
    let seen = client.read_bytes(17).await;
    assert_eq!(seen, b"hello from behind");
    drop(client);
    upstream.all_closed().await;
    gateway.stop().await;
}

#[tokio::test]
async fn http_2_without_tls_is_served_and_metered_alike() {
    let (_upstream, database, gateway) = both(|| answer(200).json(&batch_answer(42))).await;
    let response = crate::harness::ask_http2(gateway.address, batch("tn_h2", 1)).await;
    assert_eq!((response.0, response.1["totalTokens"].clone()), (200, json!(42)));
    let row = &rows(&database, "tn_h2", 1).await[0];
    assert_eq!(pick(row, &["tokens_consumed", "outcome"]), [json!(42), json!("completed")]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_is_a_row_of_what_was_seen_and_charged_its_reservation() {
    let gone = Signal::new();
    let seen_gone = gone.clone();
    let (_upstream, database, gateway) = both(move || {
        answer(200)
            .events([&json!({"token": "Hello ", "partial": "Hello "})])
            .then(Step::UntilPeerGone(seen_gone.clone()))
            .unended()
    })
    .await;
    let mut client: Client = gateway.connect().await;
    client.send(chat("tn_gone", "hi")).await;
    client.read_head().await;
    within("the first event", client.read_data()).await;
    drop(client);
    within("the upstream is let go at once", gone.wait()).await;
    let row = &rows(&database, "tn_gone", 1).await[0];
    assert_eq!(
        pick(row, &CORE),
        [json!(3), json!(200), json!("client_aborted"), json!("partial"), json!(true)]
    );
    assert_eq!(row["metadata"]["charged_tokens"], json!(150));
    counters_equal_events(&database).await;
    gateway.stop().await;
}

#[tokio::test]
async fn openai_answers_are_metered_by_class_and_priced() {
    let usage = json!({"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920}, "completion_tokens_details": {"reasoning_tokens": 192}});
    let whole = json!({"object": "chat.completion", "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}], "usage": usage});
    let upstream = Upstream::answering(move |_| answer(200).json(&whole)).await;
    let database = shared().database();
    let route = "[[routes]]\npath = \"/v1/chat/completions\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\nformat = \"auto\"\nreserve_tokens = 150\n[prices.\"gpt-4o\"]\ninput = 2.5\ncached_input = 1.25\noutput = 10.0\n";
    let gateway = gateway(&upstream, &database).config(route).start().await;
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]});
    let asked = request("POST", "/v1/chat/completions").header("x-tenant-id", "tn_openai").json(&body);
    assert_eq!(gateway.ask(asked).await.status, 200);
    let row = &rows(&database, "tn_openai", 1).await[0];
    let columns = [
        "input_tokens",
        "cached_input_tokens",
        "output_tokens",
        "reasoning_tokens",
        "tokens_consumed",
        "model",
    ];
    assert_eq!(
        pick(row, &columns),
        [json!(2006), json!(1920), json!(300), json!(192), json!(2306), json!("gpt-4o-2024-08-06")]
    );
    // 86 × 2.5 + 1920 × 1.25 + 300 × 10, per million.
    assert_eq!(row["cost_usd"].to_string(), "0.005615");
    gateway.stop().await;
}

#[tokio::test]
async fn a_config_that_changes_is_taken_over_whole_and_audited_and_a_broken_one_is_kept_out() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(1))).await;
    let database = shared().database();
    let gateway =
        gateway(&upstream, &database).config("[plans.trial]\nchat_messages_per_day = 1\n").start().await;
    assert_eq!(gateway.ask(batch("tn_reload", 1)).await.status, 200);
    assert_eq!(gateway.ask(batch("tn_reload", 1)).await.status, 429);
    gateway.rewrite_config("[plans.trial]\nchat_messages_per_day = 2\n");
    let trail = json_rows(
        &database,
        "SELECT to_jsonb(a) FROM audit_events a WHERE event_type = 'config_reloaded'",
        1,
    )
    .await;
    assert_eq!(trail[0]["old_values"], json!({"plans.trial.chat_messages_per_day": "1"}));
    assert_eq!(trail[0]["new_values"], json!({"plans.trial.chat_messages_per_day": "2"}));
    assert_eq!(gateway.ask(batch("tn_reload", 1)).await.status, 200);
    gateway.rewrite_config("[plans.trial]\nchat_messages_per_day = -5\n");
    gateway.until_metric("tollgate_reloads_total{result=\"refused\"}", 1.0).await;
    assert_eq!(gateway.ask(batch("tn_reload", 1)).await.status, 429, "the former config stays in force");
    gateway.stop().await;
}
