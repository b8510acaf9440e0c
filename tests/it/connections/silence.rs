//! Every protocol has a limit to its handshake and to its idleness, and every client to its connections.

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{HALF_A_HEAD, HANDSHAKE, PREFACE, ended_by, gate, gate_to, used, with_bytes};
use crate::gateway::rows;
use crate::harness::{Client, Signal, Step, answer, request, within};

const SHORT: &str = "150ms";

#[tokio::test]
async fn a_handshake_that_is_not_finished_ends_in_time() {
    let (upstream, _database, gateway) = gate(&[("server.header_timeout", SHORT)]).await;
    let begun: [&[u8]; 6] =
        [b"", b"P", b"PRI", &PREFACE.as_bytes()[..20], PREFACE.as_bytes(), &HANDSHAKE[..HANDSHAKE.len() - 1]];
    for bytes in begun {
        with_bytes(&gateway, bytes).await.read_to_end().await;
    }
    assert_eq!(ended_by(&gateway, "handshake_timeout").await, begun.len() as f64);
    gateway.until_metric_is("tollgate_connections", |open| open == 0.0).await;
    assert_eq!(upstream.connections(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn an_idle_connection_outlasts_the_limit_to_a_head_and_is_used_again() {
    let (_upstream, _database, gateway) = gate(&[("server.header_timeout", SHORT)]).await;
    let mut idle = used(&gateway).await;
    // Three times as long as a head may take.
    for _ in 0..3 {
        with_bytes(&gateway, HALF_A_HEAD).await.read_to_end().await;
    }
    idle.send(request("GET", "/page")).await;
    assert_eq!(idle.read_response().await.status, 200);
    assert_eq!(ended_by(&gateway, "header_timeout").await, 3.0);
    assert_eq!(ended_by(&gateway, "keep_alive_timeout").await, 0.0);
    // Half a head on a connection that was used before has no more time than on a new one.
    idle.send(HALF_A_HEAD).await;
    idle.read_to_end().await;
    assert_eq!(ended_by(&gateway, "header_timeout").await, 4.0);
    gateway.stop().await;
}

#[tokio::test]
async fn an_idle_connection_ends_at_the_limit_of_its_own() {
    let (_upstream, _database, gateway) = gate(&[("server.keep_alive_timeout", SHORT)]).await;
    let mut idle = used(&gateway).await;
    assert_eq!(idle.read_to_end().await, b"");
    assert_eq!(ended_by(&gateway, "keep_alive_timeout").await, 1.0);
    gateway.stop().await;
}

/// Its last bytes are with us and not with the kernel, and it takes them more slowly than an idle connection may last.
#[tokio::test]
async fn a_client_that_reads_slowly_gets_its_whole_answer() {
    const STEP: usize = 128 << 10;
    const STEPS: usize = 48;
    let page = vec![b'x'; STEP * STEPS];
    let script = move |request: &crate::harness::Request| match request.target() {
        "/large" => answer(200).body(&page),
        _ => answer(200).body("ok"),
    };
    let (_upstream, _database, gateway) = gate_to(script, &[("server.keep_alive_timeout", "20ms")]).await;
    let mut slow = gateway.connect().await;
    slow.send(request("GET", "/large")).await;
    slow.read_head().await;
    for _ in 0..STEPS {
        // As long as an idle connection lasts.
        used(&gateway).await.read_to_end().await;
        slow.read_bytes(STEP).await;
    }
    assert_eq!(slow.read_to_end().await, b"");
    gateway.stop().await;
}

/// It answers as soon as it has the head, and takes the body all the same.
#[tokio::test]
async fn an_upload_that_goes_on_after_its_answer_reaches_the_service_whole() {
    const LENGTH: usize = 1 << 20;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}", service.local_addr().unwrap());
    let reading = tokio::spawn(async move {
        let (mut stream, _) = service.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        let head = seen.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        while seen.len() < head + LENGTH && stream.read_buf(&mut seen).await.unwrap() > 0 {}
        seen.len() - head
    });
    let limits =
        [("server.header_timeout", SHORT), ("server.keep_alive_timeout", SHORT), ("upstream.url", &to)];
    let (_upstream, _database, gateway) = gate(&limits).await;
    let mut client = gateway.connect().await;
    client.send(format!("POST /ingest HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\nxx")).await;
    assert_eq!(client.read_response().await.status, 202);
    client.send("x").await;
    // Longer than an idle connection may last, and a head take.
    for _ in 0..3 {
        with_bytes(&gateway, HALF_A_HEAD).await.read_to_end().await;
    }
    client.send(vec![b'x'; LENGTH - 3]).await;
    assert_eq!(within("the whole body", reading).await.unwrap(), LENGTH);
    gateway.stop().await;
}

/// hyper's client answers every ping.
#[tokio::test]
async fn an_http_2_connection_that_only_answers_pings_ends_at_the_same_limit() {
    let limits = [("server.header_timeout", "50ms"), ("server.keep_alive_timeout", "400ms")];
    let (_upstream, _database, gateway) = gate(&limits).await;
    for asks in [false, true] {
        let stream = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), stream)
                .await
                .unwrap();
        let connection = tokio::spawn(connection);
        if asks {
            let page = http::Request::get(format!("http://{}/page", gateway.address));
            let answer = sender.send_request(page.body(Full::default()).unwrap()).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        }
        let ended = within("the end of the connection", connection).await.unwrap();
        assert!(ended.is_ok(), "told by GOAWAY, not cut: {ended:?}");
        drop(sender);
    }
    gateway.stop().await;
}

