//! Several model calls in one answer: the last of each id, summed over the ids.

use proptest::prelude::*;
use serde_json::json;

use super::splits::cases_of;
use super::*;

fn sse(events: &[Value]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

/// Input and output of a stream of these events, which is the same in one byte chunks.
fn both(events: &[Value]) -> (Option<u64>, Option<u64>) {
    let body = sse(events);
    let whole = read(SSE, &body);
    assert_eq!(read_pieces(&pieces(body.as_bytes(), &[1]), 200, SSE, None), whole);
    (whole.usage.input, whole.usage.output)
}

fn chunk(id: &str, text: &str) -> Value {
    json!({"id": id, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
}

fn finish(id: &str) -> Value {
    json!({"id": id, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
}

fn usage(id: &str, input: u64, output: u64) -> Value {
    json!({"id": id, "choices": [], "usage": {"prompt_tokens": input, "completion_tokens": output,
        "total_tokens": input + output}})
}

fn with_usage(mut event: Value, input: u64, output: u64) -> Value {
    event["usage"] = usage("", input, output)["usage"].clone();
    event
}

#[test]
fn two_completions_in_one_stream_are_added_up() {
    let calls = |second: u64| {
        [
            chunk("c1", "Let me look."),
            finish("c1"),
            usage("c1", 300, 20),
            chunk("c2", "Two shoes."),
            finish("c2"),
            usage("c2", second, 40),
        ]
    };
    assert_eq!(both(&calls(400)), (Some(700), Some(60)));
    // The same prompt twice is two calls all the same.
    assert_eq!(both(&calls(300)), (Some(600), Some(60)));
}

#[test]
fn two_completions_that_come_interleaved_are_added_up() {
    let events = [
        chunk("c1", "Let"),
        chunk("c2", "Two"),
        chunk("c1", "me"),
        finish("c1"),
        finish("c2"),
        usage("c1", 300, 20),
        usage("c2", 400, 40),
        usage("c1", 300, 20),
    ];
    assert_eq!(both(&events), (Some(700), Some(60)));
}

#[test]
fn usage_in_every_chunk_of_one_completion_counts_once() {
    let growing = |id: fn(u64) -> String| {
        let mut events: Vec<_> = (1..=5).map(|n| with_usage(chunk(&id(n), "x"), 700, n * 10)).collect();
        events.push(with_usage(finish(&id(6)), 700, 60));
        events.push(usage(&id(7), 700, 60));
        events
    };
    assert_eq!(both(&growing(|_| "c1".into())), (Some(700), Some(60)));
    // Another id for each chunk, as some proxies make it up, is one completion all the same.
    assert_eq!(both(&growing(|n| format!("chunk-{n}"))), (Some(700), Some(60)));
}

#[test]
fn a_stream_without_ids_is_one_call() {
    let events: Vec<_> = (1..=3)
        .map(|n| json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": n}}))
        .collect();
    assert_eq!(both(&events), (Some(9), Some(3)));
}

#[test]
fn two_responses_in_one_stream_are_added_up() {
    let completed = |id: &str, input: u64, output: u64| {
        json!({"type": "response.completed", "response": {"id": id, "usage":
            {"input_tokens": input, "output_tokens": output, "total_tokens": input + output}}})
    };
    let created = |id: &str| json!({"type": "response.created", "response": {"id": id, "usage": null}});
    let events = [
        created("r1"),
        completed("r1", 300, 20),
        created("r2"),
        completed("r2", 300, 40),
        completed("r2", 300, 40),
    ];
    assert_eq!(both(&events), (Some(600), Some(60)));
}

#[test]
fn two_messages_in_one_stream_are_added_up() {
    let message = |id: &str, input: u64, restated: Value, output: u64| {
        let mut delta = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": output}});
        if !restated.is_null() {
            delta["usage"]["input_tokens"] = restated;
        }
        [
            json!({"type": "message_start", "message": {"id": id, "usage": {"input_tokens": input, "output_tokens": 1}}}),
            json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Two."}}),
            delta,
            json!({"type": "message_stop"}),
        ]
    };
    for restated in [json!(null), json!(300)] {
        let events = [message("m1", 300, restated.clone(), 20), message("m2", 300, restated, 40)].concat();
        assert_eq!(both(&events), (Some(600), Some(60)));
    }
}

/// An event of Google's Agent Development Kit: an id for each, whatever it belongs to.
fn adk(id: &str, text: &str, input: u64, output: u64, partial: bool) -> Value {
    let mut event = json!({"content": {"parts": [{"text": text}], "role": "model"}, "author": "a", "id": id,
        "usageMetadata": {"promptTokenCount": input, "candidatesTokenCount": output, "totalTokenCount": input + output}});
    if partial {
        event["partial"] = json!(true);
    }
    event
}

#[test]
fn the_agent_development_kits_events_are_a_call_each_unless_they_are_partial() {
    let two = [adk("e1", "Let me look.", 300, 20, false), adk("e2", "Two.", 400, 40, false)];
    assert_eq!(both(&two), (Some(700), Some(60)));
    let grown = [
        adk("e1", "Let", 300, 10, true),
        adk("e2", "me", 300, 20, true),
        adk("e3", "Let me", 300, 20, false),
        adk("e4", "Two", 400, 30, true),
        adk("e5", "Two.", 400, 40, false),
    ];
    assert_eq!(both(&grown), (Some(700), Some(60)));
    let list = read(JSON, &json!(two).to_string()).usage;
    assert_eq!((list.input, list.output), (Some(700), Some(60)));
}

#[test]
fn a_stream_that_is_one_array_of_cumulative_counts_is_one_call_however_long() {
    let part = |n: u64| json!({"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": n, "totalTokenCount": 9 + n}});
    let parts: Vec<_> = (1..=600).map(part).collect();
    let usage = read(JSON, &json!(parts).to_string()).usage;
    assert_eq!((usage.input, usage.output), (Some(9), Some(600)));
}

/// A message of LangChain's.
fn ai(id: &str, input: u64, output: u64) -> Value {
    json!({"content": "hello there", "type": "ai", "id": id, "response_metadata": {"model_name": "gpt-4o-mini"},
        "usage_metadata": {"input_tokens": input, "output_tokens": output, "total_tokens": input + output}})
}

fn human(id: &str) -> Value {
    json!({"content": "hello", "type": "human", "id": id})
}

#[test]
fn a_message_that_is_told_again_as_it_grows_counts_once() {
    let events = [5, 10, 22].map(|output| json!([ai("a", 111, output)]));
    assert_eq!(both(&events), (Some(111), Some(22)));
    assert_eq!(both(&[json!([ai("a", 111, 22)]), json!([ai("b", 200, 30)])]), (Some(311), Some(52)));
}

#[test]
fn a_messages_chunks_add_up_and_the_whole_message_counts_once_with_them() {
    let piece = |input: u64, output: u64| {
        let mut message = ai("a", input, output);
        message["type"] = json!("AIMessageChunk");
        json!([message, {"langgraph_node": "call"}])
    };
    let mut events = vec![piece(111, 1), piece(0, 21)];
    assert_eq!(both(&events), (Some(111), Some(22)));
    events.push(json!({"messages": [human("h"), ai("a", 111, 22)]}));
    assert_eq!(both(&events), (Some(111), Some(22)));
}

#[test]
fn what_stands_before_the_last_human_message_is_an_earlier_runs() {
    let state = |messages: &[Value]| json!({"messages": messages});
    let old = [human("h1"), ai("old", 5_000, 900), human("h2")];
    let first = state(&old);
    let second = state(&[&old[..], &[ai("a", 111, 22)]].concat());
    assert_eq!(both(&[first.clone(), second.clone()]), (Some(111), Some(22)));
    assert_eq!(read(JSON, &second.to_string()).usage.total(), Some(133));
    // One that this run was seen to make stays its own, whoever speaks next.
    let handed_on = state(&[human("h2"), ai("a", 111, 22), human("h3"), ai("b", 10, 2)]);
    assert_eq!(both(&[first, second.clone(), handed_on]), (Some(121), Some(24)));
    // A state that breaks off may have had a human message yet to come.
    let cut = second.to_string();
    assert_eq!(read(JSON, &cut[..cut.find("h2").unwrap()]).usage, TokenUsage::default());
}

#[test]
fn a_node_s_update_a_batch_and_a_dumped_message_under_any_key_are_read() {
    let dumped =
        |message: Value| json!({"lc": 1, "type": "constructor", "id": ["langchain"], "kwargs": message});
    for (body, expected) in [
        (json!({"call": {"messages": [ai("a", 111, 22)]}}), 133),
        (json!({"call": {"messages": ai("a", 111, 22)}}), 133),
        (json!({"output": [ai("a", 111, 22), ai("b", 10, 2), ai("c", 1, 1)]}), 147),
        (json!({"output": {"messages": [human("h"), ai("a", 111, 22)]}}), 133),
        (json!({"answer": dumped(ai("a", 111, 22))}), 133),
        (json!({"whatever": ai("a", 111, 22)}), 133),
        (json!({"messages": [dumped(human("h")), dumped(ai("a", 111, 22))]}), 133),
        (json!({"event": "on_chat_model_end", "data": {"output": dumped(ai("a", 111, 22))}}), 133),
    ] {
        assert_eq!(total(&body.to_string()), Some(expected), "{body}");
    }
}

#[test]
fn more_calls_than_are_told_apart_lose_no_count() {
    let events: Vec<_> = (0..1_000)
        .flat_map(|n| {
            let id = format!("c{n}");
            [chunk(&id, "x"), finish(&id), usage(&id, 3 + n % 2, 2)]
        })
        .collect();
    assert_eq!(both(&events), (Some(3_500), Some(2_000)));
    let messages: Vec<_> = (0..1_000).map(|n| ai(&format!("m{n}"), 3, 2)).collect();
    assert_eq!(total(&json!({"messages": messages}).to_string()), Some(5_000));
}

/// What a call does next.
#[derive(Clone, Copy, Debug)]
struct Next {
    call: usize,
}

proptest! {
    #![proptest_config(cases_of(64))]

    #[test]
    fn any_interleaving_of_messages_and_any_split_give_the_last_of_each_summed(
        calls in prop::collection::vec(prop::collection::vec((1..1_000u64, 1..1_000u64), 1..4), 1..6),
        order in prop::collection::vec((0usize..6).prop_map(|call| Next { call }), 0..24),
        lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let mut said = vec![0; calls.len()];
        let mut events = Vec::new();
        let rest = (0..calls.len()).flat_map(|call| std::iter::repeat_n(Next { call }, 4));
        for next in order.into_iter().chain(rest) {
            let call = next.call % calls.len();
            let Some((input, output)) = calls[call].get(said[call]) else { continue };
            said[call] += 1;
            events.push(json!([ai(&format!("m{call}"), *input, *output)]));
        }
        let last = calls.iter().map(|call| call[call.len() - 1]);
        let expected = last.fold((0, 0), |sum, last| (sum.0 + last.0, sum.1 + last.1));
        let body = sse(&events);
        let whole = read(SSE, &body);
        prop_assert_eq!((whole.usage.input, whole.usage.output), (Some(expected.0), Some(expected.1)));
        prop_assert_eq!(read_pieces(&pieces(body.as_bytes(), &lengths), 200, SSE, None), whole);
    }

    #[test]
    fn sums_never_wrap(counts in prop::collection::vec(prop_oneof![
        Just(u64::MAX), Just(i64::MAX as u64), 0..20_000_000u64], 1..8)) {
        let messages: Vec<_> =
            counts.iter().enumerate().map(|(n, count)| ai(&format!("m{n}"), *count / 2, *count / 2)).collect();
        let usage = read(JSON, &json!({"messages": messages}).to_string()).usage;
        let plausible: u64 = counts.iter().map(|count| count / 2).filter(|count| *count <= 10_000_000).sum();
        prop_assert!(usage.input.unwrap_or(0) <= plausible);
        prop_assert!(usage.output.unwrap_or(0) <= plausible);
    }
}
