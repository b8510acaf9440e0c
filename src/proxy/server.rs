//! One connection: HTTP/1.1 or HTTP/2, and what each request on it gets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::{Body, RequestBody};
use super::core::{Core, Policy};
use super::exchange::Exchange;
use super::failure::{Failure, Side};
use super::headers::{check_host, request_id, set_forwarding, take_host};
use super::passing::pass;
use super::refusal::RefusalText;
use super::reply::reply;
use super::route::Found;
use super::settlement::Arrival;
use super::upstream::Upstream;
use crate::record::Hub;
use crate::telemetry::bump;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 §3.4); no HTTP/1 method begins so.
const H2_PREFACE: &[u8; 4] = b"PRI ";

/// What a stream of HTTP/2 may send, and is sent, that the other side has not taken yet.
const STREAM_WINDOW: u32 = 64 << 10;

/// The same of all streams of a connection: what nobody reads (its request waits for memory, or the service for time)
/// leaves room for the others.
const CONNECTION_WINDOW: u32 = 512 << 10;

/// Streams of a connection at once.
const MAX_STREAMS: u32 = 100;

/// A worker's view of the gateway.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) core: Arc<Core>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) upstream: Arc<Upstream>,
    http1: hyper::server::conn::http1::Builder,
    http2: hyper::server::conn::http2::Builder<Tracked>,
}

/// Runs the streams of HTTP/2 as tasks that the stop waits for: they outlive their connection by a moment, and each
/// has an exchange to settle.
#[derive(Clone, Debug)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

impl Worker {
    pub(crate) fn new(core: Arc<Core>) -> Result<Self, String> {
        let upstream = Arc::new(Upstream::new(&core.upstream)?);
        let server = &core.server;
        let mut http1 = hyper::server::conn::http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(server.header_timeout)
            .max_headers(server.max_headers)
            .max_header_size(server.max_header_bytes)
            .max_buf_size(server.max_header_bytes.max(64 * 1024))
            .preserve_header_case(true);
        // Not pipeline_flush: with it hyper buffers without a bound what a client does not read.
        let mut http2 = hyper::server::conn::http2::Builder::new(Tracked(core.tasks.clone()));
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(server.max_header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(server.header_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(STREAM_WINDOW as usize);
        let hub = Hub::new(core.recorder.clone());
        Ok(Self { core, hub, upstream, http1, http2 })
    }

    /// Serves a connection to its end; after `drain`, to the end of the exchanges in flight.
    pub(crate) async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        drain: CancellationToken,
    ) {
        let h2 = match tokio::time::timeout(self.core.server.header_timeout, speaks_h2(&stream)).await {
            Ok(Ok(h2)) => h2,
            Ok(Err(_)) | Err(_) => return,
        };
        let worker = self.clone();
        let service = service_fn(move |request| {
            let worker = worker.clone();
            async move { Ok::<_, Infallible>(worker.handle(request, peer).await) }
        });
        let io = TokioIo::new(stream);
        // The two kinds of connection have no type in common.
        macro_rules! run {
            ($connection:expr) => {{
                let mut connection = std::pin::pin!($connection);
                let result = tokio::select! {
                    biased;
                    result = connection.as_mut() => result,
                    () = drain.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = result {
                    self.ended(&error);
                }
            }};
        }
        if h2 {
            run!(self.http2.serve_connection(io, service));
        } else {
            run!(self.http1.serve_connection(io, service).with_upgrades());
        }
    }

    fn ended(&self, error: &hyper::Error) {
        if error.is_parse() {
            self.core.metrics.bad_requests.inc();
            tracing::debug!(%error, "a request was not HTTP");
        }
    }

    /// Answers one request, whatever it is.
    async fn handle(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        if let Err(failure) = check(&request) {
            self.core.metrics.bad_requests.inc();
            return self.reply(&failure, None, request.headers().get(header::ORIGIN), None);
        }
        if self.core.cutting.load(Ordering::Relaxed) {
            return self.reply(&Failure::Draining, None, request.headers().get(header::ORIGIN), None);
        }
        let policy = self.core.policy.load();
        let (mut head, body) = request.into_parts();
        take_host(&mut head.headers, &head.uri);
        let caller = set_forwarding(&mut head.headers, peer, &self.core.server.trusted_proxies);
        let id = request_id(&mut head.headers);
        let share = self.core.budget.share(caller.client);
        let _head = match share.head(&head) {
            Ok(taken) => taken,
            Err(failure) => return self.reply(&failure, Some(id), head.headers.get(header::ORIGIN), None),
        };
        policy.rules.strip_untrusted(&mut head.headers, caller.peer);
        let origin = head.headers.get(header::ORIGIN).cloned();
        let mut words = None;
        let answer = match policy.routes.find(&head.method, head.uri.path()) {
            Some(Found { route, segments }) => {
                words = route.config.refusal.clone();
                let (policy, arrival) = (Guard::into_inner(policy), Arrival::now());
                let (core, hub, upstream) = (&self.core, &self.hub, &self.upstream);
                let id = id.clone();
                Exchange { core, hub, upstream, policy, route, segments, caller, share, id, arrival }
                    .run(head, body)
                    .await
            }
            None => self.pass(Guard::into_inner(policy), head, body).await,
        };
        answer.unwrap_or_else(|failure| self.reply(&failure, Some(id), origin.as_ref(), words.as_deref()))
    }

    async fn pass(
        &self,
        policy: Arc<Policy>,
        head: Parts,
        body: Incoming,
    ) -> Result<Response<Body>, Failure> {
        let core = &self.core;
        core.metrics.passed_through.inc();
        let (body, fault) = RequestBody::passing(body, core.upstream.idle_timeout);
        let request = Request::from_parts(head, body);
        pass(&self.upstream, &policy, request, fault, core.upstream.idle_timeout).await
    }

    fn reply(
        &self,
        failure: &Failure,
        id: Option<HeaderValue>,
        origin: Option<&HeaderValue>,
        words: Option<&RefusalText>,
    ) -> Response<Body> {
        bump(&self.core.metrics.replies, "code", failure.code());
        if failure.side() == Side::Upstream {
            tracing::warn!(code = failure.code(), id = ?id, "the upstream failed a request");
        }
        let mut fresh = header::HeaderMap::new();
        let id = id.unwrap_or_else(|| request_id(&mut fresh));
        reply(failure, &id, origin, words, jiff::Timestamp::now())
    }
}

/// What must not be forwarded: hyper has checked the framing, we check the rest.
fn check(request: &Request<Incoming>) -> Result<(), Failure> {
    let method = request.method();
    if method == Method::CONNECT || method == Method::TRACE {
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

/// Looks at a connection's first bytes without taking them.
async fn speaks_h2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0; H2_PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == H2_PREFACE.len() || first[..seen] != H2_PREFACE[..seen] || seen == 0 {
            return Ok(first == *H2_PREFACE);
        }
        // A few bytes that may become either: they stay readable, so waiting for readiness would spin.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
