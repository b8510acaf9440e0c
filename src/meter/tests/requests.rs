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
    assert_eq!((batch.messages, batch.text), (3, Text::whole("a\nb")));
}

#[test]
fn a_conversation_is_one_message() {
    let body = r#"{"model": "gpt-4o", "messages": [{"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "x"}}]}]}"#;
    let inspected = inspected(body, &[]);
    assert_eq!((inspected.messages, inspected.embeddings), (1, 0));
    assert_eq!((inspected.model.as_deref(), inspected.text), (Some("gpt-4o"), Text::whole("Be brief.\nHi")));
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
fn text_is_kept_within_the_bound() {
    let config = Config { max_text_bytes: 4, ..config() };
    let inspected = inspect(&auto(), &config, br#"{"message": "123456"}"#, &[]).unwrap();
    assert_eq!(inspected.text, Text { kept: "1234".into(), seen_bytes: 6 });
}
