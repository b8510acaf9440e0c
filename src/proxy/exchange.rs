//! A metered request, top to bottom.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use jiff::Timestamp;

use super::audit::{self, Trail};
use super::body::{Body, RequestBody};
use super::core::{Core, Policy};
use super::draining::Call;
use super::failure::Failure;
use super::headers::{Caller, X_REQUEST_ID};
use super::identify::{Evidence, Identity, Rejection};
use super::inspect::{self, ReadBody};
use super::passing::{clean, pass, prepare};
use super::reply::set_rate_limits;
use super::route::Route;
use super::settlement::{Arrival, Settlement, Subject};
use super::tap::tap;
use super::upstream::Upstream;
use crate::meter::{self, Inspected};
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
    pub(crate) caller: Caller,
    /// Its `x-request-id`.
    pub(crate) id: HeaderValue,
    pub(crate) arrival: Arrival,
}

impl Exchange<'_> {
    /// Runs it: the answer for the client, or why there is none.
    pub(crate) async fn run(self, head: Parts, body: Incoming) -> Result<Response<Body>, Failure> {
        let limit = self.route.config.max_body_bytes;
        let read = inspect::read(&head.headers, body, limit, self.core.upstream.idle_timeout).await?;
        let inspected = self.inspect(&read);
        let identity = match self.identify(&head, inspected.as_ref()).await {
            Ok(identity) => identity,
            Err(Rejection::Unidentified(_)) if self.policy.rules.pass_unidentified => {
                return self.pass_unmetered(head, read).await;
            }
            Err(rejection) => return Err(self.reject(&rejection, &head, inspected.as_ref())),
        };
        let entitlement =
            self.policy.entitlement(&self.core.directory, &identity.tenant, self.arrival.at).await;

        let subject = self.subject(&head, identity, inspected.unwrap_or_default());
        let mut settlement = Settlement::open(
            self.core.clone(),
            self.hub.clone(),
            self.policy.clone(),
            self.route.clone(),
            subject,
            self.arrival,
        );
        if entitlement.blocked {
            settlement.blocked(Failure::TenantBlocked.status().as_u16());
            return Err(Failure::TenantBlocked);
        }
        if self.core.refusing.load(Ordering::Relaxed) {
            settlement.unavailable();
            return Err(Failure::QuotaUnavailable);
        }
        settlement.reserve(&entitlement).await?;

        let request = forwarded(head, RequestBody::Read(read.frames), &self.policy);
        settlement.sent();
        let (answer, settlement) = self.call(request, settlement).await?;
        let response = match answer {
            Ok(response) => response,
            Err(failure) => {
                let outcome = if failure == Failure::UpstreamTimeout {
                    Outcome::Timeout
                } else {
                    Outcome::UpstreamError
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
        settlement: Settlement,
    ) -> Result<(Result<Response<Incoming>, Failure>, Settlement), Failure> {
        if settlement.drain().is_none() {
            return Ok((self.upstream.send(request, None).await, settlement));
        }
        let upstream = self.upstream.clone();
        let sending = Box::pin(async move { upstream.send(request, None).await });
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
        let body = tap(body, settlement, self.core.upstream.idle_timeout).await;
        Ok(Response::from_parts(answer, body.into()))
    }

    fn inspect(&self, read: &ReadBody) -> Option<Inspected> {
        let pointers: smallvec::SmallVec<[&str; 4]> = self.policy.rules.pointers().collect();
        meter::inspect(&self.route.format, &self.policy.meter, &read.plain, &pointers).ok()
    }

    async fn identify(&self, head: &Parts, inspected: Option<&Inspected>) -> Result<Identity, Rejection> {
        let evidence =
            Evidence { headers: &head.headers, target: &head.uri, peer: self.caller.peer, body: inspected };
        self.policy.rules.identify(&evidence, &self.core.directory).await
    }

    async fn pass_unmetered(&self, head: Parts, read: ReadBody) -> Result<Response<Body>, Failure> {
        self.core.metrics.passed_through.inc();
        let request = forwarded(head, RequestBody::Read(read.frames), &self.policy);
        pass(self.upstream, &self.policy, request, None, self.core.upstream.idle_timeout).await
    }

    /// A request that names no tenant leaves no usage row; one whose token contradicts its session leaves an audit event.
    fn reject(&self, rejection: &Rejection, head: &Parts, inspected: Option<&Inspected>) -> Failure {
        if let Rejection::Mismatch { token, session } = rejection {
            let trail = Trail {
                tenant: token,
                session: inspected.and_then(|inspected| inspected.session.as_deref()),
                endpoint: &self.route.config.path,
                event: self.route.config.event,
                client: self.caller.client,
                user_agent: text(head, header::USER_AGENT),
                request_id: self.id.to_str().unwrap_or_default(),
                arrived: self.arrival.at,
                elapsed: self.arrival.instant.elapsed(),
                message_chars: 0,
            };
            let event = audit::tenant_mismatch(&trail, session);
            drop(self.core.recorder.record([Record::Audit(Box::new(event))].into_iter().collect()));
        }
        rejection.failure()
    }

    fn subject(&self, head: &Parts, identity: Identity, inspected: Inspected) -> Subject {
        Subject {
            tenant: identity.tenant,
            provisional: identity.provisional,
            caller: self.caller,
            method: head.method.clone(),
            request_id: self.id.to_str().unwrap_or_default().to_owned(),
            user_agent: text(head, header::USER_AGENT).map(str::to_owned),
            message_chars: inspected.text.kept.chars().count() as u64,
            inspected,
        }
    }
}

fn text(head: &Parts, name: header::HeaderName) -> Option<&str> {
    head.headers.get(name).and_then(|value| value.to_str().ok())
}

/// The request for the upstream.
fn forwarded(mut head: Parts, body: RequestBody, policy: &Policy) -> Request<RequestBody> {
    prepare(&mut head.headers, policy.rules.tenant_headers());
    Request::from_parts(head, body)
}
