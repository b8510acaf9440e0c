//! Connections that switch to another protocol: which may, where, for how long, and what is recorded of them.

use serde_json::json;

use super::{ended_by, gate_to, used};
use crate::gateway::{pick, rows};
use crate::harness::{
    Client, RequestText, Signal, Step, TestGateway, Upstream, answer, batch_answer, gateway, request, within,
};
use crate::postgres::shared;

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// A handshake as in RFC 6455 §1.3.
fn handshake(path: &str) -> RequestText {
    asking(request("GET", path), "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "13")
}

fn asking(request: RequestText, protocol: &str) -> RequestText {
    request.header("connection", "Upgrade").header("upgrade", protocol)
}

/// A service that switches whenever it is asked to, says `hello` and then `last` once its client has gone.
fn switching(request: &crate::harness::Request, last: &'static str) -> Vec<Step> {
    match request.header("upgrade") {
        None => answer(200).json(&batch_answer(7)),
        Some(protocol) => vec![
            Step::send(SWITCHED.replace("websocket", &protocol)),
            Step::send("hello"),
            Step::UntilPeerEnds,
            Step::send(last),
            Step::Close,
        ],
    }
}

/// Switches, and reads what the service says first.
async fn switched(gateway: &TestGateway, handshake: RequestText) -> Client {
    let mut client = gateway.connect().await;
    client.send(handshake).await;
    assert_eq!(client.read_head().await.status, 101);
    assert_eq!(client.read_bytes(5).await, b"hello");
    client
}

#[tokio::test]
async fn a_web_socket_is_passed_on_and_everything_else_is_a_plain_request() {
    let (upstream, _database, gateway) = gate_to(|request| switching(request, ""), &[]).await;
    let mut client = gateway.connect().await;
    client.send(handshake("/socket")).await;
    let head = client.read_head().await;
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
    drop(client);
    upstream.all_closed().await;
    let settings = "AAMAAABkAAQAoAAAAAIAAAAA";
    let h2c = |connection| {
        request("GET", "/h2c")
            .header("connection", connection)
            .header("upgrade", "h2c")
            .header("http2-settings", settings)
    };
    let others = [
        h2c("Upgrade, HTTP2-Settings"),
        h2c("Upgrade"),
        asking(request("GET", "/no-key"), "websocket").header("sec-websocket-version", "13"),
        asking(request("GET", "/old"), "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-version", "8"),
        asking(request("GET", "/echo"), "echo"),
        asking(request("GET", "/tls"), "TLS/1.0"),
        request("GET", "/unasked").header("upgrade", "websocket"),
        asking(request("POST", "/post"), "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-version", "13")
            .body("a body"),
    ];
    let count = others.len();
    for other in others {
        let mut client = gateway.connect().await;
        client.send(other.clone()).await;
        assert_eq!(client.read_response().await.status, 200, "{other:?}");
        // The connection is as good as any.
        client.send(request("GET", "/next")).await;
        assert_eq!(client.read_response().await.status, 200, "{other:?}");
    }
    let seen = upstream.requests();
    assert_eq!(seen.len(), 1 + 2 * count);
    for seen in &seen[1..] {
        assert_eq!((seen.header("upgrade"), seen.header("http2-settings")), (None, None), "{}", seen.head);
    }
    assert!(seen.iter().any(|seen| seen.body == b"a body"));
    gateway.stop().await;
}

#[tokio::test]
async fn what_the_config_lists_is_passed_on_and_h2c_can_not_be_listed() {
    let config = [("server.upgrades", "[\"Echo\"]")];
    let (_upstream, _database, gateway) = gate_to(|request| switching(request, ""), &config).await;
    drop(switched(&gateway, asking(request("GET", "/"), "echo, websocket")).await);
    let plain = gateway.ask(handshake("/socket")).await;
    assert_eq!(plain.status, 200, "what is not listed is not passed on");
    gateway.stop().await;
    for listed in ["h2c", "H2C", "HTTP/2.0", "TLS/1.0", ""] {
        let environment = [("TOLLGATE__SERVER__UPGRADES".to_owned(), format!("[{listed:?}]"))].into();
        let faults = tollgate::settings::Settings::load(None, &environment).unwrap_err();
        assert!(faults.to_string().contains("server.upgrades[0]"), "{faults}");
    }
}

#[tokio::test]
async fn a_service_that_switches_to_something_else_than_it_was_asked_for_is_a_bad_gateway() {
    let script = |_: &crate::harness::Request| {
        vec![Step::send(SWITCHED.replace("websocket", "h2c")), Step::UntilPeerGone(Signal::new())]
    };
    let (_upstream, _database, gateway) = gate_to(script, &[]).await;
    assert_eq!(gateway.ask(handshake("/socket")).await.status, 502);
    gateway.stop().await;
}

#[tokio::test]
async fn on_a_metered_path_a_switch_is_refused_whatever_the_method_of_its_calls() {
    let (upstream, database, gateway) = gate_to(|request| switching(request, ""), &[]).await;
    for path in ["/api/widget/chat", "//api/widget/%63hat/"] {
        let refused =
            gateway.ask(handshake(path).header("x-tenant-id", "tn_ws").header("x-request-id", "r-1")).await;
        assert_eq!((refused.status, refused.header("upgrade")), (426, Some("HTTP/1.1")));
        assert_eq!(pick(&refused.json(), &["code", "request_id"]), [json!("upgrade_refused"), json!("r-1")]);
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "0");
}

const OPAQUE: &str = r#"
[[routes]]
path = "/api/voice"
methods = ["POST"]
event = "api_call"
body = "opaque"
"#;

async fn opaque(
    script: impl Fn(&crate::harness::Request) -> Vec<Step> + Send + Sync + 'static,
) -> (Upstream, crate::postgres::Database<'static>, TestGateway) {
    let upstream = Upstream::answering(script).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).config(OPAQUE).start().await;
    (upstream, database, running)
}

