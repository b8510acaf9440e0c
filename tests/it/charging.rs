//! What is charged, and what the row says, where an answer is not what it should be: unknown is never free, a failure
//! under a 200 is a failure, and a floor is not a token.

use serde_json::{Value, json};

use crate::gateway::{json_rows, pick, rows};
use crate::harness::{
    Client, Signal, Step, TestGateway, Upstream, answer, batch, batch_answer, chat, gateway, request, within,
};
use crate::postgres::{Database, shared};

struct Setup {
    upstream: Upstream,
    database: Database<'static>,
    gateway: TestGateway,
}

impl Setup {
    async fn new(config: &str, script: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> Self {
        let upstream = Upstream::answering(move |_| script()).await;
        let database = shared().database();
        let gateway = gateway(&upstream, &database).config(config).start().await;
        Self { upstream, database, gateway }
    }

    async fn answering(body: Value) -> Self {
        Self::new("", move || answer(200).json(&body)).await
    }

    /// Asks, and returns the tenant's only row.
    async fn ask(&self, tenant: &str, what: impl Into<Vec<u8>>) -> Value {
        assert!(self.gateway.ask(what).await.status < 400);
        self.row(tenant).await
    }

    async fn row(&self, tenant: &str) -> Value {
        rows(&self.database, tenant, 1).await.remove(0)
    }

    /// Checks that no counter differs from its events, and stops.
    async fn stop(self) {
        let drift = self.database.store().drift(None).await.unwrap();
        assert_eq!((drift.drifted, drift.total), (0, 0), "{drift:?}");
        self.gateway.stop().await;
    }
}

const CHARGE: [&str; 6] =
    ["outcome", "tokens_consumed", "input_tokens", "output_tokens", "token_source", "chat_messages"];

#[tokio::test]
async fn an_answer_that_nobody_understands_is_charged_its_reservation_and_told() {
    let setup = Setup::answering(json!({"status": true, "utterance_of_bot": ["12", 3]})).await;
    let row = setup.ask("tn_strange", batch("tn_strange", 3)).await;
    let input = row["input_tokens"].as_u64();
    assert!(input.is_some_and(|tokens| tokens > 0), "the question was found: {row}");
    let expected = [json!("completed"), json!(450), json!(input), json!(null), json!("reserved"), json!(3)];
    assert_eq!(pick(&row, &CHARGE), expected);
    assert_eq!(row["metadata"]["meter_flag"], json!("unknown_format"));
    let unread = "tollgate_unread_total{route=\"/api/widget/chat\",what=\"unknown_format\"}";
    assert_eq!(setup.gateway.metric(unread).await, 1.0);
    setup.stop().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_charged_at_least_its_reservation() {
    let config = r#"
[[routes]]
path = "/api/widget/chat"
event = "chat_message"
reserve_tokens = 150
unidentified = "pass"
unread_items = 1

[[routes]]
path = "/opaque"
event = "chat_message"
body = "opaque"
reserve_tokens = 150
"#;
    let setup = Setup::new(config, || answer(200).json(&json!({"reply": "a plain answer"}))).await;
    let ask = |tenant, path| request("POST", path).header("x-tenant-id", tenant).body("message=what+is+it");
    for (tenant, path, why) in
        [("tn_form", "/api/widget/chat", "not_json"), ("tn_opaque", "/opaque", "opaque")]
    {
        let row = setup.ask(tenant, ask(tenant, path)).await;
        assert_eq!(
            pick(&row, &["tokens_consumed", "token_source", "input_tokens"]),
            [json!(150), json!("reserved"), json!(null)]
        );
        assert_eq!(
            pick(&row["metadata"], &["request_unread", "meter_flag"]),
            [json!(why), json!("unknown_format")]
        );
        let unread = format!("tollgate_unread_total{{route=\"{path}\",what=\"{why}\"}}");
        assert_eq!(setup.gateway.metric(&unread).await, 1.0);
    }
    // A body that is not there hides nothing.
    let row = setup.ask("tn_bare", request("GET", "/opaque").header("x-tenant-id", "tn_bare")).await;
    assert_eq!((&row["token_source"], &row["metadata"]["request_unread"]), (&json!("counted"), &json!(null)));
    setup.stop().await;
}

#[tokio::test]
async fn an_answer_without_a_body_is_charged_its_question_alone() {
    let setup = Setup::new("", || answer(200).header("content-type", "application/json").body("")).await;
    let row = setup.ask("tn_empty", chat("tn_empty", "one two three")).await;
    let expected = [json!("completed"), json!(3), json!(3), json!(0), json!("counted"), json!(1)];
    assert_eq!(pick(&row, &CHARGE), expected);
    assert_eq!(row["metadata"]["meter_flag"], json!(null));
    setup.stop().await;
}

#[tokio::test]
async fn a_failure_under_a_200_is_a_failed_call_with_its_audit_event() {
    let failures = [
        json!({"error": {"message": "overloaded", "type": "server_error"}}),
        json!({"error": "Failed to process message. Please try again.", "details": "x"}),
        json!({"error": "x", "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}),
    ];
    for failure in failures {
        let setup = Setup::answering(failure.clone()).await;
        let row = setup.ask("tn_failed", batch("tn_failed", 2)).await;
        let expected = [json!("upstream_error"), json!(0), json!(null), json!(null), json!("none"), json!(0)];
        assert_eq!(pick(&row, &CHARGE), expected, "{failure}");
        assert_eq!((&row["cost_usd"], &row["metadata"]["meter_flag"]), (&json!(0.0), &json!(null)));
        let told = "SELECT to_jsonb(a) FROM audit_events a WHERE event_type = 'api_error'";
        assert_eq!(
            json_rows(&setup.database, told, 1).await[0]["new_values"]["outcome"],
            json!("upstream_error")
        );
        setup.stop().await;
    }
}

#[tokio::test]
async fn an_error_beside_an_answer_is_charged_for_what_it_has() {
    let answers = [
        (json!({"reply": "one two three", "error": "a source was away"}), Some(3)),
        (
            json!({"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, "error": "x"}),
            Some(7),
        ),
        (
            json!({"batch": [{"reply": "ok", "tokens_used": 9}, {"error": "away", "query": "q"}], "totalTokens": 9}),
            None,
        ),
    ];
    for (body, output) in answers {
        let setup = Setup::answering(body.clone()).await;
        let row = setup.ask("tn_partly", chat("tn_partly", "hi")).await;
        assert_eq!((&row["outcome"], &row["chat_messages"]), (&json!("completed"), &json!(1)), "{body}");
        assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| tokens > 0), "{row}");
        if let Some(output) = output {
            assert_eq!(row["output_tokens"], json!(output), "{body}");
        }
        setup.stop().await;
    }
}

#[tokio::test]
async fn a_stream_that_only_fails_is_a_failed_call_and_one_that_said_something_is_charged_for_it() {
    let failure = json!({"error": {"message": "overloaded"}});
    let alone = failure.clone();
    let setup = Setup::new("", move || answer(200).events([&alone]).steps()).await;
    let row = setup.ask("tn_alone", chat("tn_alone", "hi")).await;
    let failed = [json!("upstream_error"), json!(0), json!(null), json!(null), json!("none"), json!(0)];
    assert_eq!(pick(&row, &CHARGE), failed);
    let words = json!({"choices": [{"delta": {"content": "one two three"}}]});
    setup.upstream.answer_with(move |_| answer(200).events([&words, &failure]).steps());
    let row = setup.ask("tn_after", chat("tn_after", "hi")).await;
    let partly = [json!("upstream_error"), json!(4), json!(1), json!(3), json!("partial"), json!(1)];
    assert_eq!(pick(&row, &CHARGE), partly);
    setup.stop().await;
}

#[tokio::test]
async fn a_call_that_only_counts_tokens_is_a_call_and_uses_none() {
    let config = r#"
[[routes]]
path = "/v1/messages/{verb}"
event = "chat_message"
reserve_tokens = 150
"#;
    let setup = Setup::new(config, || answer(200).json(&json!({"input_tokens": 2095}))).await;
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "How many?"}]});
    let ask = request("POST", "/v1/messages/count_tokens").header("x-tenant-id", "tn_count").json(&body);
    let row = setup.ask("tn_count", ask).await;
    let expected = [json!("completed"), json!(0), json!(null), json!(null), json!("none"), json!(0)];
    assert_eq!(pick(&row, &CHARGE), expected);
    assert_eq!((&row["cost_usd"], &row["metadata"]["meter_flag"]), (&json!(0.0), &json!(null)));
    let calls = "SELECT to_jsonb(settled) FROM quota_usage WHERE dimension = 'api_calls_per_minute'";
    assert_eq!(json_rows(&setup.database, calls, 1).await, [json!(1)]);
    setup.stop().await;
}

