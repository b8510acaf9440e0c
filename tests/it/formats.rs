//! Every answer format through the running gateway: each sample of `tests/cases/formats`, in every coding and cut in
//! every way, reaches the client byte for byte, and leaves the row that its expectation says.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tollgate::meter::{CountJob, Encoding, Prompt, Text, count};

use crate::harness::{Ended, Step, TestGateway, Upstream, answer, gateway, request};
use crate::postgres::{Database, shared};

/// What is asked for every sample. It names no model, so that the row's model is the answer's.
const QUESTION: &str = "How many tokens is this?";

const ROUTE: &str = "
[[routes]]
path = \"/v1/replay\"
methods = [\"POST\"]
event = \"chat_message\"
enforce = \"off\"
";

/// Where the cuts of the random chunks come from; a failure names it.
const SEED: u64 = 20_261_124;

const CODINGS: [&str; 5] = ["identity", "gzip", "deflate", "br", "zstd"];
const CUTS: [&str; 3] = ["whole", "bytes", "random"];

/// An answer as a service emits it, and what must be recorded of it.
struct Sample {
    name: String,
    content_type: String,
    status: u16,
    body: Vec<u8>,
    expected: Value,
}

fn samples() -> Vec<Sample> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/formats");
    let tables = ["expected.json", "more.json", "services.json"].map(|table| {
        let table = std::fs::read_to_string(format!("{directory}/{table}")).unwrap();
        serde_json::from_str::<BTreeMap<String, Value>>(&table).unwrap()
    });
    let sample = |(name, case): (String, Value)| {
        let text = |field: &str| case[field].as_str().unwrap_or_default().to_owned();
        let status = text("note").strip_prefix("status ").map_or(200, |note| note[..3].parse().unwrap());
        Sample {
            name,
            content_type: text("content_type"),
            status,
            body: std::fs::read(format!("{directory}/{}", text("file"))).unwrap(),
            expected: case["expected"].clone(),
        }
    };
    tables.into_iter().flatten().map(sample).collect()
}

/// One replay of a sample: a script for the upstream, and what the client must get.
struct Replay {
    id: String,
    steps: Vec<Step>,
    body: Vec<u8>,
}

fn encode(body: &[u8], coding: &str) -> Vec<u8> {
    let level = flate2::Compression::default();
    match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(body).unwrap();
            encoder.into_inner()
        }
        "zstd" => zstd::encode_all(body, 3).unwrap(),
        _ => body.to_vec(),
    }
}

fn replay(sample: &Sample, coding: &str, cut: &str, random: &mut StdRng) -> Replay {
    let body = encode(&sample.body, coding);
    let mut head = answer(sample.status).header("content-type", &sample.content_type);
    if coding != "identity" {
        head = head.header("content-encoding", coding);
    }
    let steps = if cut == "whole" {
        head.body(&body)
    } else {
        let mut rest = &body[..];
        while !rest.is_empty() {
            let length = if cut == "bytes" { 1 } else { random.random_range(1..=40.min(rest.len())) };
            let (chunk, after) = rest.split_at(length);
            head = head.chunk(chunk);
            rest = after;
        }
        head.steps()
    };
    Replay { id: format!("{}.{coding}.{cut}", sample.name), steps: joined(steps), body }
}

/// One write for all: it is the chunks that are cut, not the segments of the wire.
fn joined(steps: Vec<Step>) -> Vec<Step> {
    let bytes = |step: &Step| match step {
        Step::Send(bytes) => bytes.to_vec(),
        _ => Vec::new(),
    };
    vec![Step::send(steps.iter().flat_map(bytes).collect::<Vec<_>>())]
}

