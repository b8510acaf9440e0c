//! The service behind: pooled connections, one pool a worker.

use std::error::Error as _;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{CaptureConnection, HttpConnector, capture_connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::body::{BodyWatch, RequestBody};
use super::config::UpstreamConfig;
use super::departure::{Counting, Departure};
use super::failure::Failure;
use super::headers::remove_hop_by_hop;
use crate::net::InterimSender;

/// How long an idle connection is kept. Node closes its side after 5 s by default: a connection that we give up
/// first is never one that a request finds half closed.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Header lines taken from the upstream; hyper's own default of 100 is too few for some services.
const MAX_HEADERS: usize = 512;

type Pool = Client<Counting<HttpsConnector<HttpConnector>>, RequestBody>;

/// A client of the upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: Pool,
    /// For what a pooled connection failed.
    unpooled: Pool,
    scheme: Scheme,
    authority: Authority,
    prefix: String,
    config: UpstreamConfig,
}

impl Upstream {
    /// A client for `config`. An error is one sentence that names the URL's fault.
    pub(crate) fn new(config: &UpstreamConfig) -> Result<Self, String> {
        let scheme =
            config.url.scheme().cloned().ok_or("upstream.url has no scheme: write http://host:port")?;
        let authority =
            config.url.authority().cloned().ok_or("upstream.url has no host: write http://host:port")?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(scheme == Scheme::HTTPS)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let connector = Counting(connector);
        let pool = |idle| -> Pool {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(idle)
                .http1_preserve_header_case(true)
                .http1_max_headers(MAX_HEADERS)
                .set_host(false)
                .build(connector.clone())
        };
        let (client, unpooled) = (pool(config.pool_idle), pool(0));
        let prefix = config.url.path().trim_end_matches('/').to_owned();
        Ok(Self { client, unpooled, scheme, authority, prefix, config: config.clone() })
    }

    /// Sends a request, and waits for the head of the answer within the limits; `departure` then knows when it has left.
    ///
    /// A request is sent again on another connection when not a byte of it went out (a pooled connection that was found
    /// closed). One that only asks (GET, HEAD, OPTIONS, without a body) is also sent again, once and on a new
    /// connection, when the service closed a pooled one without an answer: it may do so at any time (RFC 9112,
    /// section 9.5).
    pub(crate) async fn send(
        &self,
        request: Request<RequestBody>,
        watch: Option<BodyWatch>,
        departure: &Departure,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = self.addressed(request)?;
        frame(&mut request);
        let again = repeatable(&request);
        let failed = match self.once(&self.client, request, watch.as_ref(), departure).await {
            Some(Ok(response)) => return self.checked(response),
            Some(Err(error)) => error,
            None => return Err(Failure::UpstreamTimeout),
        };
        let Some(request) = again.filter(|_| departure.is_on_a_used_connection() && closed(&failed)) else {
            return Err(failure(&failed, watch));
        };
        match self.once(&self.unpooled, request, None, departure).await {
            Some(Ok(response)) => self.checked(response),
            Some(Err(error)) => Err(failure(&error, None)),
            None => Err(Failure::UpstreamTimeout),
        }
    }

    /// Sends it; `None` when the service took too long.
    async fn once(
        &self,
        pool: &Pool,
        mut request: Request<RequestBody>,
        watch: Option<&BodyWatch>,
        departure: &Departure,
    ) -> Option<Result<Response<Incoming>, Error>> {
        forward_interim(&mut request);
        let capture = capture_connection(&mut request);
        let sending = departure.watch(&capture, pool.request(request));
        let sent = self.in_time(sending, watch, departure).await;
        if let Some(Ok(response)) = &sent
            && let Some(kept) = kept_for(response.headers())
        {
            give_up_after(kept, capture, departure.clone());
        }
        sent
    }

    /// The request with the upstream's address.
    fn addressed(&self, mut request: Request<RequestBody>) -> Result<Request<RequestBody>, Failure> {
        let uri = self.target(request.uri())?;
        self.set_host(&mut request);
        let received = request.version();
        self.sign(request.headers_mut(), received);
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        Ok(request)
    }

