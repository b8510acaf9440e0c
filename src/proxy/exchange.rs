//! A metered request, top to bottom.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use jiff::Timestamp;

use super::accept_encoding::narrow_accept_encoding;
use super::audit::{self, Trail};
use super::body::{Body, ClientFault, RequestBody};
use super::charging;
use super::config::Enforce;
use super::core::{Core, Policy};
use super::departure::Departure;
use super::draining::Call;
use super::failure::{Failure, Side};
use super::forwarding::Caller;
use super::headers::X_REQUEST_ID;
use super::identify::{Evidence, Identity, Rejection, Tenancy};
use super::inspect::{self, ReadBody};
use super::passing::{clean, pass, prepare};
use super::reply::{expose_added, set_rate_limits};
use super::route::Route;
use super::settlement::{Arrival, Settlement, Subject};
use super::tap::tap;
use super::uninspected::Uninspected;
use super::upstream::Upstream;
use crate::meter::{self, Inspected};
use crate::model::event::{Outcome, Record};
use crate::model::spelling::canonical;
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
    /// Its `x-request-id`.
    pub(crate) id: HeaderValue,
    pub(crate) arrival: Arrival,
}

impl Exchange<'_> {
    /// Runs it: the answer for the client, or why there is none.
    pub(crate) async fn run(mut self, head: Parts, body: Incoming) -> Result<Response<Body>, Failure> {
        let idle = self.core.upstream.idle_timeout;
        let mut read = inspect::read(&head.headers, body, &self.route.config, idle).await?;
        let inspected = self.inspect(&head, &mut read);
        let tenancy = match self.identify(&head, inspected.as_ref()).await {
            Ok(tenancy) => tenancy,
            Err(rejection) if self.route.lets_pass(&rejection) => {
                let names = self.route.sources.pointers().next().is_some();
                read.unread.as_ref().map_or(Ok(()), |unread| unread.may_pass(names))?;
                return self.pass_unmetered(head, read).await;
            }
            Err(rejection) => return Err(self.reject(&rejection, &head, inspected.as_ref())),
        };
        let inspected = match (inspected, &read.unread) {
            (Some(inspected), _) => inspected,
            (None, Some(unread)) if matches!(tenancy, Tenancy::Known(_)) => {
                unread.worst_case(&self.route.config).inspect_err(|_| self.note_unreadable())?
            }
            (None, _) => Inspected::default(),
        };
        let entitlement = match &tenancy {
            Tenancy::Known(identity) => {
                let (directory, now) = (&self.core.directory, self.arrival.at);
                Some(self.policy.entitlement(directory, &identity.tenant, now).await)
            }
            Tenancy::InAnswer => None,
        };

        let subject = self.subject(&head, tenancy, inspected, &read);
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
        let (answer, settlement) = self.call(request, read.fault, departure, settlement).await?;
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
        fault: Option<ClientFault>,
        departure: Departure,
        settlement: Settlement,
    ) -> Result<(Result<Response<Incoming>, Failure>, Settlement), Failure> {
        if settlement.drain().is_none() {
            return Ok((self.upstream.send_watched(request, fault, &departure).await, settlement));
        }
        let upstream = self.upstream.clone();
        let sending = Box::pin(async move { upstream.send_watched(request, fault, &departure).await });
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

    /// What the body says. Where another parser than ours had to be followed, `read` has it as that parser reads it.
    fn inspect(&self, head: &Parts, read: &mut ReadBody) -> Option<Inspected> {
        let pointers: smallvec::SmallVec<[&str; 4]> = self.route.sources.pointers().collect();
        let plain = read.plain.as_ref()?;
        let (format, config) = (&self.route.format, &self.policy.meter);
        let inspected = meter::inspect_leniently(format, config, plain, charset(head), &pointers);
        let Ok((mut inspected, json)) = inspected else {
            read.unread = (!plain.is_empty()).then(|| Uninspected::not_json(plain));
            return None;
        };
        if let Cow::Owned(mended) = json {
            read.plain = Some(mended.into());
        }
        inspected.session = inspected.session.map(|session| canonical(&session).into_owned());
        Some(inspected)
    }

    async fn identify(&self, head: &Parts, inspected: Option<&Inspected>) -> Result<Tenancy, Rejection> {
        let evidence = Evidence {
            headers: &head.headers,
            target: &head.uri,
            peer: self.caller.peer,
            body: inspected,
            segments: &self.segments,
        };
        self.route.sources.identify(&evidence, &self.core.directory).await
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

    async fn pass_unmetered(&self, head: Parts, read: ReadBody) -> Result<Response<Body>, Failure> {
        self.core.metrics.passed_through.inc();
        let request = forwarded(head, read.forward, &self.policy);
        pass(self.upstream, &self.policy, request, read.fault, self.core.upstream.idle_timeout).await
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

    fn subject(&mut self, head: &Parts, tenancy: Tenancy, inspected: Inspected, read: &ReadBody) -> Subject {
        let (tenant, provisional, bearer) = match tenancy {
            Tenancy::Known(Identity { tenant, provisional, bearer }) => (Some(tenant), provisional, bearer),
            Tenancy::InAnswer => (None, false, None),
        };
        let values = match (self.route.audit.request(), &read.plain) {
            (Some(pointers), Some(plain)) => meter::glean(pointers, plain),
            _ => Vec::new(),
        };
        let content_length = text(head, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let model = self.route.model.expected(&self.segments, inspected.model.as_deref());
        Subject {
            tenant,
            provisional,
            bearer,
            segments: std::mem::take(&mut self.segments),
            values,
            content_length,
            unread: read.unread.as_ref().map(Uninspected::code),
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

/// The parameter `charset` of the body's type.
fn charset(head: &Parts) -> Option<&str> {
    let parameters = text(head, header::CONTENT_TYPE)?.split(';').skip(1);
    let mut pairs = parameters.filter_map(|parameter| parameter.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
    Some(value.trim().trim_matches('"'))
}

/// The request for the upstream.
fn forwarded(mut head: Parts, body: RequestBody, policy: &Policy) -> Request<RequestBody> {
    prepare(&mut head.headers, policy.rules.tenant_headers());
    Request::from_parts(head, body)
}
