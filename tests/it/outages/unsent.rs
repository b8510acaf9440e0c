//! Clients that leave before their request went out: the service never saw it, so it costs nothing.

use std::net::SocketAddr;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{Setup, UNLIMITED, came_to, core, counters_equal_events, json_rows, rows};
use crate::harness::{Client, Signal, Step, TestGateway, answer, batch, batch_answer, gateway_to};
use crate::postgres::{Database, shared};

/// A service whose queue of connections is full and never emptied: whoever connects now waits.
struct Full {
    listener: Socket,
    _waiting: Vec<Socket>,
}

impl Full {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let waiting = (0..4).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&listener.local_addr().unwrap());
            socket
        });
        let waiting = waiting.collect();
        Self { listener, _waiting: waiting }
    }

    fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap().as_socket().unwrap())
    }
}

/// A gateway before a service that nobody can reach, and its database.
async fn before(service: &Full, settings: &[(&str, &str)]) -> (Database<'static>, TestGateway) {
    let database = shared().database();
    let builder = gateway_to(&service.url(), &database.url()).set("upstream.connect_timeout", "60s");
    let gateway = settings.iter().fold(builder, |b, (key, value)| b.set(key, value)).start().await;
    (database, gateway)
}

/// What the tenant was charged, by dimension, where it is anything.
async fn charged(database: &Database<'_>, tenant: &str) -> Vec<Value> {
    let query = format!(
        "SELECT to_jsonb(q) FROM (SELECT dimension, settled FROM quota_usage
         WHERE tenant_id = '{tenant}' AND settled <> 0) q"
    );
    json_rows(database, &query, 0).await
}

fn assert_unsent(row: &Value, outcome: &str) {
    assert_eq!(core(row), came_to(outcome, -1, 0, "none"));
    assert_eq!((&row["chat_messages"], &row["metadata"]["not_sent"]), (&json!(0), &json!(true)), "{row}");
    assert_eq!((row["cost_usd"].as_f64(), &row["metadata"]["charged"]), (Some(0.0), &json!({})), "{row}");
}

#[tokio::test]
async fn who_leaves_while_a_connection_is_waited_for_is_charged_nothing() {
    const DRAINS: &str = "[{ path = \"/api/widget/chat\", methods = [\"POST\"], event = \"chat_message\", \
                          on_client_gone = \"drain\" }]";
    for settings in [&[][..], &[("routes", DRAINS)]] {
        let service = Full::new();
        let (database, gateway) = before(&service, settings).await;
        let mut client = gateway.connect().await;
        client.send(batch("tn_unsent", 3)).await;
        gateway.until_metric("tollgate_reservations", 1.0).await;
        drop(client);
        let rows = rows(&database, "tn_unsent", 1).await;
        assert_unsent(&rows[0], "client_aborted");
        assert_eq!(charged(&database, "tn_unsent").await, Vec::<Value>::new());
        assert_eq!(gateway.metric("tollgate_draining").await, 0.0, "there is nothing to read on");
        counters_equal_events(&database).await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_stop_while_a_connection_is_waited_for_charges_nothing() {
    let service = Full::new();
    let (database, gateway) = before(&service, &[("server.drain_timeout", "50ms")]).await;
    let mut client = gateway.connect().await;
    client.send(batch("tn_unsent_stop", 3)).await;
    gateway.until_metric("tollgate_reservations", 1.0).await;
    let (left, _) = gateway.stop_with_exchanges(1.0).await;
    assert_eq!(left, 0);
    let rows = rows(&database, "tn_unsent_stop", 1).await;
    assert_unsent(&rows[0], "cut");
    assert_eq!(charged(&database, "tn_unsent_stop").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_service_that_could_not_be_reached_costs_a_call_and_no_more() {
    let service = Full::new();
    let (database, gateway) = before(&service, &[("upstream.connect_timeout", "50ms")]).await;
    let response = gateway.ask(batch("tn_unreached", 3)).await;
    assert_eq!(response.status, 504);
    let rows = rows(&database, "tn_unreached", 1).await;
    assert_eq!(core(&rows[0]), came_to("timeout", 504, 0, "none"));
    let call = json!({"dimension": "api_calls_per_minute", "settled": 1});
    assert_eq!(charged(&database, "tn_unreached").await, [call]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_request_on_a_used_connection_has_left_when_its_own_bytes_did() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let setup =
        Setup::with(&[UNLIMITED], move || match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => answer(200).json(&batch_answer(5)),
            _ => vec![Step::UntilPeerGone(Signal::new())],
        })
        .await;
    let mut client = Client::connect(setup.gateway.address).await;
    client.send(batch("tn_used", 1)).await;
    assert_eq!(client.read_response().await.status, 200);
    client.send(batch("tn_used", 1)).await;
    setup.upstream.seen(2).await;
    drop(client);
    let rows = rows(&setup.database, "tn_used", 2).await;
    assert_eq!(core(&rows[1]), came_to("client_aborted", -1, 150, "reserved"));
    assert_eq!(rows[1]["metadata"].get("not_sent"), None);
    setup.stop().await;
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header fields, each as a literal that is in no table (RFC 7541 §6.2.2).
fn fields(pairs: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    pairs.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

#[tokio::test]
async fn two_hundred_streams_in_one_write_cost_no_more_than_the_service_saw() {
    const STREAMS: u32 = 200;
    let routes = "[{ path = \"/agent\", event = \"chat_message\", body = \"opaque\" }]";
    let settings = [UNLIMITED, ("routes", routes)];
    let setup = Setup::with(&settings, || vec![Step::UntilPeerGone(Signal::new())]);
    let Setup { upstream, database, gateway } = setup.await;
    let head = fields(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/agent"),
        (":authority", "x"),
        ("x-tenant-id", "tn_burst"),
    ]);
    let streams = (0..STREAMS).flat_map(|at| frame(1, 5, 1 + 2 * at, &head));
    let mut burst = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    burst.extend(frame(4, 0, 0, b"").into_iter().chain(streams));
    let mut client = gateway.connect().await;
    client.send(burst).await;
    upstream.seen(1).await;
    drop(client);
    // Some of its streams begin only now. Nothing is answered: all end because their client has left.
    let (left, _) = gateway.stop_in_full_flight().await;
    assert_eq!(left, 0);
    let rows = rows(&database, "tn_burst", 1).await;
    let (unsent, sent): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| row["metadata"].get("not_sent").is_some());
    for row in unsent {
        assert_unsent(row, "client_aborted");
    }
    // Some may still wait to be accepted: what was written to them is there to be read all the same.
    upstream.seen(sent.len()).await;
    upstream.all_closed().await;
    assert_eq!(sent.len(), upstream.requests().len());
    assert!(sent.iter().all(|row| core(row) == came_to("client_aborted", -1, 150, "reserved")));
    counters_equal_events(&database).await;
}
