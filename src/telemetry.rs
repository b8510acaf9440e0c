//! Metrics and logs.
//!
//! Labels are bounded: routes, dimensions, outcomes; never a tenant, a path or a model as a client sent it.

use std::borrow::Cow;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// One label with a value from a bounded set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label(pub &'static str, pub Cow<'static, str>);

impl EncodeLabelSet for Label {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeLabel;
        (self.0, self.1.as_ref()).encode(encoder.encode_label())
    }
}

/// The last entry of an audit chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AuditHead {
    /// Which chain.
    pub chain: String,
    /// The entry's hash, in hex.
    pub hash: String,
}

/// What of a route's calls was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Unread {
    /// The route's path as configured.
    pub route: String,
    /// A flag of the meter, such as `unknown_format`; of requests `request_text`, or why one was not read.
    pub what: &'static str,
}

/// Everything that `/metrics` shows. Handles are atomics: cheap to bump from anywhere.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Client connections open now.
    pub connections: Gauge,
    /// Client connections turned away because too many were open.
    pub connections_refused: Counter,
    /// Client connections that the gateway turned away or ended, by `reason`: a limit of `[server]`.
    pub connections_ended: Family<Label, Counter>,
    /// Requests that are not HTTP as it should be: answered 4xx by us, nothing forwarded.
    pub bad_requests: Counter,
    /// Interim answers (1xx) that were not forwarded, since their client did not read as fast as they came.
    pub interim_dropped: Counter,
    /// Headers taken off requests since a service could take them for others.
    pub misleading_headers: Counter,
    /// Bytes of requests held now: heads, bodies that are inspected, and the texts taken from them.
    pub buffered_bytes: Gauge,
    /// Requests refused because there was no room for their bytes, by `what`: head, body, inspection.
    pub buffer_refusals: Family<Label, Counter>,
    /// Requests passed through unmetered.
    pub passed_through: Counter,
    /// Metered requests, by `outcome`.
    pub requests: Family<Label, Counter>,
    /// Refusals for quota, by `dimension`.
    pub refusals: Family<Label, Counter>,
    /// What would have been refused in shadow mode, by `dimension`.
    pub shadow_refusals: Family<Label, Counter>,
    /// What passed over a soft limit, by `dimension`.
    pub soft_exceeded: Family<Label, Counter>,
    /// Other answers made by the gateway, by `code`.
    pub replies: Family<Label, Counter>,
    /// From sending a metered request to the end of the upstream's answer.
    pub upstream_seconds: Histogram,
    /// From sending a metered request to the head of the upstream's answer.
    pub first_byte_seconds: Histogram,
    /// What the gateway itself added to a metered request: before sending, and holding the end.
    pub overhead_seconds: Histogram,
    /// Metered exchanges in flight.
    pub exchanges: Gauge,
    /// Answers being read on after their clients left.
    pub draining: Gauge,
    /// Answers that were to be read on after their clients left, by `ending`.
    pub drains: Family<Label, Counter>,
    /// Reservations held now. Equals `exchanges` in flight past admission.
    pub reservations: Gauge,
    /// Tenants with state in memory.
    pub tenants: Gauge,
    /// Rounds of quota leases, by `result`: one statement each.
    pub lease_rounds: Family<Label, Counter>,
    /// Leases asked for in these rounds.
    pub leases_asked: Counter,
    /// From a round's beginning to its answer.
    pub lease_seconds: Histogram,
    /// Requests that waited for a lease in vain.
    pub lease_waits_expired: Counter,
    /// By how much the live counters of the windows that run differ from their events: 0, or something is wrong.
    pub quota_drift: Gauge,
    /// Numbers of the last entries of this replica's audit chains and of those that all share, by `chain` and `hash`: one
    /// series for each chain, as of the last aggregation.
    pub audit_chain_seq: Family<AuditHead, Gauge>,
    /// Tokens charged, by `source`.
    pub tokens: Family<Label, Counter>,
    /// Exchanges whose answer should have named the tenant and did not: no usage is recorded of them.
    pub unnamed: Counter,
    /// Answers that could not be metered whole, by `flag`.
    pub unmetered: Family<Label, Counter>,
    /// Calls charged their reservation because nobody could read them, by `route` and `what`.
    pub unread: Family<Unread, Counter>,
    /// Answers from a model without a price of its own.
    pub unknown_models: Counter,
    /// Answers with something that is billed and has no price, by `what`: audio tokens, web searches, a tier, …
    pub unpriced: Family<Label, Counter>,
    /// Tenants on a plan that the config does not know.
    pub unknown_plans: Counter,
    /// Tenants with an override that an operator set.
    pub overridden: Gauge,
    /// Changes of plan in the service's database, by `result`: recorded, known (another replica was first), lost.
    pub plan_changes: Family<Label, Counter>,
    /// Alerts raised by this replica, by `kind`.
    pub alerts: Family<Label, Counter>,
    /// Looks for alerts, by `result`: ok, taken (another replica was looking), failed.
    pub alert_looks: Family<Label, Counter>,
    /// Tries to deliver an alert, by `result`: sent, retried, failed.
    pub alert_deliveries: Family<Label, Counter>,
    /// Counting jobs not taken because the counting queue was full: estimated instead.
    pub counts_estimated: Counter,
    /// Look-ups in the service's database, by `answer`: hit, known, absent, stale, unavailable.
    pub look_ups: Family<Label, Counter>,
    /// Look-ups of the config that the service's database can never answer.
    pub look_ups_broken: Gauge,
    /// Records handed to the journal.
    pub events_queued: Counter,
    /// Records written to Postgres.
    pub events_written: Counter,
    /// Records lost: journal and memory were full.
    pub events_lost: Counter,
    /// Records set aside in the dead-letter file.
    pub events_dead: Counter,
    /// Records found damaged in the journal and kept aside.
    pub events_damaged: Counter,
    /// Batches that Postgres did not take, to be tried again.
    pub ship_retries: Counter,
    /// Records in the journal that Postgres has not acknowledged.
    pub journal_records: Gauge,
    /// Exchanges in flight whose intents are in the journal.
    pub journal_intents: Gauge,
    /// Exchanges without an intent: too many were in flight, or the journal was stuck.
    pub intents_left_out: Counter,
    /// Bytes of the journal's segments.
    pub journal_bytes: Gauge,
    /// 1 while the journal can be written.
    pub journal_healthy: Gauge,
    /// 1 while Postgres answers.
    pub database_up: Gauge,
    /// Connections of the pool.
    pub pool_size: Gauge,
    /// Of them, idle.
    pub pool_idle: Gauge,
    /// Config reloads, by `result`.
    pub reloads: Family<Label, Counter>,
    /// Aggregation runs, by `result`.
    pub aggregations: Family<Label, Counter>,
    /// Admin calls turned away for their credentials, by `code`.
    pub admin_refusals: Family<Label, Counter>,
}

