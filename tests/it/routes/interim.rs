//! Interim answers of the service reach its client, before the answer.

use crate::harness::{Signal, Step, Upstream, answer, ask_http2, chat, gateway, request};
use crate::postgres::shared;

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
    Keep-Alive: timeout=5\r\nContent-Length: 7\r\n\r\n";
const SENT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";

#[tokio::test]
async fn interim_answers_come_when_they_are_sent_and_leave_the_connection_in_step() {
    let seen = Signal::new();
    let until = seen.clone();
    let upstream = Upstream::answering(move |_| {
        let mut steps =
            vec![Step::send(format!("HTTP/1.1 100 Continue\r\n\r\n{HINTS}")), Step::Wait(until.clone())];
        steps.push(Step::send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 Whatever\r\n\r\n"));
        steps.extend(answer(200).body("the answer"));
        steps
    })
    .await;
    let database = shared().migrated();
    let gateway = gateway(&upstream, &database).start().await;
    let mut client = gateway.connect().await;
    client.send(request("GET", "/page")).await;
    // It is here before there is any answer.
    let hints = client.read_bytes(SENT.len()).await;
    assert_eq!(String::from_utf8_lossy(&hints), SENT);
    seen.fire();
    let response = client.read_response().await;
    assert_eq!(
        (response.status, response.text(), response.interim),
        (200, "the answer".into(), vec![102, 199])
    );
    // Two requests in one write, and a metered one: each answer after its own interim ones.
    client.send([request("GET", "/a").bytes(), request("GET", "/b").bytes()].concat()).await;
    for _ in 0..2 {
        let response = client.read_response().await;
        assert_eq!((response.text(), response.interim), ("the answer".into(), vec![103, 102, 199]));
    }
    client.send(chat("tn_hints", "hi")).await;
    assert_eq!(client.read_response().await.interim, [103, 102, 199]);
    drop(client);
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_of_http_1_0_or_http_2_gets_the_final_answer_alone() {
    let upstream = Upstream::answering(|_| {
        let mut steps = vec![Step::send(HINTS)];
        steps.extend(answer(200).body("{}"));
        steps
    })
    .await;
    let database = shared().migrated();
    let gateway = gateway(&upstream, &database).start().await;
    let mut client = gateway.connect().await;
    client.send("GET /page HTTP/1.0\r\nhost: test\r\n\r\n").await;
    let response = client.read_response().await;
    assert_eq!((response.status, response.text(), response.interim), (200, "{}".into(), vec![]));
    let (status, _) = ask_http2(gateway.address, request("GET", "/page")).await;
    assert_eq!(status, 200);
    drop(client);
    gateway.stop().await;
}

#[tokio::test]
async fn interim_answers_without_end_are_bounded_and_the_answer_follows() {
    let upstream = Upstream::answering(|_| {
        let mut steps = vec![Step::send(HINTS.repeat(5000))];
        steps.extend(answer(200).body("at last"));
        steps
    })
    .await;
    let database = shared().migrated();
    let gateway = gateway(&upstream, &database).start().await;
    let response = gateway.ask(request("GET", "/page")).await;
    assert_eq!((response.status, response.text()), (200, "at last".into()));
    let dropped = gateway.metric("tollgate_interim_dropped_total").await;
    assert!(response.interim.iter().all(|status| *status == 103) && !response.interim.is_empty());
    assert_eq!(response.interim.len() as f64 + dropped, 5000.0);
    gateway.stop().await;
}
