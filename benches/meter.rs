//! What looking at an answer costs.
//!
//! The aims: under 300 ns for a chunk of an OpenAI stream that holds no usage, and 1 GB/s over such chunks; a 1 KB
//! answer under 1 µs; a 1 MB answer under 1 ms; and the chat service's `partial`, which repeats the whole text in every
//! event, linear in its bytes.
#![allow(missing_docs)]

use std::hint::black_box;
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

criterion_group!(benches, streams, answers, requests, counting);
criterion_main!(benches);
