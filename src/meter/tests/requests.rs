//! What a request's body says.

use super::*;

fn inspected(body: &str, pointers: &[&str]) -> Inspected {
    inspect(&auto(), &config(), body.as_bytes(), pointers).unwrap()
}

#[test]
fn a_single_message_is_one_and_a_batch_is_its_length() {
    let one =
        inspected(r#"{"sessionId": "s-1", "message": "Hi", "responseCharacterLimit": 450}"#, &["/sessionId"]);
    assert_eq!((one.messages, one.session.as_deref(), one.text), (1, Some("s-1"), Text::whole("Hi")));
    assert_eq!(one.values, [Some("s-1".to_owned())]);
    let batch =
        inspected(r#"{"messages": [{"query": "a"}, {"query": "b", "metadata": {}}, {"other": 1}]}"#, &[]);
    assert_eq!((batch.messages, batch.text.kept.as_str()), (3, "a\nb"));
    assert_eq!(batch.text.prompt, None);
}

#[test]
fn a_conversation_is_one_message() {
    let body = r#"{"model": "gpt-4o", "messages": [{"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "x"}}]}]}"#;
    let inspected = inspected(body, &[]);
    assert_eq!((inspected.messages, inspected.embeddings), (1, 0));
    assert_eq!((inspected.model.as_deref(), inspected.text.kept.as_str()), (Some("gpt-4o"), "Be brief.\nHi"));
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
        (r#"{"texts": [null, "a", "b"]}"#, 2),
        (r#"{"texts": [{}, 1, "a", "b"]}"#, 2),
        (r#"{"Texts": ["a", "b"]}"#, 2),
        (r#"{"texts": ["a"], "TEXTS": ["a", "b", "c"]}"#, 3),
        (r#"{"TEXTS": ["a", "b", "c"], "texts": ["a"]}"#, 3),
        (r#"{"message": "a"}"#, 0),
    ] {
        assert_eq!(inspected(body, &[]).embeddings, count, "{body}");
    }
}

#[test]
fn values_are_found_where_the_pointers_say() {
    let body = r#"{"a": {"b/c": [1, "x"]}, "n": 1.50, "t": true, "z": null, "": "empty"}"#;
    let values = inspected(body, &["/a/b~1c/1", "/a/b~1c/0", "/n", "/t", "/z", "/a", "/missing", "/"]).values;
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
        assert_eq!(decode_request(&cut[..cut.len() - 5], header, 100), Err(DecodeError::Corrupt), "{coding}");
    }
    assert_eq!(decode_request(body, Some(b"compress"), 100), Err(DecodeError::Unsupported));
    assert_eq!(decode_request(body, Some(b"gzip, gzip"), 100), Err(DecodeError::Unsupported));
    assert_eq!(decode_request(body, None, 3), Err(DecodeError::TooLarge));
    assert_eq!(decode_request(body, Some(b"identity"), 100).as_deref(), Ok(&body[..]));
}

#[test]
fn a_coding_that_is_none_leaves_a_request_as_it_is() {
    let body = br#"{"message": "Hi"}"#;
    let none =
        ["UTF-8", "utf8", "none", "None", "binary", "identity", "", " ", "iso-8859-1", "identity, utf-8"];
    for coding in none {
        let decoded = decode_request(body, Some(coding.as_bytes()), 100);
        assert_eq!(decoded.as_deref(), Ok(&body[..]), "{coding}");
    }
    let zipped = encode(body, "gzip");
    assert_eq!(decode_request(&zipped, Some(b"utf-8, gzip"), 100).as_deref(), Ok(&body[..]));
    for coding in ["compress", "aws-chunked", "utf-9", "snappy"] {
        assert_eq!(
            decode_request(body, Some(coding.as_bytes()), 100),
            Err(DecodeError::Unsupported),
            "{coding}"
        );
    }
}

/// A question of some length, in a language of its own.
const QUESTION: &str =
    "Which of the two pairs of shoes that I ordered last Tuesday is still on its way to me?";

#[test]
fn a_widgets_question_is_found_by_its_rule() {
    let question = |template: &str| template.replace('@', &serde_json::to_string(QUESTION).unwrap());
    for template in [
        r#"{"messages": [{"role": "user", "text": @}]}"#,
        r#"{"id": "c", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": @}]}]}"#,
        r#"{"action": "sendMessage", "sessionId": "s", "chatInput": @}"#,
        r#"{"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": @}]}}"#,
        r#"{"input": {"messages": [{"type": "human", "content": [{"type": "text", "text": @}]}]}}"#,
        r#"{"input": {"question": @}}"#,
        r#"{"inputs": [{"question": @}]}"#,
        r#"{"text": @}"#,
        r#"{"question": @, "overrideConfig": {"sessionId": "abc"}}"#,
        r#"{"inputs": {}, "query": @, "response_mode": "streaming", "user": "abc-123"}"#,
        r#"{"inputs": {"question": @}}"#,
        r#"{"sender": "test_user", "message": @}"#,
        r#"{"bot_id": "734829333445931", "additional_messages": [{"role": "user", "content": @, "content_type": "text"}]}"#,
        r#"{"data": [@, null], "fn_index": 1, "session_hash": "x8dh3"}"#,
        r#"{"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": {"role": "user",
            "parts": [{"kind": "text", "text": @}], "messageId": "9229e770"}}}"#,
        r#"{"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "ask", "arguments": {"about": @}}}"#,
        r#"{"activity": {"type": "message", "text": @}}"#,
        r#"{"inputTranscript": @, "sessionId": "1"}"#,
        r#"{"queryInput": {"text": {"text": @, "languageCode": "en"}}}"#,
        r#"{"version": "1", "input": {"prompt": @}}"#,
        r#"{"chat_history": [], "message": @}"#,
        r#"{"contents": [{"role": "user", "parts": [{"text": @}]}]}"#,
    ] {
        let found = inspected(&question(template), &[]);
        assert_eq!(found.text.kept, QUESTION, "{template}");
        assert_eq!((found.guessed, found.shape, found.messages), (false, None, 1), "{template}");
    }
}

#[test]
fn a_question_under_a_key_that_commonly_holds_text_is_found_by_the_last_resort() {
    let question = |template: &str| template.replace('@', &serde_json::to_string(QUESTION).unwrap());
    for template in [
        r#"{"userMessage": @}"#,
        r#"{"MESSAGE": @}"#,
        r#"{"user_input": @, "user_id": "a7f3c2d8-0b1e-4c57-9d42-3f1a5b6c7d8e"}"#,
        r#"{"payload": {"type": "text", "body": @}}"#,
        r#"{"conversation": {"turns": [{"speaker": "visitor", "utterance": @}]}}"#,
        r#"{"query": "mutation Ask($it: String!) { ask(it: $it) { answer } }", "variables": {"it": @}}"#,
        r#"{"query": "query {\n ask\n}", "variables": {"input": {"anything": @}}}"#,
        r#"{"tool": "search", "kwargs": {"subject": @}}"#,
        r#"[{"userQuestion": @}]"#,
        r#"[@]"#,
        r#"@"#,
        r#"{"history": [[@, null]]}"#,
    ] {
        let found = inspected(&question(template), &[]);
        assert_eq!((found.text.kept.as_str(), found.guessed), (QUESTION, true), "{template}");
        assert_eq!(found.shape, None, "{template}");
    }
}

#[test]
fn text_under_names_that_nobody_knows_shows_its_keys_and_no_values() {
    let body = format!(
        r#"{{"sessionId": "s-1", "utterance_of_visitor": "{QUESTION}", "n": 1.5, "list": [{{"a": true}}, {{"b": 1}}],
            "+49 170 5550123": null}}"#
    );
    let found = inspected(&body, &[]);
    assert!(found.text.is_empty() && !found.guessed);
    let shape = "{sessionId: string, utterance_of_visitor: string, n: number, list: [{a: bool}], …: null}";
    assert_eq!(found.shape.as_deref(), Some(shape));
}

#[test]
fn ids_urls_and_names_are_no_text_and_need_no_rule() {
    for body in [
        r#"{"sessionId": "0190c7e8-5b7a-7cc3-98c4-dc0c0c07398f", "action": "loadPreviousSession"}"#,
        r#"{"tenantId": "tn_ab12cd", "locale": "en-GB", "timezone": "Europe/Berlin"}"#,
        r#"{"url": "https://example.com/a page of many words", "title": "A page of very many words indeed"}"#,
        r#"{"userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "n": 3}"#,
        r#"{"input": {}, "flags": [true, null], "name": "Jane Maria Doe of Somewhere"}"#,
        r#"{"body": "a7f3c2d8-0b1e-4c57-9d42-3f1a5b6c7d8e"}"#,
        "{}",
        "[]",
        "null",
        "7",
    ] {
        let found = inspected(body, &[]);
        assert_eq!((found.text.kept.as_str(), found.guessed, found.shape), ("", false, None), "{body}");
    }
}

#[test]
fn a_shape_is_bounded_however_large_the_body() {
    let wide: Vec<_> =
        (0..5_000).map(|i| format!(r#""k{i}": {{"deep": [[[[{{"deeper": "{QUESTION}"}}]]]]}}"#)).collect();
    let shape = inspected(&format!("{{{}}}", wide.join(",")), &[]).shape.unwrap();
    assert!(shape.len() < 1024 && shape.starts_with("{k0: {deep: [[["), "{shape}");
    assert!(!shape.contains("shoes"), "{shape}");
}

#[test]
fn an_images_base64_is_no_text() {
    use base64::Engine as _;
    let noise = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8);
    let bytes: Vec<u8> = b"\x89PNG\r\n\x1a\n".iter().copied().chain(noise).collect();
    let base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
    for body in [
        format!(r#"{{"message": "data:image/png;base64,{base64}"}}"#),
        format!(r#"{{"message": "{base64}"}}"#),
        format!(r#"{{"data": ["data:image/jpeg;base64,{base64}"]}}"#),
        format!(r#"{{"userMessage": "{base64}"}}"#),
        format!(r#"{{"messages": [{{"content": "data:audio/wav;base64,{base64}"}}]}}"#),
    ] {
        let found = inspected(&body, &[]);
        assert_eq!(found.text.kept, "", "{}", &body[..60]);
    }
    // A long word, a text in a script without spaces, or base64 of words, is none: a model reads them all.
    let encoded =
        base64::engine::general_purpose::STANDARD.encode("Please tell me where my parcel is. ".repeat(9));
    for word in [encoded, "a".repeat(5000), "今天天气很好".repeat(100), "Donaudampfschifffahrt".repeat(10)]
    {
        assert_eq!(inspected(&format!(r#"{{"message": "{word}"}}"#), &[]).text.kept, word);
    }
}

#[test]
fn token_ids_are_counted_where_a_text_could_stand() {
    for (body, tokens) in [
        (r#"{"model": "text-embedding-3-small", "input": [1, 2, 3]}"#, 3),
        (r#"{"input": [[1, 2], [3]]}"#, 3),
        (r#"{"prompt": [464, 2068, 7586]}"#, 3),
        (r#"{"prompt": [[1], [2, 3, 4]]}"#, 4),
        (r#"{"input": [1, 2], "input": [1]}"#, 1),
        (r#"{"input": [0.5, 0.25]}"#, 0),
        (r#"{"input": [1, "a"]}"#, 0),
        (r#"{"input": []}"#, 0),
    ] {
        let found = inspected(body, &[]);
        let job = |request| CountJob { encoding: Encoding::Cl100k, request, answer: Text::default() };
        let texts = u64::from(body.contains(r#""a""#));
        assert_eq!(count(&job(found.text)).input, tokens + texts, "{body}");
        assert_eq!(found.shape, None, "{body}");
    }
}

#[test]
fn each_of_several_texts_to_embed_is_counted_by_itself() {
    let found = inspected(r#"{"input": ["hello", "hello", "hello"]}"#, &[]);
    assert_eq!(found.embeddings, 3);
    let job = CountJob { encoding: Encoding::Cl100k, request: found.text, answer: Text::default() };
    assert_eq!(count(&job).input, 3);
}

fn counted_input(request: &str) -> Counted {
    let found = inspected(request, &[]);
    let encoding = Encoding::for_model(found.model.as_deref());
    count(&CountJob { encoding, request: found.text, answer: Text::default() })
}

/// A request, and the `prompt_tokens` that OpenAI reported for it.
#[derive(serde::Deserialize)]
struct Reported<'a> {
    #[serde(borrow)]
    request: &'a serde_json::value::RawValue,
    prompt_tokens: u64,
}

/// Legacy `function_call`s in a history are left aside: three tokens are missing for each.
#[test]
fn prompts_are_counted_as_the_provider_counts_them() {
    let cases = include_str!("../../../tests/cases/prompts.json");
    let cases: Vec<Reported<'_>> = serde_json::from_str(cases).unwrap();
    let mut off = Vec::new();
    for Reported { request, prompt_tokens } in cases {
        let counted = counted_input(request.get());
        assert!(!counted.extrapolated && counted.with.is_none());
        if counted.input.abs_diff(prompt_tokens) * 50 > prompt_tokens.max(50) {
            off.push((counted.input, prompt_tokens, request.get()));
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}

#[test]
fn the_order_of_a_messages_keys_changes_no_count() {
    let cases = include_str!("../../../tests/cases/prompts.json");
    let cases: Vec<Reported<'_>> = serde_json::from_str(cases).unwrap();
    for Reported { request, .. } in cases {
        let request: serde_json::Value = serde_json::from_str(request.get()).unwrap();
        let (model, messages) = (&request["model"], request["messages"].as_array().unwrap());
        let with = |write: fn(&serde_json::Value) -> String| {
            let messages: Vec<String> = messages.iter().map(write).collect();
            counted_input(&format!("{{\"model\": {model}, \"messages\": [{}]}}", messages.join(",")))
        };
        assert_eq!(with(reversed), with(serde_json::Value::to_string), "{messages:?}");
    }
}

fn reversed(message: &serde_json::Value) -> String {
    let members = message.as_object().unwrap().iter().rev();
    let members: Vec<String> = members.map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}", members.join(", "))
}

/// The cookbook's rule, by which any plain chat can be held to: no source has one of forty messages.
#[test]
fn a_chat_of_any_length_is_counted_by_the_cookbooks_rule() {
    for length in 1..=40 {
        let contents = (0..length).map(|i| match i % 3 {
            0 => format!("Question {i}: where is my parcel"),
            1 => format!("It left on the {i}th. Anything else?"),
            _ => "no\nthank you".to_owned(),
        });
        let contents: Vec<_> = contents.collect();
        let roles = ["system", "user", "assistant"];
        let messages: Vec<_> = contents
            .iter()
            .enumerate()
            .map(|(i, content)| serde_json::json!({"role": roles[i % 3], "content": content}))
            .collect();
        let by_rule: usize =
            contents.iter().map(|content| 3 + 1 + bpe_openai::o200k_base().count(content.as_str())).sum();
        let request = serde_json::json!({"model": "gpt-4o", "messages": messages});
        assert_eq!(counted_input(&request.to_string()).input, by_rule as u64 + 3, "{length}");
    }
}

#[test]
fn images_cost_by_their_tiles_and_are_a_guess_without_a_size() {
    let ask = |image: &str| {
        let request = format!(
            r#"{{"model": "gpt-4o", "messages": [{{"role": "user", "content": [{{"type": "text", "text": "hello"}},
                {{"type": "image_url", "image_url": {image}}}]}}]}}"#
        );
        let counted = counted_input(&request);
        (counted.input - 8, counted.extrapolated)
    };
    assert_eq!(ask(r#"{"url": "https://example.com/a.png"}"#), (765, true));
    assert_eq!(ask(r#""https://example.com/a.png""#), (765, true));
    assert_eq!(ask(r#"{"url": "https://example.com/a.png", "detail": "low"}"#), (85, false));
    assert_eq!(ask(r#"{"detail": "low", "url": "https://example.com/a.png"}"#), (85, false));
    assert_eq!(ask("null"), (0, false));
    let png =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    assert_eq!(ask(&format!(r#"{{"url": "data:image/png;base64,{png}"}}"#)), (255, false));
}

#[test]
fn a_repeated_key_takes_the_prompts_framing_with_it() {
    let body = r#"{"messages": [{"role": "user", "name": "a", "content": "hello"}], "tools": [{"name": "x"}],
        "messages": [{"role": "user", "content": "hello"}], "tools": null}"#;
    let found = inspected(body, &[]);
    assert_eq!((found.text.kept.as_str(), found.text.seen_bytes), ("hello", 5), "{found:?}");
    assert_eq!(counted_input(body).input, 8, "{found:?}");
}

#[test]
fn keys_in_another_case_are_wanted_too_and_two_values_are_ambiguous() {
    let at = ["/sessionId", "/context/tenant"];
    let found = |body: &str| {
        let inspected = inspected(body, &at);
        (inspected.values, inspected.ambiguous)
    };
    let some = |text: &str| Some(text.to_owned());
    for (body, values, ambiguous) in [
        (r#"{"SessionID": "a"}"#, [some("a"), None], false),
        (r#"{"sessionId": "a", "SESSIONID": "a"}"#, [some("a"), None], false),
        (r#"{"sessionId": "a", "sessionid": "b"}"#, [some("a"), None], true),
        (r#"{"sessionid": "b", "sessionId": "a"}"#, [some("a"), None], true),
        (r#"{"SESSIONID": "b", "sessionid": "a"}"#, [some("a"), None], true),
        (r#"{"sessionId": "a", "sessionId": "b"}"#, [some("b"), None], false),
        (r#"{"Context": {"Tenant": "t"}}"#, [None, some("t")], false),
        (r#"{"context": {"tenant": "t"}, "Context": {"tenant": "u"}}"#, [None, some("t")], true),
        (r#"{"context": {"tenant": "t"}, "Context": {}}"#, [None, some("t")], false),
        (r#"{"other": {"SESSIONID": "b"}, "sessionId": "a"}"#, [some("a"), None], false),
    ] {
        assert_eq!(found(body), (values.to_vec(), ambiguous), "{body}");
    }
}

#[test]
fn tools_are_strict_json_too() {
    for body in
        [r#"{"tools": [}"#, r#"{"tools": ["\ud800"]}"#, r#"{"tools": [1e999]}"#, r#"{"tools": {"a": 01}}"#]
    {
        assert_eq!(inspect(&auto(), &config(), body.as_bytes(), &[]), Err(NotJson), "{body}");
    }
    let found = inspected(r#"{"message": "Hi", "tools": {"id": "t-1"}}"#, &["/tools/id"]);
    assert_eq!(found.values, [Some("t-1".to_owned())]);
}
