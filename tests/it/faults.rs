//! Bad input, by its number in the catalogue of faults: what is refused, what passes unchanged, and what is never
//! forwarded. Faults of the upstream, of clients that leave, of the database and of the process are in `outages`.

mod bodies;
mod http;
mod identity;

use crate::harness::{Client, Step, TestGateway, Upstream, answer, batch_answer, gateway, within};
use crate::postgres::{Database, shared};

/// A gateway before an upstream that answers every request alike.
async fn gate() -> (Upstream, Database<'static>, TestGateway) {
    gate_with(|| answer(200).json(&batch_answer(7)), "").await
}

async fn gate_with(
    script: impl Fn() -> Vec<Step> + Send + Sync + 'static,
    config: &str,
) -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(move |_| script()).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).config(config).start().await;
    (upstream, database, running)
}

/// The status that raw bytes are answered with, the sending side being left open; `None` where the connection is
/// closed without an answer.
async fn status_of(gateway: &TestGateway, bytes: &[u8]) -> Option<u16> {
    let mut client = gateway.connect().await;
    client.send(bytes).await;
    answer_to(&mut client).await
}

async fn answer_to(client: &mut Client) -> Option<u16> {
    within("an answer or the end of the connection", client.try_read_response())
        .await
        .map(|response| response.status)
}

/// No usage row was written: what was refused before its tenant was known leaves none.
async fn no_rows(database: &Database<'_>, gateway: TestGateway) {
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "0");
}