/// Bucket bounds in seconds: 50 µs to 2 minutes, for upstreams that think and a gateway that should not.
const SECONDS: [f64; 20] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0, 120.0,
];

impl Metrics {
    /// All at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("tollgate");
        let r = &mut registry;
        let seconds = || Histogram::new(SECONDS);
        let metrics = Self {
            connections: add(r, "connections", "Client connections open", Gauge::default()),
            connections_refused: add(
                r,
                "connections_refused",
                "Client connections over the cap",
                Counter::default(),
            ),
            connections_ended: add(
                r,
                "connections_ended",
                "Client connections turned away or ended by a limit, by reason",
                Family::default(),
            ),
            bad_requests: add(r, "bad_requests", "Malformed requests, not forwarded", Counter::default()),
            interim_dropped: add(
                r,
                "interim_dropped",
                "Interim answers (1xx) not forwarded, since too many waited for their client",
                Counter::default(),
            ),
            misleading_headers: add(
                r,
                "misleading_headers",
                "Headers taken off requests: look-alikes, and paths that were rewritten",
                Counter::default(),
            ),
            buffered_bytes: add(r, "buffered_bytes", "Bytes of requests held", Gauge::default()),
            buffer_refusals: add(
                r,
                "buffer_refusals",
                "Requests refused for want of room for their bytes, by what there was no room for",
                Family::default(),
            ),
            passed_through: add(r, "passed_through", "Requests passed through unmetered", Counter::default()),
            requests: add(r, "requests", "Metered requests by outcome", Family::default()),
            refusals: add(r, "refusals", "Requests refused for quota, by dimension", Family::default()),
            shadow_refusals: add(
                r,
                "shadow_refusals",
                "Requests that shadow mode let through",
                Family::default(),
            ),
            soft_exceeded: add(
                r,
                "soft_exceeded",
                "Requests that passed over a soft limit, by dimension",
                Family::default(),
            ),
            replies: add(r, "replies", "Other answers made by the gateway, by code", Family::default()),
            upstream_seconds: add(r, "upstream_seconds", "Upstream time of metered requests", seconds()),
            first_byte_seconds: add(r, "first_byte_seconds", "Upstream time to the answer's head", seconds()),
            overhead_seconds: add(r, "overhead_seconds", "Time the gateway itself added", seconds()),
            exchanges: add(r, "exchanges", "Metered exchanges in flight", Gauge::default()),
            draining: add(r, "draining", "Answers read on after their clients left", Gauge::default()),
            drains: add(
                r,
                "drains",
                "Answers read on after their clients left, by ending",
                Family::default(),
            ),
            reservations: add(r, "reservations", "Reservations held", Gauge::default()),
            tenants: add(r, "tenants", "Tenants with state in memory", Gauge::default()),
            lease_rounds: add(r, "lease_rounds", "Rounds of quota leases, by result", Family::default()),
            leases_asked: add(r, "leases_asked", "Quota leases asked for", Counter::default()),
            lease_seconds: add(r, "lease_seconds", "Time a round of leases took", seconds()),
            lease_waits_expired: add(
                r,
                "lease_waits_expired",
                "Requests that waited for a lease in vain",
                Counter::default(),
            ),
            quota_drift: add(
                r,
                "quota_drift",
                "Difference of live quota counters and their events, as of the last aggregation",
                Gauge::default(),
            ),
            audit_chain_seq: add(
                r,
                "audit_chain_seq",
                "Number of the last entry of an audit chain, by chain and hash",
                Family::default(),
            ),
            tokens: add(r, "tokens", "Tokens charged, by source of the count", Family::default()),
            unnamed: add(
                r,
                "unnamed",
                "Exchanges whose answer did not name their tenant",
                Counter::default(),
            ),
            unmetered: add(r, "unmetered", "Answers not metered whole, by reason", Family::default()),
            unread: add(
                r,
                "unread",
                "Calls charged their reservation as their tokens could not be read, by route",
                Family::default(),
            ),
            unknown_models: add(
                r,
                "unknown_models",
                "Answers of a model without a price",
                Counter::default(),
            ),
            unpriced: add(
                r,
                "unpriced",
                "Answers with something that is billed and has no price in [prices], by what it is",
                Family::default(),
            ),
            unknown_plans: add(r, "unknown_plans", "Look-ups that gave an unknown plan", Counter::default()),
            overridden: add(r, "overridden_tenants", "Tenants with an operator's override", Gauge::default()),
            plan_changes: add(r, "plan_changes", "Changes of plan noticed, by result", Family::default()),
            alerts: add(r, "alerts", "Alerts raised by this replica, by kind", Family::default()),
            alert_looks: add(r, "alert_looks", "Looks for alerts, by result", Family::default()),
            alert_deliveries: add(r, "alert_deliveries", "Tries to deliver an alert", Family::default()),
            counts_estimated: add(r, "counts_estimated", "Counts estimated under load", Counter::default()),
            look_ups_broken: add(
                r,
                "look_ups_broken",
                "Look-ups of the config that the service's database can never answer, or hides all rows from",
                Gauge::default(),
            ),
            look_ups: add(r, "look_ups", "Tenant and plan look-ups, by answer", Family::default()),
            events_queued: add(r, "events_queued", "Records handed to the journal", Counter::default()),
            events_written: add(r, "events_written", "Records written to Postgres", Counter::default()),
            events_lost: add(r, "events_lost", "Records lost", Counter::default()),
            events_dead: add(r, "events_dead", "Records in the dead-letter file", Counter::default()),
            events_damaged: add(
                r,
                "events_damaged",
                "Damaged journal records kept aside",
                Counter::default(),
            ),
            ship_retries: add(r, "ship_retries", "Batches to be tried again", Counter::default()),
            journal_records: add(r, "journal_records", "Records not yet acknowledged", Gauge::default()),
            journal_intents: add(
                r,
                "journal_intents",
                "Exchanges in flight whose intents are in the journal",
                Gauge::default(),
            ),
            intents_left_out: add(
                r,
                "intents_left_out",
                "Exchanges that a crash would leave uncharged: too many in flight, or the journal stuck",
                Counter::default(),
            ),
            journal_bytes: add(r, "journal_bytes", "Bytes of journal segments", Gauge::default()),
            journal_healthy: add(
                r,
                "journal_healthy",
                "1 while the journal can be written",
                Gauge::default(),
            ),
            database_up: add(r, "database_up", "1 while Postgres answers", Gauge::default()),
            pool_size: add(r, "pool_size", "Connections of the pool", Gauge::default()),
            pool_idle: add(r, "pool_idle", "Idle connections of the pool", Gauge::default()),
            reloads: add(r, "reloads", "Config reloads, by result", Family::default()),
            aggregations: add(r, "aggregations", "Aggregation runs, by result", Family::default()),
            admin_refusals: add(r, "admin_refusals", "Admin calls turned away, by code", Family::default()),
            registry,
        };
        Arc::new(metrics)
    }

    /// The page in OpenMetrics text, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut page = String::with_capacity(16 * 1024);
        match prometheus_client::encoding::text::encode(&mut page, &self.registry) {
            Ok(()) => page,
            Err(_) => String::from("# EOF\n"),
        }
    }
}

/// Bumps the counter of one label.
pub fn bump(family: &Family<Label, Counter>, name: &'static str, value: impl Into<Cow<'static, str>>) {
    family.get_or_create(&Label(name, value.into())).inc();
}

fn add<M: Metric + EncodeMetric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}
