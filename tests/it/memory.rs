//! What requests hold of memory while they are read: bounded in all and for each client address, and given back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::pick;
use crate::harness::{
    Client, Http2, TestGateway, Upstream, answer, batch, batch_answer, gateway, request, within,
};
use crate::postgres::{Database, shared};

const HELD: &str = "tollgate_buffered_bytes";

/// 1 MiB in all, 512 KiB for each address, as the proxy before the gateway names it.
async fn narrow(keys: &[(&str, &str)]) -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let mut made = gateway(&upstream, &database)
        .set("server.trusted_proxies", "127.0.0.0/8")
        .set("server.max_buffered_bytes", "1MiB")
        .set("server.max_client_buffered_bytes", "512KiB")
        .set("server.buffer_wait", "100ms");
    for (key, value) in keys {
        made = made.set(key, value);
    }
    (upstream, database, made.start().await)
}

fn head(client: &str, length: usize) -> String {
    format!(
        "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-tenant-id: tn_mem\r\nx-forwarded-for: {client}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// A whole chat call of `length` bytes.
fn call(client: &str, length: usize) -> Vec<u8> {
    let body = json!({"messages": [{"query": "a"}], "padding": ""}).to_string();
    let body =
        body.replace("\"padding\":\"\"", &format!("\"padding\":\"{}\"", "x".repeat(length - body.len())));
    [head(client, body.len()).as_bytes(), body.as_bytes()].concat()
}

/// Sends all of a body but its end.
async fn unfinished(gateway: &TestGateway, client: &str, length: usize) -> Client {
    let mut connection = gateway.connect().await;
    connection.send([head(client, length + 1).as_bytes(), &vec![b' '; length]].concat()).await;
    connection
}

async fn overloaded(client: &mut Client) {
    let refused = within("a refusal", client.read_response()).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text());
    assert_eq!(refused.json()["code"], json!("overloaded"));
}

#[tokio::test]
async fn unfinished_bodies_of_an_address_hold_its_share_and_no_more() {
    let (_upstream, _database, gateway) = narrow(&[]).await;
    let holding = unfinished(&gateway, "192.0.2.1", 300 << 10).await;
    gateway.until_metric_is(HELD, |held| held >= f64::from(300 << 10)).await;
    for _ in 0..5 {
        overloaded(&mut unfinished(&gateway, "192.0.2.1", 300 << 10).await).await;
    }
    assert!(gateway.metric(HELD).await <= f64::from(512 << 10));
    let what = "tollgate_buffer_refusals_total{what=\"body\"}";
    assert_eq!(gateway.metric(what).await.to_string(), "5");
    // Neither its own small calls nor the others' are held up.
    assert_eq!(gateway.ask(call("192.0.2.1", 200)).await.status, 200);
    assert_eq!(gateway.ask(call("192.0.2.2", 300 << 10)).await.status, 200);
    drop(holding);
    gateway.until_metric_is(HELD, |held| held == 0.0).await;
    assert_eq!(gateway.ask(call("192.0.2.1", 300 << 10)).await.status, 200);
    gateway.until_metric_is(HELD, |held| held == 0.0).await;
    gateway.stop().await;
}

#[tokio::test]
async fn unfinished_bodies_of_many_addresses_hold_the_whole_and_no_more() {
    let (_upstream, _database, gateway) = narrow(&[]).await;
    let mut holding = Vec::new();
    for client in ["192.0.2.1", "192.0.2.2"] {
        holding.push(unfinished(&gateway, client, 380 << 10).await);
    }
    gateway.until_metric_is(HELD, |held| held >= f64::from(760 << 10)).await;
    for client in ["192.0.2.3", "192.0.2.4"] {
        overloaded(&mut unfinished(&gateway, client, 300 << 10).await).await;
        assert_eq!(gateway.ask(call(client, 8 << 10)).await.status, 200, "a small call passes");
    }
    assert!(gateway.metric(HELD).await <= f64::from(1 << 20));
    drop(holding);
    gateway.until_metric_is(HELD, |held| held == 0.0).await;
    gateway.stop().await;
}

#[tokio::test]
async fn who_waits_for_memory_is_served_when_there_is_some() {
    let (_upstream, _database, gateway) = narrow(&[("server.buffer_wait", "60s")]).await;
    let mut holding = gateway.connect().await;
    let whole = call("192.0.2.1", 300 << 10);
    holding.send(&whole[..whole.len() - 1]).await;
    gateway.until_metric_is(HELD, |held| held >= f64::from(300 << 10)).await;
    let mut waiting = gateway.connect().await;
    waiting.send(call("192.0.2.1", 200 << 10)).await;
    holding.send(b"}").await;
    assert_eq!(holding.read_response().await.status, 200);
    assert_eq!(waiting.read_response().await.status, 200);
    gateway.stop().await;
}

#[tokio::test]
async fn what_can_never_fit_is_too_large() {
    let (_upstream, _database, gateway) = narrow(&[]).await;
    let mut client = unfinished(&gateway, "192.0.2.1", 500 << 10).await;
    let refused = within("a refusal", client.read_response()).await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (413, json!("body_too_large")));
    gateway.stop().await;
}

