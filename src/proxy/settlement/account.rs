//! An open account: what is known of an exchange until it is settled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::meter::{Counted, Inspected, Meter, Reading, StreamKind};
use crate::model::event::{EventType, Outcome};
use crate::model::quota::Amounts;
use crate::model::tenant::TenantId;
use crate::proxy::audit::{Bearer, Trail};
use crate::proxy::budget::Held;
use crate::proxy::charging::Basis;
use crate::proxy::core::{Core, Policy};
use crate::proxy::cut::CutEvent;
use crate::proxy::departure::Departure;
use crate::proxy::forwarding::Caller;
use crate::proxy::model_name::Expected;
use crate::proxy::route::Route;
use crate::quota::{Refusal, Reservation};
use crate::record::Hub;

/// The name in a row's metadata of who named its model, where its answer did not.
const MODEL_FROM: &str = "model_from";

/// When a request arrived, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) instant: Instant,
    pub(crate) at: Timestamp,
}

impl Arrival {
    pub(crate) fn now() -> Self {
        Self { instant: Instant::now(), at: Timestamp::now() }
    }
}

/// What is known of an exchange when its tenant is.
#[derive(Debug)]
pub(crate) struct Subject {
    /// `None` until the answer has named it, and where it doesn't.
    pub(crate) tenant: Option<TenantId>,
    /// The tenant stands for a session that could not be looked up.
    pub(crate) unresolved: bool,
    /// The token, where it named the tenant.
    pub(crate) bearer: Option<Bearer>,
    pub(crate) caller: Caller,
    pub(crate) method: http::Method,
    pub(crate) request_id: String,
    pub(crate) user_agent: Option<String>,
    pub(crate) inspected: Inspected,
    /// The model that it is priced as until its answer names one.
    pub(crate) model: Expected,
    /// Characters of the request's messages.
    pub(crate) message_chars: u64,
    /// The segments of its path that the route has names for.
    pub(crate) segments: Vec<String>,
    /// What the audit rules take from the request.
    pub(crate) values: Vec<Option<Value>>,
    /// The declared length of the request's body.
    pub(crate) content_length: Option<u64>,
    /// Why the request's body was not read, where it has one.
    pub(crate) unread: Option<&'static str>,
    /// The memory of what was taken from the body.
    #[expect(dead_code, reason = "held for as long as the account is open")]
    pub(crate) held: Option<Held>,
    /// It only asks how many tokens a text has.
    pub(crate) only_counts: bool,
}

/// The account of an exchange that is not settled.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) core: Arc<Core>,
    /// This reactor's way to the journal.
    pub(super) hub: Arc<Hub>,
    pub(super) policy: Arc<Policy>,
    pub(super) route: Arc<Route>,
    pub(super) subject: Subject,
    pub(super) event_id: Uuid,
    pub(super) arrival: Arrival,
    pub(super) sent: Option<Instant>,
    pub(super) departure: Departure,
    pub(super) head: Option<Instant>,
    pub(super) ended: Option<Instant>,
    pub(super) status: Option<u16>,
    pub(super) streamed: bool,
    /// Set where the answer is a stream that is held against the tenant's limit.
    pub(super) limit: Option<Limit>,
    /// The client had left, and the answer was read to its end all the same.
    pub(super) read_on: bool,
    /// The client left before the answer came to its own end, and what it left is read on.
    pub(super) left_early: bool,
    pub(super) reservation: Option<Reservation>,
    /// What its client's address holds beside it, where its session could not be looked up.
    pub(super) strangers: Option<Reservation>,
    /// The run whose leases pay for it: see [`Enforcer::run`](crate::quota::Enforcer::run).
    pub(super) lease_run: u64,
    pub(super) meter: Option<Meter>,
    pub(super) metadata: Map<String, Value>,
    pub(super) counting: Option<oneshot::Receiver<Counted>>,
    /// Known once the meter is closed.
    pub(super) close: Option<Close>,
}

/// How a stream is held against what its tenant has left.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) kind: StreamKind,
    pub(super) event: CutEvent,
    /// An estimate of the request's tokens, for a stream that does not report them.
    pub(super) request: u64,
    /// Tokens of the exchange so far.
    pub(super) tokens: u64,
}