    fn checked(&self, mut response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
        check(response.headers())?;
        let version = response.version();
        self.sign(response.headers_mut(), version);
        Ok(response)
    }

    /// Adds this hop to `Via`, where the config names it (RFC 9110, section 7.6.3).
    fn sign(&self, headers: &mut HeaderMap, received: Version) {
        let Some(name) = &self.config.via else { return };
        let version = match received {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        if let Ok(via) = HeaderValue::try_from(format!("{version} {name}")) {
            headers.append(header::VIA, via);
        }
    }

    /// The outcome of `sending`; `None` when it took too long. While the body is on its way the service may pause for
    /// `idle_timeout`; from then on it has `first_byte_timeout`. A client that pauses is no fault of the service, and has
    /// its own limit.
    async fn in_time<T>(
        &self,
        sending: impl Future<Output = T>,
        watch: Option<&BodyWatch>,
        departure: &Departure,
    ) -> Option<T> {
        let mut sending = pin!(sending);
        let began = Instant::now();
        loop {
            let on_its_way = watch.filter(|watch| !watch.is_over());
            let limit = match on_its_way {
                Some(_) => self.config.idle_timeout,
                None => self.config.first_byte_timeout,
            };
            let now = Instant::now();
            let mut deadline = departure.last_write().map_or(began, |at| began.max(at)) + limit;
            if deadline <= now {
                if !on_its_way.is_some_and(BodyWatch::awaits_client) {
                    return None;
                }
                deadline = now + limit;
            }
            let over = async {
                match on_its_way {
                    Some(watch) => watch.over().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                sent = &mut sending => return Some(sent),
                () = over => {}
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
        }
    }

    /// The address of a request at the upstream: the path and query as the client sent them.
    fn target(&self, uri: &Uri) -> Result<Uri, Failure> {
        let path = match uri.path_and_query() {
            Some(path) if self.prefix.is_empty() => path.clone(),
            path => {
                PathAndQuery::try_from(format!("{}{}", self.prefix, path.map_or("/", PathAndQuery::as_str)))
                    .map_err(|_| Failure::Malformed("the request target is malformed"))?
            }
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|_| Failure::Malformed("the request target is malformed"))
    }

    /// HTTP/1.0 may name no host; the upstream is spoken to in HTTP/1.1 and needs one. Cookies that HTTP/2 split are
    /// joined (RFC 9113 §8.2.3).
    fn set_host(&self, request: &mut Request<RequestBody>) {
        if !request.headers().contains_key(header::HOST)
            && let Ok(host) = HeaderValue::from_str(self.authority.as_str())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        if request.version() == Version::HTTP_2 {
            let headers = request.headers_mut();
            if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
                let crumbs: Vec<_> =
                    headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
                if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
                    headers.insert(header::COOKIE, cookie);
                }
            }
        }
    }
}

/// For how long an idle connection may be used again, where the service says that it keeps it for less than [`POOL_IDLE`]
/// and what a request needs to get there.
fn kept_for(headers: &HeaderMap) -> Option<Duration> {
    let mut hints = headers.get_all("keep-alive").iter().filter_map(|value| value.to_str().ok());
    let seconds = hints.find_map(|hint| {
        let mut parts = hint.split(',').filter_map(|part| part.split_once('='));
        parts.find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))?.1.trim().parse::<u32>().ok()
    });
    let told = Duration::from_secs(seconds?.into());
    let kept = told.saturating_sub((told / 2).min(Duration::from_secs(1)));
    (kept < POOL_IDLE).then_some(kept)
}

/// Takes a connection out of use after `time`, unless another request was given it in the meantime.
fn give_up_after(time: Duration, capture: CaptureConnection, departure: Departure) {
    let last = departure.last_write();
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        if departure.last_write() == last
            && let Some(connection) = &*capture.connection_metadata()
        {
            connection.poison();
        }
    });
}

