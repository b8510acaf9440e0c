//! Faults 1 to 17: HTTP itself.

use serde_json::json;

use super::{answer_to, gate, gate_with, no_rows, refusal_of, status_of};
use crate::harness::{Step, Upstream, answer, batch, batch_answer, gateway, request, within};
use crate::postgres::shared;

const CHAT: &str = "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_fault\r\n";

const ELSEWHERE: &str = "POST /elsewhere HTTP/1.1\r\nhost: a\r\n";

/// Requests that must be refused, on the metered route and off it, each followed by a whole request on the same
/// connection: not even a connection to the upstream is made, and all that is left of them is a counter.
async fn refused_whole(rests: &[&str], statuses: &[u16]) {
    let requests: Vec<_> =
        rests.iter().flat_map(|rest| [CHAT, ELSEWHERE].map(|head| format!("{head}{rest}"))).collect();
    let glued = "GET /glued HTTP/1.1\r\nhost: a\r\n\r\n";
    refused_each(requests.iter().map(|request| format!("{request}{glued}")), statuses).await;
}

async fn refused_each(requests: impl IntoIterator<Item = impl AsRef<[u8]>>, statuses: &[u16]) {
    let (upstream, database, gateway) = gate().await;
    let mut count = 0.0;
    for request in requests {
        let status = refusal_of(&gateway, &request).await;
        let shown = &request.as_ref()[..request.as_ref().len().min(200)];
        assert!(statuses.contains(&status), "{status} for {:?}", String::from_utf8_lossy(shown));
        count += 1.0;
    }
    assert_eq!(upstream.connections(), 0, "nothing reaches the upstream");
    gateway.until_metric("tollgate_bad_requests_total", count).await;
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_01_length_and_chunks_together_are_never_both_forwarded() {
    let (upstream, _database, gateway) = gate().await;
    let (length, chunked) = ("content-length: 3\r\n", "transfer-encoding: chunked\r\n");
    for head in [CHAT, ELSEWHERE] {
        for framing in [format!("{length}{chunked}"), format!("{chunked}{length}")] {
            // By the length, what follows its three bytes would be the next request.
            let body = "\r\n2\r\n{}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
            assert_eq!(
                refusal_of(&gateway, format!("{head}{framing}{body}")).await,
                200,
                "chunks win, then close"
            );
        }
    }
    let seen = upstream.requests();
    assert_eq!(seen.len(), 4);
    for seen in seen {
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
    let bad = ["+10", "0xa", "-1", "", "99999999999999999999999", "1 0", "2, 2"];
    let cases: Vec<_> = bad.iter().map(|length| format!("content-length: {length}\r\n\r\n{{}}")).collect();
    refused_whole(&cases.iter().map(String::as_str).collect::<Vec<_>>(), &[400]).await;
}

#[tokio::test]
async fn fault_04_a_transfer_encoding_other_than_chunked_is_refused() {
    let bad = [
        "xchunked",
        "gzip",
        "gzip, chunked",
        "chunked, identity",
        "chunked, chunked",
        ", chunked",
        "chunked,",
        "chunked;q=1",
        "\"chunked\"",
        "identity",
        "",
        "chunked\r\ntransfer-encoding: chunked",
        "gzip\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: identity",
    ];
    let cases: Vec<_> =
        bad.iter().map(|te| format!("transfer-encoding: {te}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n")).collect();
    refused_whole(&cases.iter().map(String::as_str).collect::<Vec<_>>(), &[400, 501]).await;
}

#[tokio::test]
async fn fault_05_odd_space_around_the_colon_is_refused() {
    let odd = [
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        "transfer-encoding\u{b}: chunked",
        "transfer-encoding\u{c}: chunked",
        "transfer-encoding\0: chunked",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding: \u{c}chunked",
        "transfer-encoding: \0chunked",
        "transfer-encoding: chunked\u{b}",
        " transfer-encoding: chunked",
    ];
    let cases: Vec<_> = odd.iter().map(|line| format!("{line}\r\n\r\n0\r\n\r\n")).collect();
    refused_whole(&cases.iter().map(String::as_str).collect::<Vec<_>>(), &[400, 501]).await;
}

#[tokio::test]
async fn fault_06_chunks_in_http_1_0_are_refused() {
    let request = |path: &str| {
        format!("POST {path} HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n")
    };
    refused_each([request("/api/widget/chat"), request("/elsewhere")], &[400]).await;
}

/// Chunks that no parser may read, each after one that is whole.
const BROKEN_CHUNKS: [&str; 12] = [
    "0x2\r\n{}\r\n",
    "+2\r\n{}\r\n",
    "-2\r\n{}\r\n",
    "fffffffffffffffff\r\n{}\r\n",
    "zz\r\n{}\r\n",
    "\r\n{}\r\n",
    "2 2\r\n{}\r\n",
    "2\r\n{}spilling\r\n",
    "2\n{}\r\n",
    "2\r{}\r\n",
    "2\r\n{}\n",
    "2;a\nb\r\n{}\r\n",
];

#[tokio::test]
async fn fault_07_a_broken_chunk_is_the_clients_fault_and_nothing_of_it_is_metered() {
    let (upstream, database, gateway) = gate().await;
    for broken in BROKEN_CHUNKS {
        let request = format!("{CHAT}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n{broken}0\r\n\r\n");
        assert_eq!(refusal_of(&gateway, request).await, 400, "{broken:?}");
    }
    assert_eq!(upstream.connections(), 0);
    let count = gateway.metric("tollgate_replies_total{code=\"body_incomplete\"}").await;
    assert_eq!(count as usize, BROKEN_CHUNKS.len());
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_07_a_broken_chunk_on_the_way_through_aborts_the_upstreams_request() {
    let (upstream, database, gateway) = gate().await;
    for broken in BROKEN_CHUNKS {
        let request = format!("{ELSEWHERE}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n{broken}0\r\n\r\n");
        assert_eq!(refusal_of(&gateway, request).await, 400, "not 502: {broken:?}");
    }
    upstream.all_closed().await;
    assert!(upstream.requests().iter().all(|seen| !seen.complete), "no request looks whole to the upstream");
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_08_a_bare_return_and_folding_are_refused() {
    let cases = [
        "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\rtwo\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\r\n two\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\r\n\ttwo\r\n\r\n",
        "GET / HTTP/1.1\rhost: a\r\r",
        "GET / HTTP/1.1\r\nhost: a\r\nx-a\r: one\r\n\r\n",
    ];
    refused_each(cases, &[400]).await;
}

#[tokio::test]
async fn fault_08_a_bare_line_feed_that_ends_a_line_ends_it_for_the_upstream_too() {
    let (upstream, _database, gateway) = gate().await;
    let request = "POST /elsewhere HTTP/1.1\nhost: a\nx-a: one\ncontent-length: 2\n\n{}";
    assert_eq!(status_of(&gateway, request.as_bytes()).await, Some(200));
    let seen = &upstream.requests()[0];
    assert_eq!((seen.header("x-a").as_deref(), &*seen.body), (Some("one"), &b"{}"[..]));
    assert_eq!(seen.head.matches('\n').count(), seen.head.matches("\r\n").count(), "{:?}", seen.head);
    gateway.stop().await;
}

#[tokio::test]
async fn fault_09_a_missing_repeated_or_malformed_host_is_refused() {
    let hosts = [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a\r\nhost: b\r\n",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: a?b\r\n",
        "host: user@a\r\n",
        "host: a:b\r\n",
        "host: a:99999\r\n",
        "host: a:1:2\r\n",
        "host: [::1\r\n",
        "host: a\\b\r\n",
    ];
    refused_each(hosts.map(|host| format!("GET /page HTTP/1.1\r\n{host}\r\n")), &[400]).await;
}

#[tokio::test]
async fn fault_09_an_absolute_target_stands_before_the_host_header_for_both_ends() {
    let (upstream, database, gateway) = gate().await;
    let page = "GET http://shop.example:8080/page?x=1 HTTP/1.1\r\nhost: other.example\r\n\r\n";
    assert_eq!(status_of(&gateway, page.as_bytes()).await, Some(200));
    let chat = String::from_utf8(batch("tn_absolute", 1).bytes()).expect("text");
    let chat = chat.replacen("/api/widget/chat", "http://shop.example/api/widget/chat", 1);
    assert_eq!(status_of(&gateway, chat.as_bytes()).await, Some(200));
    let seen: Vec<_> = upstream.requests();
    assert_eq!(
        (seen[0].target(), seen[0].header("host").as_deref()),
        ("/page?x=1", Some("shop.example:8080"))
    );
    assert_eq!(seen[0].header("x-forwarded-host").as_deref(), Some("shop.example:8080"));
    assert_eq!(
        (seen[1].target(), seen[1].header("host").as_deref()),
        ("/api/widget/chat", Some("shop.example"))
    );
    gateway.stop().await;
    assert_eq!(database.one("SELECT tenant_id FROM tenant_usage_realtime"), "tn_absolute");
}

#[tokio::test]
async fn fault_10_control_bytes_are_refused() {
    let cases = [
        "GET /a\0b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a\x01b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a\tb HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a\x7fb HTTP/1.1\r\nhost: a\r\n\r\n",
        "G\x01T / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\x1bb\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\x7fb\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx\x01: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n",
    ];
    refused_each(cases, &[400]).await;
}

#[tokio::test]
async fn fault_11_a_huge_target_or_head_is_refused_with_the_right_status() {
    let long = "a".repeat(1_000_000);
    let many: String = (0..10_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let few_too_many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cases = [
        format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"),
        format!("GET / HTTP/1.1\r\nhost: a\r\n{few_too_many}\r\n"),
    ];
    refused_each(cases, &[414, 431]).await;
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
    let asking = batch("tn_switch", 1).header("connection", "upgrade").header("upgrade", "x");
    for chat in [batch("tn_switch", 1), asking] {
        assert_eq!(
            gateway.ask(chat).await.status,
            502,
            "what is metered is never switched, asked for or not"
        );
    }
    gateway.stop().await;
    let rows = database.rows("SELECT outcome, api_status_code, tokens_consumed FROM tenant_usage_realtime");
    assert_eq!(rows, [["upstream_error", "502", "0"]; 2]);
}

#[tokio::test]
async fn fault_14_connect_and_trace_and_an_asterisk_are_refused() {
    let glued = "GET /glued HTTP/1.1\r\nhost: a\r\n\r\n";
    let ask = |line: &str| format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n{glued}");
    refused_each(
        ["CONNECT a:443", "CONNECT /api/widget/chat", "TRACE /", "TRACE /api/widget/chat"].map(ask),
        &[400, 405],
    )
    .await;
    refused_each(["GET *", "POST *", "GET a:443"].map(ask), &[400]).await;
}

#[tokio::test]
async fn fault_14_options_may_ask_for_an_asterisk() {
    let (upstream, _database, gateway) = gate().await;
    assert_eq!(status_of(&gateway, b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await, Some(200));
    assert_eq!(upstream.requests()[0].target(), "*");
    gateway.stop().await;
}

#[tokio::test]
async fn fault_15_trailers_never_become_headers() {
    let (upstream, database, gateway) = gate().await;
    let body = json!({"sessionId": "s", "messages": [{"query": "q"}]}).to_string();
    let trailers = "host: evil\r\nx-tenant-id: tn_forged\r\nauthorization: Bearer x\r\ncontent-length: 1\r\n";
    for head in [CHAT, "POST /elsewhere HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_fault\r\n"] {
        for announced in ["", "trailer: host, x-tenant-id, authorization, content-length\r\n"] {
            let framing = "transfer-encoding: chunked\r\nte: trailers\r\n";
            let request =
                format!("{head}{framing}{announced}\r\n{:x}\r\n{body}\r\n0\r\n{trailers}\r\n", body.len());
            assert_eq!(status_of(&gateway, request.as_bytes()).await, Some(200));
        }
    }
    let seen = upstream.requests();
    assert_eq!(seen.len(), 4);
    for seen in seen {
        assert_eq!(seen.header("host").as_deref(), Some("a"));
        assert_eq!(seen.header("x-tenant-id").as_deref(), Some("tn_fault"));
        assert_eq!((seen.header("authorization"), seen.body.as_slice()), (None, body.as_bytes()));
        let smuggled = |name: &str| seen.trailers.iter().any(|line| line.name.eq_ignore_ascii_case(name));
        assert!(
            !["host", "authorization", "content-length", "x-tenant-id"].into_iter().any(smuggled),
            "{:?}",
            seen.trailers
        );
    }
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT string_agg(DISTINCT tenant_id, ',') FROM tenant_usage_realtime"),
        "tn_fault"
    );
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
        "/api%2Fwidget%2fchat",
        "/x/%2e%2e/api/widget/chat",
        "/../api/widget/chat//",
    ];
    let sample = String::from_utf8(batch("tn_spell", 1).bytes()).expect("text");
    for target in spellings {
        let asked = sample.replacen("/api/widget/chat", target, 1);
        assert_eq!(status_of(&gateway, asked.as_bytes()).await, Some(200), "{target}");
    }
    let seen: Vec<_> = upstream.requests().iter().map(|seen| seen.target().to_owned()).collect();
    assert_eq!(seen, spellings);
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime WHERE tenant_id = 'tn_spell'"), "8");
}

#[tokio::test]
async fn fault_17_what_the_backend_takes_for_another_route_is_not_metered() {
    let (upstream, database, gateway) = gate().await;
    let others = ["/api/widget/chats", "/api/widget/chat/x", "/api/widget/%2563hat", "/api.json/widget/chat"];
    let sample = String::from_utf8(batch("tn_other", 1).bytes()).expect("text");
    for target in others {
        let asked = sample.replacen("/api/widget/chat", target, 1);
        assert_eq!(status_of(&gateway, asked.as_bytes()).await, Some(200), "{target}");
    }
    let seen: Vec<_> = upstream.requests().iter().map(|seen| seen.target().to_owned()).collect();
    assert_eq!(seen, others);
    no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_17_an_exact_route_is_metered_by_its_exact_path_alone() {
    let route = "[[routes]]\npath = \"/api/widget/chat\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\nmatch = \"exact\"\n";
    let (_upstream, database, gateway) = gate_with(|| answer(200).json(&batch_answer(7)), route).await;
    let sample = String::from_utf8(batch("tn_exact", 1).bytes()).expect("text");
    for target in ["/api/widget/chat", "/api/widget/chat?x", "/api/widget/chat/", "/api/widget/%63hat"] {
        let asked = sample.replacen("/api/widget/chat", target, 1);
        assert_eq!(status_of(&gateway, asked.as_bytes()).await, Some(200), "{target}");
    }
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "2");
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
