//! Clients that are slow, that leave, that come in crowds, or that speak an older or newer HTTP.

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use super::{Setup, UNLIMITED, came_to, core, rows};
use crate::harness::{Client, Data, Ended, Signal, Step, answer, batch, batch_answer, chat, request, within};

#[tokio::test]
async fn fault_51_slow_headers_are_closed_in_time() {
    let setup = Setup::with(&[("server.header_timeout", "150ms")], || answer(200).body("ok")).await;
    for begun in ["", "P", "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-slow"] {
        let mut client = setup.gateway.connect().await;
        client.send(begun).await;
        let said = client.read_to_end().await;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&said));
    }
    assert_eq!(setup.upstream.connections(), 0);
    setup.stop().await;
}

#[tokio::test]
async fn fault_52_a_slow_body_is_a_408_where_it_is_inspected_and_never_forwarded_whole() {
    let setup = Setup::with(&[("upstream.idle_timeout", "150ms")], || answer(200).body("ok")).await;
    let begun = |path| {
        format!("POST {path} HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_slow\r\ncontent-length: 50\r\n\r\n{{")
    };
    let mut client = setup.gateway.connect().await;
    client.send(begun("/api/widget/chat")).await;
    let response = client.read_response().await;
    assert_eq!((response.status, response.json()["code"].clone()), (408, json!("body_timeout")));
    client.read_to_end().await;
    assert_eq!(setup.upstream.connections(), 0);
    let mut client = setup.gateway.connect().await;
    client.send(begun("/upload")).await;
    let response = client.read_response().await;
    assert_eq!(response.status, 408, "{}", response.text());
    client.read_to_end().await;
    setup.upstream.all_closed().await;
    assert!(setup.upstream.requests().iter().all(|request| !request.complete));
    // The metered one leaves its refusal, and the other nothing.
    let rows = rows(&setup.database, "tn_slow", 1).await;
    let told: Vec<_> = rows.iter().map(|row| (&row["outcome"], &row["metadata"]["refused_by"])).collect();
    assert_eq!(told, [(&json!("refused"), &json!("body_timeout"))]);
    setup.stop().await;
}

#[tokio::test]
async fn fault_53_a_reader_that_stops_holds_the_upstream_back_and_is_given_up_at_the_limit() {
    let all_taken = Signal::new();
    let told = all_taken.clone();
    let setup = Setup::with(&[("upstream.idle_timeout", "400ms")], move || {
        let event = crate::harness::event(&json!({"token": "x".repeat(1 << 20)}));
        // More than the kernel's buffers hold between the two.
        let chunks = (0..64)
            .fold(answer(200).header("content-type", "text/event-stream"), |answer, _| answer.chunk(&event));
        chunks.then(Step::Tell(told.clone())).then(Step::UntilPeerGone(Signal::new())).unended()
    })
    .await;
    let mut client = setup.gateway.connect().await;
    client.send(chat("tn_stopped", "hi")).await;
    assert_eq!(client.read_head().await.status, 200);
    // It reads no more, and stays connected.
    setup.upstream.all_closed().await;
    assert!(!all_taken.fired(), "what the client does not read is not taken from the upstream");
    let row = setup.row("tn_stopped").await;
    assert_eq!(row["outcome"], json!("client_aborted"));
    drop(client);
    setup.stop().await;
}

#[tokio::test]
async fn fault_54_a_client_that_leaves_before_the_answer_is_one_row_and_charged_all_its_messages() {
    let gone = Signal::new();
    let told = gone.clone();
    let setup = Setup::new(move || vec![Step::UntilPeerGone(told.clone())]).await;
    let mut client = setup.gateway.connect().await;
    client.send(batch("tn_left", 3)).await;
    setup.upstream.seen(1).await;
    drop(client);
    within("the upstream is let go", gone.wait()).await;
    let row = setup.row("tn_left").await;
    assert_eq!(core(&row), came_to("client_aborted", -1, 450, "reserved"));
    assert_eq!(row["chat_messages"], json!(3));
    setup.stop().await;
}

