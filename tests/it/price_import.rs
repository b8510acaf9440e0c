//! `tollgate prices import`: LiteLLM's map in, a config that loads out.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const MAP: &str = "tests/cases/prices/litellm.json";

fn tollgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).args(arguments).env_clear().output().unwrap()
}

fn import(to: &Path, more: &[&str]) -> Output {
    tollgate(&[&["prices", "import", MAP, "--to", to.to_str().unwrap()], more].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `models` cost by the config `file`.
fn prices(file: &Path, models: &[&str]) -> Vec<Value> {
    let arguments = ["prices", "--json", "--at", "2026-12-24", "--config", file.to_str().unwrap()];
    let output = tollgate(&[&arguments, models].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    printed["prices"].as_array().unwrap().clone()
}

#[test]
fn a_map_becomes_a_config_that_loads_with_every_price_exact() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prices.toml");
    let done = import(&file, &[]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let checked = tollgate(&["check-config", "--config", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let warned = text(&checked.stderr);
    assert!(!warned.contains("prices"), "{warned}");

    let toml = std::fs::read_to_string(&file).unwrap();
    let line = |name: &str| {
        let start = format!("{name:?} = ");
        toml.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_default().to_owned()
    };
    assert_eq!(
        line("gpt-4o-mini"),
        "{ input = 0.15, cached_input = 0.075, output = 0.6, batch = { input = 0.075, output = 0.3 }, \
         source = \"litellm-map\" }"
    );
    assert_eq!(
        line("gpt-5.4"),
        "{ input = 2.5, cached_input = 0.25, output = 15.0, \
         long = { above = 272000, input = 5.0, cached_input = 0.5, output = 22.5 }, \
         flex = { input = 1.25, cached_input = 0.13, output = 7.5, long = { input = 2.5, output = 11.25 } }, \
         priority = { input = 5.0, output = 30.0 }, per_web_search = 0.01, source = \"litellm-map\" }"
    );
    let sonnet = &prices(&file, &["claude-sonnet-4-5-20250929"])[0];
    assert_eq!(sonnet["cache_write_1h_input"], json!(6.0));
    assert_eq!(sonnet["long"]["above"], json!(200_000));
    assert_eq!(sonnet["long"]["cache_write_1h_input"], json!(12.0));
    let others =
        prices(&file, &["gpt-realtime", "rerank-v3.5", "gemini/gemini-4-argon", "azure/gpt-4o-mini"]);
    assert_eq!(others[0]["audio_output"], json!(64.0));
    assert_eq!((&others[1]["input"], &others[1]["per_rerank_unit"]), (&json!(0.0), &json!(0.002)));
    assert_eq!(others[2]["input"], json!(3.0));
    assert_eq!(others[3]["entry"], json!("azure/GPT-4o-Mini"));
}

#[test]
fn what_could_not_be_taken_is_told_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let told = text(&import(&folder.path().join("prices.toml"), &[]).stdout);
    for expected in [
        "9 models taken into ",
        "9 models not taken:",
        "has no price per input token: whisper-1\n",
        "costs nothing there: free, or not known: github_copilot/gpt-4o\n",
        "2  has prices for several lengths of prompts, and we have one threshold: dashscope/qwen-plus, kyma/two-steps\n",
        "input_cost_per_token is less than we can hold: tiny/model\n",
        "input_cost_per_token is not a price: a number of US dollars, 0 to 1000 for one thing: odd/model\n",
        "has a name that no model has: bedrock/*/1-month-commitment/cohere.command\n",
        "has no price per output token: half/model\n",
        "has the name of another entry of the map: azure/GPT-4o-Mini: azure/gpt-4o-mini\n",
        "cache_read_input_audio_token_cost has no place in [prices]: gpt-realtime\n",
        "search_context_cost_per_query differs by the size of the context: perplexity/sonar\n",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in\n{told}");
    }
}

#[test]
fn a_file_that_is_there_is_replaced_only_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prices.toml");
    std::fs::write(&file, "mine").unwrap();
    let refused = import(&file, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is there already"), "{}", text(&refused.stderr));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert!(import(&file, &["--force"]).status.success());
    assert!(std::fs::read_to_string(&file).unwrap().contains("gpt-4o-mini"));
}

#[test]
fn of_one_provider_only_its_models_are_taken_and_named_as_it_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prices.toml");
    assert!(import(&file, &["--provider", "gemini", "--provider", "perplexity"]).status.success());
    let toml = std::fs::read_to_string(&file).unwrap();
    let names: Vec<&str> = toml.lines().filter(|line| line.starts_with('"')).collect();
    assert_eq!(names.len(), 2, "{toml}");
    assert!(
        names[0].starts_with("\"gemini-4-argon\" = {") && names[1].starts_with("\"sonar\" = {"),
        "{toml}"
    );
    // The built-in price of this one changes in December 2026: what was imported holds on.
    assert!(names[0].ends_with("changes = [] }"), "{toml}");
    assert_eq!(prices(&file, &["gemini-4-argon"])[0]["input"], json!(3.0));

    let nobody = folder.path().join("nobody.toml");
    let none = import(&nobody, &["--provider", "no-such"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(!nobody.exists());
}