/// What the closed meter came to.
#[derive(Debug)]
pub(super) struct Close {
    pub(super) outcome: Outcome,
    pub(super) reading: Reading,
    pub(super) basis: Basis,
    /// Whether the request has text that can be counted.
    pub(super) request_text: bool,
    /// Of the text that was handed to the counter.
    pub(super) estimated: Option<Counted>,
}

impl Open {
    /// What it means that the exchange was dropped before its end.
    pub(super) fn interrupted(&self) -> Outcome {
        if std::thread::panicking() {
            Outcome::Crashed
        } else if self.core.cutting.is_cancelled() {
            Outcome::Cut
        } else {
            Outcome::ClientAborted
        }
    }

    /// Whether the service may have seen the request.
    pub(super) fn was_sent(&self) -> bool {
        self.head.is_some() || self.departure.has_left()
    }

    /// The model that prices it: the one that its answer names, else the expected one. Who named that is noted in the
    /// row (`model_from`), where tokens are counted.
    pub(super) fn priced_as(&mut self, answer: Option<&str>) -> Option<String> {
        if let Some(model) = answer {
            self.metadata.remove(MODEL_FROM);
            return Some(model.to_owned());
        }
        if self.route.format.has_tokens() {
            self.metadata.insert(MODEL_FROM.into(), self.subject.model.by.as_str().into());
        }
        self.subject.model.name.clone()
    }

    /// What leaving early costs at least: what was reserved for all its messages.
    pub(super) fn floor(&self) -> u64 {
        self.expected().tokens
    }

    /// What the exchange is expected to need. A call that only counts tokens uses none.
    pub(super) fn expected(&self) -> Amounts {
        let config = &self.route.config;
        let inspected = &self.subject.inspected;
        let uses_model = self.uses_model();
        let of = |event| uses_model && config.event == event;
        let messages = if of(EventType::ChatMessage) { inspected.messages.max(1) } else { 0 };
        let embeddings = if of(EventType::Embedding) { inspected.embeddings.max(1) } else { 0 };
        let pieces = messages.max(embeddings).max(1);
        Amounts {
            tokens: if uses_model { config.reserve_tokens.saturating_mul(pieces) } else { 0 },
            api_calls: 1,
            chat_messages: messages,
            embeddings,
            cost_nanousd: 0,
            concurrent: 1,
        }
    }

    /// Takes for the client's address what is already taken for all whose sessions can't be looked up.
    pub(super) fn reserve_for_stranger(
        &mut self,
        amounts: Amounts,
        enforce: bool,
    ) -> Result<(), Box<Refusal>> {
        let (client, now) = (self.subject.caller.client, self.arrival.at);
        self.strangers = self.core.strangers.reserve(&self.policy.plans, client, amounts, enforce, now)?;
        Ok(())
    }

    /// Whether the call is one that a model answers, and not one that only counts tokens.
    pub(super) fn uses_model(&self) -> bool {
        !self.subject.only_counts
    }

    /// Whether the exchange has anything to do with tokens.
    pub(super) fn uses_tokens(&self) -> bool {
        self.uses_model() && self.route.format.has_tokens()
    }

    pub(super) fn request_has_text(&self) -> bool {
        !self.subject.inspected.text.is_empty()
    }

    /// Whether the request has something that may be text and was not found, or was not read at all.
    pub(super) fn request_is_unread(&self) -> bool {
        let Subject { inspected, unread, .. } = &self.subject;
        inspected.text.is_empty() && (inspected.shape.is_some() || unread.is_some())
    }

    /// Whether answers of this kind have text: not those that embed, search or take in documents.
    pub(super) fn expects_text(&self) -> bool {
        let speaks = matches!(self.route.config.event, EventType::ChatMessage | EventType::ApiCall);
        speaks && !self.route.format.embeds()
    }

    pub(super) fn trail(&self) -> Trail<'_> {
        Trail {
            tenant: self.subject.tenant.as_ref(),
            bearer: self.subject.bearer.as_ref(),
            session: self.subject.inspected.session.as_deref(),
            endpoint: &self.route.config.path,
            method: self.subject.method.as_str(),
            client: self.subject.caller.client,
            user_agent: self.subject.user_agent.as_deref(),
            request_id: &self.subject.request_id,
            arrived: self.arrival.at,
            elapsed: self.ended.map_or(Duration::ZERO, |ended| ended - self.arrival.instant),
            message_chars: self.subject.message_chars,
            content_length: self.subject.content_length,
            segments: &self.subject.segments,
            request: &self.subject.values,
        }
    }
}
