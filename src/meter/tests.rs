//! Claims about the whole meter, on genuine answers and on hostile ones.

use std::io::Write;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const JSON: &str = "application/json";
const SSE: &str = "text/event-stream";

struct Case {
    name: String,
    content_type: String,
    status: u16,
    body: Vec<u8>,
    expected: Value,
}

/// The genuine answers of `tests/cases/formats`, ours among them, with what must be recorded of each.
fn cases() -> Vec<Case> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/formats");
    let mut cases = Vec::new();
    for table in ["expected.json", "more.json"] {
        let table = std::fs::read_to_string(format!("{directory}/{table}")).unwrap();
        let table: std::collections::BTreeMap<String, Value> = serde_json::from_str(&table).unwrap();
        for (name, case) in table {
            let file = case["file"].as_str().unwrap();
            let note = case["note"].as_str().unwrap_or_default();
            let status = note.strip_prefix("status ").map_or(200, |note| note[..3].parse().unwrap());
            cases.push(Case {
                name,
                content_type: case["content_type"].as_str().unwrap().to_owned(),
                status,
                body: std::fs::read(format!("{directory}/{file}")).unwrap(),
                expected: case["expected"].clone(),
            });
        }
    }
    assert!(cases.len() > 40);
    cases
}

fn config() -> Config {
    Config::default()
}

fn auto() -> Arc<Format> {
    static AUTO: LazyLock<Arc<Format>> = LazyLock::new(|| Formats::builtin().format("auto").unwrap());
    AUTO.clone()
}

fn read_pieces(pieces: &[&[u8]], status: u16, content_type: &str, encoding: Option<&str>) -> Reading {
    let encoding = encoding.map(str::as_bytes);
    let mut meter = Meter::new(&auto(), &config(), status, Some(content_type.as_bytes()), encoding);
    for piece in pieces {
        meter.observe(piece);
    }
    meter.finish()
}

fn read(content_type: &str, body: &str) -> Reading {
    read_pieces(&[body.as_bytes()], 200, content_type, None)
}

fn total(body: &str) -> Option<u64> {
    read(JSON, body).usage.total()
}

/// Pieces of the lengths given, over and over.
fn pieces<'a>(body: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = body;
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*length).clamp(1, rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
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
        "raw deflate" => {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(body).unwrap();
            encoder.into_inner()
        }
        "zstd" => zstd::encode_all(body, 3).unwrap(),
        other => panic!("{other}"),
    }
}

fn check(case: &Case, reading: &Reading, how: &str) {
    let usage = &reading.usage;
    let both = usage.input.zip(usage.output).map(|(input, output)| input + output);
    let got = serde_json::json!({
        "input_tokens": usage.input,
        "cached_input_tokens": usage.cached_input,
        "output_tokens": usage.output,
        "reasoning_tokens": usage.reasoning,
        "total": both.or(usage.total),
        "model": reading.model,
    });
    for (field, expected) in case.expected.as_object().unwrap() {
        let got = match field.as_str() {
            "text" => serde_json::json!(reading.text.kept),
            "messages" => serde_json::json!(reading.messages),
            "error_event" => serde_json::json!(reading.error_event),
            "billed_input" => serde_json::json!(reading.billed.and_then(|billed| billed.input)),
            "cache_write_input_tokens" => serde_json::json!(usage.cache_write_input),
            // The gateway's own tests look at it.
            "cost_usd" => expected.clone(),
            field => got[field].clone(),
        };
        assert_eq!(got, *expected, "{} {how}: {field}\n{reading:?}", case.name);
    }
}

#[test]
fn every_genuine_answer_is_read_exactly_however_it_comes() {
    for case in cases() {
        let read =
            |pieces: &[&[u8]], encoding| read_pieces(pieces, case.status, &case.content_type, encoding);
        let whole = read(&[&case.body], None);
        check(&case, &whole, "whole");
        assert_eq!(read(&pieces(&case.body, &[1]), None), whole, "{} in bytes", case.name);
        assert_eq!(read(&pieces(&case.body, &[7, 1, 30, 3]), None), whole, "{} in pieces", case.name);
        for coding in ["gzip", "deflate", "raw deflate", "br", "zstd"] {
            let encoded = encode(&case.body, coding);
            let header = Some(coding.trim_start_matches("raw "));
            assert_eq!(read(&[&encoded], header), whole, "{} in {coding}", case.name);
            assert_eq!(read(&pieces(&encoded, &[1]), header), whole, "{} in {coding}, in bytes", case.name);
        }
    }
}

