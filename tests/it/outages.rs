//! What goes wrong around the gateway: the upstream, the clients, the database, the process. Each numbered test is one
//! line of the list of faults: what the client saw, what the upstream saw, and the row that came of it.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

mod clients;
mod crashing;
mod cutting;
mod database;
mod disk;
mod distance;
mod ending;
mod leaving;
mod process;
pub(crate) mod program;
mod restart;
mod sending;
mod unsent;
mod upstream;

pub(crate) use clients::http2_chat;
use serde_json::{Value, json};

use crate::harness::{Response, Step, TestGateway, Upstream, chat, gateway, within};
use crate::postgres::{Database, Server, shared};

/// A plan without limits, for tests of many requests.
const UNLIMITED: (&str, &str) = ("tenant.default_plan", "enterprise");

/// An upstream with one script, a gateway in front of it and its database.
struct Setup {
    upstream: Upstream,
    database: Database<'static>,
    gateway: TestGateway,
}

impl Setup {
    async fn new(script: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::with(&[], script).await
    }

    async fn with(settings: &[(&str, &str)], script: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::before(Upstream::answering(move |_| script()).await, settings).await
    }

    /// The same before an upstream of the test's own making.
    async fn before(upstream: Upstream, settings: &[(&str, &str)]) -> Self {
        let database = shared().database();
        let builder = gateway(&upstream, &database);
        let gateway = settings.iter().fold(builder, |b, (key, value)| b.set(key, value)).start().await;
        Self { upstream, database, gateway }
    }

    /// Asks as `tenant`, and returns the answer with the row that came of it.
    async fn chat(&self, tenant: &str) -> (Response, Value) {
        let response = self.gateway.ask(chat(tenant, "hi")).await;
        (response, self.row(tenant).await)
    }

    /// The tenant's only row.
    async fn row(&self, tenant: &str) -> Value {
        let mut rows = rows(&self.database, tenant, 1).await;
        assert_eq!(rows.len(), 1, "one request, one row: {rows:#?}");
        rows.remove(0)
    }

    /// Checks that the counters are the sums of the events, stops, and checks that nothing is left.
    async fn stop(self) {
        counters_equal_events(&self.database).await;
        self.gateway.stop().await;
    }
}

/// The usage rows of a tenant, oldest first, as JSON; waits for `count` of them.
async fn rows(database: &Database<'_>, tenant: &str, count: usize) -> Vec<Value> {
    let query = format!(
        "SELECT to_jsonb(u) FROM tenant_usage_realtime u WHERE tenant_id = '{tenant}' ORDER BY event_timestamp, event_id"
    );
    json_rows(database, &query, count).await
}

/// What `query` (one JSON column) returns, once it returns at least `count` rows.
async fn json_rows(database: &Database<'_>, query: &str, count: usize) -> Vec<Value> {
    let client = database.connect().await;
    within(query, async {
        loop {
            let rows = client.query(query, &[]).await.expect("a query of the test");
            if rows.len() >= count {
                return rows.iter().map(|row| row.get(0)).collect();
            }
        }
    })
    .await
}

/// Every counter equals the sum of the events that were charged to it: tokens (a floor where one was charged), messages,
/// and calls but for refusals.
async fn counters_equal_events(database: &Database<'_>) {
    let drift = json_rows(
        database,
        "SELECT to_jsonb(d) FROM (
             SELECT tenant_id, dimension, sum(settled)::bigint AS settled,
                 (SELECT coalesce(sum(CASE dimension
                     WHEN 'tokens_per_day' THEN coalesce((metadata ->> 'charged_tokens')::bigint, tokens_consumed)
                     WHEN 'chat_messages_per_day' THEN chat_messages
                     WHEN 'api_calls_per_minute' THEN CASE WHEN outcome = 'refused' OR metadata ? 'not_sent' THEN 0 ELSE 1 END
                     ELSE embeddings END), 0)::bigint
                 FROM tenant_usage_realtime u WHERE u.tenant_id = q.tenant_id) AS events
             FROM quota_usage q GROUP BY tenant_id, dimension) d
         WHERE settled <> events",
        0,
    )
    .await;
    assert_eq!(drift, Vec::<Value>::new());
}

/// The columns that say what an exchange came to.
const CORE: [&str; 4] = ["outcome", "api_status_code", "tokens_consumed", "token_source"];

fn core(row: &Value) -> [Value; 4] {
    CORE.map(|column| row[column].clone())
}

/// What [`core`] is to be; a status or a number of tokens below 0 is NULL.
fn came_to(outcome: &str, status: i64, tokens: i64, source: &str) -> [Value; 4] {
    let number = |number: i64| if number < 0 { Value::Null } else { json!(number) };
    [json!(outcome), number(status), number(tokens), json!(source)]
}

/// A database server that may be stopped under the gateway.
async fn own_server() -> Server {
    tokio::task::spawn_blocking(Server::start).await.unwrap()
}