/// Says how a body is framed where hyper would take the method for one without a body and leave it out. Any other is
/// given a length or chunks by hyper itself.
fn frame(request: &mut Request<RequestBody>) {
    let body = request.body();
    let has_length = request.headers().contains_key(header::CONTENT_LENGTH);
    if !body.is_end_stream() && body.size_hint().exact().is_none() && !has_length {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Sends the interim answers (1xx) to this request on to its client, where it takes them. `100 Continue` is for the sender
/// of a body, who is us, and with 101 the answer is the final one.
fn forward_interim(request: &mut Request<RequestBody>) {
    let Some(client) = request.extensions_mut().remove::<InterimSender>() else { return };
    hyper::ext::on_informational(request, move |answer| {
        if matches!(answer.status(), StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            return;
        }
        let mut headers = answer.headers().clone();
        remove_hop_by_hop(&mut headers, &[]);
        headers.remove(header::CONTENT_LENGTH);
        client.send(answer.status(), &headers);
    });
}

/// The same request once more, where asking twice is asking once: safe methods (RFC 9110, section 9.2.1), no body, no
/// other protocol.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !safe || !request.body().is_end_stream() || request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let mut again = Request::new(RequestBody::empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// Whether the connection ended before the answer.
fn closed(error: &Error) -> bool {
    causes(error).any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let incomplete =
            cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message);
        incomplete || matches!(io, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
    })
}

fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |cause: &&(dyn std::error::Error + 'static)| (*cause).source())
}

/// Why there is no answer.
fn failure(error: &Error, watch: Option<BodyWatch>) -> Failure {
    if let Some(failure) = watch.and_then(|watch| watch.failure()) {
        return failure;
    }
    let why = causes(error).fold(error.to_string(), |why, cause| format!("{why}: {cause}"));
    let garbled = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse)
    };
    if causes(error).any(garbled) {
        return Failure::UpstreamInvalid(why.into());
    }
    tracing::debug!(why, "the upstream did not answer");
    let timed_out = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::TimedOut)
    };
    if causes(error).any(timed_out) { Failure::UpstreamTimeout } else { Failure::UpstreamUnreachable }
}

/// An answer whose end everybody finds in the same place. hyper takes two lengths that are alike, and any list of
/// encodings; what the client's parser makes of these is anybody's guess.
fn check(headers: &HeaderMap) -> Result<(), Failure> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let digits = |length: &HeaderValue| length.as_bytes().trim_ascii().iter().all(u8::is_ascii_digit);
    let chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    let why = if !lengths.next().is_none_or(digits) || lengths.next().is_some() {
        "its Content-Length is not one number"
    } else if !encodings.next().is_none_or(chunked) || encodings.next().is_some() {
        "its Transfer-Encoding is not just chunked"
    } else {
        return Ok(());
    };
    Err(Failure::UpstreamInvalid(why.into()))
}

fn tls(needed: bool) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if needed {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(
                "upstream.url is https, and this machine has no CA certificates: install ca-certificates"
                    .into(),
            );
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS can't be set up: {error}"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_used_for_less_time_than_the_service_keeps_it() {
        let kept = |hint: &'static str| {
            let headers = HeaderMap::from_iter([(
                header::HeaderName::from_static("keep-alive"),
                HeaderValue::from_static(hint),
            )]);
            kept_for(&headers).map(|kept| kept.as_millis())
        };
        for (hint, millis) in [
            ("timeout=1", Some(500)),
            ("timeout=2, max=100", Some(1000)),
            ("max=5,Timeout=3", Some(2000)),
            ("timeout=0", Some(0)),
            // Node's default: the pool gives up first.
            ("timeout=5", None),
            ("timeout=75", None),
            ("timeout=soon", None),
            ("max=100", None),
        ] {
            assert_eq!(kept(hint), millis, "{hint}");
        }
        assert_eq!(kept_for(&HeaderMap::new()), None);
    }
}