#[tokio::test]
async fn where_bodies_are_opaque_a_switched_connection_is_one_call_with_its_bytes() {
    let (upstream, database, gateway) = opaque(|request| switching(request, "")).await;
    let mut client = switched(&gateway, handshake("/api/voice").header("x-tenant-id", "tn_voice")).await;
    client.send("three words more").await;
    drop(client);
    upstream.all_closed().await;
    let row = rows(&database, "tn_voice", 1).await.remove(0);
    assert_eq!(
        pick(&row, &["outcome", "api_status_code", "api_method", "event_type"]),
        [json!("completed"), json!(101), json!("GET"), json!("api_call")]
    );
    assert_eq!(
        pick(&row["metadata"], &["upgrade", "bytes_from_client", "bytes_to_client"]),
        [json!("websocket"), json!(16), json!(5)]
    );
    assert!(row["api_response_time_ms"].as_f64().is_some(), "{row}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_metered_handshake_that_is_not_taken_up_is_a_call_as_any_other() {
    let script = |_: &crate::harness::Request| {
        vec![Step::send(SWITCHED.replace("websocket", "other")), Step::UntilPeerGone(Signal::new())]
    };
    let (upstream, database, gateway) = opaque(script).await;
    let ask = || handshake("/api/voice").header("x-tenant-id", "tn_not");
    assert_eq!(gateway.ask(ask()).await.status, 502);
    upstream.answer_with(|_| answer(403).body("no"));
    assert_eq!(gateway.ask(ask()).await.status, 403);
    let rows = rows(&database, "tn_not", 2).await;
    let outcomes: Vec<_> = rows.iter().map(|row| pick(row, &["outcome", "api_status_code"])).collect();
    assert_eq!(outcomes[0], [json!("upstream_error"), json!(502)]);
    assert_eq!(outcomes[1][1], json!(403));
    gateway.stop().await;
}

#[tokio::test]
async fn a_switched_connection_keeps_its_place_and_ends_when_both_sides_are_silent() {
    let config = [("server.max_connections", "2"), ("server.upgrade_idle_timeout", "300ms")];
    let (upstream, _database, gateway) = gate_to(|request| switching(request, ""), &config).await;
    let mut client = switched(&gateway, handshake("/socket")).await;
    let other = used(&gateway).await;
    let mut third = gateway.connect().await;
    third.send(request("GET", "/page")).await;
    assert!(third.try_read_response().await.is_none(), "two places, two connections");
    assert_eq!(ended_by(&gateway, "max_connections").await, 1.0);
    client.read_to_end().await;
    drop(other);
    upstream.all_closed().await;
    within("room", async { while gateway.metric("tollgate_connections").await > 0.0 {} }).await;
    gateway.stop().await;
}

#[tokio::test]
async fn at_the_stop_a_switched_connection_is_told_to_end_and_waited_for() {
    let config = [("server.drain_timeout", "10m"), ("server.upgrade_idle_timeout", "10m")];
    let (_upstream, _database, gateway) = gate_to(|request| switching(request, "bye"), &config).await;
    let mut client = switched(&gateway, handshake("/socket")).await;
    gateway.stop().await;
    assert_eq!(client.read_to_end().await, b"bye");
}

#[tokio::test]
async fn at_the_stop_a_service_that_does_not_listen_is_not_waited_for_and_its_call_is_recorded() {
    let never = Signal::new();
    let script = move |_: &crate::harness::Request| {
        vec![Step::send(SWITCHED), Step::send("hello"), Step::Wait(never.clone())]
    };
    let (_upstream, database, gateway) = opaque(script).await;
    let mut client = switched(&gateway, handshake("/api/voice").header("x-tenant-id", "tn_deaf")).await;
    let (left, _data) = gateway.stop_with_exchanges(1.0).await;
    assert_eq!(left, 0);
    client.read_to_end().await;
    let row = rows(&database, "tn_deaf", 1).await.remove(0);
    assert_eq!(row["metadata"]["bytes_to_client"], json!(5));
}
