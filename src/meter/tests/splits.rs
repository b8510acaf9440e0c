//! However an answer comes, it is the same answer: any split into chunks, any way to frame its events.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// So many cases, or as many as `PROPTEST_CASES` says.
pub(super) fn cases_of(few: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|count| count.parse().ok());
    ProptestConfig::with_cases(asked.unwrap_or(few))
}

/// A document of an answer, whole, broken or absurd.
fn document() -> impl Strategy<Value = String> {
    let count = prop_oneof![
        4 => (0..2_000u64).prop_map(Value::from),
        1 => prop::sample::select(vec![json!(null), json!(-1), json!("7"), json!(1.5), json!(u64::MAX), json!(12.0)]),
    ];
    let text = prop_oneof![
        4 => ".{0,12}",
        1 => prop::sample::select(vec!["\"\\", "\n\r\t", "data: x\n\n", "🙂é", "\u{7f}\u{0}", "{\"usage\":{\"total_tokens\":9}}"])
            .prop_map(str::to_owned),
    ];
    let usage = prop::array::uniform5(count).prop_flat_map(|[a, b, c, d, e]| {
        prop::sample::select(vec![
            json!({"usage": {"prompt_tokens": a, "completion_tokens": b, "total_tokens": c,
                "prompt_tokens_details": {"cached_tokens": d}, "completion_tokens_details": {"reasoning_tokens": e}}}),
            json!({"x_groq": {"id": "r", "usage": {"prompt_tokens": a, "completion_tokens": b}}}),
            json!({"type": "message_start", "message": {"model": "claude", "usage": {"input_tokens": a,
                "cache_read_input_tokens": b, "cache_creation_input_tokens": c, "output_tokens": d}}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": a}}),
            json!({"type": "response.completed", "response": {"model": "o", "usage": {"input_tokens": a,
                "output_tokens": b, "total_tokens": c, "input_tokens_details": {"cached_tokens": d}}}}),
            json!({"usageMetadata": {"promptTokenCount": a, "candidatesTokenCount": b, "thoughtsTokenCount": c,
                "totalTokenCount": d, "toolUsePromptTokenCount": e}, "modelVersion": "g"}),
            json!([{"usageMetadata": {"promptTokenCount": a}}, {"usageMetadata": {"promptTokenCount": b,
                "candidatesTokenCount": c}}]),
            json!({"type": "message-end", "delta": {"usage": {"tokens": {"input_tokens": a, "output_tokens": b},
                "billed_units": {"input_tokens": c, "output_tokens": d}}}}),
            json!({"prompt_eval_count": a, "eval_count": b, "model": "llama", "done": true}),
            json!({"type": "finish", "messageMetadata": {"usage": {"inputTokens": a, "outputTokens": b}}}),
            json!({"event": "message_end", "metadata": {"usage": {"prompt_tokens": a, "total_tokens": b}}}),
            json!({"tokens_used": a, "query": "q", "reply": "r"}),
            json!({"batch": [{"tokens_used": a}, {"tokens_used": b}], "totalTokens": c}),
            json!({"metadata": {"usage": {"inputTokens": a, "outputTokens": b, "cacheReadInputTokens": c}}}),
        ])
    });
    let words = text.prop_flat_map(|text| {
        prop::sample::select(vec![
            json!({"choices": [{"index": 0, "delta": {"content": text}}], "model": "m", "usage": null}),
            json!({"token": text, "partial": text}),
            json!({"done": true, "final": text, "sources": [{"text": text}]}),
            json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}),
            json!({"candidates": [{"content": {"parts": [{"text": text}]}}]}),
            json!({"message": {"role": "assistant", "content": text}}),
            json!({"reply": text, "error": null}),
            json!({"error": {"message": text}}),
            json!({text: {"usage": {"total_tokens": 3}}}),
        ])
    });
    let written = (prop_oneof![usage, words], 0..3u8).prop_map(|(document, how)| match how {
        0 => document.to_string(),
        1 => serde_json::to_string_pretty(&document).unwrap(),
        _ => escaped(&document.to_string()),
    });
    let odd = prop::sample::select(vec![
        "[DONE]",
        "",
        "{\"usage\": {\"total_tokens\": 5",
        "{\"usage\": {\"total_tokens\": 1}, \"usage\": null}",
        "{\"us\\u0061ge\": {\"total_tokens\": 4}}",
        "{\"reply\": \"a\", \"reply\": \"b\", \"totalTokens\": 2}",
        "{\"deep\": [[[[[[{\"usage\": [1, {}]}]]]]]], \"totalTokens\": 2}",
        "{\"totalTokens\": 2} {\"totalTokens\": 3}",
        "not JSON",
        "\"\\ud83d\\ude42\\ud83d\"",
    ]);
    prop_oneof![5 => written, 1 => odd.prop_map(str::to_owned)]
}

