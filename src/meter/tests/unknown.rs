//! Answers that no rule fits: looked at all the same, and said not to be understood where that finds nothing.

use proptest::prelude::*;
use serde_json::json;

use super::splits::cases_of;
use super::*;

const WORDS: &str = "There are two shoes in the box, both of them blue, and a receipt.";

/// The reading of a body, the same however it comes.
fn all(content_type: &str, body: &[u8]) -> Reading {
    let whole = read_pieces(&[body], 200, content_type, None);
    for lengths in [&[1][..], &[2, 7, 3], &[64]] {
        assert_eq!(read_pieces(&pieces(body, lengths), 200, content_type, None), whole, "{lengths:?}");
    }
    whole
}

fn all_json(body: &Value) -> Reading {
    all(JSON, body.to_string().as_bytes())
}

#[test]
fn an_answer_in_an_unknown_envelope_is_read_by_the_last_resort_and_said_to_be() {
    for body in [
        json!({"status": "ok", "payload": {"answer": WORDS}}),
        json!([{"payload": {"bot_message": WORDS}}]),
        json!({"data": {"choices": [{"says": {"outputText": WORDS}}]}}),
        json!({"question": "What is in the box, and what colour is it, and is there a receipt?", "x": {"reply": WORDS}}),
        json!({"x": {"answer": WORDS}, "sources": [{"content": "A long page that was read for it. ".repeat(20)}]}),
        json!({"thread": [{"role": "user", "content": "What is in the box?"}, {"role": "assistant", "content": WORDS}]}),
        json!({"x": {"answer": WORDS}, "link": {"text": "https://example.com/a/b"}}),
    ] {
        let reading = all_json(&body);
        assert_eq!(
            (&reading.text, reading.guessed, reading.flag),
            (&Text::whole(WORDS), true, None),
            "{body}"
        );
    }
    let known = all_json(&json!({"reply": WORDS}));
    assert_eq!((known.text, known.guessed), (Text::whole(WORDS), false));
}

#[test]
fn a_named_format_has_the_same_last_resort() {
    for name in ["chat-service", "openai-chat", "anthropic", "auto"] {
        let format = Formats::builtin().format(name).unwrap();
        let mut meter = Meter::new(&format, &config(), 200, Some(JSON.as_bytes()), None);
        meter.observe(json!({"payload": {"answer": WORDS}}).to_string().as_bytes());
        let reading = meter.finish();
        assert_eq!((&reading.text, reading.guessed), (&Text::whole(WORDS), true), "{name}");
    }
    let none = Formats::builtin().format("none").unwrap();
    let mut meter = Meter::new(&none, &config(), 200, Some(JSON.as_bytes()), None);
    meter.observe(b"{\"x\": 1}");
    assert_eq!(meter.finish(), Reading { has_body: true, ..Reading::default() });
}

#[test]
fn what_nobody_knows_is_flagged_and_its_shape_told_without_a_value() {
    for (body, shape) in [
        (json!({"status": true, "utterance_of_bot": WORDS}), "{status: bool, utterance_of_bot: string}"),
        (
            json!({"ok": true, "list": [{"n": 1}], "none": null}),
            "{list: [{n: number}], none: null, ok: bool}",
        ),
        // More reads like text elsewhere than under the key that is known.
        (json!({"message": "success", "bot": {"says": WORDS}}), "{bot: {says: string}, message: string}"),
        // A key that is no name may be a value.
        (json!({"Jane Doe, 4 Main Street": {"a": 1}, "1234567890": []}), "{…: [], …: {a: number}}"),
        (json!({"reply": null}), "{reply: null}"),
    ] {
        let reading = all_json(&body);
        assert_eq!(reading.flag, Some("unknown_format"), "{body}");
        let mut told: Vec<_> =
            reading.shape.as_deref().unwrap().trim_matches(['{', '}']).split(", ").collect();
        let mut expected: Vec<_> = shape.trim_matches(['{', '}']).split(", ").collect();
        told.sort_unstable();
        expected.sort_unstable();
        assert_eq!(told, expected, "{body}");
        assert!(reading.text.is_empty() && !reading.guessed, "{body}");
    }
    let stream = "data: {\"kind\": \"said\", \"uttered\": \"one two three four\"}\n\n".repeat(3)
        + "data: {\"n\": 1}\n\n";
    let reading = all(SSE, stream.as_bytes());
    assert_eq!(reading.shape.as_deref(), Some("{kind: string, uttered: string}; {n: number}"));
}

#[test]
fn a_shape_has_a_bound() {
    let many: serde_json::Map<_, _> =
        (0..500).map(|n| (format!("key_{n}"), json!({"a": [{"b": n}]}))).collect();
    let shape = all_json(&Value::Object(many)).shape.unwrap();
    assert!(shape.len() < 500 && shape.ends_with('…'), "{shape}");
    let deep = format!("{}1{}", "{\"a\":[".repeat(5_000), "]}".repeat(5_000));
    assert_eq!(all(JSON, deep.as_bytes()).flag, Some("unknown_format"));
}

