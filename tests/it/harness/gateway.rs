//! A gateway under test: a real one, in this process, on ports of its own, with a database of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tollgate::gateway::{Gateway, Inherited};
use tollgate::settings::Settings;

use super::client::{Client, RequestText, Response, request};
use super::upstream::Upstream;
use super::within;
use crate::postgres::Database;

/// The header names the tenant; the test's own address may set it.
const BASE: &str = r#"
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
workers = 2

[tenant]
sources = [{ header = "x-tenant-id" }, { json = "/tenantId" }]
trust_header_from = ["127.0.0.0/8"]
"#;

/// A gateway in the making.
pub(crate) struct Builder {
    config: String,
    environment: BTreeMap<String, String>,
    data: Option<TempDir>,
}

/// Begins a gateway in front of `upstream` that writes to `database`.
pub(crate) fn gateway(upstream: &Upstream, database: &Database<'_>) -> Builder {
    gateway_to(&upstream.url(), &database.url())
}

/// The same by addresses, for an upstream or a database that is not there.
pub(crate) fn gateway_to(upstream: &str, database: &str) -> Builder {
    let environment = [
        ("TOLLGATE__UPSTREAM__URL", upstream),
        ("TOLLGATE__DATABASE__URL", database),
        ("ADMIN_TOKEN", "operator-token-of-the-tests"),
        ("ADMIN_VIEWER_TOKEN", "viewer-token-of-the-tests"),
        ("CRON_SECRET", "cron-secret-of-the-tests"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Builder { config: BASE.to_owned(), environment, data: None }
}

impl Builder {
    /// Adds tables to the config file.
    pub(crate) fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self
    }

    /// Sets one key, by its dotted name.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        let name = format!("TOLLGATE__{}", key.to_uppercase().replace('.', "__"));
        self.environment.insert(name, value.to_owned());
        self
    }

    /// Sets an environment variable, as the gateway sees it.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Takes the database away: it runs one of its own.
    pub(crate) fn private_database(mut self) -> Self {
        self.environment.remove("TOLLGATE__DATABASE__URL");
        self
    }

    /// Names tenants by the chat service's own means: token and session.
    pub(crate) fn sources(mut self, toml: &str) -> Self {
        let lines = self.config.lines().map(|line| match line.starts_with("sources =") {
            true => format!("sources = {toml}"),
            false => line.to_owned(),
        });
        self.config = lines.collect::<Vec<_>>().join("\n") + "\n";
        self
    }

    /// Goes on with the journal that a former gateway left.
    pub(crate) fn data(mut self, data: TempDir) -> Self {
        self.data = Some(data);
        self
    }

    pub(crate) async fn start(self) -> TestGateway {
        self.try_start().await.unwrap_or_else(|error| panic!("the gateway does not start: {error:#}"))
    }

    pub(crate) async fn try_start(mut self) -> anyhow::Result<TestGateway> {
        let data = match self.data.take() {
            Some(data) => data,
            None => tempfile::tempdir()?,
        };
        let file = data.path().join("tollgate.toml");
        std::fs::write(&file, &self.config)?;
        let dir = data.path().display().to_string();
        self.environment.insert("TOLLGATE__DATA__DIR".into(), dir);
        let settings = Settings::load(Some(&file), &self.environment)?;
        let gateway = Box::pin(Gateway::start(settings, Inherited::default())).await?;
        let (address, admin) = (gateway.address(), gateway.admin_address());
        let (stop, stopped) = oneshot::channel();
        let told = async {
            let _ = stopped.await;
        };
        let running = tokio::spawn(Box::pin(gateway.run_until(told, std::future::pending())));
        Ok(TestGateway { address, admin, stop, running, data })
    }
}

/// A running gateway. Stop it: a test that does not has proved nothing about what is left behind.
pub(crate) struct TestGateway {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    data: TempDir,
}

