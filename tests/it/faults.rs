//! Bad input, by its number in the catalogue of faults: what is refused, what passes unchanged, and what is never
//! forwarded. Faults of the upstream, of clients that leave, of the database and of the process are in `outages`.

mod bodies;
mod http;
mod identity;
mod look_alikes;
mod one_spelling;
mod unparsed;

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

/// The status that raw bytes are refused with. The connection must be closed after it, whatever was glued on.
async fn refusal_of(gateway: &TestGateway, bytes: impl AsRef<[u8]>) -> u16 {
    let shown = || String::from_utf8_lossy(&bytes.as_ref()[..bytes.as_ref().len().min(200)]).into_owned();
    let mut client = gateway.connect().await;
    client.send(bytes.as_ref()).await;
    let refused = within("a refusal or the end", client.try_read_response()).await;
    let refused = refused.unwrap_or_else(|| panic!("closed without a word: {:?}", shown()));
    assert_eq!(refused.header("connection"), Some("close"), "after {} to {:?}", refused.status, shown());
    let rest = within("the connection is closed after the refusal", client.read_to_end()).await;
    assert!(rest.is_empty(), "more than the refusal to {:?}: {}", shown(), String::from_utf8_lossy(&rest));
    refused.status
}

/// No usage row was written: what was refused before its tenant was known leaves none.
async fn no_rows(database: &Database<'_>, gateway: TestGateway) {
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "0");
}
