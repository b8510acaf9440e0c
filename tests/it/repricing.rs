//! `tollgate reprice`: rows whose model had no price get one, and all that was made of them follows.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::gateway::{json_rows, rows};
use crate::harness::{TestGateway, Upstream, answer, gateway, request};
use crate::postgres::{Database, shared};

const ROUTE: &str =
    "[[routes]]\npath = \"/v1/chat/completions\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\n";

/// The price that was missing.
const PRICE: &str = "[prices.\"Unheard-*\"]\ninput = 1.0\noutput = 10.0\nper_request = 0.001\n";

fn tollgate(database: &Database<'_>, config: &str, arguments: &[&str]) -> Output {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), config).unwrap();
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args([arguments[0], "--config", file.path().to_str().unwrap()])
        .args(&arguments[1..])
        .env_clear()
        .env("DATABASE_URL", database.url())
        .output()
        .unwrap()
}

/// Reprices and gives what was said.
fn reprice(database: &Database<'_>, config: &str, arguments: &[&str]) -> Value {
    let output = tollgate(database, config, &[&["reprice", "--json", "--author", "ann"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// No counter differs from its events, and no aggregate from its rows.
fn all_agree(database: &Database<'_>) {
    let sound = tollgate(database, "", &["verify-quota"]);
    assert!(sound.status.success(), "{}", String::from_utf8_lossy(&sound.stdout));
    let sums = "WITH r AS (SELECT tenant_id, model, date_trunc('hour', event_timestamp, 'UTC') AS hour, cost_usd
             FROM tenant_usage_realtime)
         SELECT (SELECT sum(cost_usd) FROM r), period_type, sum(estimated_cost_usd) FROM tenant_usage_metrics GROUP BY 2
         UNION ALL SELECT (SELECT sum(cost_usd) FROM r), 'model', sum(cost_usd) FROM tenant_model_usage";
    let sums = database.rows(sums);
    assert_eq!(sums.len(), 4, "{sums:?}");
    assert!(sums.iter().all(|row| row[0] == row[2]), "{sums:?}");
    let hours =
        "SELECT count(*) FROM tenant_usage_metrics m WHERE period_type = 'hourly' AND estimated_cost_usd <>
         (SELECT sum(cost_usd) FROM tenant_usage_realtime r WHERE r.tenant_id = m.tenant_id
          AND date_trunc('hour', r.event_timestamp, 'UTC') = m.period_start)";
    assert_eq!(database.one(hours), "0");
}

async fn ask(gateway: &TestGateway, model: &str) {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    let asked = request("POST", "/v1/chat/completions").header("x-tenant-id", "tn_re").json(&body);
    assert_eq!(gateway.ask(asked).await.status, 200);
}

#[tokio::test]
async fn rows_without_a_price_are_priced_anew_with_their_counters_and_aggregates() {
    let upstream = Upstream::answering(|asked| {
        let body: Value = serde_json::from_slice(&asked.body).unwrap();
        answer(200).json(&json!({"object": "chat.completion", "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}}))
    })
    .await;
    let database = shared().database();
    let plans = "[plans.trial]\ncost_usd_per_day = 5\ncost_usd_per_month = 50\n[prices.known]\ninput = 2.0\noutput = 2.0\n";
    let gateway = gateway(&upstream, &database).config(&format!("{ROUTE}{plans}")).start().await;
    for model in ["unheard-of", "known", "unheard-2", "unheard-of", "another"] {
        ask(&gateway, model).await;
    }
    rows(&database, "tn_re", 5).await;
    gateway.stop().await;
    database.rows("SELECT aggregate_usage_metrics()");
    all_agree(&database);

    // Nothing is changed by looking.
    let before = database.rows("SELECT event_id, cost_usd, metadata FROM tenant_usage_realtime ORDER BY 1");
    let looked = reprice(&database, PRICE, &["--since", "1d", "--dry-run"]);
    assert_eq!((&looked["rows"], &looked["left"], &looked["counters"]), (&json!(3), &json!(1), &json!(0)));
    assert_eq!(looked["new_cost_usd"], json!("0.00900000"));
    assert_eq!(
        database.rows("SELECT event_id, cost_usd, metadata FROM tenant_usage_realtime ORDER BY 1"),
        before
    );

    // 1,000 × 1 and 100 × 10 dollars a million, and a tenth of a cent a call.
    let done = reprice(&database, PRICE, &["--since", "1d"]);
    assert_eq!((&done["rows"], &done["left"], &done["counters"]), (&json!(3), &json!(1), &json!(2)));
    assert_eq!((&done["old_cost_usd"], &done["new_cost_usd"]), (&json!("0.00063000"), &json!("0.00900000")));
    for row in rows(&database, "tn_re", 5).await {
        let priced = row["model"].as_str().unwrap().starts_with("unheard");
        let metadata = &row["metadata"];
        assert_eq!(row["cost_usd"] == json!(0.003), priced, "{row}");
        assert_eq!(metadata["repriced_from"], if priced { json!(0.00021) } else { Value::Null }, "{row}");
        assert_eq!(metadata["default_price"] == json!(true), row["model"] == "another", "{row}");
    }
    all_agree(&database);
    let settled = "SELECT DISTINCT settled FROM quota_usage WHERE dimension LIKE 'cost_usd%'";
    // Three of 0.003, one of 0.0022, one of 0.00021 dollars.
    assert_eq!(database.rows(settled), [["11410000"]]);

    // A second time there is nothing to do.
    let before = database
        .rows("SELECT event_id, cost_usd, metadata, updated_at FROM tenant_usage_realtime ORDER BY 1");
    let again = reprice(&database, PRICE, &["--since", "1d"]);
    assert_eq!((&again["rows"], &again["left"]), (&json!(0), &json!(1)));
    let after = database
        .rows("SELECT event_id, cost_usd, metadata, updated_at FROM tenant_usage_realtime ORDER BY 1");
    assert_eq!(after, before);

    let audit = "SELECT to_jsonb(a) FROM audit_events a WHERE event_type = 'usage_repriced'";
    let audit = json_rows(&database, audit, 1).await;
    assert_eq!(audit.len(), 1, "of the batch that changed rows alone");
    assert_eq!((&audit[0]["actor_id"], &audit[0]["new_values"]["rows"]), (&json!("ann"), &json!(3)));
    assert_eq!(audit[0]["old_values"]["cost_usd"], json!(0.00063));
    assert_eq!(audit[0]["new_values"]["cost_usd"], json!(0.009));
    assert_eq!(audit[0]["new_values"]["models"], json!(["unheard-2", "unheard-of"]));
}

/// Rows by hand: calls of a thousand tokens in, a hundred out, that cost a cent by no price of their own.
fn record(database: &Database<'_>, model: &str, at: &str, calls: u32, metadata: &str) {
    database.rows(&format!(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, api_status_code, model,
             tokens_consumed, input_tokens, output_tokens, token_source, cost_usd, metadata, created_at)
         SELECT gen_random_uuid(), 'tn_' || n % 3, 'chat_message', {at}, 200, '{model}', 1100, 1000, 100, 'reported', 0.01,
             '{metadata}', now() - interval '1 day'
         FROM generate_series(1, {calls}) n"
    ));
}

const MARK: &str = r#"{"default_price": true}"#;

#[test]
fn days_and_months_and_more_than_a_batch_are_aggregated_with_their_rows() {
    let database = shared().migrated();
    for days in [0, 1, 5, 20] {
        record(&database, "unheard-of", &format!("now() - interval '{days} days'"), 700, MARK);
    }
    record(&database, "unheard-of", "now() - interval '30 minutes'", 3, "{}");
    database.rows("SELECT aggregate_usage_metrics()");
    let done = reprice(&database, PRICE, &["--since", "60d"]);
    assert_eq!(done["rows"], json!(2800));
    // What has a price of its own, as its row says, stays.
    assert_eq!(database.one("SELECT sum(cost_usd) FROM tenant_usage_realtime"), "8.43000000");
    let batches =
        "SELECT count(*), sum((new_values ->> 'rows')::int), count(DISTINCT entity_id) FROM audit_events
         WHERE event_type = 'usage_repriced'";
    assert_eq!(database.rows(batches), [["3", "2800", "1"]], "one run of three batches");
    let sums = "SELECT period_type, sum(estimated_cost_usd) FROM tenant_usage_metrics GROUP BY 1 ORDER BY 1";
    assert_eq!(
        database.rows(sums),
        [["daily", "8.43000000"], ["hourly", "8.43000000"], ["monthly", "8.43000000"]]
    );
    assert_eq!(database.one("SELECT sum(cost_usd) FROM tenant_model_usage"), "8.43000000");
}

#[test]
fn only_the_models_and_the_times_asked_for_are_priced_anew() {
    let database = shared().migrated();
    record(&database, "unheard-of", "now() - interval '2 days'", 1, MARK);
    record(&database, "UNHEARD-too", "now() - interval '2 days'", 1, MARK);
    record(&database, "unheard-of", "now() - interval '5 days'", 1, MARK);
    let named = reprice(&database, PRICE, &["--since", "3d", "--model", "Unheard-OF"]);
    assert_eq!((&named["rows"], &named["left"]), (&json!(1), &json!(1)));
    let fits = reprice(&database, PRICE, &["--since", "3d", "--model", "*-too"]);
    assert_eq!((&fits["rows"], &fits["left"]), (&json!(1), &json!(0)));
    assert_eq!(
        database.one("SELECT count(*) FROM tenant_usage_realtime WHERE metadata ? 'default_price'"),
        "1"
    );
    let bad = tollgate(&database, PRICE, &["reprice", "--since", "2026-02-02", "--until", "2026-02-01"]);
    assert_eq!(bad.status.code(), Some(2));
}

#[test]
fn what_else_a_row_says_of_its_price_is_priced_too() {
    let database = shared().migrated();
    let billing = r#"{"cost_from": "answer", "billing": {"tier": "flex", "web_searches": 2, "reported_cost_nanousd": 5}}"#;
    record(&database, "unheard-of", "now() - interval '1 hour'", 1, billing);
    let billed = r#"{"default_price": true, "billed": {"input": 500, "output": 50}, "unpriced": ["tier"]}"#;
    record(&database, "unheard-of", "now() - interval '2 hours'", 1, billed);
    // More was charged than was seen; only a sum is known; and one of the default's price that was reserved.
    record(&database, "unheard-of", "now() - interval '3 hours'", 1, MARK);
    database.rows("UPDATE tenant_usage_realtime SET tokens_consumed = 2100 WHERE metadata = '{\"default_price\": true}'");
    record(&database, "unheard-of", "now() - interval '4 hours'", 1, MARK);
    database.rows(
        "UPDATE tenant_usage_realtime SET input_tokens = NULL, output_tokens = NULL
         WHERE event_timestamp < now() - interval '210 minutes'",
    );
    let price = "[prices.unheard-of]\ninput = 1.0\noutput = 10.0\nflex = 0.5\n";
    assert_eq!(reprice(&database, price, &["--since", "1d"])["rows"], json!(4));
    let costs =
        "SELECT cost_usd, metadata -> 'unpriced' FROM tenant_usage_realtime ORDER BY event_timestamp DESC";
    assert_eq!(
        database.rows(costs),
        [["0.00100000", "[\"web_searches\"]"], ["0.00100000", ""], ["0.00300000", ""], ["0.00110000", ""],]
    );
}

#[test]
fn what_may_still_change_or_is_partly_gone_is_left_alone() {
    let database = shared().migrated();
    record(&database, "unheard-of", "now() - interval '1 hour'", 1, MARK);
    database.rows("UPDATE tenant_usage_realtime SET token_source = 'reserved', created_at = now()");
    record(&database, "unheard-of", "now() - interval '3 days'", 1, MARK);
    database.rows("UPDATE usage_aggregation_state SET retained_from = now() - interval '2 days'");
    let done = reprice(&database, PRICE, &["--since", "10d"]);
    assert_eq!((&done["rows"], &done["left"]), (&json!(0), &json!(0)));
    let from = done["from"].as_str().unwrap();
    let expected = database.one(
        "SELECT to_char(date_trunc('hour', retained_from + interval '1 hour', 'UTC') AT TIME ZONE 'UTC',
             'YYYY-MM-DD\"T\"HH24:00:00\"Z\"') FROM usage_aggregation_state",
    );
    assert_eq!(from, expected);
}