#[tokio::test]
async fn fault_55_a_client_that_leaves_mid_stream_lets_the_upstream_go_and_pays_for_what_it_saw() {
    let gone = Signal::new();
    let told = gone.clone();
    let words = "word ".repeat(400);
    let setup = Setup::new(move || {
        answer(200)
            .events([&json!({"token": words, "partial": words})])
            .then(Step::UntilPeerGone(told.clone()))
            .unended()
    })
    .await;
    let mut client = setup.gateway.connect().await;
    client.send(chat("tn_midstream", "hi")).await;
    client.read_head().await;
    assert!(matches!(client.read_data().await, Data::Bytes(_)));
    client.reset();
    within("the upstream is let go", gone.wait()).await;
    let row = setup.row("tn_midstream").await;
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("client_aborted"), &json!("partial")));
    assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| (400..=410).contains(&tokens)), "{row}");
    setup.stop().await;
}

#[tokio::test]
async fn who_hangs_up_on_the_last_event_has_seen_the_whole_answer_and_pays_for_no_more() {
    const ENDINGS: [&str; 3] = [
        "data: {\"done\":true,\"final\":\"Hello\"}\n\n",
        // Without its empty line: some clients look at lines.
        "data: {\"token\":\"Hello\"}\n\ndata: [DONE]\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ];
    let drains = "[{ path = \"/api/widget/chat\", methods = [\"POST\"], event = \"chat_message\", \
                  on_client_gone = \"drain\" }]";
    for (routes, endings) in [(None, &ENDINGS[..]), (Some(drains), &ENDINGS[..1])] {
        for ending in endings {
            let gone = Signal::new();
            let told = gone.clone();
            let settings: Vec<_> = routes.map(|routes| ("routes", routes)).into_iter().collect();
            let setup = Setup::with(&settings, move || {
                answer(200)
                    .events([&json!({"token": "Hello", "partial": "Hello"})])
                    .chunks([ending.as_bytes()])
                    .then(Step::UntilPeerGone(told.clone()))
                    .unended()
            })
            .await;
            let mut client = setup.gateway.connect().await;
            client.send(chat("tn_leaves", "hi")).await;
            client.read_head().await;
            client.read_up_to(ending.as_bytes()).await;
            client.reset();
            within("the upstream is let go", gone.wait()).await;
            let row = setup.row("tn_leaves").await;
            let fact = |name: &str| row[name].clone();
            assert_eq!(
                (fact("outcome"), fact("token_source")),
                (json!("completed"), json!("counted")),
                "{ending}"
            );
            assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| (2..=5).contains(&tokens)), "{row}");
            setup.stop().await;
        }
    }
}

#[tokio::test]
async fn fault_56_two_hundred_that_leave_at_once_leave_nothing_behind() {
    let setup = Setup::with(&[UNLIMITED], || vec![Step::UntilPeerGone(Signal::new())]).await;
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = setup.gateway.connect().await;
        client.send(batch("tn_crowd", 1)).await;
        clients.push(client);
    }
    setup.upstream.seen(200).await;
    assert_eq!(setup.gateway.metric("tollgate_reservations").await, 200.0);
    for client in clients {
        client.reset();
    }
    setup.upstream.all_closed().await;
    let rows = rows(&setup.database, "tn_crowd", 200).await;
    assert_eq!(rows.len(), 200);
    let expected = came_to("client_aborted", -1, 150, "reserved");
    assert!(rows.iter().all(|row| core(row) == expected), "{:?}", core(&rows[0]));
    assert_eq!(setup.gateway.metric("tollgate_connections").await, 0.0);
    setup.stop().await;
}

