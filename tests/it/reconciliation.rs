//! `tollgate reconcile`: invoices against what was recorded, through the command.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::postgres::{Database, shared};

/// Writes `invoice` to a file and compares it.
fn reconcile(database: &Database<'_>, invoice: &str, arguments: &[&str]) -> Output {
    let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    std::fs::write(file.path(), invoice).unwrap();
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["reconcile", "--file", file.path().to_str().unwrap()])
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", database.url())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `calls` of 100 tokens and a cent each, at an instant; a tenth of the tokens is output.
fn record(database: &Database<'_>, model: &str, at: &str, calls: u32) {
    database.rows(&format!(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, api_status_code, model,
             tokens_consumed, input_tokens, output_tokens, token_source, cost_usd)
         SELECT gen_random_uuid(), 'tn_' || n % 3, 'chat_message', '{at}', 200, '{model}', 100, 90, 10, 'reported', 0.01
         FROM generate_series(1, {calls}) n"
    ));
}

#[test]
fn an_invoice_that_agrees_with_what_was_recorded_is_sound_and_outlives_the_events() {
    let database = shared().migrated();
    record(&database, "gpt-4o", "2026-03-01T10:00:00Z", 10);
    record(&database, "gpt-4o", "2026-03-01T23:59:59Z", 10);
    record(&database, "gpt-4o-mini", "2026-03-02T00:00:00Z", 3);
    // A refused call reached no model: it is neither priced nor counted.
    database.rows(
        "UPDATE tenant_usage_realtime
         SET outcome = 'refused', cost_usd = 0, tokens_consumed = 0, input_tokens = NULL, output_tokens = NULL
         WHERE entry_id = (SELECT min(entry_id) FROM tenant_usage_realtime)",
    );
    let invoice = "date,model,tokens,cost\n2026-03-01,gpt-4o,1000,0.10\n2026-03-01,gpt-4o,900,0.094\n2026-03-02,gpt-4o-mini,300,0.03\n";
    for _ in 0..2 {
        let sound = reconcile(&database, invoice, &["--tolerance", "0"]);
        assert!(sound.status.success(), "{}{}", text(&sound.stdout), text(&sound.stderr));
        let told = text(&sound.stdout);
        assert!(
            told.contains("3 lines, 2 days of models (a day is one of UTC): 0 differ by more than 0 %"),
            "{told}"
        );
        database.rows("TRUNCATE tenant_usage_realtime");
    }
}

#[test]
fn gaps_are_told_both_ways_by_day_and_model_with_totals() {
    let database = shared().migrated();
    record(&database, "gpt-4o", "2026-03-01T10:00:00Z", 100);
    record(&database, "gpt-4o", "2026-03-02T10:00:00Z", 100);
    record(&database, "forgotten", "2026-03-02T11:00:00Z", 2);
    record(&database, "outside", "2026-03-05T11:00:00Z", 2);
    let invoice = "day,model,input_tokens,output_tokens,amount\n2026-03-01,gpt-4o,9050,1005,$1.00\n\
        2026-03-02,gpt-4o,9500,1000,1.00\n2026-03-03,never-called,5,5,0.50\n";
    let output = reconcile(&database, invoice, &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<_> = told["days"]
        .as_array()
        .unwrap()
        .iter()
        .map(|day| {
            let of = |name: &str| day[name].as_str().unwrap().to_owned();
            format!(
                "{} {} {} {} {}",
                of("day"),
                of("model"),
                of("status"),
                day["input_tokens"]["gap"],
                day["cost_usd"]["gap"]
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            "2026-03-01 gpt-4o ok 50 0.0",
            "2026-03-02 forgotten not invoiced -180 -0.02",
            "2026-03-02 gpt-4o gap 500 0.0",
            "2026-03-03 never-called not recorded 5 0.5",
        ]
    );
    assert_eq!(told["total"]["output_tokens"], json!({"invoiced": 2010, "recorded": 2020, "gap": -10}));
    assert_eq!((&told["gaps"], &told["not_compared"]), (&json!(3), &json!(0)));
    assert!(text(&output.stderr).contains("3 days of models differ by more than the tolerance"));
    let people = text(&reconcile(&database, invoice, &[]).stdout);
    assert!(people.contains("not invoiced") && people.contains("total"), "{people}");
    let loose = reconcile(&database, "date,model,tokens\n2026-03-01,gpt-4o,10500\n", &["--tolerance", "5%"]);
    assert!(loose.status.success(), "{}", text(&loose.stdout));
}

#[test]
fn days_are_those_of_the_zone_asked_for() {
    let database = shared().migrated();
    record(&database, "m", "2026-03-02T03:00:00Z", 1);
    let invoice = "date,model,tokens\n2026-03-01,m,100\n";
    assert!(reconcile(&database, invoice, &["--time-zone", "America/New_York"]).status.success());
    assert_eq!(reconcile(&database, invoice, &[]).status.code(), Some(1));
    let half = reconcile(&database, invoice, &["--time-zone", "Asia/Kolkata"]);
    assert!(
        half.status.code() == Some(1) && text(&half.stderr).contains("full hour"),
        "{}",
        text(&half.stderr)
    );
    let none = reconcile(&database, invoice, &["--time-zone", "Mars/Base"]);
    assert!(none.status.code() == Some(2) && text(&none.stderr).contains("IANA"), "{}", text(&none.stderr));
}

#[test]
fn a_day_whose_events_were_gone_before_usage_by_model_was_kept_is_said_not_to_be_comparable() {
    let database = shared().migrated();
    record(&database, "m", "2026-03-02T03:00:00Z", 1);
    database.rows("UPDATE usage_aggregation_state SET models_from = '2026-03-01T12:00:00Z'");
    let invoice = "date,model,tokens\n2026-03-01,m,100\n2026-03-02,m,100\n";
    let output = reconcile(&database, invoice, &[]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stdout);
    assert!(
        told.contains("not kept")
            && told.contains("1 can't be compared")
            && told.contains("2026-03-01T12:00:00Z"),
        "{told}"
    );
    assert!(told.contains("0 differ"), "{told}");
}

#[test]
fn bad_lines_are_told_with_their_numbers_before_the_database_is_asked() {
    let database = shared().database();
    let output = reconcile(&database, "date,model,tokens\n2026-13-01,m,1\n2026-03-01,m,many\n", &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains(".csv:2: `2026-13-01` is no date"), "{told}");
    assert!(told.contains(".csv:3: `many` is no whole number of tokens"), "{told}");
    assert!(told.contains("2 faults in the invoice"), "{told}");
    let years = reconcile(&database, "date,model,tokens\n2016-03-01,m,1\n2026-03-01,m,1\n", &[]);
    assert!(
        years.status.code() == Some(2) && text(&years.stderr).contains("mistyped"),
        "{}",
        text(&years.stderr)
    );
    let missing = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["reconcile", "--file", "/nowhere/invoice.csv"])
        .env_clear()
        .output()
        .unwrap();
    assert!(
        missing.status.code() == Some(1) && text(&missing.stderr).contains("can't read /nowhere/invoice.csv")
    );
}