/// Escaped as far as can be: what a service may do, and what a reader must undo.
fn escaped(json: &str) -> String {
    let escape = |char: char| match char.is_ascii() {
        true => char.to_string(),
        false => char.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
    };
    json.chars().map(escape).collect()
}

/// An event: its name, and its data.
type Event = (&'static str, String);

fn events() -> impl Strategy<Value = Vec<Event>> {
    let name = prop::sample::select(vec!["", "", "", "message_delta", "error"]);
    prop::collection::vec((name, document()), 0..6)
}

/// How an event stream is written.
#[derive(Clone, Copy, Debug)]
struct Framing {
    line_end: &'static str,
    bom: bool,
    comments: bool,
    space: bool,
    name_last: bool,
    /// The last event's empty line, and the end of its last line, are missing; unless its data is broken, which an
    /// answer that ends in it makes worth something.
    open_end: bool,
}

const PLAIN: Framing =
    Framing { line_end: "\n", bom: false, comments: false, space: true, name_last: false, open_end: false };

fn framing() -> impl Strategy<Value = Framing> {
    let line_end = prop::sample::select(vec!["\n", "\r\n", "\r"]);
    (line_end, any::<[bool; 5]>()).prop_map(|(line_end, [bom, comments, space, name_last, open_end])| {
        Framing { line_end, bom, comments, space, name_last, open_end }
    })
}

fn event_stream(events: &[Event], how: Framing) -> String {
    let colon = if how.space { ": " } else { ":" };
    let mut lines: Vec<String> = Vec::new();
    for (name, data) in events {
        if how.comments {
            lines.extend([": ping".to_owned(), "id: 7".to_owned(), "retry".to_owned()]);
        }
        let name = (!name.is_empty()).then(|| format!("event{colon}{name}"));
        if !how.name_last {
            lines.extend(name.clone());
        }
        lines.extend(data.split('\n').map(|line| format!("data{colon}{line}")));
        if how.name_last {
            lines.extend(name);
        }
        lines.push(String::new());
    }
    let mut text = if how.bom { "\u{feff}".to_owned() } else { String::new() };
    text.extend(lines.iter().flat_map(|line| [line.as_str(), how.line_end]));
    if how.open_end && ends_whole(events) {
        text.truncate(text.trim_end_matches(['\r', '\n']).len());
    }
    text
}

fn ends_whole(events: &[Event]) -> bool {
    events.last().is_none_or(|(_, data)| serde_json::from_str::<Value>(data).is_ok())
}

fn lines_of_json(documents: &[Event], line_end: &str) -> String {
    let compact = |data: &String| data.replace('\n', " ");
    documents.iter().map(|(_, data)| compact(data) + line_end).collect()
}

fn data_stream(documents: &[Event]) -> String {
    const CODES: [&str; 7] = ["0", "d", "e", "g", "2", "3", "f"];
    let line = |(place, (_, data)): (usize, &Event)| {
        let code = CODES[(place + data.len()) % CODES.len()];
        let data = data.replace('\n', " ");
        if matches!(code, "0" | "g") {
            format!("{code}:{}\n", json!(data))
        } else {
            format!("{code}:{data}\n")
        }
    };
    // The first bytes must show what it is.
    std::iter::once("f:{\"messageId\":\"m\"}\n".to_owned())
        .chain(documents.iter().enumerate().map(line))
        .collect()
}

const NDJSON: &str = "application/x-ndjson";
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

fn whole_and_split(body: &[u8], content_type: &str, lengths: &[usize]) -> (Reading, Reading, Reading) {
    let read = |pieces: &[&[u8]]| read_pieces(pieces, 200, content_type, None);
    (read(&[body]), read(&pieces(body, lengths)), read(&pieces(body, &[1])))
}

proptest! {
    #![proptest_config(cases_of(64))]

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
        let body = json!({"x": [other, {"reply": 1}], "reply": reply, "metadata": {"a\"b": [null]}}).to_string();
        for body in [escaped(&body), body] {
            let reading = read_pieces(&pieces(body.as_bytes(), &lengths), 200, JSON, None);
            prop_assert_eq!(&reading.text, &Text::whole(reply.clone()));
        }
    }

    #[test]
    fn no_bytes_at_all_make_the_meter_fail(
        body in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..4, coding in 0usize..5,
    ) {
        let kind = [JSON, SSE, NDJSON, PLAIN_TEXT][kind];
        let coding = [None, Some("gzip"), Some("deflate"), Some("br"), Some("zstd")][coding];
        read_pieces(&[&body], 200, kind, coding);
    }
}