/// The columns that the sample's expectation decides.
fn expected_row(sample: &Sample) -> Value {
    let of = |field: &str| sample.expected.get(field).cloned().unwrap_or(Value::Null);
    let failed = of("error_event") == json!(true);
    let streamed =
        ["event-stream", "ndjson", "stream+json"].iter().any(|part| sample.content_type.contains(part))
            || sample.name.starts_with("aisdk_v4_data_stream");
    let mut row = json!({
        "input_tokens": of("input_tokens"),
        "cached_input_tokens": of("cached_input_tokens"),
        "output_tokens": of("output_tokens"),
        "reasoning_tokens": of("reasoning_tokens"),
        "tokens_consumed": of("total"),
        "model": of("model"),
        "api_status_code": sample.status,
        "streamed": streamed,
        "outcome": if failed { "upstream_error" } else { "completed" },
        "token_source": if failed { "partial" } else { "reported" },
    });
    for field in ["cache_write_input_tokens", "cost_usd", "streamed"] {
        if let Some(value) = sample.expected.get(field) {
            row[field] = value.clone();
        }
    }
    let sum_alone = of("total").is_u64() && of("input_tokens").is_null() && of("output_tokens").is_null();
    if sum_alone && let Some(row) = row.as_object_mut() {
        // Split by an estimate; that it is the sum is checked of every row.
        row.retain(|column, _| !["input_tokens", "output_tokens"].contains(&column.as_str()));
    }
    if sample.status >= 400 {
        row["tokens_consumed"] = json!(0);
        row["token_source"] = json!("none");
    } else if of("output_tokens").is_null()
        && of("input_tokens").is_u64()
        && sample.expected.get("text").is_none()
    {
        // An embedding has no output: its input is all there is.
        row["tokens_consumed"] = of("input_tokens");
    } else if row["tokens_consumed"].is_null() {
        // Nothing, or one side alone, is reported: the text of the other is counted.
        let Some(row) = row.as_object_mut() else { return row };
        let model = row["model"].as_str().map(str::to_owned);
        let counted = counted(&of("text"), model.as_deref());
        let (input, output) = (row["input_tokens"].as_u64(), row["output_tokens"].as_u64());
        let (input, output) = (input.unwrap_or(counted.0), output.unwrap_or(counted.1));
        row.insert("input_tokens".into(), json!(input));
        row.insert("output_tokens".into(), json!(output));
        row.insert("tokens_consumed".into(), json!(input + output));
        if sample.expected["output_tokens"].is_null() && sample.expected.get("text").is_none() {
            // Another sample has the same body, with its text.
            row.retain(|column, _| !["output_tokens", "tokens_consumed"].contains(&column.as_str()));
        }
        row.insert("token_source".into(), json!(if failed { "partial" } else { "counted" }));
    }
    row
}

fn counted(text: &Value, model: Option<&str>) -> (u64, u64) {
    let text = Text::whole(text.as_str().unwrap_or_default());
    let prompt = Prompt { messages: 1, ..Prompt::default() };
    let request = Text { prompt: Some(Box::new(prompt)), ..Text::whole(QUESTION) };
    let counted = count(&CountJob { encoding: Encoding::for_model(model), request, answer: text });
    (counted.input, counted.output)
}

/// Asks for every replay on some connections at once, and checks what the client gets.
async fn ask_for_all(gateway: &TestGateway, replays: &BTreeMap<String, Arc<Replay>>) {
    let queue = Mutex::new(replays.values().cloned().collect::<Vec<_>>());
    let connection = async || {
        let mut client = gateway.connect().await;
        loop {
            let Some(replay) = queue.lock().unwrap().pop() else { return };
            let body = json!({"messages": [{"role": "user", "content": QUESTION}]});
            let asked = request("POST", "/v1/replay").header("x-tenant-id", "tn_formats");
            client.send(asked.header("x-request-id", &replay.id).json(&body)).await;
            let response = client.read_response().await;
            assert_eq!(response.ended, Ended::Clean, "{}", replay.id);
            assert!(
                response.body == replay.body,
                "{}: the body is not the upstream's (seed {SEED})",
                replay.id
            );
        }
    };
    futures_util::future::join_all((0..8).map(|_| connection())).await;
}

