//! Usage in other places: a choice, an envelope, a header, parts; and what has a price of its own.

use serde_json::json;

use super::*;
use crate::model::billing::{Billing, Tier};

fn sides(body: &Value) -> (Option<u64>, Option<u64>) {
    let usage = read(JSON, &body.to_string()).usage;
    (usage.input, usage.output)
}

fn openai() -> Value {
    json!({"id": "c", "choices": [{"message": {"content": "Two."}}],
        "usage": {"prompt_tokens": 812, "completion_tokens": 64, "total_tokens": 876}})
}

#[test]
fn a_usage_within_a_choice_counts_once_wherever_else_it_stands() {
    let usage =
        json!({"prompt_tokens": 812, "completion_tokens": 64, "total_tokens": 876, "cached_tokens": 700});
    let choice = json!({"choices": [{"delta": {}, "finish_reason": "stop", "usage": usage}]});
    let reading = read(JSON, &choice.to_string()).usage;
    assert_eq!((reading.input, reading.cached_input, reading.output), (Some(812), Some(700), Some(64)));
    let mut twice = choice;
    twice["usage"] = usage;
    assert_eq!(sides(&twice), (Some(812), Some(64)));
}

#[test]
fn an_answer_in_an_envelope_is_read_within_it() {
    let anthropic = json!({"type": "message", "content": [{"type": "text", "text": "Two."}],
        "usage": {"input_tokens": 802, "cache_read_input_tokens": 10, "output_tokens": 64}});
    for envelope in ["result", "data", "message", "response", "output", "body", "payload"] {
        let body = json!({"code": 0, envelope: openai()});
        assert_eq!(sides(&body), (Some(812), Some(64)), "{envelope}");
        let streamed = format!("data: {body}\n\n");
        assert_eq!(read(SSE, &streamed).usage.total(), Some(876), "{envelope}");
        let mut untold = body;
        untold[envelope]["usage"] = json!(null);
        assert_eq!(read(JSON, &untold.to_string()).text, Text::whole("Two."), "{envelope}");
    }
    for envelope in ["result", "data", "body"] {
        assert_eq!(sides(&json!({envelope: anthropic})), (Some(812), Some(64)), "{envelope}");
    }
    let mut both = json!({"data": openai()});
    both["usage"] = openai()["usage"].clone();
    assert_eq!(sides(&both), (Some(812), Some(64)));
}