#[tokio::test]
async fn fault_57_pipelined_requests_are_answered_in_order_with_a_row_each() {
    let setup = Setup::new(|| answer(200).json(&batch_answer(1))).await;
    setup.upstream.answer_with(|request| {
        let count = request.json()["messages"].as_array().map_or(0, Vec::len) as u64;
        answer(200).json(&batch_answer(count))
    });
    let mut client = setup.gateway.connect().await;
    let all: Vec<u8> = (1..=5).flat_map(|count| batch("tn_pipeline", count).bytes()).collect();
    client.send(all).await;
    for count in 1..=5 {
        assert_eq!(client.read_response().await.json()["totalTokens"], json!(count));
    }
    let rows = rows(&setup.database, "tn_pipeline", 5).await;
    let tokens: Vec<_> = rows.iter().map(|row| row["tokens_consumed"].as_u64().unwrap()).collect();
    assert_eq!(tokens, [1, 2, 3, 4, 5]);
    setup.stop().await;
}

#[tokio::test]
async fn fault_58_the_same_request_id_does_not_hide_a_second_call() {
    let setup = Setup::new(|| answer(200).json(&batch_answer(9))).await;
    for _ in 0..2 {
        let asked = batch("tn_retry", 1).header("x-request-id", "same");
        assert_eq!(setup.gateway.ask(asked).await.header("x-request-id"), Some("same"));
    }
    let rows = rows(&setup.database, "tn_retry", 2).await;
    assert!(rows.iter().all(|row| row["request_id"] == json!("same")));
    assert_eq!((rows.len(), setup.upstream.requests().len()), (2, 2));
    setup.stop().await;
}

#[tokio::test]
async fn fault_60_a_flood_is_capped_and_operators_are_still_answered() {
    let setup = Setup::with(&[("server.max_connections", "20")], || answer(200).body("ok")).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut client = setup.gateway.connect().await;
        client.send(request("GET", "/page")).await;
        assert_eq!(client.read_response().await.status, 200);
        held.push(client);
    }
    let flood = join_all((0..50).map(|_| async {
        let mut client = setup.gateway.connect().await;
        client.send(request("GET", "/page")).await;
        client.try_read_response().await.is_none()
    }))
    .await;
    assert!(flood.into_iter().all(|closed| closed), "connections over the cap are closed unanswered");
    assert_eq!(setup.gateway.metric("tollgate_connections_refused_total").await, 50.0);
    assert_eq!(setup.gateway.readiness().await.0, 200);
    let usage = setup.gateway.operate(request("GET", "/api/admin/usage?period=daily")).await;
    assert_eq!(usage.status, 200);
    // Who is in is served, and when someone leaves there is room.
    held[0].send(request("GET", "/page")).await;
    assert_eq!(held[0].read_response().await.status, 200);
    drop(held);
    within("room", async { while setup.gateway.metric("tollgate_connections").await > 0.0 {} }).await;
    assert_eq!(setup.gateway.ask(request("GET", "/page")).await.status, 200);
    setup.stop().await;
}

