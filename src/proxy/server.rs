//! A worker, and what each request gets from it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, Uri};
use http_body::Body as _;
use hyper_util::rt::TokioTimer;
use tokio_util::task::TaskTracker;

use super::body::{Body, RequestBody};
use super::core::{Core, Policy};
use super::exchange::Exchange;
use super::failure::{Failure, Side};
use super::forwarding::set_forwarding;
use super::headers::{check_host, remove_misleading, request_id, take_host};
use super::notice::Notices;
use super::pace::Pace;
use super::passing::pass;
use super::refusal::RefusalText;
use super::reply::{allow_credentials, end_connection, reply};
use super::route::Found;
use super::settlement::Arrival;
use super::upgrade::{self, Offer, Switch};
use super::upstream::Upstream;
use crate::net::{Unread, Upload, while_taken};
use crate::record::Hub;
use crate::telemetry::bump;

/// What a stream of HTTP/2 may send, and is sent, that the other side has not taken yet.
const STREAM_WINDOW: u32 = 64 << 10;

/// The same of all streams of a connection: what nobody reads (its request waits for memory, or the service for time)
/// leaves room for the others, as long as fewer than 16 streams are not read.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Streams of a connection at once.
const MAX_STREAMS: u32 = 200;

/// A worker's view of the gateway.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) core: Arc<Core>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) upstream: Arc<Upstream>,
    pub(super) http1: hyper::server::conn::http1::Builder,
    pub(super) http2: hyper::server::conn::http2::Builder<Tracked>,
    /// Of requests that are no HTTP, by what is wrong with them.
    pub(super) not_http: Arc<Notices>,
}

/// Runs the streams of HTTP/2 as tasks that the stop waits for: they outlive their connection by a moment, and each
/// has an exchange to settle. A client that takes nothing of its answer for so long loses it.
#[derive(Clone, Debug)]
pub(super) struct Tracked(TaskTracker, Duration);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(while_taken(stream, self.1));
    }
}

