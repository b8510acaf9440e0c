//! Streams as they are in the wild: what stands where an event, a line or a document should end.

use proptest::prelude::*;
use serde_json::json;

use super::splits::cases_of;
use super::*;

const NDJSON: &str = "application/x-ndjson";

fn chunk(text: &str) -> Value {
    json!({"object": "chat.completion.chunk", "model": "glm-4.7", "choices": [{"delta": {"content": text}}]})
}

fn last() -> Value {
    let usage = json!({"prompt_tokens": 300, "completion_tokens": 40, "total_tokens": 340});
    json!({"object": "chat.completion.chunk", "model": "glm-4.7", "choices": [], "usage": usage})
}

fn line(document: &impl std::fmt::Display) -> String {
    format!("data: {document}\n")
}

/// The reading of a body, which is the same in single bytes and in small pieces.
fn read_any(content_type: &str, body: &str) -> Reading {
    let whole = read(content_type, body);
    for lengths in [&[1][..], &[7, 1, 30, 3]] {
        let split = read_pieces(&pieces(body.as_bytes(), lengths), 200, content_type, None);
        assert_eq!(split, whole, "{body:?} by {lengths:?}");
    }
    whole
}

#[test]
fn several_documents_in_one_event_are_all_read() {
    // rexxars/eventsource-parser#31: GLM and Kimi part their events by one line end.
    let (one, two, finish) = (line(&chunk("Two ")), line(&chunk("shoes.")), line(&chunk("")));
    let (usage, done) = (line(&last()), line(&"[DONE]"));
    for (body, ended) in [
        (format!("{one}{two}{finish}{usage}{done}\n"), true),
        (format!("{one}{two}{finish}{usage}{done}"), true),
        (format!("{one}\n{two}{usage}\n{done}\n"), true),
        (format!("{one}\n{two}\n{usage}{done}\n"), true),
        (format!("{one}{two}{usage}"), false),
        (format!("{one}{two}{done}{usage}\n"), false),
        (format!("{one}: keep-alive\n{two}id: 7\n{usage}{done}\n"), true),
        (format!("data: {}{}[DONE]\n\n", chunk("Two shoes."), last()), true),
    ] {
        for end in ["\n", "\r\n", "\r"] {
            let body = body.replace('\n', end);
            let reading = read_any(SSE, &body);
            let usage = (reading.usage.input, reading.usage.output, reading.ended, reading.flag);
            assert_eq!(usage, (Some(300), Some(40), ended, None), "{body:?}");
        }
    }
    let unreported = read_any(SSE, &format!("{one}{two}{finish}{done}\n"));
    assert_eq!((unreported.text, unreported.ended), (Text::whole("Two shoes."), true));
}

#[test]
fn a_document_over_several_data_lines_is_one() {
    let pretty = |document: &Value| {
        let lines = serde_json::to_string_pretty(document).unwrap();
        lines.lines().map(|part| line(&part)).collect::<String>() + "\n"
    };
    let body = [pretty(&chunk("Two ")), pretty(&last()), line(&"[DONE]")].concat();
    assert_eq!(read_any(SSE, &body).usage.total(), Some(340));
    // And several of those in one event.
    let stuck = body.replace("data: }\n\n", "data: }\n");
    assert_eq!(read_any(SSE, &stuck).usage.total(), Some(340));
}

#[test]
fn usage_after_the_end_is_read() {
    let body = format!("{}\n{}\n{}\n", line(&chunk("Two ")), line(&"[DONE]"), line(&last()));
    assert_eq!(read_any(SSE, &body).usage.total(), Some(340));
}

#[test]
fn objects_one_after_the_other_are_read_in_bodies_and_in_lines() {
    // agno-agi/agno#3868.
    let body = format!("{}{}{}", chunk("Two "), chunk("shoes."), last());
    for content_type in [JSON, NDJSON] {
        assert_eq!(read_any(content_type, &body).usage.total(), Some(340), "{content_type}");
    }
    let text = format!("{} {}\r{}", chunk("Two "), chunk("sho"), chunk("es."));
    for content_type in [JSON, NDJSON] {
        assert_eq!(read_any(content_type, &text).text, Text::whole("Two shoes."), "{content_type}");
    }
}

#[test]
fn what_a_text_speaks_of_is_no_document() {
    let usage = r#"{"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}"#;
    for data in
        [format!("Say {usage}"), format!("\"Say\" {usage}"), format!("7 {usage}"), format!("- {usage}")]
    {
        assert_eq!(read_any(SSE, &line(&data)).usage, TokenUsage::default(), "{data}");
        assert_eq!(read_any(NDJSON, &data).usage, TokenUsage::default(), "{data}");
    }
}

