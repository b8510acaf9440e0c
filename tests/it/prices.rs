//! Prices, from outside: as typed, as printed, and as they end up in rows.

#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use jiff::Timestamp;
use serde_json::{Value, json};
use tollgate::model::price::{KINDS, Scale};
use tollgate::settings::{Faults, PriceOrigin, Settings};

use crate::gateway::{json_rows, pick, rows};
use crate::harness::{TestGateway, Upstream, answer, gateway, request};
use crate::postgres::shared;

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Faults> {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    let variables: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Settings::load(Some(file.path()), &variables)
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Input, in millionths of a dollar per million tokens.
fn input(settings: &Settings, model: &str, instant: &str) -> u64 {
    settings.prices.price(Some(model), at(instant)).0.usual().input
}

const CHANGING: &str = "[prices.\"m\"]\ninput = 1.0\ncached_input = 0.5\noutput = 4.0\n\
    changes = [{ from = \"2026-12-01\", input = 2.0 }, { from = \"2027-01-01T08:00:00+01:00\", output = 3.0 }]\n";

#[test]
fn a_change_holds_from_its_date_on_and_keeps_what_it_does_not_name() {
    let settings = load(CHANGING, &[]).unwrap();
    let price = |instant| *settings.prices.price(Some("m"), at(instant)).0.usual();
    let (first, second, third) =
        (price("2026-11-30T23:59:59Z"), price("2026-12-01T00:00:00Z"), price("2027-01-01T07:00:00Z"));
    assert_eq!((first.input, first.cached_input, first.output), (1_000_000, 500_000, 4_000_000));
    assert_eq!((second.input, second.cached_input, second.output), (2_000_000, 500_000, 4_000_000));
    assert_eq!((third.input, third.cached_input, third.output), (2_000_000, 500_000, 3_000_000));
    assert_eq!(first.cache_write_input, first.input, "what is not named costs what input costs");
    assert_eq!(second.cache_write_input, second.input, "then too");
    assert_eq!(price("2027-01-01T06:59:59Z"), second);
}

#[test]
fn variables_set_single_keys_whole_changes_and_patterns() {
    let file = "[prices.\"claude-mine*\"]\ninput = 1.0\n[prices.\"*.mine\"]\ninput = 1.0\n";
    let settings = load(
        file,
        &[
            ("TOLLGATE__PRICES__GPT_4O__CHANGES", "[{ from = \"2026-12-01\", input = 7.0 }]"),
            ("TOLLGATE__PRICES__CLAUDE_MINE__INPUT", "8"),
            ("TOLLGATE__PRICES__NEWMODEL__INPUT", "9"),
            ("TOLLGATE__PRICES__NEWMODEL__PER_REQUEST", "0.01"),
        ],
    )
    .unwrap();
    assert_eq!(input(&settings, "gpt-4o-2024-08-06", "2026-12-01T00:00:00Z"), 7_000_000);
    assert_eq!(input(&settings, "gpt-4o-2024-08-06", "2026-11-30T00:00:00Z"), 2_500_000);
    assert_eq!(input(&settings, "claude-mine-7", "2026-12-01T00:00:00Z"), 8_000_000);
    let (new, known) = settings.prices.price(Some("newmodel"), at("2026-12-01T00:00:00Z"));
    assert_eq!((new.usual().output, new.per_request_nanousd, known), (0, 10_000_000, true));
}

#[test]
fn dates_that_are_none_or_out_of_order_are_faults_with_key_and_reason() {
    let faults = |changes: &str| {
        let text = format!("[prices.\"m.1\"]\ninput = 1.0\nchanges = [{changes}]\n");
        let faults = load(&text, &[]).unwrap_err().0;
        assert!(faults.iter().all(|fault| fault.origin.ends_with(":3")), "{faults:?}");
        faults.into_iter().map(|fault| (fault.key, fault.reason)).collect::<Vec<_>>()
    };
    let from = |at: usize| format!("prices.\"m.1\".changes[{at}].from");
    let twice =
        faults("{ from = \"2026-12-01\", input = 1 }, { from = \"2026-12-01T01:00:00+01:00\", input = 2 }");
    assert_eq!(twice, [(from(1), "is the same instant as that of prices.\"m.1\".changes[0]".to_owned())]);
    let unordered = faults("{ from = \"2026-12-02\", input = 1 }, { from = \"2026-12-01\", input = 2 }");
    assert_eq!(unordered.len(), 1);
    assert_eq!(unordered[0].0, from(1));
    assert!(unordered[0].1.starts_with("is before that of prices.\"m.1\".changes[0]"), "{unordered:?}");
    for bad in ["2026-02-30", "infinity", "2026-12-01T00:00:00", "2026-12", "", "1764547200"] {
        let bad = faults(&format!("{{ from = \"{bad}\", input = 1 }}"));
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].0, from(0));
        assert!(bad[0].1.contains("is no date: write one such as \"2026-12-01\""), "{bad:?}");
    }
    let missing = faults("{ input = 1 }");
    assert_eq!(missing, [(from(0), "is missing: add it".to_owned())]);
    let nothing = faults("{ from = \"2026-12-01\" }");
    assert_eq!(nothing[0].0, "prices.\"m.1\".changes[0]");
    assert!(nothing[0].1.starts_with("changes nothing"), "{nothing:?}");
    let long = load(&format!("[prices.\"{}\"]\ninput = 1\n", "m".repeat(257)), &[]).unwrap_err();
    assert!(long.to_string().contains("is longer than any model's name"), "{long}");
}

