//! What is recorded: usage events, audit events, and corrections of a usage event.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::quota::Charge;
use super::tenant::TenantId;
use super::tokens::{TokenSource, TokenUsage};

/// The name in a usage event's metadata of what its exchange asked its quotas for ([`Amounts`](super::quota::Amounts)),
/// where the event does not tell by itself.
pub const ASKED: &str = "asked";

/// The name in a usage event's metadata of a mark: its session could not be looked up, and its tenant stands for all such.
pub const PROVISIONAL: &str = "provisional_tenant";

/// The name in the metadata of a refusal's usage event, and in the values of its audit events, of how many refusals it
/// stands for. Where there is none, it is one.
pub const REFUSALS: &str = "refusals";

/// The name in a usage event's metadata of the tokens that its quotas were charged, where they are more than
/// [`UsageEvent::tokens_consumed`]: a client that leaves is charged at least what was reserved.
pub const CHARGED_TOKENS: &str = "charged_tokens";

/// The name in a usage event's metadata of what a quota of cost was charged beyond [`UsageEvent::cost_nanousd`], in
/// nano-dollars.
pub const FLOOR_COST: &str = "floor_cost_nanousd";

/// What kind of call was metered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// Any other metered call.
    ApiCall,
    /// A chat message, or a batch of them.
    ChatMessage,
    /// Texts turned into vectors.
    Embedding,
    /// A search of the knowledge base.
    Search,
    /// Documents taken into the knowledge base.
    KbIngest,
}

impl EventType {
    /// Every kind.
    pub const ALL: [EventType; 5] = [
        EventType::ApiCall,
        EventType::ChatMessage,
        EventType::Embedding,
        EventType::Search,
        EventType::KbIngest,
    ];

    /// As config and database spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::ApiCall => "api_call",
            EventType::ChatMessage => "chat_message",
            EventType::Embedding => "embedding",
            EventType::Search => "search",
            EventType::KbIngest => "kb_ingest",
        }
    }

    /// Whether one call can have several of what a quota counts: messages, or texts to embed.
    pub fn counts_items(self) -> bool {
        matches!(self, EventType::ChatMessage | EventType::Embedding)
    }
}

/// How an exchange really ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The upstream's answer reached its end (whatever its status).
    Completed,
    /// The client left before the end.
    ClientAborted,
    /// The upstream could not be reached, or broke off.
    UpstreamError,
    /// A limit of time ran out.
    Timeout,
    /// The gateway said no; the upstream was never called.
    Refused,
    /// The gateway ended the answer (drain limit, or the tenant's limit).
    Cut,
    /// The gateway died; found at the next start.
    Crashed,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 7] = [
        Outcome::Completed,
        Outcome::ClientAborted,
        Outcome::UpstreamError,
        Outcome::Timeout,
        Outcome::Refused,
        Outcome::Cut,
        Outcome::Crashed,
    ];

    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::ClientAborted => "client_aborted",
            Outcome::UpstreamError => "upstream_error",
            Outcome::Timeout => "timeout",
            Outcome::Refused => "refused",
            Outcome::Cut => "cut",
            Outcome::Crashed => "crashed",
        }
    }
}

/// One metered request: a row of `tenant_usage_realtime`, and what it adds to the live counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// UUIDv7, made once: what makes delivery exactly once.
    pub event_id: Uuid,
    /// Who is charged.
    pub tenant_id: TenantId,
    /// What kind of call.
    pub event_type: EventType,
    /// When the request arrived.
    #[serde(with = "jiff::fmt::serde::timestamp::microsecond::required")]
    pub at: Timestamp,
    /// The request's method.
    pub method: String,
    /// The route's path as configured (bounded in number, unlike the paths that clients send).
    pub endpoint: String,
    /// The status the client was sent, if one was.
    pub status: Option<u16>,
    /// From the request's arrival to the end of the answer, in microseconds.
    pub response_time_us: u64,
    /// From sending to the upstream to its first byte, in microseconds.
    pub first_byte_us: Option<u64>,
    /// The chat session named by the request.
    pub chat_session_id: Option<String>,
    /// Tokens by class.
    pub usage: TokenUsage,
    /// Tokens in and out, as reported or counted; what was reserved, where they are not known. `None`, in events of older
    /// versions, is unknown. Its quotas may have been charged more: see [`UsageEvent::charged_tokens`].
    pub tokens_consumed: Option<u64>,
    /// How the tokens came to be known.
    pub token_source: TokenSource,
    /// Chat messages charged.
    pub messages: u64,
    /// Embeddings charged.
    pub embeddings: u64,
    /// The model that priced it; `None` is the default price.
    pub model: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the answer was a stream.
    pub streamed: bool,
    /// Cost in nano-dollars.
    pub cost_nanousd: u64,
    /// The `x-request-id` of the exchange.
    pub request_id: String,
    /// What else is worth keeping: never message text.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// What it adds to the live counters.
    pub charges: Vec<Charge>,
    /// The run of the replica whose leases pay for it; 0 where there are none.
    #[serde(default)]
    pub lease_run: u64,
}

