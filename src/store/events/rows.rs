//! A batch as columns, and no value among them that Postgres would refuse.
//!
//! Text and JSON hold no U+0000, which Postgres has no place for (<https://www.postgresql.org/docs/current/datatype-character.html>,
//! <https://www.postgresql.org/docs/current/datatype-json.html>), and texts are cut at a bound. Numbers beyond a column are
//! clamped to it, and the event's metadata says which.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::SystemTime;

use deadpool_postgres::ClientWrapper;
use serde_json::Value;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Statement};
use uuid::Uuid;

use super::charged;
use super::fitting::{Clamp, LONG_BYTES, SHORT_BYTES, json, ms, text};
use crate::model::event::{Amendment, AuditEvent, Outcome, Record, UsageEvent};
use crate::model::quota::Charge;
use crate::store::instant::moment;

/// A batch, sorted by table. Each event, audit event and amendment is in it once, whatever was handed over.
pub(super) struct Batch<'a> {
    pub(super) usage: Usage<'a>,
    pub(super) audit: Audit<'a>,
    pub(super) amend: Amend<'a>,
    pub(super) charges: Charges<'a>,
}

impl<'a> Batch<'a> {
    pub(super) fn of(records: &'a [Record]) -> Self {
        let mut batch = Self {
            usage: Usage::default(),
            audit: Audit::default(),
            amend: Amend::default(),
            charges: Charges::default(),
        };
        let (mut events, mut amended, mut audited) = (HashSet::new(), HashSet::new(), HashSet::new());
        for record in records {
            match record {
                Record::Usage(event) if events.insert(event.event_id) => {
                    batch.usage.push(event);
                    let tenant = event.tenant_id.as_str();
                    batch.charges.push(event.event_id, false, tenant, event.lease_run, &event.charges);
                }
                Record::Amend(amendment) if amended.insert(amendment.event_id) => {
                    batch.amend.push(amendment);
                    batch.charges.push(
                        amendment.event_id,
                        true,
                        amendment.tenant_id.as_str(),
                        amendment.lease_run,
                        &amendment.charges,
                    );
                }
                Record::Audit(event) if audited.insert(event.event_id) => batch.audit.push(event),
                Record::Usage(_) | Record::Amend(_) | Record::Audit(_) => {}
            }
        }
        batch
    }
}

/// Columns of `tenant_usage_realtime`.
#[derive(Default)]
pub(super) struct Usage<'a> {
    id: Vec<Uuid>,
    tenant: Vec<&'a str>,
    kind: Vec<&'static str>,
    at: Vec<SystemTime>,
    method: Vec<Cow<'a, str>>,
    endpoint: Vec<Cow<'a, str>>,
    status: Vec<Option<i32>>,
    response_ms: Vec<Option<i32>>,
    first_byte_ms: Vec<Option<i32>>,
    session: Vec<Option<Cow<'a, str>>>,
    messages: Vec<i32>,
    embeddings: Vec<i32>,
    found: Vec<Option<i32>>,
    tokens: Vec<Option<i64>>,
    input: Vec<Option<i64>>,
    output: Vec<Option<i64>>,
    cached: Vec<Option<i64>>,
    written: Vec<Option<i64>>,
    reasoning: Vec<Option<i64>>,
    model: Vec<Option<Cow<'a, str>>>,
    source: Vec<&'static str>,
    outcome: Vec<&'static str>,
    streamed: Vec<bool>,
    nanousd: Vec<i64>,
    request: Vec<Cow<'a, str>>,
    metadata: Vec<String>,
}