proptest! {
    #![proptest_config(cases_of(192))]

    #[test]
    fn any_framing_and_split_of_an_event_stream_gives_the_reading_of_the_plain_whole(
        events in events(), how in framing(), lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let plain = read(SSE, &event_stream(&events, PLAIN));
        let framed = event_stream(&events, how);
        let (whole, split, bytes) = whole_and_split(framed.as_bytes(), SSE, &lengths);
        prop_assert_eq!(&whole, &plain, "{:?}", framed);
        prop_assert_eq!(&split, &plain, "{:?}", framed);
        prop_assert_eq!(&bytes, &plain, "{:?}", framed);
    }

    #[test]
    fn any_split_of_lines_of_json_gives_the_reading_of_the_whole(
        documents in events(), cr: bool, empty_lines: bool, open_end: bool,
        lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let line_end = match (cr, empty_lines) {
            (false, false) => "\n",
            (false, true) => "\n\n",
            (true, false) => "\r\n",
            (true, true) => "\r\n \r\n",
        };
        let plain = read(NDJSON, &lines_of_json(&documents, "\n"));
        let mut body = lines_of_json(&documents, line_end);
        if open_end && ends_whole(&documents) {
            body.truncate(body.trim_end_matches(['\r', '\n', ' ']).len());
        }
        let (whole, split, bytes) = whole_and_split(body.as_bytes(), NDJSON, &lengths);
        prop_assert_eq!(&whole, &plain, "{:?}", body);
        prop_assert_eq!(&split, &plain, "{:?}", body);
        prop_assert_eq!(&bytes, &plain, "{:?}", body);
    }

    #[test]
    fn any_split_of_a_data_stream_gives_the_reading_of_the_whole(
        documents in events(), lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let body = data_stream(&documents);
        let (whole, split, bytes) = whole_and_split(body.as_bytes(), PLAIN_TEXT, &lengths);
        prop_assert!(whole.streamed);
        prop_assert_eq!(&split, &whole, "{:?}", body);
        prop_assert_eq!(&bytes, &whole, "{:?}", body);
    }

    #[test]
    fn any_split_of_a_body_whose_type_says_nothing_gives_the_reading_of_the_whole(
        events in events(), how in framing(), form in 0..4u8, content_type in 0..3usize,
        lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let body = match form {
            0 => event_stream(&events, how),
            1 => lines_of_json(&events, "\n"),
            2 => data_stream(&events),
            _ => events.first().map(|(_, data)| data.clone()).unwrap_or_default(),
        };
        let content_type = ["", "application/octet-stream", PLAIN_TEXT][content_type];
        let (whole, split, bytes) = whole_and_split(body.as_bytes(), content_type, &lengths);
        prop_assert_eq!(&split, &whole, "{:?}", body);
        prop_assert_eq!(&bytes, &whole, "{:?}", body);
    }

    #[test]
    fn any_split_of_an_encoded_answer_gives_the_reading_of_the_plain_whole(
        events in events(), coding in 0..5usize, lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let body = event_stream(&events, PLAIN);
        let coding = ["gzip", "deflate", "raw deflate", "br", "zstd"][coding];
        let encoded = encode(body.as_bytes(), coding);
        let header = Some(coding.trim_start_matches("raw "));
        prop_assert_eq!(read_pieces(&pieces(&encoded, &lengths), 200, SSE, header), read(SSE, &body));
    }
}
