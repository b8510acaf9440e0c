//! Claims about the whole meter, on genuine answers and on hostile ones.

use std::io::Write;
use std::sync::LazyLock;

use serde_json::Value;

use super::*;

mod calls;
mod chat_service;
mod classes;
mod codings;
mod doubts;
mod endings;
mod failures;
mod formats;
mod found;
mod framing;
mod places;
mod repeated;
mod requests;
mod splits;
mod unknown;

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
    for table in ["expected.json", "more.json", "services.json"] {
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
            // Kept to split what is told as a sum alone; the samples tell the text that is to be counted.
            "text" if usage.total.is_some() => expected.clone(),
            "text" => serde_json::json!(reading.text.kept),
            "messages" => serde_json::json!(reading.messages),
            "error_event" => serde_json::json!(reading.error_event),
            "billed_input" => serde_json::json!(reading.billed.and_then(|billed| billed.input)),
            "streamed" => serde_json::json!(reading.streamed),
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
    let told_by_type = ["text/plain", "vnd.amazon.eventstream"];
    let untyped = |case: &Case| !told_by_type.iter().any(|part| case.content_type.contains(part));
    for case in cases().into_iter().filter(untyped) {
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

fn output_of(reading: Reading) -> u64 {
    let job = CountJob { encoding: Encoding::O200k, request: Text::default(), answer: reading.text };
    count(&job).output
}

#[test]
fn several_choices_are_counted_one_by_one() {
    let of = |text: &str| bpe_openai::o200k_base().count(text) as u64;
    // Together `new` and `line`, or `}` and `}`, would be one token.
    let body = r#"{"choices": [{"index": 0, "message": {"content": "a new"}}, {"index": 1, "message": {"content": "line}"}},
        {"index": 2, "message": {"content": null, "tool_calls": [{"function": {"name": "up", "arguments": "}}"}}]}}]}"#;
    let reading = read(JSON, body);
    assert_eq!(reading.text.parts().collect::<Vec<_>>(), ["a new", "line}", "up", "}}"]);
    assert_eq!(output_of(reading), of("a new") + of("line}") + of("up") + of("}}"));
}

