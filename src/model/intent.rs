//! What an exchange takes on when it is admitted: enough to charge it should the process die before its end.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::event::{EventType, Outcome, UsageEvent};
use super::quota::{Amounts, Charge};
use super::tenant::TenantId;
use super::tokens::{TokenSource, TokenUsage};

/// An admitted exchange that has no event yet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Intent {
    /// The id that its event will have, whoever makes it.
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
    /// The route's path as configured.
    pub endpoint: String,
    /// The chat session named by the request.
    pub chat_session_id: Option<String>,
    /// The model that priced what is reserved.
    pub model: Option<String>,
    /// The `x-request-id` of the exchange.
    pub request_id: String,
    /// What is reserved for it.
    pub reserved: Amounts,
    /// What its reservation, used up whole, would add to the live counters.
    pub charges: Vec<Charge>,
    /// The run of the replica whose leases pay for it; 0 where there are none.
    pub lease_run: u64,
    /// What its event's metadata begins with.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl Intent {
    /// The event of an exchange whose process died: nobody knows what it used, so it is charged what it reserved.
    pub fn crashed(self) -> UsageEvent {
        let Amounts { tokens, chat_messages, embeddings, cost_nanousd, .. } = self.reserved;
        UsageEvent {
            event_id: self.event_id,
            tenant_id: self.tenant_id,
            event_type: self.event_type,
            at: self.at,
            method: self.method,
            endpoint: self.endpoint,
            status: None,
            response_time_us: 0,
            first_byte_us: None,
            chat_session_id: self.chat_session_id,
            usage: TokenUsage::default(),
            tokens_consumed: Some(tokens),
            token_source: if tokens > 0 { TokenSource::Reserved } else { TokenSource::None },
            messages: chat_messages,
            embeddings,
            model: self.model,
            outcome: Outcome::Crashed,
            streamed: false,
            cost_nanousd,
            request_id: self.request_id,
            metadata: self.metadata,
            charges: self.charges,
            lease_run: self.lease_run,
        }
    }
}