#[test]
fn every_fault_of_a_price_is_told_at_once_with_its_line() {
    let file = Path::new("tests/cases/config/prices.toml");
    let faults = Settings::load(Some(file), &BTreeMap::new()).unwrap_err();
    let seen = format!("{faults}\n");
    let expected = std::fs::read_to_string(file.with_extension("txt")).unwrap_or_default();
    assert!(seen == expected, "expected\n{expected}\nseen\n{seen}");
}

#[test]
fn a_price_of_ones_own_is_not_said_to_be_from_the_list() {
    let settings = load(
        "[prices.\"gpt-4o\"]\ninput = 2.0\n[prices.\"gpt-4.1\"]\ninput = 1.0\nsource = \"contract 2026-114\"\n\
         as_of = 2026-11-01\n",
        &[("TOLLGATE__PRICES__O3__OUTPUT", "7")],
    )
    .unwrap();
    let origin = |entry: &str| settings.price_origins[entry].clone();
    assert_eq!(origin("o1").source.as_deref(), Some("openai"));
    assert!(origin("o1").url.is_some() && origin("o1").via.is_some() && origin("o1").as_of.is_some());
    assert!(origin("gpt-4o").source.unwrap().ends_with(".toml:2"));
    assert_eq!((origin("gpt-4o").url, origin("gpt-4o").as_of), (None, None));
    let contract = PriceOrigin {
        source: Some("contract 2026-114".into()),
        as_of: Some("2026-11-01".into()),
        ..PriceOrigin::default()
    };
    assert_eq!(origin("gpt-4.1"), contract);
    assert_eq!(origin("o3").source.as_deref(), Some("TOLLGATE__PRICES__O3__OUTPUT"));
}

#[test]
fn a_price_of_ones_own_that_the_built_in_table_changes_later_is_warned_of() {
    let warned = |text: &str| {
        let warnings = load(text, &[]).unwrap().warnings();
        warnings.iter().any(|warning| warning.contains("prices.gemini-4-argon.changes = [] keeps it"))
    };
    assert!(warned("[prices.gemini-4-argon]\ninput = 1.5\n"));
    assert!(!warned("[prices.gemini-4-argon]\ninput = 1.5\nchanges = []\n"));
    assert!(!warned(""));
}

