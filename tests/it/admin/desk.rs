//! A desk: an admin listener on a real socket, what it is asked, and what it was heard to say.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tollgate::admin::{self, Explained, Health, Part, QuotaView, ServicePlan, State, Status};
use tollgate::model::event::AuditEvent;
use tollgate::model::quota::{Dimension, Limits, Standing};
use tollgate::model::tenant::{PlanName, TenantId};
use tollgate::quota::{Footing, OverrideConfig, Overrides, PlanConfig, Plans};
use tollgate::store::{self, Store};
use tollgate::telemetry::Metrics;

pub(super) const OPERATOR: (&str, &str) = ("authorization", "Bearer operator-token");
pub(super) const VIEWER: (&str, &str) = ("authorization", "Bearer viewer-token");
pub(super) const CRON: (&str, &str) = ("x-cron-secret", "cron-secret");

/// An admin listener, and what it was heard to say.
pub(super) struct Desk {
    pub(super) address: SocketAddr,
    pub(super) store: Store,
    audits: Arc<Mutex<Vec<AuditEvent>>>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

/// How a desk is set up.
pub(super) struct Setup {
    url: String,
    pub(super) operator: Option<&'static str>,
    pub(super) status: Status,
    pub(super) aggregate: Result<Map<String, Value>, String>,
    pub(super) override_of_tokens: Option<u64>,
    pub(super) statement_timeout: Duration,
}

impl Setup {
    pub(super) fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            operator: Some("operator-token"),
            status: Status::Ok,
            aggregate: Ok(Map::from_iter([
                ("daily".to_owned(), json!(7)),
                ("success".to_owned(), json!("no")),
            ])),
            override_of_tokens: None,
            statement_timeout: Duration::from_secs(5),
        }
    }

    pub(super) async fn open(self) -> Desk {
        let store = Store::new(&store::Config {
            url: self.url,
            pool_size: 4,
            connect_timeout: Duration::from_secs(1),
            statement_timeout: self.statement_timeout,
        })
        .unwrap();
        let audits: Arc<Mutex<Vec<AuditEvent>>> = Arc::default();
        let heard = Arc::clone(&audits);
        let (status, aggregate, override_of_tokens) = (self.status, self.aggregate, self.override_of_tokens);
        let overrides = Overrides::new();
        let state = State {
            config: admin::Config {
                listen: ([127, 0, 0, 1], 0).into(),
                operator_token: self.operator.map(str::to_owned),
                viewer_token: self.operator.map(|_| "viewer-token".to_owned()),
                cron_secret: self.operator.map(|_| "cron-secret".to_owned()),
            },
            metrics: Metrics::new(),
            store: store.clone(),
            health: Arc::new(move || Health {
                status,
                parts: vec![Part { name: "database", state: "down", detail: "<refused>".to_owned() }],
            }),
            quota: {
                let overrides = overrides.clone();
                Arc::new(move |tenant| {
                    let view = quota(tenant, override_of_tokens, &overrides);
                    Box::pin(std::future::ready(view))
                })
            },
            explain: {
                let overrides = overrides.clone();
                Arc::new(move |tenant| {
                    let explained = explained(quota(tenant, override_of_tokens, &overrides));
                    Box::pin(std::future::ready(explained))
                })
            },
            plans: Arc::new(|| vec!["pro".into(), "trial".into()]),
            overrides,
            limits_changed: Arc::new(|_| {}),
            aggregate: Arc::new(move || Box::pin(std::future::ready(aggregate.clone()))),
            audit: Arc::new(move |event| heard.lock().unwrap().push(event)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(admin::serve(
            listener,
            admin::router(state),
            admin::MAX_CONNECTIONS,
            stop.clone().cancelled_owned(),
        ));
        Desk { address, store, audits, stop, served }
    }
}

/// A trial tenant that has used a tenth of its tokens.
fn quota(tenant: &TenantId, override_of_tokens: Option<u64>, overrides: &Arc<Overrides>) -> QuotaView {
    let now = Timestamp::now();
    let [tokens, calls, messages, _] = Dimension::STANDARD;
    let plan = |tokens_of_plan| {
        let mut limits = Limits::unlimited();
        limits.set(tokens, Some(tokens_of_plan));
        limits.set(calls, Some(30));
        limits.set(messages, Some(100));
        PlanConfig { limits, zone: "UTC".to_owned() }
    };
    let config = override_of_tokens.map(|limit| OverrideConfig {
        limits: vec![(tokens, Some(limit))],
        reason: Some("pilot".to_owned()),
        expires: Some("2127-01-31T00:00:00Z".parse().unwrap()),
        ..OverrideConfig::default()
    });
    let plans = Plans::new(
        [(PlanName::from("trial"), plan(10_000)), ("pro".into(), plan(500_000))].into(),
        config.map(|config| (tenant.clone(), config)).into_iter().collect(),
        "trial".into(),
        Metrics::new(),
    );
    let plans = plans.unwrap().with_admin(overrides.clone());
    let entitlement = plans.entitlement(tenant, None, now);
    let standing = |(dimension, limit): (Dimension, _)| Standing {
        dimension,
        limit,
        soft: false,
        used: if dimension == tokens { 1_000 } else { 3 },
        span: dimension.window.span(&TimeZone::UTC, now),
    };
    let standings = entitlement.limits.iter().map(standing).collect();
    QuotaView::new(&entitlement, standings, &plans.layers(tenant, now))
}

fn explained(quota: QuotaView) -> Explained {
    Explained {
        quota,
        service: ServicePlan::NotAsked,
        default_plan: "trial".into(),
        plan_limits: Arc::new(Limits::unlimited()),
        zone: "UTC".to_owned(),
        config: None,
        holdings: Vec::new(),
        footing: Footing::Alone,
        run: 0,
        replica_id: None,
    }
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(super) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The answer's status, `code` and, where there is one, `parameter`.
    pub(super) fn failure(&self) -> (u16, String, Option<String>) {
        let body = self.json();
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"), "{body}");
        assert!(body["error"].is_string(), "{body}");
        (
            self.status,
            body["code"].as_str().unwrap().to_owned(),
            body["parameter"].as_str().map(str::to_owned),
        )
    }
}

impl Desk {
    pub(super) async fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        let mut request = format!("{method} {target} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n");
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        if let Some(body) = body {
            write!(request, "content-length: {}\r\n", body.len()).unwrap();
        }
        write!(request, "\r\n{}", body.unwrap_or_default()).unwrap();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap();
        Answer { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    pub(super) async fn get(&self, target: &str) -> Answer {
        self.call("GET", target, &[OPERATOR], None).await
    }

    pub(super) async fn sql(&self, statements: &str) {
        self.store.client().await.unwrap().batch_execute(statements).await.unwrap();
    }

    /// All pages of a list, an item at a time.
    pub(super) async fn pages(&self, target: &str, list: &str, name: &str) -> Vec<String> {
        let (mut items, mut target_of_page) = (Vec::new(), target.to_owned());
        loop {
            let page = self.get(&target_of_page).await;
            assert_eq!(page.status, 200, "{}", page.body);
            let page = page.json();
            items.extend(
                page[list].as_array().unwrap().iter().map(|item| item[name].as_str().unwrap().to_owned()),
            );
            let Some(cursor) = page["nextCursor"].as_str() else { return items };
            target_of_page = format!("{target}&cursor={cursor}");
        }
    }

    pub(super) fn heard(&self) -> Vec<AuditEvent> {
        self.audits.lock().unwrap().clone()
    }

    /// Stops the listener, which must end by itself.
    pub(super) async fn close(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.served).await.expect("the listener ends").unwrap();
    }
}

/// SQL for a period of a tenant.
pub(super) fn period(
    tenant: &str,
    kind: &str,
    start: &str,
    calls: u64,
    tokens: u64,
    cost: &str,
    latency: &str,
) -> String {
    format!(
        "INSERT INTO tenant_usage_metrics (tenant_id, period_type, period_start, period_end, api_calls_total,
            api_calls_successful, api_latency_avg_ms, total_tokens_used, estimated_cost_usd)
         VALUES ('{tenant}', '{kind}', '{start}', '{start}'::timestamptz + interval '1 hour', {calls}, {calls},
            {latency}, {tokens}, {cost});"
    )
}

/// The UTC date so many days ago.
pub(super) fn day(ago: i64) -> String {
    TimeZone::UTC.to_datetime(Timestamp::now() - (24 * ago).hours()).date().to_string()
}