impl UsageEvent {
    /// The tokens that its quotas are charged: those of the row, or a floor that is above them.
    pub fn charged_tokens(&self) -> u64 {
        let floor = self.metadata.get(CHARGED_TOKENS).and_then(Value::as_u64);
        floor.or(self.tokens_consumed).unwrap_or(0)
    }
}

/// Corrects a usage event whose tokens became known after it was recorded. Applied once: only to a row that
/// still says `reserved`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Amendment {
    /// The event to correct.
    pub event_id: Uuid,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Its arrival, which finds its partition.
    #[serde(with = "jiff::fmt::serde::timestamp::microsecond::required")]
    pub at: Timestamp,
    /// Tokens by class.
    pub usage: TokenUsage,
    /// Tokens charged now.
    pub tokens_consumed: u64,
    /// How they came to be known; never `reserved`.
    pub token_source: TokenSource,
    /// Cost in nano-dollars now.
    pub cost_nanousd: u64,
    /// Differences to what the event charged.
    pub charges: Vec<Charge>,
    /// As of a usage event.
    #[serde(default)]
    pub lease_run: u64,
}

/// Who did what an audit event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// Somebody at a widget.
    Visitor,
    /// A tenant's own user.
    Tenant,
    /// An operator.
    Admin,
    /// Tollgate itself.
    System,
}

impl Actor {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Actor::Visitor => "visitor",
            Actor::Tenant => "tenant",
            Actor::Admin => "admin",
            Actor::System => "system",
        }
    }
}

/// Whether what an audit event tells of went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditResult {
    /// It did.
    Success,
    /// It did not.
    Failure,
    /// In part.
    Partial,
}

impl AuditResult {
    /// As the database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            AuditResult::Success => "success",
            AuditResult::Failure => "failure",
            AuditResult::Partial => "partial",
        }
    }
}

/// A row of `audit_events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// UUIDv7, made once.
    pub event_id: Uuid,
    /// The tenant concerned, if one is known.
    pub tenant_id: Option<TenantId>,
    /// What happened, such as `chat_message_received`.
    pub event_type: String,
    /// `trial_event`, `kb_operation`, `chat_activity`, `configuration_change`, `error` or `security`.
    pub category: String,
    /// What kind of thing it happened to.
    pub entity_type: String,
    /// Which one.
    pub entity_id: Option<String>,
    /// `create`, `read`, `update`, `delete`, `execute`.
    pub action: String,
    /// Who did it.
    pub actor: Actor,
    /// Which one of them.
    pub actor_id: Option<String>,
    /// What was, before.
    pub old_values: Option<Value>,
    /// What is now.
    pub new_values: Option<Value>,
    /// Whether it belongs to the history of its entity. Then `old_values`, where there are none, become those last
    /// recorded in that history under one of the same names: looked up when the row is written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_history: bool,
    /// One sentence for people.
    pub summary: Option<String>,
    /// Whether it went well.
    pub result: AuditResult,
    /// Why not.
    pub error_message: Option<String>,
    /// The client's address.
    pub ip_address: Option<IpAddr>,
    /// The client's program.
    pub user_agent: Option<String>,
    /// The exchange's `x-request-id`.
    pub request_id: Option<String>,
    /// When it happened.
    #[serde(with = "jiff::fmt::serde::timestamp::microsecond::required")]
    pub at: Timestamp,
}

impl AuditEvent {
    /// An event of Tollgate itself that went well, about nobody and nothing yet.
    pub fn new(event_id: Uuid, at: Timestamp, event_type: &str, category: &str, action: &str) -> Self {
        Self {
            event_id,
            tenant_id: None,
            event_type: event_type.to_owned(),
            category: category.to_owned(),
            entity_type: String::new(),
            entity_id: None,
            action: action.to_owned(),
            actor: Actor::System,
            actor_id: None,
            old_values: None,
            new_values: None,
            in_history: false,
            summary: None,
            result: AuditResult::Success,
            error_message: None,
            ip_address: None,
            user_agent: None,
            request_id: None,
            at,
        }
    }
}

/// What the journal holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A metered request.
    Usage(Box<UsageEvent>),
    /// Something worth an audit row.
    Audit(Box<AuditEvent>),
    /// A correction.
    Amend(Box<Amendment>),
}

impl Record {
    /// The id of the event that it is, or corrects.
    pub fn event_id(&self) -> Uuid {
        match self {
            Record::Usage(event) => event.event_id,
            Record::Audit(event) => event.event_id,
            Record::Amend(amendment) => amendment.event_id,
        }
    }
}
