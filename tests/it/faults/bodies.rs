//! Faults 18 to 24, and 30: request bodies.

use std::io::Write;

use serde_json::{Value, json};

use super::{gate, gate_with, no_rows, refusal_of};
use crate::harness::{Client, Http2, TestGateway, answer, batch_answer, request, within};
use crate::postgres::Database;

fn post(body: impl AsRef<[u8]>) -> crate::harness::RequestText {
    request("POST", "/api/widget/chat").header("content-type", "application/json").body(body)
}

const CHAT: &str = "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_big\r\n";

#[tokio::test]
async fn fault_18_a_declared_length_over_the_limit_is_refused_before_it_is_read() {
    let (upstream, database, gateway) = gate().await;
    for length in ["50000000", "18446744073709551613"] {
        assert_eq!(
            refusal_of(&gateway, format!("{CHAT}content-length: {length}\r\n\r\n")).await,
            413,
            "{length}"
        );
    }
    let mut client = gateway.connect().await;
    client.send(format!("{CHAT}expect: 100-continue\r\ncontent-length: 50000000\r\n\r\n")).await;
    let refused = within("a refusal", client.read_response()).await;
    assert_eq!((refused.status, refused.interim), (413, vec![]), "the client is not told to go on");
    assert_eq!(upstream.connections(), 0);
    refused_rows(&database, gateway, 3).await;
}

