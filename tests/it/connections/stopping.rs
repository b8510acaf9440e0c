//! At the stop nobody who says nothing is waited for.

use super::{HALF_A_HEAD, HANDSHAKE, PREFACE, gate, gate_to, used, with_bytes};
use crate::harness::{Signal, Step, answer, request, within};

/// Longer than a test waits.
const LONG: [(&str, &str); 4] = [
    ("server.drain_timeout", "10m"),
    ("server.header_timeout", "10m"),
    ("server.keep_alive_timeout", "10m"),
    ("server.upgrade_idle_timeout", "10m"),
];

#[tokio::test]
async fn silent_connections_of_every_kind_do_not_delay_the_stop() {
    let (_upstream, _database, gateway) = gate(&LONG).await;
    let mut silent = vec![used(&gateway).await];
    let begun: [&[u8]; 6] =
        [b"", b"P", HALF_A_HEAD.as_bytes(), &PREFACE.as_bytes()[..20], PREFACE.as_bytes(), HANDSHAKE];
    for bytes in begun {
        silent.push(with_bytes(&gateway, bytes).await);
    }
    let mut half_again = used(&gateway).await;
    half_again.send(HALF_A_HEAD).await;
    silent.push(half_again);
    within("all are in", async { while gateway.metric("tollgate_connections").await < 8.0 {} }).await;
    gateway.stop().await;
    for mut client in silent {
        client.read_to_end().await;
    }
}

#[tokio::test]
async fn an_answer_at_the_stop_says_that_the_connection_ends_and_a_request_on_its_way_is_answered() {
    let go = Signal::new();
    let script_go = go.clone();
    let script = move |request: &crate::harness::Request| match request.target() {
        "/slow" => [vec![Step::Wait(script_go.clone())], answer(200).body("late")].concat(),
        _ => answer(200).body("ok"),
    };
    let (upstream, _database, gateway) = gate_to(script, &LONG).await;
    let mut slow = gateway.connect().await;
    slow.send(request("GET", "/slow")).await;
    upstream.seen(1).await;
    // Sent before the stop, and perhaps not yet read when it comes.
    let mut sent = gateway.connect().await;
    sent.send(request("GET", "/page")).await;
    let stopping = tokio::spawn(gateway.stop());
    assert_eq!(sent.read_response().await.status, 200);
    sent.read_to_end().await;
    go.fire();
    let answer = slow.read_response().await;
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("late", Some("close")));
    within("the stop", stopping).await.unwrap();
}