impl<'a> Usage<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.id.is_empty()
    }

    fn push(&mut self, event: &'a UsageEvent) {
        let mut clamp = Clamp::default();
        let usage = &event.usage;
        self.id.push(event.event_id);
        self.tenant.push(event.tenant_id.as_str());
        self.kind.push(event.event_type.as_str());
        self.at.push(moment(event.at));
        self.method.push(text(&event.method, SHORT_BYTES));
        self.endpoint.push(text(&event.endpoint, LONG_BYTES));
        self.status.push(event.status.map(i32::from));
        // Nobody measured an exchange that its process did not survive.
        let measured = event.outcome != Outcome::Crashed || event.response_time_us > 0;
        let response_ms = measured.then(|| clamp.int("api_response_time_ms", ms(event.response_time_us)));
        self.response_ms.push(response_ms);
        self.first_byte_ms.push(event.first_byte_us.map(|us| clamp.int("upstream_first_byte_ms", ms(us))));
        self.session.push(event.chat_session_id.as_deref().map(|id| text(id, LONG_BYTES)));
        self.messages.push(clamp.int("chat_messages", event.messages));
        self.embeddings.push(clamp.int("embeddings", event.embeddings));
        let found = event.metadata.get("search_result_count").and_then(Value::as_u64);
        self.found.push(found.map(|found| clamp.int("search_result_count", found)));
        self.tokens.push(clamp.bigint("tokens_consumed", event.tokens_consumed));
        self.input.push(clamp.bigint("input_tokens", usage.input));
        self.output.push(clamp.bigint("output_tokens", usage.output));
        self.cached.push(clamp.bigint("cached_input_tokens", usage.cached_input));
        self.written.push(clamp.bigint("cache_write_input_tokens", usage.cache_write_input));
        self.reasoning.push(clamp.bigint("reasoning_tokens", usage.reasoning));
        self.model.push(event.model.as_deref().map(|model| text(model, LONG_BYTES)));
        self.source.push(event.token_source.as_str());
        self.outcome.push(event.outcome.as_str());
        self.streamed.push(event.streamed);
        self.nanousd.push(clamp.nanousd(event.cost_nanousd));
        self.request.push(text(&event.request_id, LONG_BYTES));
        self.metadata.push(clamp.onto(&event.metadata, charged::exceptional(event)));
    }

    pub(super) async fn insert(
        &self,
        client: &ClientWrapper,
        statement: &Statement,
        replica: Option<&str>,
    ) -> Result<u64, Error> {
        let columns: [&(dyn ToSql + Sync); 27] = [
            &self.id,
            &self.tenant,
            &self.kind,
            &self.at,
            &self.method,
            &self.endpoint,
            &self.status,
            &self.response_ms,
            &self.first_byte_ms,
            &self.session,
            &self.messages,
            &self.embeddings,
            &self.found,
            &self.tokens,
            &self.input,
            &self.output,
            &self.cached,
            &self.written,
            &self.reasoning,
            &self.model,
            &self.source,
            &self.outcome,
            &self.streamed,
            &self.nanousd,
            &self.request,
            &replica,
            &self.metadata,
        ];
        client.execute(statement, &columns).await
    }
}

/// Columns of `audit_events`.
#[derive(Default)]
pub(super) struct Audit<'a> {
    id: Vec<Uuid>,
    tenant: Vec<Option<&'a str>>,
    kind: Vec<Cow<'a, str>>,
    category: Vec<Cow<'a, str>>,
    entity: Vec<Cow<'a, str>>,
    entity_id: Vec<Option<Cow<'a, str>>>,
    action: Vec<Cow<'a, str>>,
    actor: Vec<&'static str>,
    actor_id: Vec<Option<Cow<'a, str>>>,
    old: Vec<Option<String>>,
    new: Vec<Option<String>>,
    summary: Vec<Option<Cow<'a, str>>>,
    result: Vec<&'static str>,
    error: Vec<Option<Cow<'a, str>>>,
    ip: Vec<Option<IpAddr>>,
    agent: Vec<Option<Cow<'a, str>>>,
    request: Vec<Option<Cow<'a, str>>>,
    at: Vec<SystemTime>,
    in_history: Vec<bool>,
}

impl<'a> Audit<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.id.is_empty()
    }

    fn push(&mut self, event: &'a AuditEvent) {
        let long = |value: &'a Option<String>| value.as_deref().map(|value| text(value, LONG_BYTES));
        self.id.push(event.event_id);
        self.tenant.push(event.tenant_id.as_ref().map(|tenant| tenant.as_str()));
        self.kind.push(text(&event.event_type, SHORT_BYTES));
        self.category.push(text(&event.category, SHORT_BYTES));
        self.entity.push(text(&event.entity_type, SHORT_BYTES));
        self.entity_id.push(long(&event.entity_id));
        self.action.push(text(&event.action, SHORT_BYTES));
        self.actor.push(event.actor.as_str());
        self.actor_id.push(long(&event.actor_id));
        self.old.push(event.old_values.as_ref().map(json));
        self.new.push(event.new_values.as_ref().map(json));
        self.summary.push(long(&event.summary));
        self.result.push(event.result.as_str());
        self.error.push(long(&event.error_message));
        self.ip.push(event.ip_address);
        self.agent.push(long(&event.user_agent));
        self.request.push(long(&event.request_id));
        self.at.push(moment(event.at));
        self.in_history.push(event.in_history);
    }

    /// Into the chain of what SQL inserts.
    pub(super) async fn insert(&self, client: &ClientWrapper, statement: &Statement) -> Result<u64, Error> {
        client.execute(statement, &self.columns()).await
    }

    /// Into a chain of this replica, but for those that are there already.
    pub(super) async fn chain(
        &self,
        client: &ClientWrapper,
        statement: &Statement,
        replica: Option<&str>,
    ) -> Result<u64, Error> {
        let columns = self.columns();
        let columns: Vec<&(dyn ToSql + Sync)> = columns.into_iter().chain([&replica as _]).collect();
        client.execute(statement, &columns).await
    }

    fn columns(&self) -> [&(dyn ToSql + Sync); 19] {
        [
            &self.id,
            &self.tenant,
            &self.kind,
            &self.category,
            &self.entity,
            &self.entity_id,
            &self.action,
            &self.actor,
            &self.actor_id,
            &self.old,
            &self.new,
            &self.summary,
            &self.result,
            &self.error,
            &self.ip,
            &self.agent,
            &self.request,
            &self.at,
            &self.in_history,
        ]
    }
}