/// Whoever is named by a header leaves a row for each body that was refused, and is charged nothing.
async fn refused_rows(database: &Database<'_>, gateway: TestGateway, count: usize) {
    gateway.stop().await;
    let rows =
        "SELECT concat_ws(' ', count(*), min(outcome), min(api_status_code), min(metadata ->> 'refused_by'))
        FROM tenant_usage_realtime";
    assert_eq!(database.one(rows), format!("{count} refused 413 body_too_large"));
    assert_eq!(database.one("SELECT count(*) FROM quota_usage"), "0");
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_send_its_body_is_told() {
    let (upstream, database, gateway) = gate().await;
    let body = r#"{"messages": [{"query": "a"}]}"#;
    for head in [CHAT, "POST /elsewhere HTTP/1.1\r\nhost: a\r\n"] {
        let mut client = gateway.connect().await;
        client.send(format!("{head}expect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len())).await;
        assert_eq!(client.read_bytes(25).await, b"HTTP/1.1 100 Continue\r\n\r\n");
        client.send(body).await;
        assert_eq!(client.read_response().await.status, 200);
    }
    let seen = upstream.requests();
    assert!(seen.iter().all(|seen| seen.body == body.as_bytes() && seen.header("expect").is_none()));
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "1");
}

#[tokio::test]
async fn fault_19_a_chunked_body_over_the_limit_is_refused_on_the_way() {
    let (upstream, database, gateway) = gate().await;
    let chunk = [format!("{:x}\r\n", 1 << 18).as_bytes(), &vec![b' '; 1 << 18], b"\r\n"].concat();
    let endless =
        [format!("{CHAT}transfer-encoding: chunked\r\n\r\n").as_bytes(), &chunk.repeat(33)].concat();
    assert_eq!(refusal_of(&gateway, endless).await, 413);
    assert_eq!(upstream.connections(), 0);
    assert_eq!(gateway.metric("tollgate_replies_total{code=\"body_too_large\"}").await, 1.0);
    refused_rows(&database, gateway, 1).await;
}

#[tokio::test]
async fn fault_20_a_truncated_body_never_becomes_a_whole_request() {
    let (upstream, database, gateway) = gate().await;
    for head in ["POST /elsewhere HTTP/1.1\r\nhost: a\r\n", CHAT] {
        for body in ["content-length: 100\r\n\r\n{", "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"] {
            let mut client: Client = gateway.connect().await;
            client.send(format!("{head}{body}")).await;
            client.finish().await;
            let answered = within("an answer or the end", client.try_read_response()).await;
            let status = answered.map(|response| response.status);
            assert!(matches!(status, None | Some(400)), "{head}{body}: {status:?}");
        }
    }
    assert!(upstream.connections() <= 2, "nothing of the metered ones");
    if upstream.connections() > 0 {
        upstream.all_closed().await;
    }
    assert!(upstream.requests().iter().all(|seen| !seen.complete));
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn a_body_without_a_length_reaches_the_service_whatever_the_method() {
    let metered = "[[routes]]\npath = \"/api/find\"\nevent = \"search\"\nformat = \"none\"\n";
    let (upstream, database, gateway) = gate_with(|| answer(200).json(&batch_answer(7)), metered).await;
    let body = r#"{"query": "blue"}"#;
    let mut count = 0;
    for path in ["/elsewhere", "/api/find"] {
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PROPFIND"] {
            if (method, path) == ("OPTIONS", "/api/find") {
                continue;
            }
            let mut client = gateway.connect().await;
            client
                .send(
                    request(method, path).header("x-tenant-id", "tn_find").chunked([&body[..5], &body[5..]]),
                )
                .await;
            let answered = match method {
                "HEAD" => client.read_response_to_head().await,
                _ => client.read_response().await,
            };
            assert_eq!(answered.status, 200, "{method} {path}");
            let seen = upstream.requests();
            count += 1;
            assert_eq!(seen.len(), count, "{method} {path}");
            let last = &seen[count - 1];
            assert_eq!(
                (last.method(), &*last.body, last.complete),
                (method, body.as_bytes(), true),
                "{path}"
            );
            let mut framings =
                [last.header("content-length"), last.header("transfer-encoding")].into_iter().flatten();
            assert!(framings.next().is_some() && framings.next().is_none(), "{method} {path}: {}", last.head);
        }
    }
    gateway.stop().await;
    drop(database);
}

#[tokio::test]
async fn a_body_in_http_2_reaches_the_service_whatever_the_method() {
    let (upstream, _database, gateway) = gate().await;
    let mut connection = Http2::connect(gateway.address).await;
    for (place, method) in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"].into_iter().enumerate() {
        let stream = connection.open(method, "/elsewhere", &[]);
        stream.send("a body");
        assert_eq!(stream.finish().await.map(|answer| answer.0), Some(200), "{method}");
        let seen = upstream.seen(place + 1).await;
        assert_eq!((seen[place].method(), &*seen[place].body), (method, &b"a body"[..]));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_malformed_body_of_a_get_is_the_clients_fault() {
    let (upstream, database, gateway) = gate().await;
    for method in ["GET", "HEAD", "DELETE"] {
        let head = format!("{method} /elsewhere HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut client = gateway.connect().await;
        client.send(format!("{head}2\r\n{{}}\r\nzz\r\n{{}}\r\n0\r\n\r\n")).await;
        let refused = within("a refusal", client.read_head()).await;
        assert_eq!(refused.status, 400, "{method}");
    }
    upstream.all_closed().await;
    assert!(upstream.requests().iter().all(|seen| !seen.complete));
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn a_transfer_coding_other_than_chunks_is_a_501() {
    let (upstream, database, gateway) = gate().await;
    for coding in ["gzip, chunked", "x-mine, chunked"] {
        assert_eq!(
            refusal_of(&gateway, format!("{CHAT}transfer-encoding: {coding}\r\n\r\n0\r\n\r\n")).await,
            501
        );
    }
    assert_eq!(upstream.connections(), 0);
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn what_has_no_body_is_given_none() {
    let (upstream, _database, gateway) = gate().await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        let mut client = gateway.connect().await;
        client.send(request(method, "/elsewhere")).await;
        assert_eq!(client.read_head().await.status, 200);
    }
    for seen in upstream.requests() {
        assert_eq!(
            (seen.header("content-length"), seen.header("transfer-encoding")),
            (None, None),
            "{}",
            seen.head
        );
    }
    gateway.stop().await;
}

/// What names no tenant to a parser that we know of, or a different one to each.
const DOUBTFUL: [&[u8]; 9] = [
    b"{not json",
    b"{\"tenantId\": \"tn_x\"",
    b"{\"tenantId\": \"tn_\xff\"}",
    b"{\"tenantId\": \"tn_x\"} {}",
    b"{\"tenantId\": \"tn_x\",}",
    b"{'tenantId': 'tn_x'}",
    b"tenantId=tn_x",
    b"",
    b"[]",
];

#[tokio::test]
async fn fault_21_a_body_that_two_parsers_could_read_differently_names_nobody() {
    let (upstream, database, gateway) = gate().await;
    for body in DOUBTFUL {
        let response = gateway.ask(post(body)).await;
        assert_eq!(
            (response.status, response.json()["code"].clone()),
            (400, json!("tenant_unidentified")),
            "{body:?}"
        );
    }
    assert_eq!(upstream.connections(), 0);
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_21_where_its_content_counts_for_nothing_a_body_is_forwarded_unchanged() {
    let search = "[[routes]]\npath = \"/api/widget/chat\"\nevent = \"search\"\n";
    let (upstream, database, gateway) = super::gate_with(|| answer(200).json(&batch_answer(7)), search).await;
    for body in DOUBTFUL {
        assert_eq!(gateway.ask(post(body).header("x-tenant-id", "tn_odd")).await.status, 200, "{body:?}");
    }
    let forwarded: Vec<_> = upstream.requests().into_iter().map(|seen| seen.body).collect();
    assert_eq!(forwarded, DOUBTFUL);
    gateway.stop().await;
    let rows = database.rows("SELECT DISTINCT tenant_id, tokens_consumed FROM tenant_usage_realtime");
    assert_eq!(rows, [["tn_odd", "7"]]);
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

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).expect("memory");
    encoder.finish().expect("memory")
}

#[tokio::test]
async fn fault_24_an_encoded_body_is_read_on_the_side_and_forwarded_as_it_came() {
    let (upstream, database, gateway) = gate().await;
    let plain = br#"{"tenantId": "tn_coded", "messages": [{"query": "a"}, {"query": "b"}]}"#;
    let mut brotli = Vec::new();
    brotli::BrotliCompress(&mut &plain[..], &mut brotli, &Default::default()).expect("memory");
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    deflate.write_all(plain).expect("memory");
    let coded = [
        ("gzip", gzip(plain)),
        ("x-gzip", gzip(plain)),
        ("deflate", deflate.finish().expect("memory")),
        ("br", brotli),
        ("zstd", zstd::encode_all(&plain[..], 0).expect("memory")),
        ("identity", plain.to_vec()),
    ];
    for (coding, body) in &coded {
        assert_eq!(gateway.ask(post(body).header("content-encoding", coding)).await.status, 200, "{coding}");
    }
    let seen: Vec<_> =
        upstream.requests().iter().map(|seen| (seen.header("content-encoding"), seen.body.clone())).collect();
    assert_eq!(seen, coded.map(|(coding, body)| (Some(coding.to_owned()), body)));
    gateway.stop().await;
    let rows =
        database.rows("SELECT tenant_id, chat_messages, count(*) FROM tenant_usage_realtime GROUP BY 1, 2");
    assert_eq!(rows, [["tn_coded", "2", "6"]]);
}

#[tokio::test]
async fn fault_24_a_body_that_cannot_be_decoded_within_bounds_is_refused() {
    let (upstream, database, gateway) = gate().await;
    let plain = br#"{"tenantId": "tn_coded"}"#;
    let half = &gzip(plain)[..20];
    let cases: [(&str, &[u8], u16, &str); 6] = [
        ("compress", plain, 415, "unsupported_encoding"),
        ("gzip", plain, 415, "unsupported_encoding"),
        ("gzip", half, 415, "unsupported_encoding"),
        ("gzip\r\ncontent-encoding: gzip", &gzip(plain), 415, "unsupported_encoding"),
        ("gzip", &gzip(&vec![b' '; 50_000_000]), 413, "body_too_large"),
        ("gzip", &gzip(&gzip(&vec![b' '; 50_000_000])), 400, "tenant_unidentified"),
    ];
    for (coding, body, status, code) in cases {
        let refused = gateway.ask(post(body).header("content-encoding", coding)).await;
        assert_eq!((refused.status, refused.json()["code"].clone()), (status, json!(code)), "{coding}");
    }
    assert_eq!(upstream.connections(), 0);
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_25_a_bomb_in_an_answer_passes_unchanged_and_is_charged_its_reservation() {
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
    assert_eq!(row, "150 reserved completed bomb");
}

#[tokio::test]
async fn fault_29_hostile_numbers_never_wrap_and_never_block_a_batch() {
    let hostile = [json!(-5), json!(1e308), json!("twelve"), json!(u64::MAX)];
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
