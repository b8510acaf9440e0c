//! A metered request, top to bottom.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use jiff::Timestamp;

use super::accept_encoding::narrow_accept_encoding;
use super::audit::{self, Trail};
use super::body::{Body, BodyWatch, RequestBody};
use super::budget::Share;
use super::charging;
use super::config::Enforce;
use super::core::{Core, Policy};
use super::departure::Departure;
use super::draining::Call;
use super::failure::{Failure, Side};
use super::forwarding::Caller;
use super::headers::X_REQUEST_ID;
use super::identify::{Evidence, Identity, Rejection, Tenancy, Token};
use super::inspect::{ReadBody, Reader};
use super::parameters;
use super::passing::{clean, pass, prepare, switch};
use super::refusals::Weighed;
use super::reply::{expose_added, set_rate_limits};
use super::route::Route;
use super::settlement::{Arrival, Settlement, Subject};
use super::tap::tap;
use super::uninspected::Uninspected;
use super::upgrade::Offer;
use super::upstream::Upstream;
use crate::meter::Inspected;
use crate::model::event::{Outcome, Record};
use crate::model::tenant::TenantId;
use crate::net::Upload;
use crate::quota::Entitlement;
use crate::record::Hub;

/// Everything that one metered request needs.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) core: &'a Arc<Core>,
    pub(crate) hub: &'a Arc<Hub>,
    pub(crate) upstream: &'a Arc<Upstream>,
    /// The policy that it began with, kept to its end.
    pub(crate) policy: Arc<Policy>,
    pub(crate) route: Arc<Route>,
    /// The segments of its path that the route has names for.
    pub(crate) segments: Vec<String>,
    pub(crate) caller: Caller,
    /// The memory of its client address.
    pub(crate) share: Arc<Share>,
    /// Its `x-request-id`.
    pub(crate) id: HeaderValue,
    pub(crate) arrival: Arrival,
    /// What it offers to switch to, where its route takes that.
    pub(crate) offer: Option<Offer>,
}

/// What is known of who is calling before the body is read.
enum Early {
    /// All that there is to know.
    Named(Tenancy),
    /// The token, which verifies, if there is one.
    Token(Option<Token>),
}