#[test]
fn an_answer_with_nothing_to_count_is_no_unknown_one() {
    let nothing = [
        (JSON, String::new()),
        (JSON, " \n\n ".to_owned()),
        (SSE, ": ping\n\n".to_owned()),
        (SSE, "data: [DONE]\n\n".to_owned()),
        (JSON, json!({"reply": ""}).to_string()),
        (JSON, json!({"data": [{"embedding": vec![0.25; 300]}], "model": "m"}).to_string()),
        (JSON, json!({"data": [{"embedding": "AACAPgAAgD4AAIA+"}], "model": "m"}).to_string()),
        (JSON, json!({"choices": [{"message": {"content": "Hi"}}]}).to_string()),
    ];
    for (content_type, body) in nothing {
        let reading = all(content_type, body.as_bytes());
        assert_eq!((reading.flag, reading.guessed, reading.shape), (None, false, None), "{body}");
    }
    // An error's body is never charged, so that nobody needs to know it.
    assert_eq!(read_pieces(&[b"{\"a\": 1}"], 500, JSON, None).flag, None);
}

#[test]
fn events_of_plain_words_are_text() {
    let words = |events: &[&str]| events.iter().map(|data| format!("data:{data}\n\n")).collect::<String>();
    for (body, text) in [
        (words(&[" There", "  are", "  two shoes"]), "There are two shoes"),
        (words(&[" There", " are", " two", " shoes", " [DONE]"]), "There are two shoes"),
        (words(&[" \"There \"", " \"are\\n\""]), "There are\n"),
        (words(&["靴", "が", "二つ"]), "靴が二つ"),
    ] {
        let reading = all(SSE, body.as_bytes());
        assert_eq!(
            (reading.text, reading.guessed, reading.streamed),
            (Text::whole(text), true, true),
            "{body}"
        );
    }
    // A comment within a stream that is known is none of its text.
    let known = "data: hello\n\ndata: {\"token\": \"Hi\"}\n\n";
    assert_eq!(all(SSE, known.as_bytes()).text, Text::whole("Hi"));
}

#[test]
fn a_wrong_type_is_no_reason_not_to_look() {
    let types =
        ["text/html", "text/plain", "application/octet-stream", "image/png", "", "application/x-thing"];
    let json = json!({"reply": WORDS}).to_string();
    let stream = format!("{}data: {{\"token\": \"{WORDS}\"}}\n\n", "\n".repeat(400));
    for content_type in types {
        assert_eq!(all(content_type, json.as_bytes()).text, Text::whole(WORDS), "{content_type}");
        let reading = all(content_type, stream.as_bytes());
        assert_eq!((reading.text, reading.streamed), (Text::whole(WORDS), true), "{content_type}");
    }
    // Words that call themselves JSON are words, if no JSON.
    let reading = all(JSON, WORDS.as_bytes());
    assert_eq!((reading.text, reading.flag), (Text::whole(WORDS), None));
}

#[test]
fn the_words_of_a_page_are_its_text() {
    let page = format!("<!doctype html><script>var a = 1;</script><p class=\"x\">{WORDS}</p>");
    assert_eq!(all("text/html", page.as_bytes()).text.kept.trim(), WORDS);
}

#[test]
fn white_space_before_a_text_belongs_to_it() {
    assert_eq!(all("text/plain", b"\n\n Hello, what is it?").text, Text::whole("\n\n Hello, what is it?"));
}

#[test]
fn an_image_is_not_understood_and_utf_16_is_not_readable() {
    assert_eq!(all("image/png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR and more").flag, Some("unknown_format"));
    let wide: Vec<u8> =
        json!({"reply": WORDS}).to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
    for content_type in [JSON, SSE, "text/plain", ""] {
        let reading = all(content_type, &wide);
        assert_eq!(
            (reading.flag, reading.text.is_empty()),
            (Some("unreadable_text"), true),
            "{content_type}"
        );
    }
}

#[test]
fn an_answer_larger_than_what_is_kept_is_counted_by_what_is() {
    let words = "four more words here ".repeat(20_000);
    let body = json!({"payload": {"answer": words}}).to_string();
    let reading = all(JSON, body.as_bytes());
    assert!(reading.guessed && reading.text.kept.len() <= 64 << 10);
    let error = reading.text.seen_bytes.abs_diff(words.len() as u64);
    assert!(error < words.len() as u64 / 100, "{} of {}", reading.text.seen_bytes, words.len());
}

proptest! {
    #![proptest_config(cases_of(128))]

    #[test]
    fn any_split_and_any_cut_of_an_unknown_answer_gives_one_reading(
        words in prop::collection::vec("[a-z\"\\\\é\n]{1,12}", 0..6), keys in prop::collection::vec("[a-z]{1,6}|text|answer|[ -~]{0,8}", 1..6),
        lines: bool, keep in 0..400usize, lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let document = keys.iter().rev().fold(json!(words.join(" ")), |inner, key| json!({key: [inner, 1, null]}));
        let mut body = if lines { format!("data: {document}\n\n").repeat(3) } else { document.to_string() };
        while !body.is_char_boundary(keep.min(body.len())) {
            body.pop();
        }
        body.truncate(keep);
        let content_type = if lines { SSE } else { JSON };
        let whole = read(content_type, &body);
        prop_assert_eq!(&read_pieces(&pieces(body.as_bytes(), &lengths), 200, content_type, None), &whole);
        // No value is ever part of a shape.
        if let Some(shape) = &whole.shape {
            prop_assert!(words.iter().filter(|word| word.len() > 7).all(|word| !shape.contains(word.as_str())));
        }
    }
}
