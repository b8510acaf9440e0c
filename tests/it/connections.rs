//! Clients' connections: how long each may be silent, how many there may be, and how each is closed.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

mod closing;
mod silence;
mod stopping;
mod switching;

use crate::harness::{Client, Step, TestGateway, Upstream, answer, gateway, request};
use crate::postgres::{Database, shared};

/// What begins every HTTP/2 connection, without its first frame.
const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The preface with an empty SETTINGS frame: a whole handshake.
const HANDSHAKE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const HALF_A_HEAD: &str = "POST /api/widget/chat HTTP/1.1\r\nhost: a\r\nx-slow";

/// A gateway before an upstream that answers `ok`.
async fn gate(config: &[(&str, &str)]) -> (Upstream, Database<'static>, TestGateway) {
    gate_to(|_| answer(200).body("ok"), config).await
}

async fn gate_to(
    script: impl Fn(&crate::harness::Request) -> Vec<Step> + Send + Sync + 'static,
    config: &[(&str, &str)],
) -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(script).await;
    let database = shared().database();
    let builder = gateway(&upstream, &database);
    let running = config.iter().fold(builder, |b, (key, value)| b.set(key, value)).start().await;
    (upstream, database, running)
}

/// A connection on which one request was answered.
async fn used(gateway: &TestGateway) -> Client {
    let mut client = gateway.connect().await;
    client.send(request("GET", "/page")).await;
    assert_eq!(client.read_response().await.status, 200);
    client
}

async fn with_bytes(gateway: &TestGateway, bytes: impl AsRef<[u8]>) -> Client {
    let mut client = gateway.connect().await;
    client.send(bytes.as_ref()).await;
    client
}

/// How many connections a limit has ended.
async fn ended_by(gateway: &TestGateway, reason: &str) -> f64 {
    gateway.metric(&format!("tollgate_connections_ended_total{{reason=\"{reason}\"}}")).await
}