impl Exchange<'_> {
    /// Runs it: the answer for the client, or why there is none.
    pub(crate) async fn run(mut self, head: Parts, body: Upload) -> Result<Response<Body>, Failure> {
        let early = self.identify_early(&head).await;
        if let Err(rejection) = &early
            && !self.route.lets_pass(rejection)
        {
            return Err(self.reject(rejection, &head, None));
        }
        let (core, policy, route) = (self.core, &self.policy, &self.route);
        let reader = Reader { core, policy, route, share: &self.share };
        let mut read = match reader.read(&head.headers, body).await {
            Ok(read) => read,
            Err(failure) => return Err(self.unread(failure, &head, early).await),
        };
        let inspected = read.inspected.take();
        let tenancy = self.tenancy(&head, early, inspected.as_ref()).await;
        let tenancy = match tenancy {
            Ok(tenancy) => tenancy,
            Err(rejection) if self.route.lets_pass(&rejection) => {
                let names = self.route.sources.pointers().next().is_some();
                read.unread.as_ref().map_or(Ok(()), |unread| unread.may_pass(names))?;
                if parameters::may_name(&self.route, &head.uri) {
                    return Err(self.reject(&rejection, &head, inspected.as_ref()));
                }
                return self.pass_unmetered(head, read).await;
            }
            Err(rejection) => return Err(self.reject(&rejection, &head, inspected.as_ref())),
        };
        let inspected = match (inspected, &read.unread) {
            (Some(inspected), _) => inspected,
            (None, Some(unread)) if matches!(tenancy, Tenancy::Known(_)) => {
                match unread.worst_case(&self.route.config) {
                    Ok(inspected) => inspected,
                    Err(failure) => {
                        self.note_unreadable();
                        return Err(self.refuse_unread(failure, &head, tenancy));
                    }
                }
            }
            (None, _) => Inspected::default(),
        };
        let (entitlement, guessed) = match &tenancy {
            Tenancy::Known(identity) => {
                let (entitlement, guessed) = self.entitlement(&identity.tenant).await;
                (Some(entitlement), guessed)
            }
            Tenancy::InAnswer => (None, false),
        };

        let subject = self.subject(&head, tenancy, inspected, &mut read);
        let mut settlement = Settlement::open(
            self.core.clone(),
            self.hub.clone(),
            self.policy.clone(),
            self.route.clone(),
            subject,
            self.arrival,
        );
        if entitlement.as_ref().is_some_and(|entitlement| entitlement.blocked) {
            settlement.blocked(Failure::TenantBlocked.status().as_u16());
            return Err(Failure::TenantBlocked);
        }
        // Where quotas are only watched, nobody is refused for want of them.
        let config = &self.route.config;
        let enforced = entitlement.is_some() && config.charge && config.enforce == Enforce::Hard;
        if enforced && self.core.refusing.load(Ordering::Relaxed) {
            settlement.unavailable();
            return Err(Failure::QuotaUnavailable);
        }
        if let Some(entitlement) = &entitlement {
            settlement.reserve(entitlement, guessed).await?;
        }

        let mut request = forwarded(head, read.forward, &self.policy);
        if let Some(offer) = &self.offer {
            offer.put(request.headers_mut());
        }
        if self.route.config.narrow_accept_encoding {
            narrow_accept_encoding(request.headers_mut());
        }
        let departure = settlement.calling();
        let (answer, settlement) = self.call(request, read.watch, departure, settlement).await?;
        let response = match answer {
            Ok(response) => response,
            Err(failure) => {
                let outcome = match (&failure, failure.side()) {
                    (Failure::UpstreamTimeout, _) => Outcome::Timeout,
                    // Its body broke off on the way, or was too large.
                    (_, Side::Client) => Outcome::ClientAborted,
                    _ => Outcome::UpstreamError,
                };
                settlement.failed(outcome, failure.status().as_u16());
                return Err(failure);
            }
        };
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response, settlement);
        }
        self.answer(response, settlement).await
    }

    /// Sends the request. A client that leaves meanwhile drops this; what is then read on goes on without it.
    async fn call(
        &self,
        request: Request<RequestBody>,
        watch: Option<BodyWatch>,
        departure: Departure,
        settlement: Settlement,
    ) -> Result<(Result<Response<Incoming>, Failure>, Settlement), Failure> {
        if settlement.drain().is_none() {
            return Ok((self.upstream.send(request, watch, &departure).await, settlement));
        }
        let upstream = self.upstream.clone();
        let sending = Box::pin(async move { upstream.send(request, watch, &departure).await });
        Call::new(sending, settlement).await.ok_or(Failure::UpstreamUnreachable)
    }

    /// The upstream's answer as it came, with what the contract adds, and the tap on its body.
    async fn answer(
        &self,
        response: Response<Incoming>,
        mut settlement: Settlement,
    ) -> Result<Response<Body>, Failure> {
        let (mut answer, body) = response.into_parts();
        clean(&mut answer.headers);
        answer.version = Version::HTTP_11;
        settlement.answered(&answer);
        set_rate_limits(&mut answer.headers, settlement.standings(), Timestamp::now());
        answer.headers.insert(X_REQUEST_ID, self.id.clone());
        expose_added(&mut answer.headers);
        let body = tap(body, settlement, self.core.upstream.idle_timeout).await;
        Ok(Response::from_parts(answer, body.into()))
    }

    /// A request whose body is too large, too slow, finds no room or can't be decoded leaves a row, where its tenant is
    /// known without it.
    async fn unread(&mut self, failure: Failure, head: &Parts, early: Result<Early, Rejection>) -> Failure {
        let leaves_row = matches!(
            failure,
            Failure::BodyTooLarge { .. }
                | Failure::UnsupportedEncoding
                | Failure::Overloaded
                | Failure::BodyTimeout
        );
        if !leaves_row {
            return failure;
        }
        match self.tenancy(head, early, None).await {
            Ok(tenancy @ Tenancy::Known(_)) => self.refuse_unread(failure, head, tenancy),
            _ => failure,
        }
    }

    /// Writes down that a known tenant is refused for a body that can't be read.
    fn refuse_unread(&mut self, failure: Failure, head: &Parts, tenancy: Tenancy) -> Failure {
        let mut read = ReadBody::unread(Uninspected::Unread(failure.clone()));
        let subject = self.subject(head, tenancy, Inspected::default(), &mut read);
        let (core, hub) = (self.core.clone(), self.hub.clone());
        Settlement::open(core, hub, self.policy.clone(), self.route.clone(), subject, self.arrival)
            .rejected(failure.code(), failure.status().as_u16());
        failure
    }

    /// One call, from here to the end of the connection.
    fn switch(
        &mut self,
        response: Response<Incoming>,
        mut settlement: Settlement,
    ) -> Result<Response<Body>, Failure> {
        let standings = settlement.standings().to_vec();
        let offer = self.offer.take();
        if offer.as_ref().is_some_and(|offer| offer.is_taken_by(&response)) {
            settlement.switching(&response);
        }
        let mut answer = switch(response, offer, Some(settlement))?;
        set_rate_limits(answer.headers_mut(), &standings, Timestamp::now());
        answer.headers_mut().insert(X_REQUEST_ID, self.id.clone());
        Ok(answer)
    }

    /// Who is calling, as far as that is known before the body is read: who shows a false token, or nothing where the
    /// body can't name anybody, is not read.
    async fn identify_early(&self, head: &Parts) -> Result<Early, Rejection> {
        let sources = &self.route.sources;
        match sources.reads_body() {
            true => Ok(Early::Token(sources.token(&head.headers)?)),
            false => Ok(Early::Named(self.identify(head, None, None).await?)),
        }
    }

    /// Who is calling, by all that there is.
    async fn tenancy(
        &self,
        head: &Parts,
        early: Result<Early, Rejection>,
        inspected: Option<&Inspected>,
    ) -> Result<Tenancy, Rejection> {
        match early? {
            Early::Named(tenancy) => Ok(tenancy),
            Early::Token(token) => self.identify(head, token, inspected).await,
        }
    }

    async fn identify(
        &self,
        head: &Parts,
        token: Option<Token>,
        inspected: Option<&Inspected>,
    ) -> Result<Tenancy, Rejection> {
        let evidence = Evidence {
            token,
            headers: &head.headers,
            target: &head.uri,
            peer: self.caller.peer,
            client: self.caller.client,
            body: inspected,
            segments: &self.segments,
        };
        self.route.sources.identify(evidence, &self.core.directory).await
    }

    /// The tenant's limits, and whether they are a guess. Where it is not charged, only whether it is blocked matters.
    async fn entitlement(&self, tenant: &TenantId) -> (Entitlement, bool) {
        let now = self.arrival.at;
        if !self.route.config.charge {
            return (self.policy.plans.entitlement(tenant, None, now), false);
        }
        self.policy.entitlement(&self.core.directory, tenant, now).await
    }

    /// Tells the operator that known tenants are refused for their bodies, but not for every call.
    fn note_unreadable(&self) {
        let Some(calls) = self.route.unreadable.due(self.arrival.instant) else { return };
        tracing::warn!(
            route = self.route.config.path,
            calls,
            "calls of known tenants are refused (body_unreadable), since their bodies can't be read as JSON: if they are \
             honest, set unread_items, or body = \"opaque\", on the route (docs/routes.md)"
        );
    }

    async fn pass_unmetered(&mut self, head: Parts, read: ReadBody) -> Result<Response<Body>, Failure> {
        self.core.metrics.passed_through.inc();
        let request = forwarded(head, read.forward, &self.policy);
        let (idle, offer) = (self.core.upstream.idle_timeout, self.offer.take());
        pass(self.upstream, &self.policy, request, read.watch, idle, offer).await
    }

    /// A request that names no tenant leaves no usage row; one whose token contradicts its session leaves an audit event.
    fn reject(&self, rejection: &Rejection, head: &Parts, inspected: Option<&Inspected>) -> Failure {
        if let Rejection::Mismatch { token, session } = rejection {
            let trail = Trail {
                tenant: Some(token),
                bearer: None,
                session: inspected.and_then(|inspected| inspected.session.as_deref()),
                endpoint: &self.route.config.path,
                method: head.method.as_str(),
                client: self.caller.client,
                user_agent: text(head, header::USER_AGENT),
                request_id: self.id.to_str().unwrap_or_default(),
                arrived: self.arrival.at,
                elapsed: self.arrival.instant.elapsed(),
                message_chars: 0,
                content_length: None,
                segments: &self.segments,
                request: &[],
            };
            let record =
                || [Record::Audit(Box::new(audit::tenant_mismatch(&trail, session)))].into_iter().collect();
            match self.core.refusals.weigh(token, "tenant_mismatch", Timestamp::now()) {
                Weighed::Each => drop(self.core.recorder.record(record())),
                Weighed::First(key) => self.core.refusals.begin(&key, record()),
                Weighed::Summed => {}
            }
        }
        rejection.failure()
    }

    fn subject(
        &mut self,
        head: &Parts,
        tenancy: Tenancy,
        mut inspected: Inspected,
        read: &mut ReadBody,
    ) -> Subject {
        let (tenant, unresolved, bearer) = match tenancy {
            Tenancy::Known(Identity { tenant, unresolved, session, bearer }) => {
                // By it the row finds its tenant later, and the service its session.
                inspected.session = session.map(String::from).or(inspected.session);
                (Some(tenant), unresolved, bearer)
            }
            Tenancy::InAnswer => (None, false, None),
        };
        let beside = parameters::items_beside(&self.route, &head.uri);
        inspected.messages = inspected.messages.max(beside);
        inspected.embeddings = inspected.embeddings.max(beside);
        let content_length = text(head, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let model = self.route.model.expected(&self.segments, inspected.model.as_deref());
        let config = &self.route.config;
        let only_counts = charging::only_counts(&config.path, &self.segments, config.event);
        Subject {
            tenant,
            unresolved,
            bearer,
            segments: std::mem::take(&mut self.segments),
            values: std::mem::take(&mut read.values),
            content_length,
            unread: self.offer.as_ref().map(|_| "upgrade").or(read.unread.as_ref().map(Uninspected::code)),
            held: read.held.take(),
            only_counts,
            caller: self.caller,
            method: head.method.clone(),
            request_id: self.id.to_str().unwrap_or_default().to_owned(),
            user_agent: text(head, header::USER_AGENT).map(str::to_owned),
            message_chars: inspected.text.kept.chars().count() as u64,
            inspected,
            model,
        }
    }
}

fn text(head: &Parts, name: header::HeaderName) -> Option<&str> {
    head.headers.get(name).and_then(|value| value.to_str().ok())
}

/// The request for the upstream.
fn forwarded(mut head: Parts, body: RequestBody, policy: &Policy) -> Request<RequestBody> {
    if head.headers.contains_key(header::TRANSFER_ENCODING) && body.is_end_stream() {
        // It came in chunks and is empty: still a body, not none.
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    }
    prepare(&mut head.headers, policy.rules.tenant_headers());
    Request::from_parts(head, body)
}