#[tokio::test]
async fn what_is_called_a_count_of_tokens_and_answers_with_text_is_charged_its_messages() {
    let config = "[[routes]]\npath = \"/v1/messages/{verb}\"\nevent = \"chat_message\"\n";
    let setup = Setup::new(config, || answer(200).json(&batch_answer(7))).await;
    let body = json!({"messages": [{"query": "a"}, {"query": "b"}, {"query": "c"}]});
    let ask = request("POST", "/v1/messages/tokenize").header("x-tenant-id", "tn_called").json(&body);
    let row = setup.ask("tn_called", ask).await;
    assert_eq!((&row["tokens_consumed"], &row["chat_messages"]), (&json!(7), &json!(3)), "{row}");
    let messages = "SELECT to_jsonb(settled) FROM quota_usage WHERE dimension = 'chat_messages_per_day'";
    assert_eq!(json_rows(&setup.database, messages, 1).await, [json!(3)]);
    setup.stop().await;
}

#[tokio::test]
async fn a_sum_alone_is_split_by_the_text_and_priced_by_both_sides() {
    let body = json!({"batch": [{"reply": "word ".repeat(300), "tokens_used": 9623}], "totalTokens": 9623});
    let setup = Setup::answering(body).await;
    let question = "word ".repeat(100);
    let row = setup.ask("tn_sum", chat("tn_sum", &question)).await;
    let of = |column: &str| row[column].as_u64().unwrap();
    assert_eq!(of("input_tokens") + of("output_tokens"), 9623);
    assert_eq!(of("output_tokens"), 375, "what the answer shows: {row}");
    assert_eq!((&row["tokens_consumed"], &row["token_source"]), (&json!(9623), &json!("reported")));
    assert_eq!(row["metadata"]["split"], json!("estimated"));
    // 9248 at 0.15 and 375 at 0.60 $ a million; wholly as input it would be 0.00144345.
    assert_eq!(row["cost_usd"], json!(0.0016122));
    setup.stop().await;
}