#[test]
fn an_answer_without_a_type_is_known_by_its_first_bytes() {
    for case in cases().into_iter().filter(|case| !case.content_type.contains("text/plain")) {
        for lengths in [&[usize::MAX][..], &[1]] {
            let mut meter = Meter::new(&auto(), &config(), case.status, None, None);
            for piece in pieces(&case.body, lengths) {
                meter.observe(piece);
            }
            check(&case, &meter.finish(), "untyped");
        }
    }
}

#[test]
fn an_answer_cut_anywhere_never_reports_more_than_the_whole() {
    for case in cases() {
        let whole = read_pieces(&[&case.body], case.status, &case.content_type, None).usage.total();
        for end in 0..case.body.len() {
            let cut = read_pieces(&[&case.body[..end]], case.status, &case.content_type, None);
            let cut = cut.usage.total().unwrap_or(0);
            assert!(cut <= whole.unwrap_or(0), "{} cut at {end}: {cut}", case.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_of_any_answer_gives_the_reading_of_the_whole(
        index in any::<prop::sample::Index>(),
        lengths in prop::collection::vec(1usize..40, 1..20),
        spoilt in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let cases = cases();
        let case = &cases[index.index(cases.len())];
        let mut body = case.body.clone();
        if let Some((at, byte)) = spoilt {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let whole = read_pieces(&[&body], case.status, &case.content_type, None);
        let split = read_pieces(&pieces(&body, &lengths), case.status, &case.content_type, None);
        prop_assert_eq!(split, whole);
    }

    #[test]
    fn any_split_of_any_json_gives_the_text_of_the_whole(
        reply in ".{0,60}", other in ".{0,30}", lengths in prop::collection::vec(1usize..5, 1..20),
    ) {
        let body = serde_json::json!({"x": [other, {"reply": 1}], "reply": reply, "metadata": {"a\"b": [null]}}).to_string();
        // Escaped as far as can be: what a service may do, and what a reader must undo.
        let escaped: String = body.chars().map(|char| {
            if char.is_ascii() { char.to_string() }
            else { char.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect() }
        }).collect();
        for body in [body, escaped] {
            let reading = read_pieces(&pieces(body.as_bytes(), &lengths), 200, JSON, None);
            prop_assert_eq!(&reading.text, &Text::whole(reply.clone()));
        }
    }

    #[test]
    fn no_bytes_at_all_make_the_meter_fail(
        body in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..4, coding in 0usize..5,
    ) {
        let kind = [JSON, SSE, "application/x-ndjson", "text/plain"][kind];
        let coding = [None, Some("gzip"), Some("deflate"), Some("br"), Some("zstd")][coding];
        read_pieces(&[&body], 200, kind, coding);
    }
}

mod chat_service {
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
        assert_eq!(reading.text, Text::default());
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
        assert_eq!(
            (reading.text, reading.messages, reading.error_event),
            (Text::whole("Hello"), Some(1), false)
        );
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
        let body =
            "data: {\"query\": \"q\", \"error\": \"no\", \"status\": \"failed\", \"tokens_used\": 0}\n\n";
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
}

#[test]
fn text_that_looks_like_usage_is_only_text() {
    let fake = r#"{\"usage\": {\"prompt_tokens\": 9, \"completion_tokens\": 9, \"total_tokens\": 18}}"#;
    let body = format!(
        r#"{{"choices": [{{"message": {{"content": "{fake}"}}}}], "note": {{"usage": {{"total_tokens": 7}}}}}}"#
    );
    assert_eq!(total(&body), None);
}

#[test]
fn a_repeated_key_counts_as_its_last_value() {
    assert_eq!(total(r#"{"usage": {"total_tokens": 1}, "usage": {"total_tokens": 5}}"#), Some(5));
    assert_eq!(total(r#"{"usage": {"total_tokens": 1}, "usage": null}"#), None);
    assert_eq!(total(r#"{"us\u0061ge": {"total_tokens": 1, "total_tokens": 6}}"#), Some(6));
    assert_eq!(read(JSON, r#"{"reply": "a", "reply": "b"}"#).text, Text::whole("b"));
}

#[test]
fn anthropics_first_guess_of_the_output_is_not_believed() {
    let body = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n\
        data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n";
    let reading = read(SSE, body);
    assert_eq!((reading.usage.input, reading.usage.output), (Some(25), None));
    assert_eq!(reading.text, Text::whole("Hello"));
}

#[test]
fn an_embeddings_output_is_what_remains_of_the_sum() {
    let reading = read(
        JSON,
        r#"{"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}}"#,
    );
    assert_eq!((reading.usage.input, reading.usage.output), (Some(8), Some(0)));
}

#[test]
fn a_meter_knows_when_nothing_is_left_to_count() {
    let mut meter = Meter::new(&auto(), &config(), 200, Some(SSE.as_bytes()), None);
    meter.observe(b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"usage\":null}\n\n");
    assert!(meter.is_stream() && !meter.reported());
    meter.observe(b"data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n");
    assert!(meter.reported());
}

#[test]
fn an_error_status_is_charged_nothing() {
    let body = r#"{"error": {"message": "x"}, "usage": {"total_tokens": 5}, "reply": "sorry"}"#;
    let reading = read_pieces(&[body.as_bytes()], 500, JSON, None);
    assert_eq!(reading, Reading { error_event: true, ..Reading::default() });
}

#[test]
fn text_beyond_the_limit_is_only_measured() {
    let config = Config { max_text_bytes: 10, ..config() };
    let mut meter = Meter::new(&auto(), &config, 200, Some(JSON.as_bytes()), None);
    meter.observe("{\"reply\": \"12345678 grün und mehr\"}".as_bytes());
    let text = meter.finish().text;
    assert_eq!((text.kept.as_str(), text.seen_bytes), ("12345678 g", 23));
}

#[test]
fn a_json_answer_of_any_size_is_read_without_holding_it() {
    let body = format!(r#"{{"x": "{}", "usage": {{"total_tokens": 5}}}}"#, "y".repeat(20 << 20));
    assert_eq!(total(&body), Some(5));
}

#[test]
fn fault_22_depth_costs_nothing() {
    let deep = "[".repeat(100_000);
    let body = format!(r#"{{"x": {deep}{}, "usage": {{"total_tokens": 5}}}}"#, "]".repeat(100_000));
    assert_eq!(total(&body), Some(5));
    let request = inspect(&auto(), &config(), deep.as_bytes(), &[]);
    assert_eq!(request, Err(NotJson));
    let request = inspect(&auto(), &config(), format!("{deep}{}", "]".repeat(100_000)).as_bytes(), &[]);
    assert_eq!(request, Err(NotJson));
}

#[test]
fn fault_25_a_bomb_is_decoded_no_further_than_its_bound() {
    let zeros = vec![b' '; 64 << 20];
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let bomb = encode(&zeros, coding);
        for lengths in [&[usize::MAX][..], &[1024]] {
            let reading = read_pieces(&pieces(&bomb, lengths), 200, JSON, Some(coding));
            assert_eq!(reading, Reading { flag: Some("bomb"), ..Reading::default() }, "{coding}");
        }
    }
}

#[test]
fn fault_26_a_corrupt_or_unknown_encoding_is_unknown() {
    let body = br#"{"usage": {"total_tokens": 5}}"#;
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let mut encoded = encode(body, coding);
        encoded[0] ^= 0x55;
        encoded.iter_mut().skip(2).step_by(3).for_each(|byte| *byte ^= 0xff);
        let reading = read_pieces(&[&encoded], 200, JSON, Some(coding));
        assert_eq!(reading.usage.total(), None, "{coding}");
        assert_eq!(reading.flag, Some("corrupt_encoding"), "{coding}");
    }
    for coding in ["compress", "gzip, br", "aws-chunked"] {
        let reading = read_pieces(&[body], 200, JSON, Some(coding));
        assert_eq!(reading, Reading { flag: Some("unknown_encoding"), ..Reading::default() }, "{coding}");
    }
    for coding in ["identity", ""] {
        assert_eq!(read_pieces(&[body], 200, JSON, Some(coding)).usage.total(), Some(5), "{coding}");
    }
}

#[test]
fn fault_27_a_line_of_many_megabytes_is_skipped_and_the_next_event_read() {
    let huge =
        format!("data: {{\"token\": \"{}\", \"usage\": {{\"total_tokens\": 1}}}}\n\n", "x".repeat(5 << 20));
    let alone = read(SSE, &huge);
    assert_eq!(
        (alone.usage, alone.text, alone.flag),
        (TokenUsage::default(), Text::default(), Some("oversized_event"))
    );
    let body = format!("data: {{\"token\": \"a\"}}\n\n{huge}data: {{\"token\": \"b\"}}\n\n");
    let reading = read(SSE, &body);
    assert_eq!((reading.text, reading.flag), (Text::whole("ab"), Some("oversized_event")));
}

#[test]
fn fault_28_a_character_cut_between_two_chunks_is_whole_again() {
    let body = "data: {\"token\": \"🙂é\"}\n\n".as_bytes();
    for cut in 0..body.len() {
        let (one, two) = body.split_at(cut);
        assert_eq!(read_pieces(&[one, two], 200, SSE, None).text, Text::whole("🙂é"), "cut at {cut}");
    }
}

#[test]
fn fault_29_numbers_that_are_no_counts_are_unknown_and_flagged() {
    for bad in ["-5", "1e308", "\"12\"", "9223372036854775808", "99999999999999999999999999", "1.5", "true"] {
        let reading =
            read(JSON, &format!(r#"{{"usage": {{"prompt_tokens": {bad}, "completion_tokens": 7}}}}"#));
        assert_eq!((reading.usage.input, reading.usage.output), (None, Some(7)), "{bad}");
        assert_eq!(reading.flag, Some("bad_usage"), "{bad}");
    }
    let sum = "data: {\"tokens_used\": 9223372036854775807}\n\ndata: {\"tokens_used\": 1}\n\n";
    assert_eq!((read(SSE, sum).usage.total(), read(SSE, sum).flag), (None, Some("bad_usage")));
}

#[test]
fn fault_48_an_error_event_under_a_200_is_seen_with_the_tokens_so_far() {
    for error in [
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
        "event: error\ndata: not JSON\n\n",
        "event: error\n\n",
        "data: {\"error\": {\"message\": \"x\"}}\n\n",
        "data: {\"error\": \"Failed to process message.\"}\n\n",
        "data: {\"type\":\"error\",\"errorText\":\"x\"}\n\n",
        "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"x\"}}}\n\n",
        "data: {\"event\":\"error\",\"code\":\"x\"}",
    ] {
        let reading = read(SSE, &format!("data: {{\"token\": \"Hel\"}}\n\n{error}"));
        assert!(reading.error_event, "{error}");
        assert_eq!(reading.text, Text::whole("Hel"), "{error}");
    }
    assert!(
        !read(SSE, "data: {\"error\": null, \"token\": \"x\"}\n\ndata: {\"error\": \"\"}\n\n").error_event
    );
}

mod requests {
    use super::*;

    fn inspected(body: &str, pointers: &[&str]) -> Inspected {
        inspect(&auto(), &config(), body.as_bytes(), pointers).unwrap()
    }

    #[test]
    fn a_single_message_is_one_and_a_batch_is_its_length() {
        let one = inspected(
            r#"{"sessionId": "s-1", "message": "Hi", "responseCharacterLimit": 450}"#,
            &["/sessionId"],
        );
        assert_eq!((one.messages, one.session.as_deref(), one.text), (1, Some("s-1"), Text::whole("Hi")));
        assert_eq!(one.values, [Some("s-1".to_owned())]);
        let batch =
            inspected(r#"{"messages": [{"query": "a"}, {"query": "b", "metadata": {}}, {"other": 1}]}"#, &[]);
        assert_eq!((batch.messages, batch.text), (3, Text::whole("a\nb")));
    }

    #[test]
    fn a_conversation_is_one_message() {
        let body = r#"{"model": "gpt-4o", "messages": [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "x"}}]}]}"#;
        let inspected = inspected(body, &[]);
        assert_eq!((inspected.messages, inspected.embeddings), (1, 0));
        assert_eq!(
            (inspected.model.as_deref(), inspected.text),
            (Some("gpt-4o"), Text::whole("Be brief.\nHi"))
        );
    }

    #[test]
    fn texts_to_embed_are_counted() {
        for (body, count) in [
            (r#"{"texts": ["a", "b", "c"]}"#, 3),
            (r#"{"input": "a"}"#, 1),
            (r#"{"input": ["a", "b"]}"#, 2),
            (r#"{"input": [1, 2, 3]}"#, 1),
            (r#"{"input": [[1, 2], [3]]}"#, 2),
            (r#"{"input": [{"role": "user", "content": "a conversation"}]}"#, 0),
            (r#"{"texts": ["a"], "texts": ["a", "b"]}"#, 2),
            (r#"{"message": "a"}"#, 0),
        ] {
            assert_eq!(inspected(body, &[]).embeddings, count, "{body}");
        }
    }

    #[test]
    fn values_are_found_where_the_pointers_say() {
        let body = r#"{"a": {"b/c": [1, "x"]}, "n": 1.50, "t": true, "z": null, "": "empty"}"#;
        let values =
            inspected(body, &["/a/b~1c/1", "/a/b~1c/0", "/n", "/t", "/z", "/a", "/missing", "/"]).values;
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(values, [some("x"), some("1"), some("1.5"), None, None, None, None, some("empty")]);
    }

    #[test]
    fn fault_21_what_two_parsers_could_read_differently_is_not_json() {
        let bodies: [&[u8]; 12] = [
            b"\xef\xbb\xbf{}",
            b"{\"message\": \"\xff\"}",
            br#"{"message": "\ud800"}"#,
            br#"{"other": "\ud800"}"#,
            br#"{"other": {"\udc00": 1}}"#,
            br#"{"message": "x"} {}"#,
            br#"{"message": "x"}x"#,
            br#"{"message": "x",}"#,
            br#"{'message': "x"}"#,
            br#"{"n": 1e999}"#,
            b"{\"message\": \"a\nb\"}",
            b"",
        ];
        for body in bodies {
            let text = String::from_utf8_lossy(body);
            assert_eq!(inspect(&auto(), &config(), body, &["/sessionId"]), Err(NotJson), "{text}");
        }
        assert!(inspect(&auto(), &config(), br#"{"message": "\ud83d\ude42"}"#, &[]).is_ok());
    }

    #[test]
    fn fault_23_of_a_repeated_key_the_last_one_counts() {
        let body = r#"{"sessionId": "a", "tenant": {"id": 1}, "message": "x", "messages": [{"query": "1"}, {"query": "2"}],
            "messages": [{"query": "3"}], "sess\u0069onId": "b", "tenant": {}, "message": "y"}"#;
        let inspected = inspected(body, &["/sessionId", "/tenant/id"]);
        assert_eq!(inspected.values, [Some("b".to_owned()), None]);
        assert_eq!((inspected.session.as_deref(), inspected.messages), (Some("b"), 1));
        assert!(inspected.text.kept.ends_with('y') && !inspected.text.kept.contains('x'));
    }

    #[test]
    fn fault_24_an_encoded_request_is_decoded_within_the_limit() {
        let body = br#"{"message": "Hi"}"#;
        for coding in ["gzip", "deflate", "raw deflate", "br", "zstd"] {
            let header = Some(coding.trim_start_matches("raw ").as_bytes());
            let decoded = decode_request(&encode(body, coding), header, 100).map(|body| body.into_owned());
            assert_eq!(decoded, Ok(body.to_vec()), "{coding}");
            let bomb = encode(&[b' '; 1 << 20], coding);
            assert_eq!(decode_request(&bomb, header, 1000), Err(DecodeError::TooLarge), "{coding}");
            let cut = encode(body, coding);
            assert_eq!(
                decode_request(&cut[..cut.len() - 5], header, 100),
                Err(DecodeError::Corrupt),
                "{coding}"
            );
        }
        assert_eq!(decode_request(body, Some(b"compress"), 100), Err(DecodeError::Unsupported));
        assert_eq!(decode_request(body, Some(b"gzip, gzip"), 100), Err(DecodeError::Unsupported));
        assert_eq!(decode_request(body, None, 3), Err(DecodeError::TooLarge));
        assert_eq!(decode_request(body, Some(b"identity"), 100).as_deref(), Ok(&body[..]));
    }

    #[test]
    fn text_is_kept_within_the_bound() {
        let config = Config { max_text_bytes: 4, ..config() };
        let inspected = inspect(&auto(), &config, br#"{"message": "123456"}"#, &[]).unwrap();
        assert_eq!(inspected.text, Text { kept: "1234".into(), seen_bytes: 6 });
    }
}

mod formats {
    use super::*;

    fn toml_like(value: Value) -> FormatConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_format_of_the_config_is_read_by_its_pointers() {
        let config = toml_like(serde_json::json!({
            "input": ["/meter/in"], "cached_input": ["/meter/cache"], "input_includes_cached": false,
            "output": ["/meter/out"], "merge": "max", "text": ["/say"], "counting": "chars4",
            "request": {"text": ["/ask"], "batches": ["/asks/*/q"]},
        }));
        let formats = Formats::builtin().with("mine", &config).unwrap();
        let mine = formats.format("mine").unwrap();
        assert_eq!(mine.counting, Counting::Chars4);
        let mut meter = Meter::new(&mine, &super::config(), 200, Some(SSE.as_bytes()), None);
        meter.observe(b"data: {\"meter\": {\"in\": 5, \"cache\": 2, \"out\": 9}}\n\ndata: {\"meter\": {\"out\": 4}}\n\n");
        let usage = meter.finish().usage;
        assert_eq!((usage.input, usage.cached_input, usage.output), (Some(7), Some(2), Some(9)));
        let asked =
            inspect(&mine, &super::config(), br#"{"ask": "x", "asks": [{"q": 1}, {"q": 2}]}"#, &[]).unwrap();
        assert_eq!((asked.messages, asked.text), (2, Text::whole("x")));
    }

    #[test]
    fn a_format_of_the_config_can_join_those_that_auto_tells_apart() {
        let config = |auto| {
            toml_like(serde_json::json!({
                "auto": auto, "input": ["/bill/in", "/usage/prompt_tokens"], "output": ["/bill/out"],
                "text": ["/say"], "model": ["/engine"], "counting": "chars4", "request": {"text": ["/ask"]},
            }))
        };
        let joined = Formats::builtin().with("mine", &config(true)).unwrap();
        let read = |formats: &Formats, body: &str| {
            let auto = formats.format("auto").unwrap();
            let mut meter = Meter::new(&auto, &super::config(), 200, Some(JSON.as_bytes()), None);
            meter.observe(body.as_bytes());
            meter.finish()
        };
        let own = r#"{"engine": "e-1", "bill": {"in": 5, "out": 7}}"#;
        let reading = read(&joined, own);
        assert_eq!((reading.usage.total(), reading.model.as_deref()), (Some(12), Some("e-1")));
        assert_eq!(read(&joined, r#"{"say": "Hello"}"#).text, Text::whole("Hello"));
        let asked = inspect(&joined.format("auto").unwrap(), &super::config(), br#"{"ask": "x"}"#, &[]);
        assert_eq!(asked.unwrap().text, Text::whole("x"));
        // The others are read as before, and counted as before.
        let openai =
            r#"{"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}"#;
        assert_eq!(read(&joined, openai), read(&Formats::builtin(), openai));
        assert_eq!(joined.format("auto").unwrap().counting, Counting::Model);
        // Not asked for, it does not join.
        let apart = Formats::builtin().with("mine", &config(false)).unwrap();
        assert_eq!(read(&apart, own), Reading::default());
    }

    #[test]
    fn a_bad_pointer_is_named_with_its_key() {
        let config = FormatConfig { total: vec!["usage.total".into()], ..FormatConfig::default() };
        let error = Formats::builtin().with("mine", &config).unwrap_err();
        assert_eq!((error.format.as_str(), error.key), ("mine", "total"));
        assert!(
            error.to_string().starts_with("formats.mine.total: `usage.total` must begin with `/`"),
            "{error}"
        );
        let request = RequestConfig { batches: vec!["/messages".into()], ..RequestConfig::default() };
        let config = FormatConfig { request, ..FormatConfig::default() };
        assert_eq!(Formats::builtin().with("mine", &config).unwrap_err().key, "request.batches");
        assert!(Formats::builtin().with("auto", &FormatConfig::default()).is_err());
    }

    #[test]
    fn every_built_in_format_is_there_by_its_name() {
        let formats = Formats::builtin();
        for name in [
            "auto",
            "chat-service",
            "openai-chat",
            "openai-responses",
            "anthropic",
            "gemini",
            "cohere",
            "text",
        ] {
            assert!(formats.format(name).is_some(), "{name}");
        }
        assert_eq!(formats.names().count(), 15);
        assert!(formats.format("none").is_none());
    }

    #[test]
    fn a_meter_can_cross_threads() {
        fn sendable<T: Send>() {}
        sendable::<Meter>();
        sendable::<Counter>();
    }
}
