//! Formats by name, and those of the config.

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
    meter.observe(
        b"data: {\"meter\": {\"in\": 5, \"cache\": 2, \"out\": 9}}\n\ndata: {\"meter\": {\"out\": 4}}\n\n",
    );
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
    assert_eq!(read(&apart, own), Reading { has_body: true, ..Reading::default() });
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
        "none",
    ] {
        assert!(formats.format(name).is_some(), "{name}");
    }
    assert!(formats.names().count() >= 22);
    assert!(formats.format("nothing").is_none());
}

#[test]
fn a_meter_can_cross_threads() {
    fn sendable<T: Send>() {}
    sendable::<Meter>();
    sendable::<Counter>();
}

#[test]
fn only_none_has_nothing_to_do_with_tokens() {
    let formats = Formats::builtin();
    for name in formats.names() {
        assert_eq!(formats.format(name).unwrap().has_tokens(), name != "none", "{name}");
    }
}

#[test]
fn search_results_are_counted_none_of_them_too() {
    let config = FormatConfig { results: vec!["/results/*".into()], ..FormatConfig::default() };
    let formats = Formats::builtin().with("search", &config).unwrap();
    let format = formats.format("search").unwrap();
    for (text, expected) in [
        (r#"{"results":[{"id":1},{"id":2},3,"four",null]}"#, Some(5)),
        (r#"{"results":[]}"#, Some(0)),
        (r#"{"results":[1,2],"results":[{}]}"#, Some(1)),
        (r#"{"other":[]}"#, None),
    ] {
        let mut meter = Meter::new(&format, &Config::default(), 200, Some(b"application/json"), None);
        meter.observe(text.as_bytes());
        assert_eq!(meter.finish().results, expected, "{text}");
    }
    let config = FormatConfig { results: vec!["/results".into()], ..FormatConfig::default() };
    assert_eq!(Formats::builtin().with("search", &config).unwrap_err().key, "results");
}

#[test]
fn values_are_taken_from_an_answer_whatever_its_coding_or_status() {
    let pointers = Arc::new(Pointers::new(["/error", "/n"]).unwrap());
    let format = Formats::builtin().format("auto").unwrap();
    let text = br#"{"error":"no such plan","n":7}"#;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, text).unwrap();
    for (status, coding, body) in
        [(400, None, text.to_vec()), (200, Some(&b"gzip"[..]), gzip.finish().unwrap())]
    {
        let mut meter = Meter::new(&format, &Config::default(), status, Some(b"application/json"), coding);
        meter.glean(&pointers);
        body.iter().for_each(|byte| meter.observe(&[*byte]));
        assert_eq!(meter.finish().gleaned, [Some("no such plan".into()), Some(7.into())]);
    }
}
