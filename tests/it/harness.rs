//! What the tests stand on: a fake upstream that can misbehave byte by byte, and a client that sees the bytes.
//!
//! Neither uses an HTTP library, so that what they send and see is exactly what a test wrote. Both are event
//! driven: nothing here sleeps in order to wait for something, and every wait is bounded by [`within`].
#![allow(dead_code, unused_imports, reason = "a toolbox: no test uses all of it")]

mod cable;
mod client;
mod gateway;
mod http2;
mod streams;
mod upstream;
mod wire;

pub(crate) use cable::Cable;
pub(crate) use client::{Client, Data, Ended, RequestText, Response, request};
pub(crate) use gateway::{TestGateway, batch, batch_answer, chat, gateway, gateway_to};
pub(crate) use http2::ask_http2;
pub(crate) use streams::Http2;
pub(crate) use upstream::{Answer, Request, Step, Upstream, answer};
pub(crate) use wire::{Header, event, json_events};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How long a test waits for what must happen before it says that it did not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// The outcome of `future`, or a panic that says what did not happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Something that happens once. It stays happened: who waits later does not wait.
#[derive(Clone, Debug)]
pub(crate) struct Signal(Arc<watch::Sender<bool>>);

impl Signal {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn fire(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn fired(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn wait(&self) {
        let mut seen = self.0.subscribe();
        // The sender is alive: `self` holds it.
        let _ = seen.wait_for(|fired| *fired).await;
    }
}

mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_answer_arrives_as_scripted_and_the_request_is_seen_as_sent() {
        let upstream =
            Upstream::answering(|_| answer(200).header("X-Odd-Case", "1").json(&json!({"a": 1}))).await;
        let mut client = Client::connect(upstream.addr()).await;
        client.send(request("POST", "/p?q").header("x-Id", "7").json(&json!({"b": 2}))).await;
        let response = client.read_response().await;
        assert_eq!((response.status, response.ended), (200, Ended::Clean));
        assert!(response.headers.contains(&Header::new("X-Odd-Case", "1")));
        assert_eq!(response.json(), json!({"a": 1}));
        let seen = upstream.requests();
        assert_eq!((seen.len(), seen[0].method(), seen[0].target()), (1, "POST", "/p?q"));
        assert!(seen[0].headers().contains(&Header::new("x-Id", "7")));
        assert_eq!(seen[0].body, br#"{"b":2}"#);
    }

    #[tokio::test]
    async fn a_chunked_body_with_trailers_passes_both_ways() {
        let upstream =
            Upstream::answering(|_| answer(200).chunks(["one", "two"]).trailers([("X-Sum", "3")]).steps())
                .await;
        let mut client = Client::connect(upstream.addr()).await;
        client.send(request("POST", "/").chunked(["ab", "c"])).await;
        let response = client.read_response().await;
        assert_eq!((&*response.body, response.ended), (&b"onetwo"[..], Ended::Clean));
        assert_eq!(response.trailers, [Header::new("X-Sum", "3")]);
        assert_eq!((&*upstream.requests()[0].body, upstream.requests()[0].complete), (&b"abc"[..], true));
    }

    #[tokio::test]
    async fn a_short_body_and_a_reset_are_seen_as_cuts() {
        for last in [Step::Close, Step::Reset] {
            let script = vec![Step::send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"), last];
            let upstream = Upstream::answering(move |_| script.clone()).await;
            let mut client = Client::connect(upstream.addr()).await;
            client.send(request("GET", "/")).await;
            let response = client.read_response().await;
            assert_eq!((response.status, response.ended), (200, Ended::Cut));
        }
    }

    #[tokio::test]
    async fn steps_wait_for_the_test_and_tell_it_when_the_client_has_gone() {
        let (go, gone) = (Signal::new(), Signal::new());
        let script = answer(200)
            .chunk("first")
            .then(Step::Wait(go.clone()))
            .chunk("second")
            .then(Step::UntilPeerGone(gone.clone()))
            .steps();
        let upstream = Upstream::answering(move |_| script.clone()).await;
        let mut client = Client::connect(upstream.addr()).await;
        client.send(request("GET", "/")).await;
        client.read_head().await;
        assert_eq!(client.read_data().await, Data::Bytes(b"first".to_vec()));
        go.fire();
        assert_eq!(client.read_data().await, Data::Bytes(b"second".to_vec()));
        assert!(!gone.fired());
        drop(client);
        within("the upstream notices", gone.wait()).await;
        upstream.all_closed().await;
    }

    #[tokio::test]
    async fn an_unfinished_request_is_recorded_as_such_and_not_answered() {
        let upstream = Upstream::start().await;
        let mut client = Client::connect(upstream.addr()).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc").await;
        drop(client);
        upstream.all_closed().await;
        assert_eq!((&*upstream.requests()[0].body, upstream.requests()[0].complete), (&b"abc"[..], false));
    }

    #[tokio::test]
    async fn interim_answers_and_bodiless_ones_do_not_confuse_the_client() {
        let upstream = Upstream::answering(|_| {
            vec![Step::send("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")]
        })
        .await;
        let mut client = Client::connect(upstream.addr()).await;
        for _ in 0..2 {
            client.send(request("GET", "/")).await;
            let response = client.read_response().await;
            assert_eq!((response.status, response.interim.as_slice()), (204, &[103][..]));
        }
        assert_eq!(upstream.connections(), 1);
    }
}
