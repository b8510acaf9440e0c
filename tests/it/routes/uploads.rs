//! Uploads: streamed through, unread and unbuffered, whatever becomes of them.

use std::time::Duration;

use serde_json::{Value, json};

use super::{audits, of_it, shipped, token, usage};
use crate::harness::{Client, RequestText, Signal, Step, Upstream, answer, request, within};
use crate::postgres::shared;

const MIB: usize = 1 << 20;

fn upload() -> RequestText {
    request("POST", "/api/trial/kb/upload")
        .header("authorization", &format!("Bearer {}", token("tn_up", None)))
        .header("content-type", "multipart/form-data; boundary=x")
}

#[tokio::test]
async fn an_upload_far_over_the_bound_of_inspection_arrives_byte_for_byte() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"ok": true}))).await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let body: Vec<u8> = (0..24 * MIB).map(|n| (n % 251) as u8).collect();
    assert_eq!(gateway.ask(upload().body(&body)).await.status, 200);
    assert_eq!(gateway.ask(upload().chunked(body.chunks(MIB))).await.status, 200);
    let seen = upstream.requests();
    assert!(seen.iter().all(|request| request.complete && request.body == body));
    gateway.stop().await;
    let bytes: Vec<_> =
        audits(&database).await.iter().map(|event| event["new_values"]["bytes"].clone()).collect();
    assert_eq!(bytes, [json!(24 * MIB), Value::Null], "as declared, where it is");
}

#[tokio::test]
async fn an_upload_that_the_service_does_not_read_is_held_back_and_not_kept() {
    let go = Signal::new();
    let until = go.clone();
    let upstream = Upstream::answering_heads(move |_| vec![Step::Wait(until.clone()), Step::Close]).await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let mut client = gateway.connect().await;
    let head = upload().header("content-length", &(256 * MIB).to_string()).bytes();
    client.send(head).await;
    // The head goes on before any of the body is here.
    upstream.seen(1).await;
    let chunk = vec![b'x'; MIB];
    let mut taken = 0;
    // What the sockets of two connections hold, and not what memory does.
    while let Ok(true) =
        tokio::time::timeout(Duration::from_millis(500), client.try_send(chunk.clone())).await
    {
        taken += 1;
        assert!(taken < 64, "the gateway takes what nobody reads");
    }
    go.fire();
    gateway.until_metric("tollgate_requests_total{outcome=\"upstream_error\"}", 1.0).await;
    gateway.stop().await;
    assert_eq!(usage(&database).await.len(), 1);
}

#[tokio::test]
async fn a_client_that_breaks_off_its_upload_is_recorded_as_having_done_so() {
    let upstream = Upstream::start().await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let mut client = Client::connect(gateway.address).await;
    client.send(upload().header("content-length", "1000000").bytes()).await;
    client.send(vec![b'x'; 1000]).await;
    within("the upload reaches the service", async {
        while upstream.connections() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    client.reset();
    upstream.all_closed().await;
    assert!(!upstream.requests()[0].complete, "the service never sees a whole request");
    gateway.until_metric("tollgate_requests_total{outcome=\"client_aborted\"}", 1.0).await;
    gateway.stop().await;
    assert_eq!(usage(&database).await[0]["outcome"], json!("client_aborted"));
    let trail = audits(&database).await;
    let kinds: Vec<_> = trail.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["kb_upload_failed", "api_error"]);
    assert_eq!(trail[0]["new_values"]["outcome"], json!("client_aborted"));
}

#[tokio::test]
async fn an_upload_over_a_bound_that_was_set_is_refused_before_or_while_it_comes() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"ok": true}))).await;
    let database = shared().migrated();
    let config = "[[routes]]\npath = \"/api/trial/kb/upload\"\nevent = \"kb_ingest\"\nformat = \"none\"\nbody = \"opaque\"\n\
        max_body_bytes = \"1MiB\"\n";
    let gateway = shipped(&upstream, &database, config).await;
    let told = |response: &crate::harness::Response| {
        (response.status, response.json()["code"].as_str().unwrap_or_default().to_owned())
    };
    let refused = (413, "body_too_large".to_owned());
    assert_eq!(told(&gateway.ask(upload().body(vec![b'x'; MIB + 1])).await), refused);
    assert_eq!(upstream.requests().len(), 0, "declared too large: the service never hears of it");
    assert_eq!(gateway.ask(upload().chunked([vec![b'x'; MIB]])).await.status, 200);
    assert_eq!(told(&gateway.ask(upload().chunked([vec![b'x'; MIB], vec![b'x'; MIB]])).await), refused);
    assert!(upstream.seen(2).await.iter().filter(|request| request.complete).count() == 1);
    gateway.stop().await;
    let rows = usage(&database).await;
    let expected = [
        json!({"outcome": "refused", "api_status_code": 413}),
        json!({"outcome": "completed", "api_status_code": 200}),
        json!({"outcome": "client_aborted", "api_status_code": 413}),
    ];
    assert_eq!(
        rows.iter().zip(&expected).map(|(row, expected)| of_it(row, expected)).collect::<Vec<_>>(),
        expected
    );
}

#[tokio::test]
async fn an_early_answer_reaches_the_client_while_it_uploads() {
    let gone = Signal::new();
    let until = gone.clone();
    let upstream = Upstream::answering_heads(move |_| {
        let mut steps = answer(413).json(&json!({"error": "too large for us"}));
        steps.push(Step::UntilPeerGone(until.clone()));
        steps
    })
    .await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let mut client = gateway.connect().await;
    client.send(upload().header("content-length", "100000").bytes()).await;
    let response = client.read_response().await;
    assert_eq!((response.status, response.json()["error"].as_str()), (413, Some("too large for us")));
    drop(client);
    within("the upstream's connection ends", gone.wait()).await;
    gateway.stop().await;
    let row = &usage(&database).await[0];
    assert_eq!((&row["api_status_code"], &row["outcome"]), (&json!(413), &json!("completed")));
}
