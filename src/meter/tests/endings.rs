//! Where a stream comes to its own end, whatever becomes of its body.

use super::*;

#[test]
fn genuine_streams_end_with_their_last_event_and_not_before() {
    let mut endless = Vec::new();
    for case in cases() {
        let reading = read_pieces(&[&case.body], case.status, &case.content_type, None);
        if !reading.streamed {
            assert!(!reading.ended, "{}", case.name);
            continue;
        }
        if !reading.ended {
            endless.push(case.name);
            continue;
        }
        // Each byte but those of the last event: no earlier one may look like an end.
        let mut meter = Meter::new(&auto(), &config(), case.status, Some(case.content_type.as_bytes()), None);
        let mut first = None;
        for (at, byte) in case.body.iter().enumerate() {
            meter.observe(&[*byte]);
            if meter.ended() {
                first.get_or_insert(at + 1);
            }
        }
        let rest = &case.body[first.unwrap_or(case.body.len())..];
        if case.content_type.contains("amazon") {
            // A binary message closes with a checksum.
            assert!(rest.len() <= 4, "{}", case.name);
            continue;
        }
        let told: Vec<_> =
            rest.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
        let done = |line: &&[u8]| line.starts_with(b"data: [DONE]");
        assert!(told.iter().all(done), "{}: {}", case.name, String::from_utf8_lossy(rest));
    }
    endless.sort();
    // Those that broke off, and those that have nothing of their own to end with.
    let expected = [
        "aisdk_v4_data_stream",
        "aisdk_v4_data_stream_no_usage",
        "aisdk_v4_data_stream_steps",
        "bedrock_converse_stream",
        "bedrock_converse_stream_failed",
        "bedrock_invoke_stream_llama",
        "chat_batch_stream",
        "chat_stream_cut",
        "chat_ui",
        "gemini_stream",
        "mid_stream_error",
        "openai_responses_cut",
        "perplexity_stream",
        "ragflow_stream",
        "tgi_stream",
        "watsonx_stream",
    ];
    assert_eq!(endless, expected);
}

#[test]
fn what_looks_like_an_end_and_is_followed_by_more_was_none() {
    for (body, ended) in [
        ("data: {\"token\":\"a\"}\n\ndata: [DONE]\n\n", true),
        ("data: {\"token\":\"a\"}\n\ndata: [DONE]", true),
        ("data:[DONE]\n\n: bye\n\n", true),
        ("event: end\n\n", true),
        ("data: [DONE]\n\ndata: {\"token\":\"a\"}\n\n", false),
        ("data: [DONE]x\n\n", false),
        ("data: [DONE\n\n", false),
        ("data: [DONE][DONE]\n\n", true),
        ("data: [DONE]\ndata: [DONE]\n\n", true),
        ("data: {\"token\":\"a\"}\ndata: [DONE]\n\n", true),
        ("data:\ndata: [DONE]\n\n", true),
        ("data: [DONE]\ndata: {\"token\":\"a\"}\n\n", false),
        ("data: [DONE] {\"token\":\"a\"}\n\n", false),
        ("data: {\"text\":\"[DONE]\"}\n\n", false),
        ("data: {\"done\":false}\n\n", false),
        ("data: {\"done\":null}\n\n", false),
        ("data: {\"done\":true}\n\n", true),
        ("data: {\"done\":true,\"done\":false}\n\n", false),
        ("data: {\"metadata\":{\"done\":true}}\n\n", false),
        ("data: {\"done\":true", false),
        ("data: {\"done\":true,\"final\":\"Hel", false),
        ("data: {\"done\":true,\"final\":\"Hello\"}", true),
        ("data: {\"type\":\"message_stop\"}\n\n", true),
        ("data: {\"type\":\"message_stop\"}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\n", false),
    ] {
        assert_eq!(read(SSE, body).ended, ended, "{body}");
    }
    assert!(!read(JSON, "{\"done\":true}").ended);
}

#[test]
fn a_format_of_the_operators_own_says_what_ends_its_streams() {
    let config = FormatConfig {
        end: vec!["/bye".into()],
        end_when: [("/kind".to_owned(), vec!["last".to_owned()])].into(),
        ..FormatConfig::default()
    };
    let format = Formats::builtin().with("own", &config).unwrap().format("own").unwrap();
    for (event, ended) in [
        ("{\"bye\":1}", true),
        ("{\"bye\":{}}", true),
        ("{\"bye\":\"\"}", false),
        ("{\"kind\":\"last\"}", true),
        ("{\"kind\":\"first\"}", false),
        ("[DONE]", true),
    ] {
        let mut meter = Meter::new(&format, &Config::default(), 200, Some(SSE.as_bytes()), None);
        meter.observe(format!("data: {event}\n\n").as_bytes());
        assert_eq!(meter.ended(), ended, "{event}");
    }
}
