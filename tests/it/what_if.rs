//! Recorded calls against other limits: cases that are computed by hand, and traffic against the plan that it was
//! recorded under.

use std::fmt::Write as _;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::gateway::{json_rows, pick};
use crate::harness::{Upstream, answer, batch, batch_answer, gateway, request};
use crate::postgres::{Database, shared};

/// A database with recorded calls, all of 2026-11-20 and around it unless they say otherwise.
struct Record {
    database: Database<'static>,
    inserts: String,
}

/// A recorded call of one chat message; what it costs in tokens is what it used.
#[derive(Clone, Copy)]
struct Made<'a> {
    tenant: &'a str,
    at: &'a str,
    messages: u32,
    tokens: u32,
    usd: f64,
    lasted_ms: u32,
    outcome: &'a str,
    metadata: &'a str,
}

fn made<'a>(tenant: &'a str, at: &'a str) -> Made<'a> {
    let metadata = "{}";
    Made { tenant, at, messages: 1, tokens: 100, usd: 0.0, lasted_ms: 20, outcome: "completed", metadata }
}

impl Record {
    fn new() -> Self {
        Self { database: shared().migrated(), inserts: String::new() }
    }

    fn add(&mut self, call: Made<'_>) {
        let Made { tenant, at, messages, tokens, usd, lasted_ms, outcome, metadata } = call;
        let at = if at.len() > 10 { at.to_owned() } else { format!("2026-11-20T{at}Z") };
        writeln!(
            self.inserts,
            "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, api_method, api_endpoint,
                 api_response_time_ms, chat_messages, tokens_consumed, cost_usd, outcome, metadata)
             VALUES (gen_random_uuid(), '{tenant}', 'chat_message', '{at}', 'POST', '/api/widget/chat', {lasted_ms},
                 {messages}, {tokens}, {usd}, '{outcome}', '{metadata}');"
        )
        .unwrap();
    }

    /// What becomes of it under `limits`, as JSON.
    async fn replay(&self, limits: &str, arguments: &[&str]) -> Value {
        let client = self.database.connect().await;
        client.batch_execute(&self.inserts).await.unwrap();
        let output = what_if(&self.database, "", limits, &[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Runs the command on `database` with a config and a file of limits.
fn what_if(database: &Database<'_>, config: &str, limits: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let files = [("tollgate.toml", config), ("limits.toml", limits)].map(|(name, text)| {
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    });
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["what-if", "--config"])
        .arg(&files[0])
        .arg("--plan")
        .arg(&files[1])
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", database.url())
        .output()
        .unwrap()
}

const SINCE: [&str; 2] = ["--since", "2026-11-20"];

fn totals(replayed: &Value) -> [u64; 5] {
    ["tenants", "calls", "refused", "refused_then", "no_longer_refused"]
        .map(|name| replayed[name].as_u64().unwrap())
}

/// Tenant, dimension, first, last, refused, of calls.
fn refusals(replayed: &Value) -> Vec<Vec<Value>> {
    let columns = ["tenant", "dimension", "first_refused_at", "last_refused_at", "refused", "calls"];
    replayed["refusals"].as_array().unwrap().iter().map(|line| pick(line, &columns)).collect()
}

#[tokio::test]
async fn a_day_ends_at_midnight_of_the_plan_and_what_is_refused_uses_nothing() {
    let mut record = Record::new();
    // 150 are reserved and 100 used: after two calls 200 of 300 are used, and a third does not fit before midnight.
    for at in ["21:00:00", "21:10:00", "22:20:00", "22:59:59.9", "23:00:00", "23:59:59.9"] {
        record.add(made("tn_utc", at));
        record.add(made("tn_berlin", at));
    }
    record.add(made("tn_utc", "2026-11-21T00:00:00Z"));
    let limits = "[plans.trial]\ntokens_per_day = 300\n[plans.berlin]\ntime_zone = \"Europe/Berlin\"\n\
        tokens_per_day = 300\n[overrides.tn_berlin]\nplan = \"berlin\"\n";
    let replayed = record.replay(limits, &SINCE).await;
    assert_eq!(totals(&replayed), [2, 13, 6, 0, 0]);
    assert_eq!(
        refusals(&replayed),
        [
            vec![
                json!("tn_utc"),
                json!("tokens_per_day"),
                json!("2026-11-20T22:20:00Z"),
                json!("2026-11-20T23:59:59.9Z"),
                json!(4),
                json!(7)
            ],
            vec![
                json!("tn_berlin"),
                json!("tokens_per_day"),
                json!("2026-11-20T22:20:00Z"),
                json!("2026-11-20T22:59:59.9Z"),
                json!(2),
                json!(6)
            ],
        ]
    );
    let line = &replayed["refusals"][0];
    assert_eq!(
        pick(line, &["plan", "share", "tokens_not_spent"]),
        [json!("trial"), json!(0.5714), json!(400)]
    );
    assert_eq!(replayed["refusals"][1]["plan"], "berlin");
}