#[tokio::test]
async fn a_byte_in_a_chunk_of_its_own_holds_a_byte() {
    let (upstream, _database, gateway) = narrow(&[]).await;
    let body = json!({"messages": [{"query": "x".repeat(50_000)}]}).to_string();
    let chat = request("POST", "/api/widget/chat").header("x-tenant-id", "tn_mem");
    let bytes = chat.chunked(body.as_bytes().chunks(1)).bytes();
    let mut client = gateway.connect().await;
    client.send(&bytes[..bytes.len() - 5]).await;
    gateway.until_metric_is(HELD, |held| held >= 50_000.0).await;
    assert!(gateway.metric(HELD).await <= f64::from(160 << 10));
    client.send(&bytes[bytes.len() - 5..]).await;
    assert_eq!(client.read_response().await.status, 200);
    assert_eq!(upstream.requests()[0].body, body.as_bytes());
    gateway.stop().await;
}

#[tokio::test]
async fn streams_of_one_connection_share_what_their_address_has() {
    let (_upstream, _database, gateway) = narrow(&[]).await;
    let mut connection = Http2::connect(gateway.address).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(connection.open("POST", "/api/widget/chat", &[("x-tenant-id", "tn_mem")]));
    }
    for stream in &streams {
        stream.send(vec![b' '; 300 << 10]);
    }
    let what = "tollgate_buffer_refusals_total{what=\"body\"}";
    gateway.until_metric_is(what, |refused| refused >= 10.0).await;
    assert!(gateway.metric(HELD).await <= f64::from(512 << 10));
    drop((streams, connection));
    gateway.until_metric_is(HELD, |held| held == 0.0).await;
    gateway.stop().await;
}