/// Its windows stay closed, and its connection answers pings.
#[tokio::test]
async fn an_http_2_stream_whose_client_takes_nothing_is_given_up_and_the_others_are_not() {
    let gone = Signal::new();
    let told = gone.clone();
    let event = crate::harness::event(&json!({"token": "x".repeat(1 << 20)}));
    let endless = format!("{:x}\r\n{event}\r\n", event.len());
    let script = move |request: &crate::harness::Request| match request.target() {
        "/page" => answer(200).body("ok"),
        _ => vec![
            Step::send(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            ),
            Step::Forever(endless.clone().into()),
            Step::Tell(told.clone()),
        ],
    };
    let limits = [("upstream.idle_timeout", "400ms"), ("server.header_timeout", "50ms")];
    let (_upstream, database, gateway) = gate_to(script, &limits).await;
    let stream = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .handshake(stream)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let asked = crate::outages::http2_chat(gateway.address, "tn_h2_stalled");
    let mut stalled = sender.send_request(asked).await.unwrap().into_body();
    within("the upstream is let go", gone.wait()).await;
    let row = rows(&database, "tn_h2_stalled", 1).await.remove(0);
    assert_eq!(row["outcome"], json!("client_aborted"));
    let page = http::Request::get(format!("http://{}/page", gateway.address)).body(Full::default()).unwrap();
    let answer = sender.send_request(page).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    let cut = async { while let Some(Ok(_)) = stalled.frame().await {} };
    within("the end of the stream", cut).await;
    drop(sender);
    connection.await.unwrap().unwrap();
    gateway.stop().await;
}

/// One frame is their whole answer, and its end is known or not.
#[tokio::test]
async fn http_2_streams_whose_answers_are_one_frame_are_given_up_as_well() {
    /// As many as a connection may have.
    const STREAMS: usize = 200;
    let script = |request: &crate::harness::Request| match request.target() {
        "/whole" => answer(200).body([b'x'; 2048]),
        "/chunks" => answer(200).chunk([b'x'; 2048]).steps(),
        _ => answer(200).body("ok"),
    };
    let (_upstream, _database, gateway) = gate_to(script, &[("upstream.idle_timeout", "400ms")]).await;
    let stream = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let asked = |path: &str| {
        http::Request::get(format!("http://{}{path}", gateway.address))
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    // The next waits until one of them has ended.
    let mut stalled = Vec::new();
    for path in ["/whole", "/chunks"].repeat(STREAMS / 2) {
        stalled.push(sender.send_request(asked(path)).await.unwrap());
    }
    let next = within("room for a stream", sender.send_request(asked("/page"))).await.unwrap();
    assert_eq!(next.into_body().collect().await.unwrap().to_bytes(), "ok");
    drop(stalled);
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_address_has_so_many_connections_and_no_more() {
    let (_upstream, _database, gateway) = gate(&[("server.max_connections_per_client", "3")]).await;
    let mut held = vec![used(&gateway).await, used(&gateway).await, used(&gateway).await];
    let refused = join_all((0..5).map(|_| async {
        let mut client = gateway.connect().await;
        client.send(request("GET", "/page")).await;
        client.try_read_response().await.is_none()
    }));
    assert_eq!(refused.await, [true; 5]);
    assert_eq!(ended_by(&gateway, "max_connections_per_client").await, 5.0);
    assert_eq!(gateway.metric("tollgate_connections_refused_total").await, 5.0);
    held.pop();
    within("room", async { while gateway.metric("tollgate_connections").await > 2.0 {} }).await;
    assert_eq!(gateway.ask(request("GET", "/page")).await.status, 200);
    gateway.stop().await;
}

#[tokio::test]
async fn a_trusted_proxy_stands_for_many_clients() {
    let config = [("server.max_connections_per_client", "1"), ("server.trusted_proxies", "127.0.0.0/8")];
    let (_upstream, _database, gateway) = gate(&config).await;
    let held = join_all((0..5).map(|_| used(&gateway))).await;
    assert_eq!(gateway.metric("tollgate_connections_refused_total").await, 0.0);
    drop(held);
    gateway.stop().await;
}

#[tokio::test]
async fn probes_are_answered_while_both_listeners_are_full_of_silent_connections() {
    let (_upstream, _database, gateway) = gate(&[("server.max_connections", "5")]).await;
    let mut silent = join_all((0..5).map(|_| with_bytes(&gateway, ""))).await;
    within("the public listener is full", async {
        while gateway.metric("tollgate_connections").await < 5.0 {}
    })
    .await;
    for begun in ["", "P", "GET /healthz HTTP/1.1\r\nhost"] {
        for _ in 0..520 {
            let mut client = Client::connect(gateway.admin).await;
            client.send(begun).await;
            silent.push(client);
        }
        let probe = Client::ask(gateway.admin, request("GET", "/healthz")).await;
        assert_eq!(probe.status, 200);
    }
    drop(silent);
    gateway.stop().await;
}