impl Worker {
    pub(crate) fn new(core: Arc<Core>, not_http: Arc<Notices>) -> Result<Self, String> {
        let upstream = Arc::new(Upstream::new(&core.upstream)?);
        let server = &core.server;
        let mut http1 = hyper::server::conn::http1::Builder::new();
        http1
            // The limit to a head is the connection's (`net::activity`): hyper's would hold for idleness as well.
            .header_read_timeout(None)
            .max_headers(server.max_headers)
            .max_header_size(server.max_header_bytes)
            .max_buf_size(server.max_header_bytes.max(64 * 1024))
            .preserve_header_case(true);
        // Not pipeline_flush: with it hyper buffers without a bound what a client does not read.
        let mut http2 =
            hyper::server::conn::http2::Builder::new(Tracked(core.tasks.clone(), core.upstream.idle_timeout));
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(server.max_header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(server.header_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(STREAM_WINDOW as usize);
        let hub = Hub::new(core.recorder.clone());
        Ok(Self { core, hub, upstream, http1, http2, not_http })
    }

    /// Answers one request, whatever it is.
    pub(super) async fn handle(
        &self,
        request: Request<Upload>,
        peer: SocketAddr,
        switch: &Switch,
    ) -> Response<Body> {
        let unread = request.body().unread();
        // HTTP/1 ends a connection on which a body is unread: its client must not send the next request on it.
        let refuse = |failure: &Failure,
                      id: Option<HeaderValue>,
                      target: &Uri,
                      origin: Option<&HeaderValue>,
                      words: Option<&RefusalText>| {
            let mut answer = self.reply(failure, id, target, origin, words);
            if unread.as_ref().is_some_and(Unread::get) {
                end_connection(answer.headers_mut());
            }
            answer
        };
        if let Err(failure) = check(&request) {
            self.core.metrics.bad_requests.inc();
            return refuse(&failure, None, request.uri(), request.headers().get(header::ORIGIN), None);
        }
        if self.core.cutting.is_cancelled() {
            let origin = request.headers().get(header::ORIGIN);
            return refuse(&Failure::Draining, None, request.uri(), origin, None);
        }
        let policy = self.core.policy.load();
        let (mut head, body) = request.into_parts();
        take_host(&mut head.headers, &head.uri);
        let misleading = remove_misleading(&mut head.headers, policy.rules.tenant_headers());
        self.core.metrics.misleading_headers.inc_by(misleading);
        let caller = set_forwarding(&mut head.headers, peer, &self.core.server.trusted_proxies);
        let id = request_id(&mut head.headers);
        let share = self.core.budget.share(caller.client);
        let _head = match share.head(&head) {
            Ok(taken) => taken,
            Err(failure) => {
                return refuse(&failure, Some(id), &head.uri, head.headers.get(header::ORIGIN), None);
            }
        };
        policy.rules.strip_untrusted(&mut head.headers, caller.peer);
        let origin = head.headers.get(header::ORIGIN).cloned();
        let target = head.uri.clone();
        let offer = Offer::take(&mut head, !body.is_end_stream(), &self.core.server.upgrades, switch);
        let found = match &offer {
            Some(_) => upgrade::metered(&policy.routes, head.uri.path()),
            None => policy.routes.find_for(&head),
        };
        let found = match found {
            Ok(found) => found,
            Err(failure) => {
                self.core.metrics.bad_requests.inc();
                return refuse(&failure, Some(id), &target, origin.as_ref(), None);
            }
        };
        let metered = found.as_ref().map(|found| found.route.clone());
        // A preflight says as well who may read the answers of the route that it asks about.
        let route = metered.or_else(|| origin.as_ref().and_then(|_| policy.routes.at(head.uri.path())));
        let mut words = None;
        let answer = match found {
            Some(Found { route, .. }) if offer.is_some() && !route.is_opaque() => {
                Err(Failure::UpgradeRefused)
            }
            Some(Found { route, segments }) => {
                words = route.config.refusal.clone();
                let (policy, arrival) = (Guard::into_inner(policy), Arrival::now());
                let (core, hub, upstream) = (&self.core, &self.hub, &self.upstream);
                let id = id.clone();
                Exchange { core, hub, upstream, policy, route, segments, caller, share, id, arrival, offer }
                    .run(head, body)
                    .await
            }
            None => self.pass(Guard::into_inner(policy), head, body, offer).await,
        };
        let Some((origin, route)) = origin.as_ref().zip(route) else {
            return answer.unwrap_or_else(|failure| {
                refuse(&failure, Some(id), &target, origin.as_ref(), words.as_deref())
            });
        };
        match answer {
            Ok(answer) => {
                route.origins.learn(origin, answer.headers());
                answer
            }
            Err(failure) => {
                let mut answer = refuse(&failure, Some(id), &target, Some(origin), words.as_deref());
                if route.origins.allow_credentials(origin) {
                    allow_credentials(answer.headers_mut());
                }
                answer
            }
        }
    }

    async fn pass(
        &self,
        policy: Arc<Policy>,
        head: Parts,
        body: Upload,
        offer: Option<Offer>,
    ) -> Result<Response<Body>, Failure> {
        let core = &self.core;
        core.metrics.passed_through.inc();
        let (body, fault) = RequestBody::passing(body, Pace::passing(core));
        let request = Request::from_parts(head, body);
        pass(&self.upstream, &policy, request, fault, core.upstream.idle_timeout, offer).await
    }

    pub(super) fn reply(
        &self,
        failure: &Failure,
        id: Option<HeaderValue>,
        target: &Uri,
        origin: Option<&HeaderValue>,
        words: Option<&RefusalText>,
    ) -> Response<Body> {
        bump(&self.core.metrics.replies, "code", failure.code());
        let mut fresh = header::HeaderMap::new();
        let id = id.unwrap_or_else(|| request_id(&mut fresh));
        if failure.side() == Side::Upstream {
            let (code, path, id) = (failure.code(), target.path(), id.to_str().unwrap_or_default());
            let why = match failure {
                Failure::UpstreamInvalid(why) => why,
                _ => "",
            };
            tracing::warn!(code, path, id, why, "the upstream failed a request");
        }
        reply(failure, &id, origin, words, jiff::Timestamp::now())
    }
}

/// What must not be forwarded: hyper has checked the framing, we check the rest.
fn check(request: &Request<Upload>) -> Result<(), Failure> {
    let method = request.method();
    // Some services take a method in any case.
    if [Method::CONNECT, Method::TRACE]
        .iter()
        .any(|refused| method.as_str().eq_ignore_ascii_case(refused.as_str()))
    {
        return Err(Failure::MethodRefused);
    }
    if request.uri().authority().is_some() && request.uri().scheme().is_none() {
        return Err(Failure::Malformed("only CONNECT may ask for a bare host"));
    }
    if request.uri().path() == "*" && method != Method::OPTIONS {
        return Err(Failure::Malformed("only OPTIONS may ask for *"));
    }
    check_framing(request.headers())?;
    check_host(request.version(), request.uri(), request.headers()).map_err(Failure::Malformed)
}

/// hyper takes any list of encodings that ends in `chunked`; what other parsers make of a list is anybody's guess, so
/// only the one encoding that everybody means is let through.
fn check_framing(headers: &header::HeaderMap) -> Result<(), Failure> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        // RFC 9112, section 6.1
        _ => Err(Failure::UnknownTransferCoding),
    }
}