/// What amendments set.
#[derive(Default)]
pub(super) struct Amend<'a> {
    id: Vec<Uuid>,
    at: Vec<SystemTime>,
    tokens: Vec<Option<i64>>,
    input: Vec<Option<i64>>,
    output: Vec<Option<i64>>,
    cached: Vec<Option<i64>>,
    written: Vec<Option<i64>>,
    reasoning: Vec<Option<i64>>,
    source: Vec<&'a str>,
    nanousd: Vec<i64>,
}

impl Amend<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.id.is_empty()
    }

    fn push(&mut self, amendment: &Amendment) {
        let mut clamp = Clamp::default();
        let usage = &amendment.usage;
        self.id.push(amendment.event_id);
        self.at.push(moment(amendment.at));
        self.tokens.push(clamp.bigint("tokens_consumed", Some(amendment.tokens_consumed)));
        self.input.push(clamp.bigint("input_tokens", usage.input));
        self.output.push(clamp.bigint("output_tokens", usage.output));
        self.cached.push(clamp.bigint("cached_input_tokens", usage.cached_input));
        self.written.push(clamp.bigint("cache_write_input_tokens", usage.cache_write_input));
        self.reasoning.push(clamp.bigint("reasoning_tokens", usage.reasoning));
        self.source.push(amendment.token_source.as_str());
        self.nanousd.push(clamp.nanousd(amendment.cost_nanousd));
    }

    pub(super) async fn apply(&self, client: &ClientWrapper, statement: &Statement) -> Result<u64, Error> {
        let columns: [&(dyn ToSql + Sync); 10] = [
            &self.id,
            &self.at,
            &self.tokens,
            &self.input,
            &self.output,
            &self.cached,
            &self.written,
            &self.reasoning,
            &self.source,
            &self.nanousd,
        ];
        client.execute(statement, &columns).await
    }
}

/// What events and amendments add to the live counters.
#[derive(Default)]
pub(super) struct Charges<'a> {
    id: Vec<Uuid>,
    amends: Vec<bool>,
    tenant: Vec<&'a str>,
    dimension: Vec<String>,
    starts: Vec<SystemTime>,
    ends: Vec<SystemTime>,
    amount: Vec<i64>,
    most: Vec<Option<i64>>,
    run: Vec<i64>,
}

impl<'a> Charges<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.id.is_empty()
    }

    fn push(&mut self, id: Uuid, amends: bool, tenant: &'a str, run: u64, charges: &[Charge]) {
        for charge in charges {
            self.id.push(id);
            self.amends.push(amends);
            self.tenant.push(tenant);
            self.dimension.push(charge.dimension.to_string());
            self.starts.push(moment(charge.window_start));
            self.ends.push(moment(charge.window_end));
            self.amount.push(charge.amount);
            self.most.push(charge.limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)));
            self.run.push(i64::try_from(run).unwrap_or(0));
        }
    }

    pub(super) async fn raise(
        &self,
        client: &ClientWrapper,
        statement: &Statement,
        replica: Option<&str>,
    ) -> Result<u64, Error> {
        let columns: [&(dyn ToSql + Sync); 10] = [
            &self.id,
            &self.amends,
            &self.tenant,
            &self.dimension,
            &self.starts,
            &self.ends,
            &self.amount,
            &self.most,
            &self.run,
            &replica,
        ];
        client.execute(statement, &columns).await
    }
}
