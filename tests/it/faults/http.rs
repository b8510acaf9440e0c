//! Faults 1 to 17: HTTP itself.

use serde_json::json;

use super::{answer_to, gate, no_rows, status_of};
use crate::harness::{Step, Upstream, answer, batch, batch_answer, gateway, request, within};
use crate::postgres::shared;

const CHAT: &str = "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_fault\r\n";

/// Requests that must be refused, on the metered route and off it, with nothing reaching the upstream.
async fn refused_whole(cases: &[&str], statuses: &[u16]) {
    let (upstream, database, gateway) = gate().await;
    for case in cases {
        for head in [CHAT, "POST /elsewhere HTTP/1.1\r\nhost: a\r\n"] {
            let status = status_of(&gateway, format!("{head}{case}").as_bytes()).await;
            assert!(status.is_none_or(|status| statuses.contains(&status)), "{case:?}: {status:?}");
        }
    }
    let reached: Vec<_> = upstream.requests().into_iter().filter(|seen| seen.complete).collect();
    assert!(reached.is_empty(), "{:?}", reached.first().map(|seen| &seen.head));
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_01_length_and_chunks_together_are_never_both_forwarded() {
    let (upstream, _database, gateway) = gate().await;
    let both = "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    for head in [CHAT, "POST /elsewhere HTTP/1.1\r\nhost: a\r\n"] {
        let status = status_of(&gateway, format!("{head}{both}").as_bytes()).await;
        assert!(matches!(status, None | Some(200 | 400)), "{status:?}");
    }
    for seen in upstream.requests() {
        let lengths = seen.headers().iter().filter(|h| h.name.eq_ignore_ascii_case("content-length")).count();
        let chunked = seen.header("transfer-encoding").is_some();
        assert!(lengths + usize::from(chunked) == 1, "{}", seen.head);
        assert_eq!(seen.body, b"{}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn fault_02_two_different_lengths_are_refused() {
    refused_whole(
        &["content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "content-length: 2, 3\r\n\r\n{}"],
        &[400],
    )
    .await;
}

#[tokio::test]
async fn fault_03_a_length_that_is_no_number_is_refused() {
    let bad = ["+10", "0xa", "-1", "", "99999999999999999999999", "1 0"];
    let cases: Vec<_> = bad.iter().map(|length| format!("content-length: {length}\r\n\r\n{{}}")).collect();
    refused_whole(&cases.iter().map(String::as_str).collect::<Vec<_>>(), &[400]).await;
}

#[tokio::test]
async fn fault_04_a_transfer_encoding_other_than_chunked_is_refused() {
    let bad = ["xchunked", "gzip", "chunked, identity", "chunked, chunked", "identity"];
    let cases: Vec<_> =
        bad.iter().map(|te| format!("transfer-encoding: {te}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n")).collect();
    refused_whole(&cases.iter().map(String::as_str).collect::<Vec<_>>(), &[400, 501]).await;
}

#[tokio::test]
async fn fault_05_odd_space_around_the_colon_is_refused() {
    let cases = [
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding\u{b}: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: \u{b}chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: \u{c}chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding\0: chunked\r\n\r\n0\r\n\r\n",
    ];
    refused_whole(&cases, &[400, 501]).await;
}

#[tokio::test]
async fn fault_06_chunks_in_http_1_0_are_refused() {
    let (upstream, database, gateway) = gate().await;
    let head =
        "POST /elsewhere HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    assert!(matches!(status_of(&gateway, head.as_bytes()).await, None | Some(400)));
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_07_a_broken_chunk_is_the_clients_fault_and_the_upstream_never_sees_a_whole_request() {
    let bad =
        ["0x2\r\n{}", "+2\r\n{}", "-2\r\n{}", "fffffffffffffffff\r\n{}", "2\r\n{}xx0\r\n\r\n", "zz\r\n{}"];
    let cases: Vec<_> =
        bad.iter().map(|body| format!("transfer-encoding: chunked\r\n\r\n{body}\r\n0\r\n\r\n")).collect();
    refused_whole(&cases.iter().map(String::as_str).collect::<Vec<_>>(), &[400]).await;
}

#[tokio::test]
async fn fault_08_bare_line_ends_and_folding_are_refused_or_mean_one_thing() {
    let (upstream, database, gateway) = gate().await;
    let cases = [
        "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\rtwo\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\r\n two\r\n\r\n",
    ];
    for case in cases {
        assert!(matches!(status_of(&gateway, case.as_bytes()).await, None | Some(400)), "{case:?}");
    }
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_09_a_missing_repeated_or_malformed_host_is_refused() {
    let (upstream, database, gateway) = gate().await;
    for host in ["", "host: a\r\nhost: a\r\n", "host: a\r\nhost: b\r\n", "host: a b\r\n", "host: a/b\r\n"] {
        let head = format!("GET /page HTTP/1.1\r\n{host}\r\n");
        assert_eq!(status_of(&gateway, head.as_bytes()).await, Some(400), "{host:?}");
    }
    assert!(upstream.requests().is_empty());
    assert!(gateway.metric("tollgate_bad_requests_total").await >= 5.0);
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_10_control_bytes_are_refused() {
    let (upstream, database, gateway) = gate().await;
    for case in [
        "GET /a\0b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx\x01: b\r\n\r\n",
    ] {
        assert!(matches!(status_of(&gateway, case.as_bytes()).await, None | Some(400)), "{case:?}");
    }
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_11_a_huge_target_or_head_is_refused_with_the_right_status() {
    let (upstream, database, gateway) = gate().await;
    let long = "a".repeat(1_000_000);
    let many: String = (0..10_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cases = [
        format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"),
    ];
    for case in cases {
        let status = status_of(&gateway, case.as_bytes()).await;
        assert!(matches!(status, None | Some(414 | 431)), "{status:?}");
    }
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_12_bytes_after_an_upgrade_that_was_not_granted_are_an_ordinary_request() {
    let (upstream, _database, gateway) = gate().await;
    let mut client = gateway.connect().await;
    client
        .send("GET /one HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nGET /two HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert_eq!(answer_to(&mut client).await, Some(200));
    let second = answer_to(&mut client).await;
    let targets: Vec<_> = upstream.requests().iter().map(|seen| seen.target().to_owned()).collect();
    match second {
        Some(status) => assert_eq!((status, targets), (200, vec!["/one".to_owned(), "/two".to_owned()])),
        None => assert_eq!(targets, ["/one"]),
    }
    drop(client);
    gateway.stop().await;
}

#[tokio::test]
async fn fault_13_a_switch_of_protocols_that_nobody_asked_for_is_a_bad_gateway() {
    let upstream = Upstream::answering(|_| {
        vec![Step::send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")]
    })
    .await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).start().await;
    assert_eq!(gateway.ask(request("GET", "/page")).await.status, 502);
    assert_eq!(gateway.ask(batch("tn_switch", 1)).await.status, 502);
    gateway.stop().await;
}

#[tokio::test]
async fn fault_14_connect_and_trace_and_an_asterisk_are_refused() {
    let (upstream, database, gateway) = gate().await;
    let ask = |line: &str| format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(status_of(&gateway, ask("CONNECT a:443").as_bytes()).await, Some(405));
    assert_eq!(status_of(&gateway, ask("TRACE /").as_bytes()).await, Some(405));
    assert_eq!(status_of(&gateway, ask("GET *").as_bytes()).await, Some(400));
    assert!(upstream.requests().is_empty());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_15_trailers_never_become_headers() {
    let (upstream, database, gateway) = gate().await;
    let body = json!({"sessionId": "s", "messages": [{"query": "q"}]}).to_string();
    let chunked = format!(
        "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_real\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\nhost: evil\r\nx-tenant-id: tn_forged\r\nauthorization: Bearer x\r\n\r\n",
        body.len()
    );
    let status = status_of(&gateway, chunked.as_bytes()).await;
    assert!(matches!(status, Some(200 | 400)), "{status:?}");
    for seen in upstream.requests() {
        assert_eq!(seen.header("host").as_deref(), Some("a"));
        assert_eq!(seen.header("x-tenant-id").as_deref(), Some("tn_real"));
        assert_eq!(seen.header("authorization"), None);
    }
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime WHERE tenant_id <> 'tn_real'"), "0");
}

#[tokio::test]
async fn fault_16_naming_the_tenant_header_in_connection_changes_nothing() {
    let (upstream, database, gateway) = gate().await;
    let asked = batch("tn_hop", 1)
        .header("connection", "x-tenant-id, authorization, x-really-hop")
        .header("authorization", "Basic abc")
        .header("x-really-hop", "1");
    assert_eq!(gateway.ask(asked).await.status, 200);
    let seen = &upstream.requests()[0];
    assert_eq!(seen.header("x-tenant-id").as_deref(), Some("tn_hop"));
    assert_eq!(seen.header("authorization").as_deref(), Some("Basic abc"));
    assert_eq!(seen.header("x-really-hop"), None);
    gateway.stop().await;
    assert_eq!(database.one("SELECT tenant_id FROM tenant_usage_realtime"), "tn_hop");
}

#[tokio::test]
async fn fault_17_every_spelling_of_the_metered_path_is_metered_and_forwarded_as_it_came() {
    let (upstream, database, gateway) = gate().await;
    let spellings = [
        "/api/widget/chat/",
        "//api/widget/chat",
        "/api/widget/%63hat",
        "/x/../api/widget/chat",
        "/api/./widget/chat?stream=false",
    ];
    let sample = String::from_utf8(batch("tn_spell", 1).bytes()).expect("text");
    for target in spellings {
        let asked = sample.replacen("/api/widget/chat", target, 1);
        assert_eq!(status_of(&gateway, asked.as_bytes()).await, Some(200), "{target}");
    }
    let seen: Vec<_> = upstream.requests().iter().map(|seen| seen.target().to_owned()).collect();
    assert_eq!(seen, spellings);
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime WHERE tenant_id = 'tn_spell'"), "5");
}

#[tokio::test]
async fn fault_57_pipelined_requests_are_answered_in_order_with_a_row_each() {
    let upstream = Upstream::answering(|seen| {
        let tokens = seen.header("x-tokens").and_then(|tokens| tokens.parse().ok()).unwrap_or(0);
        answer(200).json(&batch_answer(tokens))
    })
    .await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).start().await;
    let mut client = gateway.connect().await;
    let pipelined: Vec<u8> =
        (1..=4).flat_map(|n| batch("tn_pipe", 1).header("x-tokens", &n.to_string()).bytes()).collect();
    client.send(pipelined).await;
    for n in 1..=4 {
        let response = within("an answer", client.read_response()).await;
        assert_eq!(response.json()["totalTokens"], json!(n));
    }
    drop(client);
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT count(*) || ' ' || sum(tokens_consumed) FROM tenant_usage_realtime"),
        "4 10"
    );
}