#[test]
fn every_price_of_the_built_in_table_says_where_it_is_from_and_when() {
    let settings = load("", &[]).unwrap();
    let entries: Vec<&str> = settings.prices.iter().map(|(name, _)| name).chain(["default"]).collect();
    assert!(entries.len() > 150, "{}", entries.len());
    for entry in entries {
        let PriceOrigin { source, url, via, as_of } = &settings.price_origins[entry];
        assert!(source.is_some() && via.is_some() && as_of.is_some(), "{entry}");
        assert!(url.as_ref().is_some_and(|url| url.starts_with("https://")), "{entry}");
    }
}

#[test]
fn output_may_be_left_out_and_only_embeddings_do_so_unwarned() {
    let warned = |entry: &str| {
        let warnings = load(entry, &[]).unwrap().warnings();
        warnings.iter().any(|warning| warning.contains("names no output"))
    };
    assert!(warned("[prices.my-model]\ninput = 1.0\n"));
    assert!(!warned("[prices.my-model]\ninput = 1.0\noutput = 0.0\n"));
    assert!(!warned("[prices.my-embedder]\ninput = 1.0\n") && !warned(""));
    let settings = load("", &[]).unwrap();
    for (entry, tariff) in settings.prices.iter() {
        let free = tariff.at(at("2026-11-24T00:00:00Z")).usual().output == 0;
        let without = ["embed", "voyage", "rerank", ":free"].iter().any(|part| entry.contains(part));
        assert_eq!(free, without, "{entry}");
    }
}