#[tokio::test]
async fn a_minute_turns_and_a_smaller_call_finds_the_room_that_a_refused_one_left() {
    let mut record = Record::new();
    for at in ["10:00:00", "10:00:10", "10:00:20", "10:00:59.9", "10:01:00"] {
        record.add(made("tn_minute", at));
    }
    // Of five messages: 3, not 4, then 2, and no more.
    for (at, messages) in [("10:00:00", 3), ("11:00:00", 4), ("12:00:00", 2), ("13:00:00", 1)] {
        record.add(Made { messages, ..made("tn_small", at) });
    }
    let limits = "[plans.trial]\napi_calls_per_minute = 2\nchat_messages_per_day = 5\n";
    let replayed = record.replay(limits, &SINCE).await;
    let line = |tenant: &str, dimension: &str, first: &str, last: &str, refused: u64, calls: u64| {
        let at = |at: &str| json!(format!("2026-11-20T{at}Z"));
        vec![json!(tenant), json!(dimension), at(first), at(last), json!(refused), json!(calls)]
    };
    assert_eq!(
        refusals(&replayed),
        [
            line("tn_minute", "api_calls_per_minute", "10:00:20", "10:00:59.9", 2, 5),
            line("tn_small", "chat_messages_per_day", "11:00:00", "13:00:00", 2, 4),
        ]
    );
}

#[tokio::test]
async fn overrides_cost_soft_limits_and_calls_at_once_are_held_as_the_data_path_holds_them() {
    let mut record = Record::new();
    for at in ["10:00:00", "10:00:01", "10:00:02", "10:00:11"] {
        // Ten seconds each, so the third is the third at once, and the fourth finds the first one gone.
        record.add(Made { lasted_ms: 10_000, ..made("tn_slow", at) });
        record.add(Made { lasted_ms: 10_000, ..made("tn_quick", at) });
        // The price of the reservation (150 tokens at 0.60 $/M) is 0.00009.
        record.add(Made { usd: 0.001, ..made("tn_dear", at) });
        record.add(made("tn_soft", at));
        record.add(made("tn_set", at));
    }
    let limits = r#"
[overrides.tn_slow]
concurrent_requests = 2
[overrides.tn_dear]
cost_usd_per_month = 0.0025
[overrides.tn_soft]
chat_messages_per_day = 1
soft = ["chat_messages_per_day"]
[overrides.tn_set]
chat_messages_per_day = 1
expires = "2026-11-20T10:00:02Z"
"#;
    let client = record.database.connect().await;
    // What an operator set stands over the file, there as well.
    let set = "INSERT INTO tenant_quota_overrides (tenant_id, dimension, limit_value) \
        VALUES ('tn_quick', 'concurrent_requests', 1)";
    client.batch_execute(set).await.unwrap();
    let replayed = record.replay(limits, &SINCE).await;
    let lines: Vec<_> =
        refusals(&replayed).into_iter().map(|line| json!([line[0], line[1], line[4]])).collect();
    assert_eq!(
        lines,
        [
            json!(["tn_quick", "concurrent_requests", 2]),
            json!(["tn_dear", "cost_usd_per_month", 1]),
            json!(["tn_set", "chat_messages_per_day", 1]),
            json!(["tn_slow", "concurrent_requests", 1]),
        ]
    );
    assert_eq!(replayed["refusals"][1]["cost_usd_not_spent"], json!(0.001));
}