impl TestGateway {
    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, what: impl Into<Vec<u8>>) -> Response {
        within("an answer of the gateway", Client::ask(self.address, what)).await
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One request to the admin listener, as operator.
    pub(crate) async fn operate(&self, what: RequestText) -> Response {
        let what = what.header("authorization", "Bearer operator-token-of-the-tests");
        within("an answer of the admin listener", Client::ask(self.admin, what)).await
    }

    /// What `/readyz` says.
    pub(crate) async fn readiness(&self) -> (u16, Value) {
        let response = Client::ask(self.admin, request("GET", "/readyz")).await;
        (response.status, response.json())
    }

    /// The value of a metric, its labels included in `name` as Prometheus writes them.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = Client::ask(self.admin, request("GET", "/metrics")).await.text();
        let line = page.lines().find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with(' ')));
        line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0.0)
    }

    /// Waits until a metric has reached `value`.
    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        within(name, async { while self.metric(name).await < value {} }).await;
    }

    /// Waits until a metric is as `is` has it.
    pub(crate) async fn until_metric_is(&self, name: &str, is: impl Fn(f64) -> bool) {
        within(name, async { while !is(self.metric(name).await) {} }).await;
    }

    /// Replaces what the test added to the config file.
    pub(crate) fn rewrite_config(&self, toml: &str) {
        std::fs::write(self.data.path().join("tollgate.toml"), format!("{BASE}{toml}"))
            .expect("the config file");
    }

    /// Stops it in good order, and checks that nothing is left: no reservation, no exchange, no event on its way.
    pub(crate) async fn stop(self) -> TempDir {
        let (left, data) = self.stop_leaving_events().await;
        assert_eq!(left, 0, "the journal is empty once a stopped gateway could write to its database");
        data
    }

    /// Stops it; returns how many records the journal still holds.
    pub(crate) async fn stop_leaving_events(self) -> (usize, TempDir) {
        self.stop_with_exchanges(0.0).await
    }

    /// Stops it while so many exchanges are in flight; returns how many records the journal still holds.
    pub(crate) async fn stop_with_exchanges(self, in_flight: f64) -> (usize, TempDir) {
        let at_the_stop =
            (self.metric("tollgate_exchanges").await, self.metric("tollgate_reservations").await);
        let stopped = self.stop_in_full_flight().await;
        assert_eq!(at_the_stop, (in_flight, in_flight), "exchanges and reservations at the stop");
        stopped
    }

    /// Stops it whatever is in flight; returns how many records the journal still holds.
    pub(crate) async fn stop_in_full_flight(self) -> (usize, TempDir) {
        let _ = self.stop.send(());
        let ended = within("the gateway stops", self.running).await;
        ended.expect("the gateway does not panic").expect("the gateway stops in good order");
        let mut left = 0;
        let metrics = tollgate::telemetry::Metrics::new();
        let environment =
            BTreeMap::from([("TOLLGATE__DATA__DIR".to_owned(), self.data.path().display().to_string())]);
        let config = Settings::load(None, &environment).expect("the defaults").record;
        let (_, journal) = tollgate::record::Journal::open(config, metrics).expect("the journal opens again");
        assert_eq!(journal.opened().crashed, 0, "every exchange has closed its intent");
        journal.replay(&mut |_| left += 1);
        journal.close();
        (left, self.data)
    }
}

/// A chat request of `tenant` with one message.
pub(crate) fn chat(tenant: &str, message: &str) -> RequestText {
    let body = serde_json::json!({"sessionId": "session-0001", "message": message});
    request("POST", "/api/widget/chat").header("x-tenant-id", tenant).json(&body)
}

/// A chat request with a batch of `count` messages.
pub(crate) fn batch(tenant: &str, count: usize) -> RequestText {
    let messages: Vec<Value> =
        (0..count).map(|n| serde_json::json!({"query": format!("question {n}")})).collect();
    let body = serde_json::json!({"sessionId": "session-0001", "messages": messages});
    request("POST", "/api/widget/chat").header("x-tenant-id", tenant).json(&body)
}

/// The service's answer to a batch, which reports `tokens`.
pub(crate) fn batch_answer(tokens: u64) -> Value {
    serde_json::json!({"batch": [{"reply": "ok", "tokens_used": tokens}], "aggregated": true, "totalTokens": tokens})
}