#[tokio::test]
async fn heads_count_as_well() {
    let (_upstream, _database, gateway) =
        narrow(&[("server.max_header_bytes", "64KiB"), ("upstream.first_byte_timeout", "60s")]).await;
    let long = format!("x-long: {}\r\n", "x".repeat(50_000));
    let mut held = Vec::new();
    // 64 KiB of the address's 512 are for heads, and 384 for all; their bodies never come.
    for _ in 0..8 {
        let mut client = gateway.connect().await;
        client.send(head("192.0.2.1", 10).replace("content-type", &format!("{long}content-type"))).await;
        held.push(client);
    }
    gateway.until_metric_is(HELD, |held| held >= 400_000.0).await;
    let mut third = gateway.connect().await;
    third.send(head("192.0.2.1", 10).replace("content-type", &format!("{long}content-type"))).await;
    overloaded(&mut third).await;
    assert_eq!(gateway.ask(call("192.0.2.1", 200)).await.status, 200, "there is room for a small one");
    drop((held, third));
    gateway.stop().await;
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_refused_and_counted() {
    let keys = [("server.body_grace", "150ms"), ("server.min_body_rate", "1MiB")];
    let (upstream, _database, gateway) = narrow(&keys).await;
    // It pauses, or it trickles.
    let mut paused = unfinished(&gateway, "192.0.2.1", 100 << 10).await;
    let mut trickling = unfinished(&gateway, "192.0.2.2", 0).await;
    for client in [&mut paused, &mut trickling] {
        let refused = within("a refusal", client.read_response()).await;
        assert_eq!(pick(&refused.json(), &["code"]), [json!("body_timeout")]);
        assert_eq!(refused.status, 408);
    }
    assert_eq!(gateway.metric("tollgate_replies_total{code=\"body_timeout\"}").await.to_string(), "2");
    assert_eq!(gateway.metric(HELD).await.to_string(), "0");
    assert_eq!(upstream.connections(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_body_that_is_streamed_has_the_same_least_rate_and_no_total_time() {
    let keys =
        [("server.body_grace", "400ms"), ("server.min_body_rate", "1KiB"), ("server.body_timeout", "1ms")];
    let (upstream, _database, gateway) = narrow(&keys).await;
    let begin =
        |length: usize| format!("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\nx");
    let mut trickling = gateway.connect().await;
    trickling.send(begin(1 << 18)).await;
    // It never pauses for long.
    let refused = async {
        loop {
            assert!(trickling.try_send(b" ").await, "closed without a word");
            let next = tokio::time::timeout(Duration::from_millis(20), trickling.try_read_response());
            if let Ok(answered) = next.await {
                break answered.expect("an answer");
            }
        }
    };
    let refused = within("a refusal", refused).await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (408, json!("body_timeout")));
    assert_eq!(gateway.metric("tollgate_replies_total{code=\"body_timeout\"}").await.to_string(), "1");
    let mut steady = gateway.connect().await;
    steady.send(begin(1 << 18)).await;
    steady.send(vec![b'x'; (1 << 18) - 1]).await;
    assert_eq!(steady.read_response().await.status, 200);
    let seen = upstream.requests();
    assert_eq!(seen.iter().filter(|request| request.complete).count(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_body_that_never_ends_is_refused_in_the_end() {
    let keys = [("server.body_timeout", "300ms"), ("server.min_body_rate", "0B")];
    let (_upstream, _database, gateway) = narrow(&keys).await;
    let mut client = gateway.connect().await;
    client.send(head("192.0.2.1", 1 << 18)).await;
    let refused = loop {
        if !client.try_send(b" ").await {
            panic!("closed without a word");
        }
        let next = tokio::time::timeout(Duration::from_millis(20), client.try_read_response());
        if let Ok(answered) = next.await {
            break answered.expect("an answer");
        }
    };
    assert_eq!(refused.status, 408);
    gateway.stop().await;
}

const JWT: &str = "{ jwt = { claim = \"tenantId\", secret_env = \"JWT_SECRET\" } }";

#[tokio::test]
async fn a_false_token_is_refused_before_a_byte_of_the_body_is_read() {
    let session = "{ json = \"/tenantId\" }";
    for (sources, token, status, code) in [
        (format!("[{JWT}, {session}]"), "authorization: Bearer a.b.c\r\n", 401, "token_invalid"),
        (format!("[{JWT}]"), "authorization: Bearer a.b.c\r\n", 401, "token_invalid"),
        (format!("[{JWT}]"), "", 400, "tenant_unidentified"),
        ("[{ header = \"x-tenant\" }]".to_owned(), "", 400, "tenant_unidentified"),
    ] {
        let upstream = Upstream::start().await;
        let database = shared().database();
        let made = gateway(&upstream, &database).sources(&sources);
        let gateway = made.env("JWT_SECRET", "0123456789abcdef0123456789abcdef").start().await;
        let mut client = gateway.connect().await;
        let length = 1000;
        client
            .send(format!(
                "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\n{token}content-length: {length}\r\n\r\n"
            ))
            .await;
        let refused = within("a refusal without the body", client.read_response()).await;
        let told: Value = refused.json()["code"].clone();
        assert_eq!((refused.status, told), (status, json!(code)), "{sources} {token}");
        assert_eq!(refused.header("connection"), Some("close"), "the next request would be lost");
        assert_eq!(client.read_to_end().await, b"");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_call_of_many_messages_is_inspected_the_same_on_and_off_the_reactor() {
    let (_upstream, database, gateway) = narrow(&[
        ("plans.trial.chat_messages_per_day", "100000"),
        ("plans.trial.tokens_per_day", "unlimited"),
    ])
    .await;
    for messages in [2, 4_000] {
        let asked = batch(&format!("tn_{messages}"), messages);
        assert_eq!(gateway.ask(asked).await.status, 200);
    }
    gateway.stop().await;
    let rows = database.rows("SELECT tenant_id, chat_messages FROM tenant_usage_realtime ORDER BY 2");
    assert_eq!(rows, [["tn_2", "2"], ["tn_4000", "4000"]]);
}