#[test]
fn a_format_of_the_config_names_its_envelopes_and_headers() {
    let config: FormatConfig = serde_json::from_value(json!({
        "input": ["/in"], "output": ["/out"], "envelopes": ["/reply/meter"], "headers": {"output": ["X-Out"]},
    }))
    .unwrap();
    let mine = Formats::builtin().with("mine", &config).unwrap().format("mine").unwrap();
    let mut meter = Meter::new(&mine, &super::config(), 200, Some(JSON.as_bytes()), None);
    meter.headers(|name| (name == "x-out").then_some(&b"7"[..]));
    meter.observe(br#"{"reply": {"meter": {"in": 5}}}"#);
    let usage = meter.finish().usage;
    assert_eq!((usage.input, usage.output), (Some(5), Some(7)));
    for (key, wrong) in [
        ("headers", json!({"headers": {"input": ["not a name"]}})),
        ("envelopes", json!({"envelopes": ["reply"]})),
        ("parts", json!({"parts": {"/usage/type": ["x"]}})),
        ("calls.turn_when", json!({"calls": {"turn_when": {"/type": ["human"]}}})),
    ] {
        let config: FormatConfig = serde_json::from_value(wrong).unwrap();
        assert_eq!(Formats::builtin().with("mine", &config).unwrap_err().key, key);
    }
}

#[test]
fn all_that_a_format_points_at_may_stand_in_its_envelopes() {
    let config: FormatConfig = serde_json::from_value(json!({
        "envelopes": ["/data"], "text": ["/choices/*/text"], "choices": ["/choices/*/index"],
        "error_unless": {"/success": ["true"]},
    }))
    .unwrap();
    let mine = Formats::builtin().with("mine", &config).unwrap().format("mine").unwrap();
    let read = |bodies: &[Value]| {
        let mut meter = Meter::new(&mine, &super::config(), 200, Some(SSE.as_bytes()), None);
        bodies.iter().for_each(|body| meter.observe(format!("data: {body}\n\n").as_bytes()));
        meter.finish()
    };
    let piece = |index, text| json!({"data": {"choices": [{"index": index, "text": text}]}});
    let text = read(&[piece(0, "un"), piece(1, "der")]).text;
    assert_eq!(text.parts().collect::<Vec<_>>(), ["un", "der"]);
    assert!(read(&[json!({"data": {"success": false}})]).failed);
    assert!(!read(&[json!({"data": {"success": true}})]).failed);
}

#[test]
fn geminis_counts_by_modality_are_read_whatever_comes_first() {
    let usage = |audio: Value| {
        json!({"promptTokenCount": 1000, "candidatesTokenCount": 50, "totalTokenCount": 1050,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 40}, audio, {"tokenCount": 60, "modality": "IMAGE"}],
            "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 30}, {"modality": "AUDIO"}, {"tokenCount": 7}]})
    };
    let body = |usage: Value| json!({"candidates": [{"content": {"parts": [{"text": "Hi."}]}}], "usageMetadata": usage});
    let billing = |body: &Value| {
        let Billing { audio_input, image_input, audio_output, image_output, .. } =
            read(JSON, &body.to_string()).billing;
        [audio_input, image_input, audio_output, image_output]
    };
    let expected = [Some(900), Some(60), Some(30), None];
    assert_eq!(billing(&body(usage(json!({"modality": "AUDIO", "tokenCount": 900})))), expected);
    assert_eq!(billing(&body(usage(json!({"tokenCount": 900, "modality": "AUDIO"})))), expected);
    // Whole streams in one list, each event with the counts so far.
    let event = body(usage(json!({"modality": "AUDIO", "tokenCount": 900})));
    assert_eq!(billing(&json!([event, event])), expected);
    let streamed = read(SSE, &format!("data: {event}\n\ndata: {event}\n\n")).billing;
    assert_eq!((streamed.audio_input, streamed.audio_output), (Some(900), Some(30)));
    // The dumps of Python's SDK.
    let snake = json!({"usage_metadata": {"prompt_token_count": 1000, "candidates_token_count": 50,
        "prompt_tokens_details": [{"modality": "AUDIO", "token_count": 900}]}});
    assert_eq!(billing(&snake), [Some(900), None, None, None]);
}

fn with_headers(body: &Value, headers: &[(&str, &'static str)]) -> Reading {
    let mut meter = Meter::new(&auto(), &config(), 200, Some(JSON.as_bytes()), None);
    meter.headers(|name| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes()));
    meter.observe(body.to_string().as_bytes());
    meter.finish()
}

#[test]
fn counts_in_headers_are_read_where_the_body_has_none() {
    let bedrock = [
        ("x-amzn-bedrock-input-token-count", "512"),
        ("x-amzn-bedrock-output-token-count", "37"),
        ("x-amzn-bedrock-cache-read-input-token-count", "100"),
    ];
    let mistral = json!({"outputs": [{"text": "Two shoes."}]});
    let usage = with_headers(&mistral, &bedrock).usage;
    assert_eq!((usage.input, usage.cached_input, usage.output), (Some(612), Some(100), Some(37)));
    let usage = with_headers(&json!({"embeddings": [[0.1]]}), &bedrock[..1]).usage;
    assert_eq!((usage.input, usage.output), (Some(512), None));
    // What the body says has precedence.
    assert_eq!(with_headers(&openai(), &bedrock).usage.total(), Some(876));
    let usage = with_headers(&json!([[0.1, 0.2]]), &[("x-compute-tokens", "9")]).usage;
    assert_eq!(usage.total(), Some(9));
    // A zero in a header is no more of a count than one in the body.
    let zero = [("x-prompt-tokens", "5"), ("x-generated-tokens", "0")];
    let reading = with_headers(&json!({"generated_text": "Two."}), &zero);
    assert_eq!((reading.usage.input, reading.usage.output), (Some(5), None));
    assert_eq!((reading.text, reading.flag), (Text::whole("Two."), Some("zero_usage")));
}

#[test]
fn a_usage_in_parts_is_their_sum_where_one_is_no_plain_message() {
    let body = |first: &str| {
        json!({"type": "message", "content": [{"type": "text", "text": "Done."}], "usage": {
            "input_tokens": 21_000, "output_tokens": 900, "cache_creation_input_tokens": 0,
            "iterations": [
                {"type": first, "input_tokens": 150_000, "output_tokens": 2_800, "cache_creation_input_tokens": 30,
                    "cache_creation": {"ephemeral_1h_input_tokens": 20}},
                {"type": "message", "input_tokens": 21_000, "output_tokens": 900, "cache_creation_input_tokens": 0}]}})
    };
    for kind in ["compaction", "advisor_message"] {
        let reading = read(JSON, &body(kind).to_string());
        assert_eq!((reading.usage.input, reading.usage.output), (Some(171_030), Some(3_700)), "{kind}");
        assert_eq!(reading.billing.cache_write_1h, Some(20), "{kind}");
    }
    assert_eq!(sides(&body("message")), (Some(21_000), Some(900)));
}

#[test]
fn tokens_that_a_sum_leaves_out_are_billed_all_the_same() {
    let usage = |thought: Value| {
        json!({"choices": [{"message": {"content": "A report."}}], "usage": {"prompt_tokens": 40,
            "completion_tokens": 900, "total_tokens": 940, "citation_tokens": 2_500, "num_search_queries": 12,
            "reasoning_tokens": thought}})
    };
    assert_eq!(sides(&usage(json!(30_000))), (Some(2_540), Some(30_900)));
    assert_eq!(sides(&usage(json!(500))), (Some(2_540), Some(1_400)));
    assert_eq!(sides(&usage(json!(null))), (Some(2_540), Some(900)));
    assert_eq!(read(JSON, &usage(json!(500)).to_string()).billing.web_searches, Some(12));
}

fn billing(body: &Value) -> Billing {
    read(JSON, &body.to_string()).billing
}

#[test]
fn a_tier_is_read_where_it_has_a_price_of_its_own() {
    let chat = |tier: &str| {
        let mut body = openai();
        body["service_tier"] = json!(tier);
        billing(&body).tier
    };
    assert_eq!(
        [chat("flex"), chat("priority"), chat("default")],
        [Some(Tier::Flex), Some(Tier::Priority), None]
    );
    let anthropic = json!({"usage": {"input_tokens": 5, "output_tokens": 7, "service_tier": "batch"}});
    assert_eq!(billing(&anthropic).tier, Some(Tier::Batch));
    let stream = "data: {\"response\": {\"service_tier\": \"priority\"}}\n\ndata: {\"response\": {\"service_tier\": \"default\", \
        \"usage\": {\"input_tokens\": 5, \"output_tokens\": 7}}}\n\n";
    assert_eq!(read(SSE, stream).billing.tier, None);
}

#[test]
fn parts_with_a_price_of_their_own_are_read_and_a_zero_is_none() {
    let chat = json!({"usage": {"prompt_tokens": 50, "completion_tokens": 40,
        "prompt_tokens_details": {"audio_tokens": 30, "image_tokens": 0}, "completion_tokens_details": {"audio_tokens": 25}}});
    let parts = Billing { audio_input: Some(30), audio_output: Some(25), ..Billing::default() };
    assert_eq!(billing(&chat), parts);
    let images = json!({"data": [], "usage": {"input_tokens": 50, "output_tokens": 4_160,
        "input_tokens_details": {"image_tokens": 40, "text_tokens": 10}, "output_tokens_details": {"image_tokens": 4_160}}});
    let parts = Billing { image_input: Some(40), image_output: Some(4_160), ..Billing::default() };
    assert_eq!(billing(&images), parts);
    let anthropic = json!({"usage": {"input_tokens": 5, "output_tokens": 7, "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
        "server_tool_use": {"web_search_requests": 3}}});
    let parts = Billing { cache_write_1h: Some(40), web_searches: Some(3), ..Billing::default() };
    assert_eq!(billing(&anthropic), parts);
    let searched = json!({"output": [{"type": "web_search_call"}, {"type": "message"}, {"type": "web_search_call"}],
        "usage": {"input_tokens": 5, "output_tokens": 7}});
    assert_eq!(billing(&searched).web_searches, Some(2));
    let rerank = json!({"results": [], "meta": {"billed_units": {"search_units": 2}}});
    assert_eq!(billing(&rerank).rerank_units, Some(2));
}

#[test]
fn what_has_a_price_of_its_own_is_added_up_over_the_calls() {
    let call = |id: &str, input: u64| {
        json!({"id": id, "choices": [], "usage": {"prompt_tokens": input, "completion_tokens": 1, "cost": 0.25,
            "prompt_tokens_details": {"audio_tokens": 4}}})
    };
    let body = format!("data: {}\n\ndata: {}\n\n", call("a", 10), call("b", 20));
    let billing = read(SSE, &body).billing;
    assert_eq!((billing.audio_input, billing.reported_cost_nanousd), (Some(8), Some(500_000_000)));
}

#[test]
fn a_reported_cost_is_exact_to_the_nano_dollar() {
    for (cost, nano) in [
        ("0.00014", Some(140_000)),
        ("1.4e-05", Some(14_000)),
        ("1.4E-5", Some(14_000)),
        ("0.1", Some(100_000_000)),
        ("12", Some(12_000_000_000)),
        ("\"0.25\"", Some(250_000_000)),
        ("0.0000000005", Some(1)),
        ("0.00000000049", None),
        ("1e-40", None),
        ("0", None),
        ("-1", None),
        ("1e30", None),
        ("null", None),
    ] {
        let body = format!(r#"{{"usage": {{"prompt_tokens": 5, "completion_tokens": 7, "cost": {cost}}}}}"#);
        let reading = read(JSON, &body);
        assert_eq!(reading.billing.reported_cost_nanousd, nano, "{cost}");
        assert_eq!(reading.flag, None, "{cost}");
    }
    // With the customer's own key it is the go-between's fee alone.
    let own_key =
        json!({"usage": {"prompt_tokens": 5, "completion_tokens": 7, "cost": 0.95, "is_byok": true}});
    assert_eq!(billing(&own_key), Billing::default());
}