#[tokio::test]
async fn hanging_up_on_a_batch_costs_the_quota_all_of_its_messages_and_the_row_has_what_was_seen() {
    let gone = Signal::new();
    let told = gone.clone();
    let config =
        "[plans.trial]\ncost_usd_per_day = 5\ntokens_per_day = 1000000\nchat_messages_per_day = 100\n";
    let setup = Setup::new(config, move || {
        answer(200)
            .events([&json!({"token": "Hello", "partial": "Hello"})])
            .then(Step::UntilPeerGone(told.clone()))
            .unended()
    })
    .await;
    let mut client: Client = setup.gateway.connect().await;
    client.send(batch("tn_gone", 60)).await;
    client.read_head().await;
    within("the first event", client.read_data()).await;
    client.reset();
    within("the upstream is let go", gone.wait()).await;
    let row = setup.row("tn_gone").await;
    let of = |column: &str| row[column].as_u64().unwrap();
    assert_eq!((&row["token_source"], &row["chat_messages"]), (&json!("partial"), &json!(60)));
    assert_eq!(of("tokens_consumed"), of("input_tokens") + of("output_tokens"));
    assert!(of("tokens_consumed") < 400, "{row}");
    assert_eq!(row["metadata"]["charged_tokens"], json!(60 * 150));
    let cost = row["cost_usd"].as_f64().unwrap();
    assert!(cost < 0.0001, "the row costs what was seen: {row}");
    let settled = async |dimension: &str| {
        let counter = format!("SELECT to_jsonb(settled) FROM quota_usage WHERE dimension = '{dimension}'");
        json_rows(&setup.database, &counter, 1).await[0].as_u64().unwrap()
    };
    assert_eq!(settled("tokens_per_day").await, 60 * 150);
    assert_eq!(settled("chat_messages_per_day").await, 60);
    assert!(settled("cost_usd_per_day").await > 1_000_000, "the floor, at 0.15 $ a million");
    setup.stop().await;
}

#[tokio::test]
async fn who_leaves_after_the_usage_was_told_is_a_row_of_what_was_told() {
    let gone = Signal::new();
    let told = gone.clone();
    let usage = json!({"model": "gpt-4o-mini", "choices": [],
        "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}});
    let setup = Setup::new("", move || {
        answer(200).events([&usage]).then(Step::UntilPeerGone(told.clone())).unended()
    })
    .await;
    let mut client: Client = setup.gateway.connect().await;
    client.send(chat("tn_told", "hi")).await;
    client.read_head().await;
    within("the usage", client.read_data()).await;
    client.reset();
    within("the upstream is let go", gone.wait()).await;
    let row = setup.row("tn_told").await;
    let expected = [json!("client_aborted"), json!(30), json!(20), json!(10), json!("partial"), json!(1)];
    assert_eq!(pick(&row, &CHARGE), expected);
    assert_eq!(row["metadata"]["charged_tokens"], json!(150));
    // 20 at 0.15 and 10 at 0.60 $ a million.
    assert_eq!(row["cost_usd"], json!(0.000009));
    setup.stop().await;
}

#[tokio::test]
async fn a_sum_that_is_a_batchs_is_what_its_tenant_is_charged() {
    let setup = Setup::answering(batch_answer(512)).await;
    let row = setup.ask("tn_batch", batch("tn_batch", 2)).await;
    assert_eq!((&row["tokens_consumed"], &row["chat_messages"]), (&json!(512), &json!(2)));
    assert_eq!(row["metadata"]["charged_tokens"], json!(null));
    setup.stop().await;
}