/// The rows by request id.
async fn rows(database: &Database<'_>) -> BTreeMap<String, Value> {
    let query = "SELECT request_id, to_jsonb(u) FROM tenant_usage_realtime u WHERE tenant_id = 'tn_formats'";
    let rows = database.connect().await.query(query, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn every_sample_in_every_coding_and_cut_passes_unchanged_and_leaves_the_row_it_must() {
    let samples = samples();
    let mut random = StdRng::seed_from_u64(SEED);
    let mut replays = BTreeMap::new();
    for sample in &samples {
        for coding in CODINGS {
            for cut in CUTS {
                let replay = replay(sample, coding, cut, &mut random);
                replays.insert(replay.id.clone(), Arc::new(replay));
            }
        }
    }
    let scripts: BTreeMap<_, _> =
        replays.iter().map(|(id, replay)| (id.clone(), replay.steps.clone())).collect();
    let upstream = Upstream::answering(move |request| {
        scripts[&request.header("x-request-id").expect("the id of a replay")].clone()
    })
    .await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).config(ROUTE).start().await;
    ask_for_all(&gateway, &replays).await;
    // A gateway that stopped has counted what was to be counted, and written everything.
    gateway.stop().await;

    let rows = rows(&database).await;
    assert_eq!(rows.len(), replays.len());
    let mut wrong = Vec::new();
    for sample in &samples {
        let expected = expected_row(sample);
        for (coding, cut) in CODINGS.iter().flat_map(|coding| CUTS.iter().map(move |cut| (coding, cut))) {
            let id = format!("{}.{coding}.{cut}", sample.name);
            let row = &rows[&id];
            let sum: u64 =
                ["input_tokens", "output_tokens"].iter().filter_map(|side| row[*side].as_u64()).sum();
            if row["token_source"] != "reserved" && row["tokens_consumed"] != json!(sum) {
                wrong.push(format!("{id}: tokens_consumed is {}, not the sum {sum}", row["tokens_consumed"]));
            }
            for (column, expected) in expected.as_object().unwrap() {
                if row[column] != *expected {
                    wrong.push(format!("{id}: {column} is {}, not {expected}", row[column]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "of {} rows (seed {SEED}):\n{}", rows.len(), wrong.join("\n"));
}

#[tokio::test]
async fn an_operators_own_format_is_told_apart_from_the_built_in_ones() {
    let own = json!({"say": "Hello", "engine": "e-1", "bill": {"in": 5, "of_that_cached": 2, "out": 7}});
    let upstream = Upstream::answering(move |_| answer(200).json(&own)).await;
    let database = shared().database();
    let format = "[formats.mine]\nauto = true\ninput = [\"/bill/in\"]\ncached_input = [\"/bill/of_that_cached\"]\noutput = [\"/bill/out\"]\nmodel = [\"/engine\"]\n";
    let gateway = gateway(&upstream, &database).config(&format!("{ROUTE}{format}")).start().await;
    let asked =
        request("POST", "/v1/replay").header("x-tenant-id", "tn_formats").header("x-request-id", "own");
    assert_eq!(gateway.ask(asked.json(&json!({"ask": "Hi"}))).await.status, 200);
    gateway.stop().await;
    let row = &rows(&database).await["own"];
    let columns = ["input_tokens", "cached_input_tokens", "output_tokens", "model", "token_source"];
    let expected = [json!(5), json!(2), json!(7), json!("e-1"), json!("reported")];
    assert_eq!(columns.map(|column| row[column].clone()), expected);
}

#[tokio::test]
async fn counts_in_headers_are_charged_and_a_zero_beside_a_text_is_counted() {
    let upstream = Upstream::answering(|request| match request.header("x-request-id").as_deref() {
        Some("headers") => answer(200)
            .header("x-amzn-bedrock-input-token-count", "512")
            .header("x-amzn-bedrock-output-token-count", "37")
            .json(&json!({"outputs": [{"text": "Two shoes."}]})),
        _ => answer(200).json(&json!({"choices": [{"message": {"content": "Two shoes."}}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}})),
    })
    .await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).config(ROUTE).start().await;
    for id in ["headers", "zero"] {
        let body = json!({"messages": [{"role": "user", "content": QUESTION}]});
        let asked = request("POST", "/v1/replay").header("x-tenant-id", "tn_formats");
        assert_eq!(gateway.ask(asked.header("x-request-id", id).json(&body)).await.status, 200);
    }
    gateway.stop().await;
    let rows = rows(&database).await;
    let headers = &rows["headers"];
    assert_eq!((&headers["input_tokens"], &headers["output_tokens"]), (&json!(512), &json!(37)), "{headers}");
    assert_eq!(headers["token_source"], "reported", "{headers}");
    let zero = &rows["zero"];
    assert!(zero["input_tokens"].as_u64() > Some(0) && zero["output_tokens"].as_u64() > Some(0), "{zero}");
    assert_eq!(
        (&zero["token_source"], &zero["metadata"]["meter_flag"]),
        (&json!("counted"), &json!("zero_usage"))
    );
}