#[test]
fn choices_that_come_in_turns_share_no_token() {
    let chunk = |choice: u8, text: &str| {
        format!("data: {{\"choices\":[{{\"index\":{choice},\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    };
    let turns = [(0, "New"), (1, "New"), (0, " York"), (1, "line"), (0, " is"), (0, " it"), (1, "!")];
    let body: String = turns.into_iter().map(|(choice, text)| chunk(choice, text)).collect();
    let reading = read(SSE, &body);
    assert_eq!(reading.text.parts().collect::<Vec<_>>(), ["New", "New", " York", "line", " is it", "!"]);
    assert_eq!(read_pieces(&pieces(body.as_bytes(), &[1]), 200, SSE, None), reading);
    assert_eq!(output_of(reading), 7);
    // One answer alone is one text, however it is cut.
    let alone = read(SSE, &(chunk(0, "New") + &chunk(0, "line")));
    assert_eq!(alone.text, Text::whole("Newline"));
}

#[test]
fn a_body_is_what_is_more_than_white_space_whatever_its_type() {
    let has_body = |content_type, body: &str| read(content_type, body).has_body;
    for content_type in [JSON, SSE, "application/x-ndjson", "text/plain", "image/png", ""] {
        assert!(!has_body(content_type, ""), "{content_type}");
        assert!(!has_body(content_type, " \r\n\n "), "{content_type}");
        assert!(has_body(content_type, "data: {\"x\": 1}\n\n"), "{content_type}");
    }
    assert!(!has_body(SSE, ": ping\n\n: ping\n\n"), "what keeps a connection alive says nothing");
    let empty = read_pieces(&[], 200, JSON, Some("compress"));
    assert_eq!((empty.has_body, empty.flag), (false, None), "an empty body is in no coding");
}

#[test]
fn an_empty_text_is_a_text_that_was_found() {
    let found = |body: &str| read(JSON, body).found_text;
    assert!(found(r#"{"reply": ""}"#) && found(r#"{"choices": [{"message": {"content": ""}}]}"#));
    assert!(!found(r#"{"replies": "x"}"#) && !found(r#"{"reply": null}"#));
    assert!(read(SSE, "data: {\"final\": \"\"}\n\n").found_text);
}

#[test]
fn what_says_that_it_failed_is_known_in_a_whole_answer_too() {
    let failed = |body: &str| read(JSON, body).failed;
    assert!(failed(r#"{"error": "Failed to process message."}"#));
    assert!(failed(r#"{"error": {"message": "overloaded"}}"#));
    assert!(!failed(r#"{"reply": "x", "error": "of one of several"}"#), "it has something beside");
    for nothing in ["null", "false", "\"\""] {
        assert!(!failed(&format!(r#"{{"reply": "x", "error": {nothing}}}"#)), "{nothing}");
    }
}

#[test]
fn an_error_status_is_charged_nothing() {
    let body = r#"{"error": {"message": "x"}, "usage": {"total_tokens": 5}, "reply": "sorry"}"#;
    let reading = read_pieces(&[body.as_bytes()], 500, JSON, None);
    assert_eq!(reading, Reading { error_event: true, has_body: true, ..Reading::default() });
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
            assert_eq!(
                reading,
                Reading { flag: Some("bomb"), has_body: true, ..Reading::default() },
                "{coding}"
            );
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
        assert_eq!(
            reading,
            Reading { flag: Some("unknown_encoding"), has_body: true, ..Reading::default() },
            "{coding}"
        );
    }
    for coding in ["identity", ""] {
        assert_eq!(read_pieces(&[body], 200, JSON, Some(coding)).usage.total(), Some(5), "{coding}");
    }
}

#[test]
fn fault_27_a_line_of_many_megabytes_is_read_like_any_other_and_so_is_the_next_event() {
    let huge = format!("data: {{\"token\": \"{}\", \"model\": \"m\"}}\n\n", "x".repeat(5 << 20));
    let alone = read(SSE, &huge);
    assert_eq!((alone.model.as_deref(), alone.flag), (Some("m"), None));
    // Its text is kept as far as the bound of text goes, and measured beyond.
    assert_eq!((alone.text.kept.len(), alone.text.seen_bytes), (config().max_text_bytes, 5 << 20));
    let next = read(SSE, &format!("{huge}data: {{\"usage\": {{\"total_tokens\": 7}}}}\n\n"));
    assert_eq!(next.usage.total, Some(7));
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
    for bad in
        ["-5", "1e308", "\"twelve\"", "9223372036854775808", "99999999999999999999999999", "1.5", "true"]
    {
        let reading =
            read(JSON, &format!(r#"{{"usage": {{"prompt_tokens": {bad}, "completion_tokens": 7}}}}"#));
        assert_eq!((reading.usage.input, reading.usage.output), (None, Some(7)), "{bad}");
        assert_eq!(reading.flag, Some("bad_usage"), "{bad}");
    }
    let sum = "data: {\"tokens_used\": 9223372036854775807}\n\ndata: {\"tokens_used\": 1}\n\n";
    assert_eq!((read(SSE, sum).usage.total(), read(SSE, sum).flag), (None, Some("implausible_usage")));
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

#[test]
fn a_key_too_long_for_anybody_is_passed_over_however_it_comes() {
    // Found by fuzzing: what stands below such a key was looked into when the key came in one piece.
    let body = format!(r#"{{"{}": {{ not JSON }}, "totalTokens": 5}}"#, "k".repeat(300));
    let whole = read(JSON, &body);
    assert_eq!((whole.usage.total(), whole.flag), (Some(5), None));
    assert_eq!(read_pieces(&pieces(body.as_bytes(), &[1]), 200, JSON, None), whole);
}

#[test]
fn a_body_whose_encoding_breaks_is_a_stream_if_its_type_says_so() {
    // Found by fuzzing: how much is decoded before the fault depends on the chunks.
    for (content_type, streamed) in [(JSON, false), (SSE, true)] {
        let mut encoded = encode(b"data: {\"token\": \"Hello\"}\n\n", "gzip");
        // A kind of block that there is not (RFC 1951, 3.2.3), after the header of ten bytes.
        encoded[10] |= 0b110;
        let whole = read_pieces(&[&encoded], 200, content_type, Some("gzip"));
        assert_eq!((whole.flag, whole.streamed), (Some("corrupt_encoding"), streamed));
        assert_eq!(read_pieces(&pieces(&encoded, &[1]), 200, content_type, Some("gzip")), whole);
    }
}

#[test]
fn an_encoded_answer_of_any_size_in_one_chunk_is_read_to_its_end() {
    let words: String = (0..20_000u32).map(|n| format!("{} ", n.wrapping_mul(2_654_435_761))).collect();
    let body = format!(r#"{{"x": "{words}", "reply": "yes", "usage": {{"total_tokens": 5}}}}"#);
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let encoded = encode(body.as_bytes(), coding);
        for lengths in [&[usize::MAX][..], &[16_384], &[1]] {
            let reading = read_pieces(&pieces(&encoded, lengths), 200, JSON, Some(coding));
            assert_eq!((reading.usage.total(), reading.flag), (Some(5), None), "{coding} in {lengths:?}");
            // Of one that broke off, what came of it counts however it came.
            let cut = &encoded[..encoded.len() - 3];
            let whole = read_pieces(&[cut], 200, JSON, Some(coding));
            assert_eq!(read_pieces(&pieces(cut, lengths), 200, JSON, Some(coding)), whole, "{coding} cut");
        }
    }
}
