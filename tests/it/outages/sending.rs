//! Requests on their way to the service: how long that may take, over which connections, and under which name.

use super::Setup;
use crate::harness::{Client, Header, Signal, Step, answer, gateway_to, request, within};
use crate::postgres::shared;

/// One connection of a client that has been used, so that the gateway's to the service has been too.
async fn kept(setup: &Setup) -> Client {
    let mut client = setup.gateway.connect().await;
    client.send(request("GET", "/first")).await;
    assert_eq!(client.read_response().await.status, 200);
    client
}

#[tokio::test]
async fn fault_44_what_only_asks_is_asked_again_once_when_a_kept_connection_was_closed() {
    for (last, method) in
        [(Step::Close, "GET"), (Step::Reset, "GET"), (Step::Close, "HEAD"), (Step::Close, "OPTIONS")]
    {
        let setup = Setup::new(|| answer(200).body("ok")).await;
        let mut client = kept(&setup).await;
        setup.upstream.answer_with(move |seen| match seen.connection {
            0 => vec![last.clone()],
            _ => answer(200).body("ok"),
        });
        client.send(request(method, "/again").header("x-mine", "1")).await;
        let answered = match method {
            "HEAD" => client.read_response_to_head().await,
            _ => client.read_response().await,
        };
        assert_eq!(answered.status, 200, "{method}");
        let seen = setup.upstream.requests();
        assert_eq!((seen.len(), &seen[1].head), (3, &seen[2].head), "the same again");
        setup.stop().await;
    }
}

#[tokio::test]
async fn fault_44_what_changes_something_or_fails_again_is_not_asked_a_third_time() {
    for (asked, times) in [
        (request("POST", "/order").body("one"), 1),
        (request("POST", "/order"), 1),
        (request("DELETE", "/order"), 1),
        (request("GET", "/search").body("a body"), 1),
        (request("GET", "/search").chunked(["a body"]), 1),
        (request("GET", "/plain"), 2),
    ] {
        let setup = Setup::new(|| answer(200).body("ok")).await;
        let mut client = kept(&setup).await;
        setup.upstream.answer_with(|_| vec![Step::Close]);
        client.send(asked.clone()).await;
        assert_eq!(client.read_response().await.status, 502, "{asked:?}");
        assert_eq!(setup.upstream.requests().len(), 1 + times, "{asked:?}");
        setup.stop().await;
    }
}

#[tokio::test]
async fn fault_44_what_was_not_on_a_kept_connection_is_asked_once() {
    let setup = Setup::new(|| vec![Step::Close]).await;
    assert_eq!(setup.gateway.ask(request("GET", "/plain")).await.status, 502);
    assert_eq!(setup.upstream.requests().len(), 1);
    setup.stop().await;
}

#[tokio::test]
async fn via_names_this_hop_where_the_config_says_how() {
    let script = || answer(200).header("via", "1.1 cache").body("ok");
    for (config, sent, told) in [
        ("", vec!["1.0 mine"], vec!["1.1 cache"]),
        ("tollgate", vec!["1.0 mine", "1.1 tollgate"], vec!["1.1 cache", "1.1 tollgate"]),
    ] {
        let setup = Setup::with(&[("upstream.via", config)], script).await;
        let lines = |headers: Vec<Header>| -> Vec<String> {
            let via = headers.into_iter().filter(|header| header.name.eq_ignore_ascii_case("via"));
            via.map(|header| header.value).collect()
        };
        let response = setup.gateway.ask(request("GET", "/").header("via", "1.0 mine")).await;
        assert_eq!(lines(response.headers), told);
        assert_eq!(lines(setup.upstream.requests()[0].headers()), sent);
        setup.stop().await;
    }
}

#[tokio::test]
async fn the_time_to_the_first_byte_begins_when_the_body_has_been_sent() {
    let keys = [("upstream.first_byte_timeout", "300ms"), ("upstream.idle_timeout", "10s")];
    let setup = Setup::with(&keys, || answer(200).body("ok")).await;
    let mut client = setup.gateway.connect().await;
    client.send("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\n").await;
    for _ in 0..6 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        client.send("x").await;
    }
    assert_eq!(client.read_response().await.status, 200, "a slow upload is not a slow service");
    // And then it does begin.
    setup.upstream.answer_with(|_| vec![Step::UntilPeerGone(Signal::new())]);
    client.send(request("POST", "/upload").body("x")).await;
    assert_eq!(client.read_response().await.status, 504);
    setup.stop().await;
}

#[tokio::test]
async fn a_service_that_takes_no_body_is_left_at_the_idle_limit() {
    let keys = [("upstream.first_byte_timeout", "60s"), ("upstream.idle_timeout", "300ms")];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let holding = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop(stream);
    });
    let database = shared().database();
    let made =
        keys.into_iter().fold(gateway_to(&url, &database.url()), |made, (key, value)| made.set(key, value));
    let gateway = made.start().await;
    let mut client = gateway.connect().await;
    client.send("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n").await;
    let piece = vec![b'x'; 1 << 20];
    let sending = async {
        for _ in 0..95 {
            if !client.try_send(piece.clone()).await {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), sending).await;
    assert_eq!(within("an answer", client.read_response()).await.status, 504);
    holding.abort();
    gateway.stop().await;
}