#[tokio::test]
async fn an_http_1_0_client_is_served_and_metered() {
    let event = json!({"reply": "ok", "tokens_used": 21});
    let setup = Setup::new(move || answer(200).events([&event]).steps()).await;
    let body = json!({"sessionId": "session-0001", "messages": [{"query": "hi"}]}).to_string();
    let asked = format!(
        "POST /api/widget/chat HTTP/1.0\r\nx-tenant-id: tn_1_0\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut client = setup.gateway.connect().await;
    client.send(asked).await;
    let response = client.read_response().await;
    assert!(response.head.starts_with("HTTP/1.0 200"), "{}", response.head);
    assert_eq!(response.header("transfer-encoding"), None, "HTTP/1.0 has no chunks");
    assert_eq!((response.ended, response.text().starts_with("data: ")), (Ended::Clean, true));
    assert_eq!(core(&setup.row("tn_1_0").await), came_to("completed", 200, 21, "reported"));
    assert!(setup.upstream.requests()[0].head.contains(" HTTP/1.1\r\n"));
    setup.stop().await;
}

/// An HTTP/2 connection to the gateway, for requests of several at once and for leaving in the middle.
pub(super) async fn http2(
    to: std::net::SocketAddr,
) -> (hyper::client::conn::http2::SendRequest<Full<Bytes>>, tokio::task::JoinHandle<hyper::Result<()>>) {
    let (sender, connection, _) = http2_with_socket(to).await;
    (sender, connection)
}

/// The same, with a second handle of its socket, to break it.
async fn http2_with_socket(
    to: std::net::SocketAddr,
) -> (
    hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    tokio::task::JoinHandle<hyper::Result<()>>,
    std::net::TcpStream,
) {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap().into_std().unwrap();
    stream.set_nodelay(true).unwrap();
    let socket = stream.try_clone().unwrap();
    let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    (sender, tokio::spawn(connection), socket)
}

pub(crate) fn http2_chat(to: std::net::SocketAddr, tenant: &str) -> http::Request<Full<Bytes>> {
    let body = json!({"sessionId": "session-0001", "message": "hi"}).to_string();
    http::Request::post(format!("http://{to}/api/widget/chat"))
        .header("x-tenant-id", tenant)
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

#[tokio::test]
async fn an_http_2_stream_that_is_reset_leaves_the_others_alone() {
    let go = Signal::new();
    let script_go = go.clone();
    let setup = Setup::new(move || {
        answer(200)
            .events([&json!({"token": "Hello", "partial": "Hello"})])
            .then(Step::Wait(script_go.clone()))
            .events([&json!({"done": true, "final": "Hello"})])
            .steps()
    })
    .await;
    let address = setup.gateway.address;
    let (mut sender, connection) = http2(address).await;
    let leaving = sender.send_request(http2_chat(address, "tn_h2_leaves")).await.unwrap();
    let staying = sender.send_request(http2_chat(address, "tn_h2_stays")).await.unwrap();
    let mut leaving = leaving.into_body();
    assert!(within("the first frame", leaving.frame()).await.is_some());
    drop(leaving);
    let row = setup.row("tn_h2_leaves").await;
    assert_eq!(core(&row), came_to("client_aborted", 200, 2, "partial"));
    assert_eq!(row["metadata"]["charged_tokens"], json!(150));
    go.fire();
    let whole = within("the other answer", staying.into_body().collect()).await.unwrap().to_bytes();
    assert!(whole.ends_with(b"\n\n"));
    assert_eq!(core(&setup.row("tn_h2_stays").await), came_to("completed", 200, 2, "counted"));
    drop(sender);
    let _ = connection.await;
    setup.stop().await;
}

#[tokio::test]
async fn an_http_2_client_that_leaves_before_the_answers_is_one_row_each() {
    let setup = Setup::with(&[UNLIMITED], || vec![Step::UntilPeerGone(Signal::new())]).await;
    let address = setup.gateway.address;
    let (sender, _connection, socket) = http2_with_socket(address).await;
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let mut sender = sender.clone();
            tokio::spawn(async move { sender.send_request(http2_chat(address, "tn_h2_gone")).await })
        })
        .collect();
    setup.upstream.seen(20).await;
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    let answers = join_all(asked).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().is_err()));
    let rows = rows(&setup.database, "tn_h2_gone", 20).await;
    let expected = came_to("client_aborted", -1, 150, "reserved");
    assert!(rows.iter().all(|row| core(row) == expected), "{:?}", core(&rows[0]));
    setup.upstream.all_closed().await;
    setup.stop().await;
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_still_gets_its_answer() {
    let setup = Setup::new(|| answer(200).json(&batch_answer(5))).await;
    let mut client = Client::connect(setup.gateway.address).await;
    client.send(batch("tn_half_closed", 1)).await;
    let response = client.read_response().await;
    client.finish().await;
    assert_eq!((response.status, client.read_to_end().await), (200, Vec::new()));
    setup.row("tn_half_closed").await;
    setup.stop().await;
}
