//! A metered request, top to bottom.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use jiff::Timestamp;

use super::audit::{self, Trail};
use super::body::{Body, BodyWatch, RequestBody};
use super::budget::Share;
use super::charging;
use super::config::Enforce;
use super::core::{Core, Policy};
use super::departure::Departure;
use super::draining::Call;
use super::failure::{Failure, Side};
use super::headers::{Caller, X_REQUEST_ID, narrow_accept_encoding};
use super::identify::{Evidence, Identity, Rejection, Tenancy, Token};
use super::inspect::{ReadBody, Reader};
use super::passing::{clean, pass, prepare};
use super::reply::{expose_added, set_rate_limits};
use super::route::Route;
use super::settlement::{Arrival, Settlement, Subject};
use super::tap::tap;
use super::upstream::Upstream;
use crate::meter::Inspected;
use crate::model::event::{Outcome, Record};
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
    pub(crate) async fn run(mut self, head: Parts, body: Incoming) -> Result<Response<Body>, Failure> {
        let early = self.identify_early(&head).await;
        if let Err(rejection) = &early
            && !self.route.lets_pass(rejection)
        {
            return Err(self.reject(rejection, &head, None));
        }
        let (core, policy, route) = (self.core, &self.policy, &self.route);
        let reader = Reader { core, policy, route, share: &self.share };
        let mut read = reader.read(&head.headers, body).await?;
        let inspected = read.inspected.take();
        let tenancy = match early {
            Ok(Early::Named(tenancy)) => Ok(tenancy),
            Ok(Early::Token(token)) => self.identify(&head, token, inspected.as_ref()).await,
            Err(rejection) => Err(rejection),
        };
        let tenancy = match tenancy {
            Ok(tenancy) => tenancy,
            Err(rejection) if self.route.lets_pass(&rejection) => {
                return self.pass_unmetered(head, read).await;
            }
            Err(rejection) => return Err(self.reject(&rejection, &head, inspected.as_ref())),
        };
        let entitlement = match &tenancy {
            Tenancy::Known(identity) => {
                let (directory, now) = (&self.core.directory, self.arrival.at);
                Some(self.policy.entitlement(directory, &identity.tenant, now).await)
            }
            Tenancy::InAnswer => None,
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
        let enforced = entitlement.is_some() && self.route.config.enforce == Enforce::Hard;
        if enforced && self.core.refusing.load(Ordering::Relaxed) {
            settlement.unavailable();
            return Err(Failure::QuotaUnavailable);
        }
        if let Some(entitlement) = &entitlement {
            settlement.reserve(entitlement).await?;
        }

        let mut request = forwarded(head, read.forward, &self.policy);
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
            settlement.failed(Outcome::UpstreamError, Failure::UpstreamUnreachable.status().as_u16());
            return Err(Failure::UpstreamUnreachable);
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

    /// Who is calling, as far as that is known before the body is read: who shows a false token, or nothing where the
    /// body can't name anybody, is not read.
    async fn identify_early(&self, head: &Parts) -> Result<Early, Rejection> {
        let sources = &self.route.sources;
        match sources.reads_body() {
            true => Ok(Early::Token(sources.token(&head.headers)?)),
            false => Ok(Early::Named(self.identify(head, None, None).await?)),
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
            body: inspected,
            segments: &self.segments,
        };
        self.route.sources.identify(&evidence, &self.core.directory).await
    }

    async fn pass_unmetered(&self, head: Parts, read: ReadBody) -> Result<Response<Body>, Failure> {
        self.core.metrics.passed_through.inc();
        let request = forwarded(head, read.forward, &self.policy);
        pass(self.upstream, &self.policy, request, read.watch, self.core.upstream.idle_timeout).await
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
            let event = audit::tenant_mismatch(&trail, session);
            drop(self.core.recorder.record([Record::Audit(Box::new(event))].into_iter().collect()));
        }
        rejection.failure()
    }

    fn subject(
        &mut self,
        head: &Parts,
        tenancy: Tenancy,
        inspected: Option<Inspected>,
        read: &mut ReadBody,
    ) -> Subject {
        let (tenant, provisional, bearer) = match tenancy {
            Tenancy::Known(Identity { tenant, provisional, bearer }) => (Some(tenant), provisional, bearer),
            Tenancy::InAnswer => (None, false, None),
        };
        let inspected = inspected.unwrap_or_default();
        let content_length = text(head, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let model = self.route.model.expected(&self.segments, inspected.model.as_deref());
        Subject {
            tenant,
            provisional,
            bearer,
            segments: std::mem::take(&mut self.segments),
            values: std::mem::take(&mut read.values),
            content_length,
            unread: read.unread,
            held: read.held.take(),
            only_counts: charging::only_counts(head.uri.path()),
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
