//! What looking at an answer costs.
//!
//! The aims: under 300 ns for a chunk of an OpenAI stream that holds no usage, and 1 GB/s over such chunks; a 1 KB
//! answer under 1 µs; a 1 MB answer under 1 ms; and the chat service's `partial`, which repeats the whole text in every
//! event, linear in its bytes. For every format there is one event of a stream without usage, and one whole answer.
#![allow(missing_docs)]

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tollgate::meter::{Config, CountJob, Encoding, Format, Formats, Meter, Text, count, inspect};

const JSON: Option<&[u8]> = Some(b"application/json");
const SSE: Option<&[u8]> = Some(b"text/event-stream");

fn format(name: &str) -> Arc<Format> {
    Formats::builtin().format(name).expect("a built-in format")
}

fn openai_chunk(content: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-A1b2C3d4E5f6G7h8I9j0K1l2M3n4\",\"object\":\"chat.completion.chunk\",\
         \"created\":1730000000,\"model\":\"gpt-4o-2024-08-06\",\"service_tier\":\"default\",\
         \"system_fingerprint\":\"fp_1234567890\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}},\
         \"logprobs\":null,\"finish_reason\":null}}],\"usage\":null}}\n\n"
    )
}

fn streams(c: &mut Criterion) {
    let config = Config::default();
    let mut group = c.benchmark_group("stream");
    for name in ["auto", "openai-chat"] {
        let format = format(name);
        for (kind, content) in [("chunk", " hello"), ("long chunk", &"many words in one chunk ".repeat(80))] {
            let chunk = openai_chunk(content);
            group.throughput(Throughput::Bytes(chunk.len() as u64));
            let mut meter = Meter::new(&format, &config, 200, SSE, None);
            group.bench_function(format!("openai {kind} without usage, {name}"), |b| {
                b.iter(|| meter.observe(black_box(chunk.as_bytes())));
            });
        }
    }

    let format = format("auto");
    let mut text = String::new();
    let mut body = String::new();
    for _ in 0..400 {
        text.push_str("word ");
        body.push_str(&format!("data: {{\"token\": \"word \", \"partial\": \"{text}\"}}\n\n"));
    }
    body.push_str(&format!("data: {{\"done\": true, \"final\": \"{text}\", \"sources\": []}}\n\n"));
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("chat service, 400 events with partial", |b| {
        b.iter(|| {
            let mut meter = Meter::new(&format, &config, 200, SSE, None);
            for chunk in body.as_bytes().chunks(1400) {
                meter.observe(black_box(chunk));
            }
            meter.finish()
        });
    });
    group.finish();
}

/// An event of each format's stream that holds no usage, as it comes over and over, and what types it.
fn formats(c: &mut Criterion) {
    const LINES: &[u8] = b"application/x-ndjson";
    const CODED: &[u8] = b"text/plain; charset=utf-8";
    let events: [(&str, &[u8], String); 11] = [
        ("openai-chat", b"text/event-stream", openai_chunk(" hello")),
        ("openai-responses", b"text/event-stream", sse(
            "event: response.output_text.delta\n",
            r#"{"type":"response.output_text.delta","sequence_number":7,"item_id":"msg_68","output_index":0,"content_index":0,"delta":" hello","logprobs":[],"obfuscation":"XnM3aBcD"}"#,
        )),
        ("anthropic", b"text/event-stream", sse(
            "event: content_block_delta\n",
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" hello"}}"#,
        )),
        ("gemini", b"text/event-stream", sse(
            "",
            r#"{"candidates":[{"content":{"parts":[{"text":" hello"}],"role":"model"},"index":0}],"modelVersion":"gemini-2.5-flash","responseId":"x1"}"#,
        )),
        ("cohere", b"text/event-stream", sse(
            "event: content-delta\n",
            r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":" hello"}}}}"#,
        )),
        ("ollama", LINES, concat!(
            r#"{"model":"llama3.2","created_at":"2026-11-24T08:00:00.000000Z","message":{"role":"assistant","content":" hello"},"done":false}"#,
            "\n"
        ).to_owned()),
        ("vercel-ai", b"text/event-stream", sse("", r#"{"type":"text-delta","id":"t1","delta":" hello"}"#)),
        ("vercel-ai, data stream", CODED, "0:\" hello\"\n".to_owned()),
        ("dify", b"text/event-stream", sse(
            "",
            r#"{"event":"message","conversation_id":"45701982","message_id":"5ad4cb98","created_at":1679586595,"task_id":"900bbd43","id":"5ad4cb98","answer":" hello","from_variable_selector":null}"#,
        )),
        ("langchain", b"text/event-stream", sse(
            "event: data\n",
            r#"{"content":" hello","additional_kwargs":{},"response_metadata":{},"type":"AIMessageChunk","name":null,"id":"run-1"}"#,
        )),
        ("text-generation-inference", b"text/event-stream", sse(
            "",
            r#"{"index":1,"token":{"id":2,"text":" hello","logprob":-0.1,"special":false},"generated_text":null,"details":null}"#,
        )),
    ];
    let config = Config::default();
    let auto = format("auto");
    let mut group = c.benchmark_group("event without usage, auto");
    for (name, content_type, event) in &events {
        group.throughput(Throughput::Bytes(event.len() as u64));
        let mut meter = Meter::new(&auto, &config, 200, Some(content_type), None);
        group.bench_function(*name, |b| b.iter(|| meter.observe(black_box(event.as_bytes()))));
    }
    group.finish();

    let mut group = c.benchmark_group("sample, auto");
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/formats");
    for (name, content_type) in [
        ("openai_chat.json", "application/json"),
        ("openai_chat_stream_crlf.sse", "text/event-stream"),
        ("openai_responses_stream.sse", "text/event-stream"),
        ("anthropic_stream.sse", "text/event-stream"),
        ("gemini.json", "application/json"),
        ("gemini_stream.sse", "text/event-stream"),
        ("groq_stream.sse", "text/event-stream"),
        ("mistral_stream.sse", "text/event-stream"),
        ("cohere_v2_stream.sse", "text/event-stream"),
        ("bedrock_converse.json", "application/json"),
        ("bedrock_converse_stream.bin", "application/vnd.amazon.eventstream"),
        ("bedrock_invoke_stream_anthropic.bin", "application/vnd.amazon.eventstream"),
        ("ollama_generate.ndjson", "application/x-ndjson"),
        ("aisdk_v4_data_stream.txt", "text/plain"),
        ("aisdk_v6_ui_stream.sse", "text/event-stream"),
        ("dify_stream.sse", "text/event-stream"),
        ("langchain_dumps.json", "application/json"),
    ] {
        let body = std::fs::read(format!("{directory}/{name}")).expect("a sample");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut meter = Meter::new(&auto, &config, 200, Some(content_type.as_bytes()), None);
                meter.observe(black_box(&body));
                meter.finish()
            });
        });
    }
    group.finish();
}

