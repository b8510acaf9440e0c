//! Counts that are not believed: a zero beside a text, a number that no call can reach.

use serde_json::json;

use super::*;

const SAID: &str = "There are two shoes in the box.";

fn chat(usage: Value) -> Value {
    json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": SAID}}], "usage": usage})
}

fn sse(events: &[Value]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

fn zeros() -> Value {
    json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
}

#[test]
fn a_zero_beside_a_text_is_not_believed() {
    let delta = |usage: Value| json!({"choices": [{"delta": {"content": SAID}}], "usage": usage});
    let gemini = |usage: Value| json!({"candidates": [{"content": {"parts": [{"text": SAID}]}}], "usageMetadata": usage});
    for (content_type, body) in [
        (JSON, chat(zeros()).to_string()),
        (SSE, sse(&[delta(json!(null)), json!({"choices": [], "usage": zeros()})])),
        (SSE, sse(&[delta(zeros()), json!({"choices": [], "usage": zeros()})])),
        (JSON, json!({"reply": SAID, "tokens_used": 0}).to_string()),
        (JSON, json!({"response": SAID, "prompt_eval_count": 0, "eval_count": 0}).to_string()),
        (JSON, gemini(json!({"promptTokenCount": 0, "totalTokenCount": 0})).to_string()),
    ] {
        let reading = read(content_type, &body);
        assert_eq!(reading.usage, TokenUsage::default(), "{body}");
        assert_eq!((reading.text, reading.flag), (Text::whole(SAID), Some("zero_usage")), "{body}");
    }
    // A sum that is the prompt's alone is none of an answer.
    let reading = read(JSON, &gemini(json!({"promptTokenCount": 12, "totalTokenCount": 12})).to_string());
    assert_eq!((reading.usage.input, reading.usage.output, reading.usage.total), (Some(12), None, None));
    assert_eq!((reading.text, reading.flag), (Text::whole(SAID), Some("zero_usage")));
}

#[test]
fn an_input_of_zero_beside_an_output_is_not_believed() {
    let reading = read(
        JSON,
        &chat(json!({"prompt_tokens": 0, "completion_tokens": 66, "total_tokens": 66})).to_string(),
    );
    assert_eq!((reading.usage.input, reading.usage.output), (None, Some(66)));
    assert_eq!(reading.flag, Some("zero_usage"));
}

#[test]
fn an_honest_zero_stays_what_it_is() {
    let embedding = json!({"object": "list", "data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}});
    let nothing = json!({"choices": [], "usage": zeros()});
    let cached = chat(
        json!({"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 0}}),
    );
    for (body, input, output) in [(embedding, 8, 0), (nothing, 0, 0), (cached.clone(), 8, 2)] {
        let reading = read(JSON, &body.to_string());
        assert_eq!((reading.usage.input, reading.usage.output), (Some(input), Some(output)), "{body}");
        assert_eq!(reading.flag, None, "{body}");
    }
    assert_eq!(read(JSON, &cached.to_string()).usage.cached_input, Some(0));
}

#[test]
fn a_later_zero_or_null_never_replaces_a_count() {
    let start = |usage: Value| json!({"type": "message_start", "message": {"id": "m", "usage": usage}});
    let delta = |usage: Value| json!({"type": "message_delta", "delta": {}, "usage": usage});
    let text = json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": SAID}});
    for (first, last) in [
        (json!({"input_tokens": 640, "output_tokens": 1}), json!({"input_tokens": 0, "output_tokens": 33})),
        (
            json!({"input_tokens": 640, "output_tokens": 1}),
            json!({"input_tokens": null, "output_tokens": 33}),
        ),
        (json!({"input_tokens": 0, "output_tokens": 0}), json!({"input_tokens": 640, "output_tokens": 33})),
        (json!({"input_tokens": 640}), json!({"input_tokens": -1, "output_tokens": 33})),
    ] {
        let usage = read(SSE, &sse(&[start(first), text.clone(), delta(last.clone())])).usage;
        assert_eq!((usage.input, usage.output), (Some(640), Some(33)), "{last}");
    }
    let cached =
        json!({"input_tokens": 4, "cache_read_input_tokens": 9_000, "cache_creation_input_tokens": 120});
    let zeros = json!({"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 33});
    let usage = read(SSE, &sse(&[start(cached), delta(zeros)])).usage;
    assert_eq!(
        (usage.input, usage.cached_input, usage.cache_write_input),
        (Some(9_124), Some(9_000), Some(120))
    );
}

#[test]
fn a_zero_keeps_the_text_that_comes_before_and_after_it() {
    let piece = |text: &str| json!({"choices": [{"delta": {"content": text}}], "usage": zeros()});
    let mut meter = Meter::new(&auto(), &config(), 200, Some(SSE.as_bytes()), None);
    meter.observe(sse(&[piece("Two "), piece("shoes.")]).as_bytes());
    assert!(!meter.reported());
    assert_eq!(meter.finish().text, Text::whole("Two shoes."));
}

#[test]
fn a_count_beyond_the_bound_of_one_call_is_not_believed() {
    let reading = read(JSON, &chat(json!({"prompt_tokens": 10_000_001, "completion_tokens": 7})).to_string());
    assert_eq!((reading.usage.input, reading.usage.output), (None, Some(7)));
    assert_eq!((reading.text, reading.flag), (Text::whole(SAID), Some("implausible_usage")));
    let most = read(JSON, &chat(json!({"prompt_tokens": 10_000_000, "completion_tokens": 7})).to_string());
    assert_eq!((most.usage.input, most.flag), (Some(10_000_000), None));
    // The one before stays, and it is said.
    let growing = [9, 1_000_000_000_000_u64]
        .map(|output| json!({"usage": {"prompt_tokens": 5, "completion_tokens": output}}));
    let reading = read(SSE, &sse(&growing));
    assert_eq!((reading.usage.output, reading.flag), (Some(9), Some("implausible_usage")));
    let small = Config { max_call_tokens: 100, ..config() };
    let mut meter = Meter::new(&auto(), &small, 200, Some(JSON.as_bytes()), None);
    meter.observe(br#"{"reply": "x", "tokens_used": 101}"#);
    assert_eq!(meter.finish().usage.total(), None);
}

#[test]
fn a_count_as_a_string_of_digits_is_a_number() {
    let usage = json!({"prompt_tokens": "345", "completion_tokens": "7", "total_tokens": "352"});
    let reading = read(JSON, &chat(usage).to_string());
    assert_eq!((reading.usage.input, reading.usage.output, reading.flag), (Some(345), Some(7), None));
}
