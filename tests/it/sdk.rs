//! Real SDK clients stream through the gateway unharmed: the `openai` and `anthropic` packages for Python, and `ai` for
//! Node, as `tests/sdk` pins them and `scripts/sdk-clients` installs them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::harness::{Request, Step, Upstream, answer, gateway};
use crate::postgres::shared;

/// Starting Python and Node takes seconds where others use the machine too.
const PATIENCE: Duration = Duration::from_secs(90);

const ROUTES: &str = r#"
[[routes]]
path = "/v1/chat/completions"
methods = ["POST"]
event = "chat_message"
[[routes]]
path = "/v1/responses"
methods = ["POST"]
event = "chat_message"
[[routes]]
path = "/v1/messages"
methods = ["POST"]
event = "chat_message"
[[routes]]
path = "/api/chat"
methods = ["POST"]
event = "chat_message"

[overrides.tn_sdk]
plan = "enterprise"
[overrides.tn_sdk_spent]
tokens_per_day = 1
"#;

/// Where `scripts/sdk-clients` put them.
fn installed() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = root.join(target).join("sdk");
    let pins = ["requirements.txt", "package-lock.json"]
        .map(|file| std::fs::read_to_string(root.join("tests/sdk").join(file)).unwrap());
    let there = std::fs::read_to_string(folder.join("pins")).unwrap_or_default();
    assert!(
        there == pins.concat(),
        "the SDK clients are not installed as pinned: run scripts/setup --with-sdk"
    );
    folder
}

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/formats").join(name)).unwrap()
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Replays the genuine answer that a request asks for, a stream in small chunks.
fn replay(request: &Request) -> Vec<Step> {
    let streamed = request.json()["stream"] == json!(true);
    let stream =
        |name: &str| answer(200).header("content-type", "text/event-stream").chunks(sample(name).chunks(7));
    let id = request.header("x-request-id").unwrap_or_default();
    match request.target() {
        "/v1/chat/completions" if id.ends_with("gzip") => answer(200)
            .header("content-type", "text/event-stream; charset=utf-8")
            .header("content-encoding", "gzip")
            .chunks(gzipped(&sample("openai_chat_stream_crlf.sse")).chunks(5))
            .steps(),
        "/v1/chat/completions" if streamed => stream("openai_chat_stream_crlf.sse").steps(),
        "/v1/chat/completions" => {
            answer(200).header("content-type", "application/json").body(sample("openai_chat.json"))
        }
        "/v1/responses" => stream("openai_responses_stream.sse").steps(),
        "/v1/messages" => stream("anthropic_stream.sse").steps(),
        "/api/chat" => stream("aisdk_v6_ui_stream.sse").steps(),
        other => panic!("no client asks for {other}"),
    }
}

/// Runs a client to its end; what it said, by name.
async fn run(mut command: Command, input: &[u8]) -> BTreeMap<String, Value> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).await.unwrap();
    drop(stdin);
    let output =
        tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("a client ends").unwrap();
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "a client failed:\n{said}\n{complaints}");
    let line = |line: &str| {
        let said: Value = serde_json::from_str(line).unwrap();
        (said["name"].as_str().unwrap().to_owned(), said)
    };
    said.lines().map(line).collect()
}

#[tokio::test]
async fn real_clients_see_the_whole_answer_and_their_tokens_are_recorded() {
    let sdk = installed();
    let upstream = Upstream::answering(replay).await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).config(ROUTES).start().await;
    let url = format!("http://{}", gateway.address);

    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
    let mut python = Command::new(sdk.join("venv/bin/python"));
    python.arg(scripts.join("clients.py")).arg(&url);
    // Node looks for packages beside the script; one from its input is taken to stand in its working folder.
    let mut node = Command::new("node");
    node.current_dir(&sdk).args(["--input-type=module", "-", &url]);
    let script = std::fs::read(scripts.join("clients.mjs")).unwrap();
    let (mut said, by_node) = tokio::join!(run(python, b""), run(node, &script));
    said.extend(by_node);
    gateway.stop().await;

    // What the clients saw.
    let number = |name: &str, pointer: &str| said[name]["usage"].pointer(pointer).and_then(Value::as_u64);
    let seen = |name: &str, text: &str, counts: &[(&str, u64)]| {
        assert_eq!(said[name]["text"], json!(text), "{name}: {}", said[name]);
        for (pointer, count) in counts {
            assert_eq!(number(name, pointer), Some(*count), "{name}: {pointer} of {}", said[name]);
        }
    };
    let chat = [
        ("/prompt_tokens", 2006),
        ("/completion_tokens", 300),
        ("/prompt_tokens_details/cached_tokens", 1920),
    ];
    for name in ["python.openai_chat_stream", "python.openai_chat_stream_gzip"] {
        seen(name, "Grüße 你好 🙂", &chat);
        assert_eq!(said[name]["chunks"], said["python.openai_chat_stream"]["chunks"]);
    }
    assert!(chat.iter().all(|(pointer, count)| number("python.openai_chat", pointer) == Some(*count)));
    seen("python.openai_responses_stream", "Hi", &[("/input_tokens", 36), ("/output_tokens", 87)]);
    seen("python.anthropic_stream", "Hello", &[("/input_tokens", 25), ("/output_tokens", 15)]);
    seen(
        "node.ai_openai",
        "Grüße 你好 🙂",
        &[("/inputTokens", 2006), ("/outputTokens", 300), ("/totalTokens", 2306)],
    );
    seen("node.ai_anthropic", "Hello", &[("/outputTokens", 15)]);
    let text = "Hello from the mock model — grüße, 你好. ";
    seen("node.ai_ui", text, &[("/inputTokens", 1200), ("/outputTokens", 345)]);
    let refused = &said["python.openai_quota"];
    assert_eq!((&refused["status"], &refused["body"]["code"]), (&json!(429), &json!("quota_exceeded")));

    // What was recorded.
    let query = "SELECT request_id, to_jsonb(u) FROM tenant_usage_realtime u";
    let rows = database.connect().await.query(query, &[]).await.unwrap();
    let rows: BTreeMap<String, Value> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows.len(), 9, "{:?}", rows.keys());
    let chat = ["2006", "1920", "300", "192", "2306", "\"reported\"", "\"completed\"", "true"];
    let messages = ["65", "40", "15", "null", "80", "\"reported\"", "\"completed\"", "true"];
    let expected = [
        (
            "python.openai_chat",
            ["2006", "1920", "300", "192", "2306", "\"reported\"", "\"completed\"", "false"],
        ),
        ("python.openai_chat_stream", chat),
        ("python.openai_chat_stream_gzip", chat),
        (
            "python.openai_responses_stream",
            ["36", "32", "87", "64", "123", "\"reported\"", "\"completed\"", "true"],
        ),
        ("python.anthropic_stream", messages),
        ("python.openai_quota", ["null", "null", "null", "null", "0", "\"none\"", "\"refused\"", "false"]),
        ("node.ai_openai", chat),
        ("node.ai_anthropic", messages),
        ("node.ai_ui", ["1200", "1000", "345", "120", "1545", "\"reported\"", "\"completed\"", "true"]),
    ];
    let columns = [
        "input_tokens",
        "cached_input_tokens",
        "output_tokens",
        "reasoning_tokens",
        "tokens_consumed",
        "token_source",
        "outcome",
        "streamed",
    ];
    for (id, expected) in expected {
        assert_eq!(columns.map(|column| rows[id][column].to_string()), expected, "{id}");
    }
}