#[test]
fn a_broken_document_takes_none_before_it_along() {
    let body =
        format!("{}{}data: {{\"usage\": {{\"total_tokens\": ]\n\n", line(&chunk("Two ")), line(&last()));
    assert_eq!(read_any(SSE, &body).usage.total(), Some(340));
}

#[test]
fn an_array_that_is_sent_element_by_element_is_read() {
    // Gemini's streamGenerateContent without `alt=sse`.
    let element = |text: &str, output: u64| {
        json!({"candidates": [{"content": {"parts": [{"text": text}]}}], "modelVersion": "gemini-2.5-flash",
            "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": output, "totalTokenCount": 9 + output}})
    };
    let body = format!("[{}\n,\r\n{}\n]", element("Two ", 2), element("shoes.", 4));
    let reading = read_any(JSON, &body);
    assert_eq!((reading.usage.input, reading.usage.output), (Some(9), Some(4)));
    let cut = read_any(JSON, &body[..body.len() - 90]);
    assert_eq!(cut.usage.output, Some(2), "{cut:?}");
}

#[test]
fn an_event_of_any_size_is_read_in_flat_memory() {
    // A streamed image, with its usage in the same event.
    let head = br#"data: {"type":"image_generation.completed","b64_json":""#;
    let tail = b"\",\"usage\":{\"input_tokens\":50,\"output_tokens\":4160,\"total_tokens\":4210}}\n\n";
    let megabyte = vec![b'A'; 1 << 20];
    for megabytes in [2, 64] {
        for (content_type, head, tail) in
            [(SSE, &head[..], &tail[..]), (NDJSON, &head[6..], &tail[..tail.len() - 1])]
        {
            let mut meter = Meter::new(&auto(), &config(), 200, Some(content_type.as_bytes()), None);
            meter.observe(head);
            (0..megabytes).for_each(|_| meter.observe(&megabyte));
            meter.observe(tail);
            let reading = meter.finish();
            let usage = (reading.usage.input, reading.usage.output, reading.flag);
            assert_eq!(usage, (Some(50), Some(4160), None), "{megabytes} MB of {content_type}");
        }
    }
}

#[test]
fn nothing_of_an_event_that_does_not_end_is_kept_beyond_the_bounds() {
    let small = Config { max_text_bytes: 1000, ..config() };
    for endless in [
        "{\"choices\":[{\"delta\":{\"content\":\"word ",
        "{\"model\":\"",
        "{\"usage\":{\"total_tokens\":1",
        "{\"",
        "[",
        "{\"final\":\"",
        "{\"a\":1}",
    ] {
        let mut meter = Meter::new(&auto(), &small, 200, Some(SSE.as_bytes()), None);
        meter.observe(b"data: ");
        let piece = endless.repeat(4096);
        (0..64).for_each(|_| meter.observe(piece.as_bytes()));
        assert!(meter.finish().text.kept.len() <= 1000, "{endless}");
    }
}

proptest! {
    #![proptest_config(cases_of(96))]

    #[test]
    fn documents_with_or_without_an_empty_line_between_are_the_same_documents(
        documents in prop::collection::vec((any::<bool>(), 0..3u8, "[a-z ]{0,9}", 0..900u64), 1..8),
        ends in prop::sample::select(vec!["\n", "\r\n", "\r"]), done: bool,
        lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let mut parted = String::new();
        let mut stuck = String::new();
        for (empty_line, kind, text, count) in &documents {
            let document = match kind {
                0 => chunk(text),
                1 => json!({"usage": {"prompt_tokens": 3, "completion_tokens": count}}),
                _ => json!([chunk(text)]),
            };
            let document = line(&document);
            parted += &format!("{document}\n");
            stuck += &document;
            if *empty_line {
                stuck += "\n";
            }
        }
        if done {
            parted += "data: [DONE]\n\n";
            stuck += "data: [DONE]\n";
        }
        let plain = read(SSE, &parted);
        let stuck = stuck.replace('\n', ends);
        prop_assert_eq!(&read(SSE, &stuck), &plain, "{:?}", stuck);
        prop_assert_eq!(&read_pieces(&pieces(stuck.as_bytes(), &lengths), 200, SSE, None), &plain, "{:?}", stuck);
    }
}
