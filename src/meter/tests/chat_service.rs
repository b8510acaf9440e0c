//! The chat service's own four forms.

use super::*;

#[test]
fn a_single_answer_reports_nothing_and_its_text_is_to_be_counted() {
    let reading =
        read(JSON, r#"{"reply": "Grüße", "sources": [{"text": "no", "similarity": 1}], "metadata": {}}"#);
    assert_eq!(reading.usage, TokenUsage::default());
    assert_eq!((reading.text, reading.messages), (Text::whole("Grüße"), Some(1)));
}

#[test]
fn a_batch_reports_its_sum_and_its_messages() {
    let body = r#"{"batch": [{"reply": "a", "tokens_used": 200, "error": null, "query": "q"},
        {"reply": "b", "tokens_used": 312, "query": "q"}], "aggregated": true, "totalTokens": 512,
        "totalLatency": 830, "audits": [], "summary": {"batchSize": 2, "totalTokens": 512}}"#;
    let reading = read(JSON, body);
    assert_eq!((reading.usage.total(), reading.messages), (Some(512), Some(2)));
    // A sum alone says nothing of its sides: the text is kept, which tells them apart.
    assert_eq!(reading.text.kept, "ab");
}

#[test]
fn a_batch_without_its_sum_is_the_sum_of_its_answers() {
    assert_eq!(total(r#"{"batch": [{"tokens_used": 200}, {"tokens_used": 312}]}"#), Some(512));
}

#[test]
fn the_final_text_of_a_stream_counts_once() {
    let body = "data: {\"token\": \"Hel\", \"partial\": \"Hel\"}\n\ndata: {\"token\": \"lo\", \"partial\": \"Hello\"}\n\n\
        data: {\"done\": true, \"final\": \"Hello\", \"confidence\": 0.9, \"metadata\": {}, \"sources\": []}\n\n";
    let reading = read(SSE, body);
    assert_eq!((reading.text, reading.messages, reading.error_event), (Text::whole("Hello"), Some(1), false));
}

#[test]
fn a_stream_that_breaks_off_is_worth_the_tokens_it_sent() {
    let body =
        "data: {\"token\": \"Hel\", \"partial\": \"Hel\"}\n\ndata: {\"token\": \"lo\", \"partial\": \"He";
    assert_eq!(read(SSE, body).text, Text::whole("Hello"));
}

#[test]
fn a_streamed_batch_is_the_sum_over_its_events() {
    let event = |tokens| {
        format!(
            "data: {{\"reply\": \"x\", \"tokens_used\": {tokens}, \"query\": \"q\", \"error\": null}}\n\n"
        )
    };
    let reading = read(SSE, &[event(100), event(20), event(3)].concat());
    assert_eq!((reading.usage.total(), reading.messages), (Some(123), Some(3)));
}

#[test]
fn a_message_that_failed_is_no_failure_of_its_batch() {
    let body = "data: {\"query\": \"q\", \"error\": \"no\", \"status\": \"failed\", \"tokens_used\": 0}\n\n";
    assert!(!read(SSE, body).error_event);
}

#[test]
fn the_cost_of_repeated_text_is_linear() {
    // Were `partial` kept or parsed anew from the start, 4 MB of it would take seconds.
    let mut partial = String::new();
    let mut body = String::new();
    for _ in 0..2000 {
        partial.push_str("ab ");
        body.push_str(&format!("data: {{\"token\": \"ab \", \"partial\": \"{partial}\"}}\n\n"));
    }
    assert_eq!(read(SSE, &body).text, Text::whole(partial));
}