fn sse(name: &str, data: &str) -> String {
    format!("{name}data: {data}\n\n")
}

/// The same stream in each coding, in the chunks of a network.
fn codings(c: &mut Criterion) {
    let config = Config::default();
    let auto = format("auto");
    let words = ["It ", "is ", "a ", "truth ", "universally ", "acknowledged, "];
    let body: String = words.iter().cycle().take(600).map(|word| openai_chunk(word)).collect();
    let encoded: [(&str, Vec<u8>); 4] = [
        ("identity", body.clone().into_bytes()),
        ("gzip", {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(body.as_bytes()).expect("memory");
            encoder.finish().expect("memory")
        }),
        ("br", {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(body.as_bytes()).expect("memory");
            encoder.into_inner()
        }),
        ("zstd", zstd::encode_all(body.as_bytes(), 3).expect("memory")),
    ];
    let mut group = c.benchmark_group("openai stream of 600 events");
    group.throughput(Throughput::Bytes(body.len() as u64));
    for (coding, encoded) in &encoded {
        group.bench_function(*coding, |b| {
            b.iter(|| {
                let mut meter = Meter::new(&auto, &config, 200, SSE, Some(coding.as_bytes()));
                encoded.chunks(1400).for_each(|chunk| meter.observe(black_box(chunk)));
                meter.finish()
            });
        });
    }
    group.finish();
}

fn answers(c: &mut Criterion) {
    let config = Config::default();
    let format = format("auto");
    let mut group = c.benchmark_group("answer");
    let openai = |length: usize| {
        let content = "It is a truth universally acknowledged, that a single man \\\"must\\\" be in want.\\n";
        format!(
            "{{\"id\":\"chatcmpl-A1\",\"object\":\"chat.completion\",\"created\":1730000000,\
             \"model\":\"gpt-4o-2024-08-06\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\
             \"content\":\"{}\",\"refusal\":null}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],\
             \"usage\":{{\"prompt_tokens\":2006,\"completion_tokens\":300,\"total_tokens\":2306,\
             \"prompt_tokens_details\":{{\"cached_tokens\":1920,\"audio_tokens\":0}},\
             \"completion_tokens_details\":{{\"reasoning_tokens\":192,\"audio_tokens\":0}}}}}}",
            content.repeat(length / content.len())
        )
    };
    let embeddings = {
        let numbers = "-0.0123456,0.0234567,".repeat(1000);
        let one = format!("{{\"object\":\"embedding\",\"index\":0,\"embedding\":[{}0]}},", numbers);
        format!(
            "{{\"object\":\"list\",\"data\":[{}null],\"model\":\"m\",\"usage\":{{\"prompt_tokens\":8,\"total_tokens\":8}}}}",
            one.repeat((1 << 20) / one.len())
        )
    };
    let batch = {
        let item = "{\"reply\":\"Some words of an answer\",\"sources\":[{\"text\":\"a source\",\"similarity\":0.71}],\
             \"tokens_used\":1,\"latency_ms\":120,\"query\":\"q\",\"error\":null,\"status\":\"ok\"}";
        format!("{{\"batch\":[{}],\"totalTokens\":512}}", [item; 5].join(","))
    };
    for (name, body) in [
        ("1 KB with usage", openai(480)),
        ("1 KB chat service batch", batch),
        ("1 MB with usage, text", openai(1 << 20)),
        ("1 MB with usage, embeddings", embeddings),
    ] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut meter = Meter::new(&format, &config, 200, JSON, None);
                meter.observe(black_box(body.as_bytes()));
                meter.finish()
            });
        });
    }
    group.finish();
}

fn requests(c: &mut Criterion) {
    let config = Config::default();
    let format = format("auto");
    let body = br#"{"sessionId": "3f0c2a4e-0f0e-4a7e-9a57-0d6d8a3b1c11", "message": "What are your opening hours on Sunday?", "responseCharacterLimit": 450}"#;
    c.bench_function("request/chat service, single", |b| {
        b.iter(|| inspect(&format, &config, black_box(body), &["/sessionId"]));
    });
}

fn counting(c: &mut Criterion) {
    let text =
        "It is a truth universally acknowledged, that a single man must be in want of a wife. ".repeat(24);
    let mut group = c.benchmark_group("count");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("2 KB of English, o200k", |b| {
        b.iter_batched(
            || CountJob {
                encoding: Encoding::O200k,
                request: Text::default(),
                answer: Text::whole(text.as_str()),
            },
            |job| count(&job),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, streams, formats, codings, answers, requests, counting);
criterion_main!(benches);
