//! Faults 18 to 24, and 30: request bodies.

use std::io::Write;

use serde_json::{Value, json};

use super::{gate, gate_with, no_rows, status_of};
use crate::harness::{Client, answer, batch_answer, request, within};

fn post(body: impl AsRef<[u8]>) -> crate::harness::RequestText {
    request("POST", "/api/widget/chat").header("content-type", "application/json").body(body)
}

#[tokio::test]
async fn fault_18_a_declared_length_over_the_limit_is_refused_before_it_is_read() {
    let (upstream, database, gateway) = gate().await;
    let head = "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_big\r\ncontent-length: 50000000\r\n\r\n";
    assert_eq!(status_of(&gateway, head.as_bytes()).await, Some(413));
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_19_a_chunked_body_over_the_limit_is_refused_on_the_way() {
    let (upstream, database, gateway) = gate().await;
    let mut client = gateway.connect().await;
    client.send("POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_big\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let chunk = [format!("{:x}\r\n", 1 << 18).as_bytes(), &vec![b' '; 1 << 18], b"\r\n"].concat();
    for _ in 0..8 {
        client.try_send(chunk.clone()).await;
    }
    let refused = within("a refusal", client.read_response()).await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (413, json!("body_too_large")));
    assert!(upstream.requests().is_empty());
    drop(client);
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_20_a_truncated_body_never_becomes_a_whole_request() {
    let (upstream, database, gateway) = gate().await;
    for path in ["/api/widget/chat", "/elsewhere"] {
        let mut client: Client = gateway.connect().await;
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_cut\r\ncontent-length: 100\r\n\r\n{{"
            ))
            .await;
        client.finish().await;
        let status =
            within("an answer or the end", client.try_read_response()).await.map(|response| response.status);
        assert!(matches!(status, None | Some(400)), "{path}: {status:?}");
    }
    assert!(upstream.requests().iter().all(|seen| !seen.complete));
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_21_a_body_that_two_parsers_could_read_differently_names_nobody() {
    let (upstream, database, gateway) = gate().await;
    let bodies: [&[u8]; 8] = [
        b"{not json",
        b"{\"tenantId\": \"tn_x\"",
        b"{\"tenantId\": \"tn_\xff\"}",
        b"\xef\xbb\xbf{\"tenantId\": \"tn_x\"}",
        b"{\"tenantId\": \"tn_x\", \"a\": \"\\ud800\"}",
        b"{\"tenantId\": \"tn_x\"} {}",
        b"",
        b"[]",
    ];
    for body in bodies {
        let response = gateway.ask(post(body)).await;
        assert_eq!(
            (response.status, response.json()["code"].clone()),
            (400, json!("tenant_unidentified")),
            "{body:?}"
        );
    }
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_21_where_the_body_is_not_needed_it_is_forwarded_unchanged() {
    let (upstream, database, gateway) = gate().await;
    let body = b"{not json \xff";
    assert_eq!(gateway.ask(post(body).header("x-tenant-id", "tn_odd")).await.status, 200);
    assert_eq!(upstream.requests()[0].body, body);
    gateway.stop().await;
    assert_eq!(database.one("SELECT tokens_consumed FROM tenant_usage_realtime"), "7");
}

#[tokio::test]
async fn fault_22_a_hundred_thousand_brackets_do_no_harm() {
    let (upstream, database, gateway) = gate().await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let response = gateway.ask(post(&deep)).await;
    assert_eq!((response.status, response.json()["code"].clone()), (400, json!("tenant_unidentified")));
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_23_of_two_keys_the_last_one_counts_as_in_the_service() {
    let (_upstream, database, gateway) = gate().await;
    let body = r#"{"tenantId": "tn_first", "message": "x", "tenantId": "tn_last"}"#;
    assert_eq!(gateway.ask(post(body)).await.status, 200);
    gateway.stop().await;
    assert_eq!(database.one("SELECT string_agg(tenant_id, ',') FROM tenant_usage_realtime"), "tn_last");
}

#[tokio::test]
async fn fault_24_an_encoded_body_is_read_on_the_side_and_forwarded_as_it_came() {
    let (upstream, database, gateway) = gate().await;
    let plain = br#"{"tenantId": "tn_gzip", "messages": [{"query": "a"}, {"query": "b"}]}"#;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).expect("memory");
    let gzipped = encoder.finish().expect("memory");
    assert_eq!(gateway.ask(post(&gzipped).header("content-encoding", "gzip")).await.status, 200);
    let seen = &upstream.requests()[0];
    assert_eq!((seen.body.as_slice(), seen.header("content-encoding").as_deref()), (&*gzipped, Some("gzip")));
    let unknown = gateway.ask(post(plain).header("content-encoding", "compress")).await;
    assert_eq!((unknown.status, unknown.json()["code"].clone()), (415, json!("unsupported_encoding")));
    let corrupt = gateway.ask(post(plain).header("content-encoding", "gzip")).await;
    assert_eq!(corrupt.status, 415);
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b' '; 50_000_000]).expect("memory");
    let bomb = gateway.ask(post(bomb.finish().expect("memory")).header("content-encoding", "gzip")).await;
    assert_eq!(bomb.status, 413);
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT tenant_id || ' ' || chat_messages FROM tenant_usage_realtime"),
        "tn_gzip 2"
    );
}

#[tokio::test]
async fn fault_25_a_bomb_in_an_answer_passes_unchanged_and_its_tokens_are_unknown() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(b"{\"reply\": \"").expect("memory");
    encoder.write_all(&vec![b'a'; 300_000_000]).expect("memory");
    let bomb = encoder.finish().expect("memory");
    let sent = bomb.clone();
    let script = move || {
        answer(200).header("content-type", "application/json").header("content-encoding", "gzip").body(&sent)
    };
    let (_upstream, database, gateway) = gate_with(script, "").await;
    let response = gateway.ask(post(r#"{"tenantId": "tn_bomb", "message": "x"}"#)).await;
    assert!(response.status == 200 && response.body == bomb, "unchanged");
    gateway.stop().await;
    let row = database.one("SELECT concat_ws(' ', coalesce(tokens_consumed::text, 'null'), token_source, outcome, metadata->>'meter_flag') FROM tenant_usage_realtime");
    assert_eq!(row, "null none completed bomb");
}

#[tokio::test]
async fn fault_29_hostile_numbers_never_wrap_and_never_block_a_batch() {
    let hostile = [json!(-5), json!(1e308), json!("12"), json!(u64::MAX)];
    for tokens in hostile {
        let body = json!({"batch": [], "aggregated": true, "totalTokens": tokens});
        let (_upstream, database, gateway) = gate_with(move || answer(200).json(&body), "").await;
        assert_eq!(
            gateway.ask(post(r#"{"tenantId": "tn_bad", "messages": [{"query": "a"}]}"#)).await.status,
            200
        );
        gateway.stop().await;
        let row = database.one("SELECT concat_ws(' ', outcome, metadata->>'meter_flag', coalesce(tokens_consumed, 0) BETWEEN 0 AND 1000) FROM tenant_usage_realtime");
        assert_eq!(row, "completed bad_usage t", "{tokens}");
    }
}

#[tokio::test]
async fn fault_30_a_nul_in_recorded_text_is_stored_without_it_and_poisons_nothing() {
    let (_upstream, database, gateway) = gate_with(|| answer(200).json(&batch_answer(7)), "").await;
    let bodies: [Value; 2] = [
        json!({"tenantId": "tn_nul", "sessionId": "a\u{0}b", "messages": [{"query": "x\u{0}y"}], "model": "m\u{0}"}),
        json!({"tenantId": "tn_nul", "sessionId": "plain", "messages": [{"query": "x"}]}),
    ];
    for body in bodies {
        assert_eq!(gateway.ask(post(body.to_string())).await.status, 200);
    }
    gateway.stop().await;
    assert_eq!(
        database.one(
            "SELECT string_agg(chat_session_id, ',' ORDER BY event_timestamp) FROM tenant_usage_realtime"
        ),
        "ab,plain"
    );
}