#[test]
fn names_as_answers_and_operators_write_them_find_their_entry_or_none() {
    let settings = load("", &[]).unwrap();
    let names = std::fs::read_to_string("tests/cases/prices/names.txt").unwrap();
    let cases: Vec<Vec<&str>> = names
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(cases.len() > 80, "{}", cases.len());
    let found = |model: &str| {
        let found = settings.prices.find(model);
        format!("{} {}", found.entry.unwrap_or("-"), found.rule.as_str())
    };
    let wrong: Vec<String> = cases
        .iter()
        .map(|case| (case[0], format!("{} {}", case[1], case[2]), found(case[0])))
        .filter(|(_, expected, found)| expected != found)
        .map(|(model, expected, found)| format!("{model}: expected {expected}, found {found}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_tier_is_a_factor_or_a_table_and_long_prompts_grow_with_it() {
    let settings = load(
        "[prices.m]\ninput = 4.0\ncached_input = 1.0\noutput = 8.0\nflex = 0.5\n\
         long = { above = 1000, input = 8.0, output = 12.0 }\n\
         [prices.m.priority]\ninput = 6.0\n[prices.m.batch]\ninput = 1.0\nlong = { input = 1.5 }\n",
        &[],
    )
    .unwrap();
    let price = settings.prices.price(Some("m"), at("2026-12-01T00:00:00Z")).0;
    let (flex, priority, batch) = (price.flex.unwrap(), price.priority.unwrap(), price.batch.unwrap());
    let long = |scale: &Scale| scale.long.map(|long| (long.input, long.cached_input, long.output)).unwrap();
    assert_eq!((price.long_above, long(&price.standard)), (1000, (8_000_000, 1_000_000, 12_000_000)));
    assert_eq!(
        (flex.usual.input, flex.usual.output, long(&flex)),
        (2_000_000, 4_000_000, (4_000_000, 500_000, 6_000_000))
    );
    assert_eq!(
        (priority.usual.input, priority.usual.output),
        (6_000_000, 8_000_000),
        "what it does not name is standard"
    );
    assert_eq!(
        long(&priority),
        (12_000_000, 1_000_000, 12_000_000),
        "twice and one and a half times, as standard"
    );
    assert_eq!((batch.usual.input, long(&batch)), (1_000_000, (1_500_000, 1_000_000, 12_000_000)));
}

#[test]
fn a_change_of_a_price_moves_its_tiers_and_keeps_what_it_does_not_name() {
    let settings = load(
        "[prices.m]\ninput = 4.0\noutput = 8.0\nbatch = 0.5\nper_web_search = 0.01\n\
         changes = [{ from = \"2026-12-01\", input = 2.0, long = { above = 10, input = 3.0 } }]\n",
        &[],
    )
    .unwrap();
    let price = settings.prices.price(Some("m"), at("2026-12-01T00:00:00Z")).0;
    assert_eq!(price.batch.unwrap().usual.input, 1_000_000);
    assert_eq!(price.batch.unwrap().long.unwrap().input, 1_500_000);
    assert_eq!(price.per_web_search_nanousd, Some(10_000_000));
}

#[test]
fn of_names_that_differ_by_case_alone_the_operators_holds_and_two_of_his_are_a_fault() {
    let settings = load("[prices.GPT-4o]\ninput = 1.0\noutput = 1.0\n", &[]).unwrap();
    assert_eq!(input(&settings, "gpt-4o-2024-08-06", "2026-12-01T00:00:00Z"), 1_000_000);
    let twice =
        load("[prices.Mine]\ninput = 1.0\noutput = 1.0\n[prices.mine]\ninput = 2.0\noutput = 1.0\n", &[]);
    let faults = twice.unwrap_err().to_string();
    assert!(faults.contains("has \"Mine\" and \"mine\", which are the same model: keep one"), "{faults}");
}

#[test]
fn the_kinds_that_part_models_are_documented() {
    let documented = std::fs::read_to_string("config/default.toml").unwrap();
    let start = documented.find("# A family's price is never given").unwrap();
    let text = &documented[start..start + documented[start..].find("A pattern means what it says").unwrap()];
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    for kind in KINDS {
        assert!(words.contains(&kind), "{kind} is not in config/default.toml");
    }
}

// The command

fn tollgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).args(arguments).env_clear().output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_command_prints_which_entry_a_model_has_and_what_it_costs_on_a_day() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), CHANGING).unwrap();
    let config = file.path().display().to_string();
    let printed = |arguments: &[&str]| {
        let output = tollgate(&[&["prices", "--config", &config], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let table = printed(&["--at", "2026-11-30", "m-2", "unheard-of"]);
    let lines: Vec<String> = table.lines().map(words).collect();
    assert_eq!(lines[0], "USD per million tokens (per request: USD), as of 2026-11-30T00:00:00Z");
    assert_eq!(lines[2], "MODEL MATCH ENTRY INPUT CACHED CACHE WRITE OUTPUT PER REQUEST CHANGES SOURCE ALSO");
    let own = format!("m-2 family m 1 0.5 1 4 0 2026-12-01, 2027-01-01T07:00:00Z {config}:2 -");
    assert_eq!(lines[3], own);
    assert!(
        lines[4].starts_with("unheard-of default default 0.15 0.075 0.15 0.6 0 - openai, "),
        "{}",
        lines[4]
    );

    let whole = printed(&["--at", "2026-12-24T00:00:00Z"]);
    let line = whole.lines().map(words).find(|line| line.starts_with("m ")).unwrap();
    assert!(line.starts_with("m 2 0.5 2 4 0 2027-01-01T07:00:00Z "), "{line}");
    assert!(whole.lines().last().unwrap().starts_with("default "), "{whole}");

    let json: Value = serde_json::from_str(&printed(&["--json", "--at", "2027-06-01", "m"])).unwrap();
    assert_eq!(json["at"], "2027-06-01T00:00:00Z");
    let price = &json["prices"][0];
    assert_eq!(
        pick(price, &["model", "match", "entry", "input", "output", "since", "changes"]),
        [
            json!("m"),
            json!("exact"),
            json!("m"),
            json!(2.0),
            json!(3.0),
            json!("2027-01-01T07:00:00Z"),
            json!([])
        ]
    );
}

#[test]
fn the_command_ends_with_2_on_a_bad_date_and_a_bad_config() {
    let bad_date = tollgate(&["prices", "--at", "2026-02-30"]);
    assert_eq!(bad_date.status.code(), Some(2));
    assert!(text(&bad_date.stderr).contains("is no date"), "{}", text(&bad_date.stderr));
    let bad_config = tollgate(&["prices", "--config", "tests/cases/config/broken.toml"]);
    assert_eq!(bad_config.status.code(), Some(2));
    assert_eq!(text(&bad_config.stdout), "");
}

// The gateway

/// An answer of 1,000 tokens in and 100 out, of the model that was asked for.
async fn openai() -> Upstream {
    Upstream::answering(|asked| {
        let body: Value = serde_json::from_slice(&asked.body).unwrap();
        answer(200).json(&json!({"object": "chat.completion", "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}}))
    })
    .await
}

const ROUTE: &str =
    "[[routes]]\npath = \"/v1/chat/completions\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\n";

async fn ask(gateway: &TestGateway, tenant: &str, model: &str) {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    let asked = request("POST", "/v1/chat/completions").header("x-tenant-id", tenant).json(&body);
    assert_eq!(gateway.ask(asked).await.status, 200);
}

#[tokio::test]
async fn a_price_that_changes_between_two_calls_leaves_what_the_first_one_cost() {
    let (upstream, database) = (openai().await, shared().database());
    let price = "[prices.\"my-*\"]\ninput = 1.0\noutput = 10.0\n";
    let gateway = gateway(&upstream, &database).config(&format!("{ROUTE}{price}")).start().await;
    ask(&gateway, "tn_change", "my-model").await;
    rows(&database, "tn_change", 1).await;
    // The day of the second change is far off; that of the first has come.
    let later = "changes = [{ from = \"2020-01-01\", input = 3.0, per_request = 0.5 }, { from = 9000-01-01, input = 9.0 }]\n";
    gateway.rewrite_config(&format!("{ROUTE}{price}{later}"));
    gateway.until_metric("tollgate_reloads_total{result=\"ok\"}", 1.0).await;
    ask(&gateway, "tn_change", "my-model").await;
    let costs: Vec<String> =
        rows(&database, "tn_change", 2).await.iter().map(|row| row["cost_usd"].to_string()).collect();
    assert_eq!(costs, ["0.002", "0.504"]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_model_without_a_price_is_counted_marked_and_listed() {
    let (upstream, database) = (openai().await, shared().database());
    let gateway = gateway(&upstream, &database)
        .config(&format!("{ROUTE}[prices.\"priced-*\"]\ninput = 1.0\noutput = 10.0\n"))
        .start()
        .await;
    for model in ["priced-1", "unheard-of", "priced-1", "priced-2", "unheard-of"] {
        ask(&gateway, "tn_models", model).await;
    }
    let marked = |row: &Value| row["metadata"].get("default_price").cloned();
    for row in rows(&database, "tn_models", 5).await {
        let expected = (row["model"] == "unheard-of").then_some(json!(true));
        assert_eq!(marked(&row), expected, "{row}");
    }
    assert!((gateway.metric("tollgate_unknown_models_total").await - 2.0).abs() < f64::EPSILON);

    let answer = gateway.operate(request("GET", "/api/admin/models")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let figures: Vec<_> = body["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| pick(row, &["model", "calls", "tokens", "priced_by", "default_priced_calls"]))
        .collect();
    assert_eq!(
        figures,
        [
            [json!("priced-1"), json!(2), json!(2200), json!("own"), json!(0)],
            [json!("priced-2"), json!(1), json!(1100), json!("own"), json!(0)],
            [json!("unheard-of"), json!(2), json!(2200), json!("default"), json!(2)],
        ]
    );
    // 1,000 × 0.15 + 100 × 0.6, twice.
    assert_eq!(body["models"][2]["cost_usd"].to_string(), "0.00042");
    gateway.stop().await;
    let total = json_rows(&database, "SELECT to_jsonb(count(*)) FROM tenant_usage_realtime", 1).await;
    assert_eq!(total, [json!(5)]);
}
