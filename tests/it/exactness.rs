//! How exact the numbers are: docs/exactness.md has a row for each sample of `tests/cases/formats`, as they come out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;
use tollgate::meter::{
    Config, CountJob, Counting, FormatConfig, Formats, Meter, Reading, Text, count, inspect,
};
use tollgate::model::tokens::TokenUsage;
use tollgate::settings::Settings;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/exactness.md");

/// One answer, and what its service says that it used.
struct Sample {
    name: String,
    content_type: String,
    body: Vec<u8>,
    model: Option<String>,
    reported: TokenUsage,
}

/// The samples in which a service reports what it used.
fn samples() -> Vec<Sample> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/formats");
    let tables = ["expected.json", "more.json", "services.json"].map(|table| {
        let table = std::fs::read_to_string(format!("{directory}/{table}")).unwrap();
        serde_json::from_str::<BTreeMap<String, Value>>(&table).unwrap()
    });
    let all: BTreeMap<_, _> = tables.into_iter().flatten().collect();
    let samples = all.into_iter().map(|(name, case)| {
        let expected = &case["expected"];
        let tokens = |class: &str| expected[class].as_u64();
        Sample {
            name,
            content_type: case["content_type"].as_str().unwrap().to_owned(),
            body: std::fs::read(format!("{directory}/{}", case["file"].as_str().unwrap())).unwrap(),
            model: expected["model"].as_str().map(str::to_owned),
            reported: TokenUsage {
                input: tokens("input_tokens"),
                cached_input: tokens("cached_input_tokens"),
                cache_write_input: tokens("cache_write_input_tokens"),
                output: tokens("output_tokens"),
                reasoning: tokens("reasoning_tokens"),
                ..TokenUsage::default()
            },
        }
    });
    samples.filter(|sample| sample.reported.input.is_some() && sample.reported.output.is_some()).collect()
}

/// All formats, with nothing that any of them reports: what is left is the text.
fn unreported() -> Formats {
    let builtin = Formats::builtin();
    let rules: Vec<_> = builtin.rules().collect();
    // The last one added goes first.
    rules.into_iter().rev().fold(Formats::builtin(), |formats, (name, rules)| {
        let mut silent = FormatConfig { auto: true, ..rules.clone() };
        for counts in [
            &mut silent.input,
            &mut silent.extra_input,
            &mut silent.cached_input,
            &mut silent.cache_write_input,
            &mut silent.output,
            &mut silent.reasoning,
            &mut silent.total,
            &mut silent.billed_input,
            &mut silent.billed_output,
        ] {
            counts.clear();
        }
        silent.parts.clear();
        formats.with(name, &silent).unwrap()
    })
}

fn read(formats: &Formats, sample: &Sample) -> Reading {
    let format = formats.format("auto").unwrap();
    let content_type = Some(sample.content_type.as_bytes());
    let mut meter = Meter::new(&format, &Config::default(), 200, content_type, None);
    meter.observe(&sample.body);
    meter.finish()
}

fn page() -> String {
    let settings = Settings::load(None, &BTreeMap::new()).unwrap();
    let at = "2026-12-01T00:00:00Z".parse().unwrap();
    let mut text = String::from(
        "| sample | model | reported | metered | cost by the report | cost by us | output counted | of visible |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let (builtin, silent) = (Formats::builtin(), unreported());
    for sample in samples() {
        let reading = read(&builtin, &sample);
        let ours = reading.usage;
        let (price, known) = settings.prices.price(sample.model.as_deref(), at);
        let cost =
            |usage: &TokenUsage| format!("{:.8}", price.cost_nanousd(usage, &reading.billing) as f64 / 1e9);
        let (by_report, by_us) = (cost(&sample.reported), cost(&ours));
        assert_eq!(by_report, by_us, "{}", sample.name);
        let counted = counted(&silent, &sample);
        let visible = sample.reported.output.unwrap_or(0) - sample.reported.reasoning.unwrap_or(0);
        let model = match &sample.model {
            Some(model) if known => format!("`{model}`"),
            Some(model) => format!("`{model}` (default price)"),
            None => "(default price)".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} | {model} | {} | {} | {by_report} | {by_us} | {counted} | {visible}{} |",
            sample.name,
            both(&sample.reported),
            both(&ours),
            error(counted, visible),
        );
    }
    text
}

fn both(usage: &TokenUsage) -> String {
    let tokens = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
    format!("{} + {}", tokens(usage.input), tokens(usage.output))
}

/// The output by the answer's text alone, as where its service reports nothing.
fn counted(silent: &Formats, sample: &Sample) -> u64 {
    let reading = read(silent, sample);
    assert_eq!(reading.usage, TokenUsage::default(), "{}", sample.name);
    let encoding = Counting::Model.encoding(reading.model.as_deref());
    count(&CountJob { encoding, request: Text::default(), answer: reading.text }).output
}

fn error(counted: u64, reported: u64) -> String {
    if reported == 0 {
        return String::new();
    }
    format!(" ({:+.0}%)", (counted as f64 / reported as f64 - 1.0) * 100.0)
}

/// The prompts of `tests/cases/prompts.json`, whose `prompt_tokens` people recorded.
fn prompts() -> String {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/prompts.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(cases).unwrap()).unwrap();
    let format = Formats::builtin().format("openai-chat").unwrap();
    let mut text = String::from(
        "| source | model | messages | tools | prompt tokens | counted by us |\n\
         | --- | --- | ---: | ---: | ---: | ---: |\n",
    );
    for case in cases {
        let request = &case["request"];
        let body = request.to_string();
        let inspected = inspect(&format, &Config::default(), body.as_bytes(), &[]).unwrap();
        let encoding = Counting::Model.encoding(request["model"].as_str());
        let counted = count(&CountJob { encoding, request: inspected.text, answer: Text::default() }).input;
        let reported = case["prompt_tokens"].as_u64().unwrap();
        let length = |name: &str| request[name].as_array().map_or(0, Vec::len);
        let _ = writeln!(
            text,
            "| {} | `{}` | {} | {} | {reported} | {counted}{} |",
            case["source"].as_str().unwrap_or_default(),
            request["model"].as_str().unwrap_or_default(),
            length("messages"),
            length("tools") + length("functions"),
            error(counted, reported),
        );
    }
    text
}

/// `page` with `table` between the marks `make docs NAME` and `end`.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- make docs: {name} -->\n"), "<!-- end -->\n");
    let (head, rest) = page.split_once(&begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    format!("{head}{begin}{table}{end}{tail}")
}

#[test]
fn the_page_of_exactness_says_what_comes_out() {
    let before = std::fs::read_to_string(PAGE).unwrap();
    let written = with_table(&before, "answers", &page());
    let written = with_table(&written, "prompts", &prompts());
    if std::env::var_os("WRITE_DOCS").is_some() {
        return std::fs::write(PAGE, written).unwrap();
    }
    assert!(before == written, "docs/exactness.md is not what comes out: `make docs` writes its table anew");
}