#[tokio::test]
async fn refused_calls_ask_again_and_those_of_nobodys_quota_do_not() {
    let mut record = Record::new();
    let asked = r#"{"refused_by": "chat_messages_per_day", "asked": {"tokens": 450, "api_calls": 1, "chat_messages": 3,
        "embeddings": 0, "cost_nanousd": 270000, "concurrent": 1}}"#;
    let refused =
        |at, metadata| Made { messages: 0, tokens: 0, outcome: "refused", metadata, ..made("tn_again", at) };
    record.add(made("tn_again", "10:00:00"));
    record.add(refused("10:00:01", asked));
    record.add(refused("10:00:02", asked));
    // Of a version that kept nothing of it: one message. The database was away: likewise.
    record.add(refused("10:00:03", r#"{"refused_by": "chat_messages_per_day"}"#));
    record.add(refused("10:00:04", "{}"));
    record.add(refused("10:00:05", r#"{"refused_by": "blocked"}"#));
    record.add(Made { metadata: r#"{"charged": {}}"#, ..made("tn_again", "10:00:06") });
    record.add(made("tn_other", "10:00:07"));
    // 1, then 3 of 5, then 3 do not fit, then 1, and the last is over.
    let limits = "[plans.trial]\nchat_messages_per_day = 5\n";
    let replayed = record.replay(limits, &[&SINCE[..], &["--tenant", "tn_again"]].concat()).await;
    assert_eq!(totals(&replayed), [1, 5, 2, 4, 2]);
    assert_eq!(
        pick(
            &replayed["refusals"][0],
            &["first_refused_at", "last_refused_at", "refused", "tokens_not_spent"]
        ),
        [json!("2026-11-20T10:00:02Z"), json!("2026-11-20T10:00:04Z"), json!(2), json!(0)]
    );
}

#[tokio::test]
async fn what_was_used_before_the_range_in_a_window_that_runs_is_used() {
    let mut record = Record::new();
    for at in ["2026-11-01T08:00:00Z", "2026-11-19T08:00:00Z", "10:00:00", "11:00:00", "2026-11-21T00:00:00Z"]
    {
        record.add(Made { tokens: 1000, ..made("tn_before", at) });
    }
    record.add(Made { tokens: 1000, ..made("tn_gone", "2026-10-31T23:59:59Z") });
    let until = &["--since", "2026-11-20T09:00:00+01:00", "--until", "2026-11-21"];
    // Two calls before the range used 2,000 of the month's 3,100: one of two more fits, and the third is out of range.
    let replayed = record.replay("[plans.trial]\ntokens_per_month = 3100\n", until).await;
    assert_eq!(totals(&replayed), [1, 2, 1, 0, 0]);
    assert_eq!(refusals(&replayed)[0][2], "2026-11-20T11:00:00Z");
}

#[tokio::test]
async fn faults_of_the_limits_are_told_as_those_of_a_config_and_the_plan_of_all_can_be_named() {
    let mut record = Record::new();
    record.add(made("tn_any", "10:00:00"));
    record.replay("", &SINCE).await;
    let bad = "[plans.trial]\ntokens_per_dya = 5\napi_calls_per_minute = -1\n[overrides.tn_x]\nplan = \"pr\"\n\
        [server]\nlisten = \"0.0.0.0:1\"\n";
    let output = what_if(&record.database, "", bad, &SINCE);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    for fault in [
        "limits.toml:2: plans.trial.tokens_per_dya: is no key here",
        "limits.toml:3: plans.trial.api_calls_per_minute: ",
        "limits.toml:5: overrides.tn_x.plan: there is no plan \"pr\"",
        "limits.toml:6: server: does not belong here",
    ] {
        assert!(told.contains(fault), "{fault} in\n{told}");
    }
    let closed = "[plans.closed]\nchat_messages_per_day = 0\n";
    let output = what_if(&record.database, "", closed, &[&SINCE[..], &["--on", "closed"]].concat());
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.contains("1 would be refused, 0 were; 0 of those"), "{told}");
    let line = told.lines().last().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let at = "2026-11-20T10:00:00Z";
    assert_eq!(line, format!("tn_any closed chat_messages_per_day {at} {at} 1 1 100.00 100 0.000000"));
    for (arguments, fault) in [
        (["--since", "7d", "--on", "none"], "--on: there is no plan \"none\": there are enterprise, "),
        (["--since", "2026-11-21", "--until", "2026-11-20"], "--since: 2026-11-21T00:00:00Z is not before"),
        (["--since", "soon", "--on", "trial"], "\"soon\" is no date"),
    ] {
        let output = what_if(&record.database, "", "", &arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && told.contains(fault), "{told}");
    }
}

#[tokio::test]
async fn a_range_that_reaches_back_beyond_what_is_kept_says_so() {
    let record = Record::new();
    let client = record.database.connect().await;
    client
        .batch_execute("UPDATE usage_aggregation_state SET retained_from = '2026-11-01T00:00:00Z'")
        .await
        .unwrap();
    let output = what_if(&record.database, "", "", &["--since", "2026-10-20"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("note: events before 2026-11-01T00:00:00Z are gone"), "{told}");
    let long_ago = what_if(&record.database, "", "", &["--since", "40d"]);
    let told = String::from_utf8(long_ago.stderr).unwrap();
    assert!(told.contains("note: events are kept for 30 days"), "{told}");
}

#[tokio::test]
async fn plans_are_those_of_the_services_database() {
    let mut record = Record::new();
    for tenant in ["tn_pro", "tn_none"] {
        for at in ["10:00:00", "11:00:00"] {
            record.add(made(tenant, at));
        }
    }
    let client = record.database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE trial_tenants (tenant_id TEXT, plan_upgraded_to TEXT);
             INSERT INTO trial_tenants VALUES ('tn_pro', 'pro')",
        )
        .await
        .unwrap();
    let limits = "[plans.pro]\nchat_messages_per_day = 1\n";
    let replayed = record.replay(limits, &SINCE).await;
    assert_eq!(
        (totals(&replayed), replayed["refusals"][0]["tenant"].clone()),
        ([2, 4, 1, 0, 0], json!("tn_pro"))
    );
    let notes = replayed["notes"].as_array().unwrap();
    assert!(notes.iter().all(|note| !note.as_str().unwrap().contains("plan")), "{notes:?}");
}

/// Plans with every kind of limit, so that each of them refuses somebody.
const RECORDED_UNDER: &str = r#"
[plans.trial]
tokens_per_day = 4000
api_calls_per_minute = 25
chat_messages_per_day = 60
cost_usd_per_hour = 0.0008
embeddings_per_day = 6
[overrides.tn_b]
tokens_per_day = "unlimited"
chat_messages_per_day = 20
cost_usd_per_hour = "unlimited"
api_calls_per_minute = "unlimited"
[overrides.tn_c]
api_calls_per_minute = 5
soft = ["cost_usd_per_hour"]
[[routes]]
path = "/api/widget/chat"
methods = ["POST"]
event = "chat_message"
[[routes]]
path = "/api/embed-batch"
methods = ["POST"]
event = "embedding"
reserve_tokens = 20
"#;

#[tokio::test]
async fn traffic_against_the_plan_that_it_was_recorded_under_is_refused_where_it_was() {
    let upstream = Upstream::answering(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        if request.target() == "/api/embed-batch" {
            return answer(200).json(&json!({"embeddings": [[1]], "usage": {"total_tokens": 9}}));
        }
        match body["messages"].as_array().unwrap().len() {
            4 => answer(500).json(&json!({"error": "Failed"})),
            messages => answer(200).json(&batch_answer(messages as u64 * 120)),
        }
    })
    .await;
    let database = shared().database();
    let running = gateway(&upstream, &database).config(RECORDED_UNDER).start().await;
    let mut seed = 7_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut refused = 0;
    // Fewer for each reason than are summed in a minute.
    for _ in 0..70 {
        let tenant = ["tn_a", "tn_b", "tn_c"][next(3) as usize];
        let call = match next(4) {
            0 => {
                let texts = vec!["a"; 1 + next(3) as usize];
                let body = json!({"texts": texts});
                request("POST", "/api/embed-batch").header("x-tenant-id", tenant).json(&body)
            }
            _ => batch(tenant, 1 + next(5) as usize),
        };
        refused += u64::from(running.ask(call).await.status == 429);
    }
    json_rows(&database, "SELECT to_jsonb(u) FROM tenant_usage_realtime u", 70).await;
    running.stop().await;

    let output = what_if(&database, RECORDED_UNDER, "", &["--since", "1h", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let replayed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(totals(&replayed), [3, 70, refused, refused, 0], "{replayed:#}");
    let recorded = database.rows(
        "SELECT tenant_id, metadata ->> 'refused_by', count(*), max(extract(epoch FROM event_timestamp)::text) \
         FROM tenant_usage_realtime WHERE outcome = 'refused' GROUP BY 1, 2 ORDER BY 1, 2",
    );
    let mut seen: Vec<Vec<String>> = replayed["refusals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            let last: jiff::Timestamp = line["last_refused_at"].as_str().unwrap().parse().unwrap();
            let last = format!("{}.{:06}", last.as_second(), last.subsec_microsecond());
            let text = |name: &str| line[name].as_str().unwrap().to_owned();
            vec![text("tenant"), text("dimension"), line["refused"].to_string(), last]
        })
        .collect();
    seen.sort();
    assert_eq!(seen, recorded);
    let dimensions: std::collections::BTreeSet<&str> = seen.iter().map(|line| line[1].as_str()).collect();
    assert!(dimensions.len() >= 3, "{dimensions:?}");
}

#[tokio::test]
async fn a_route_whose_quotas_are_off_refuses_nobody_and_one_in_shadow_is_taken_as_enforced() {
    let mut record = Record::new();
    for at in ["10:00:00", "11:00:00"] {
        record.add(made("tn_route", at));
    }
    record.replay("", &SINCE).await;
    let limits = "[plans.trial]\nchat_messages_per_day = 1\n";
    for (enforce, refused) in [("hard", 1), ("shadow", 1), ("off", 0)] {
        let config = format!(
            "[[routes]]\npath = \"/api/widget/chat\"\nevent = \"chat_message\"\nenforce = \"{enforce}\"\n"
        );
        let output = what_if(&record.database, &config, limits, &[&SINCE[..], &["--json"]].concat());
        let replayed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(totals(&replayed), [1, 2, refused, 0, 0], "{enforce}");
    }
}
