//! The service behind: pooled connections, one pool a worker.

use std::error::Error as _;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::body::{ClientFault, RequestBody};
use super::config::UpstreamConfig;
use super::departure::{Counting, Departure};
use super::failure::Failure;

/// How long an idle connection is kept. Node closes its side after 5 s by default: a connection that we give up
/// first is never one that a request finds half closed.
const POOL_IDLE: std::time::Duration = std::time::Duration::from_secs(4);

/// Header lines taken from the upstream; hyper's own default of 100 is too few for some services.
const MAX_HEADERS: usize = 512;

/// A client of the upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: Client<Counting<HttpsConnector<HttpConnector>>, RequestBody>,
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
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(config.pool_idle)
            .http1_preserve_header_case(true)
            .http1_max_headers(MAX_HEADERS)
            .set_host(false)
            .build(Counting(connector));
        let prefix = config.url.path().trim_end_matches('/').to_owned();
        Ok(Self { client, scheme, authority, prefix, config: config.clone() })
    }

    /// Sends a request, and waits for the head of the answer within the limits.
    ///
    /// A request is sent again on another connection only when not a byte of it went out (a pooled connection that
    /// was found closed).
    pub(crate) async fn send(
        &self,
        request: Request<RequestBody>,
        fault: Option<ClientFault>,
    ) -> Result<Response<Incoming>, Failure> {
        let request = self.addressed(request)?;
        self.answer(self.client.request(request), fault).await
    }

    /// The same, with `departure` knowing when the request has left.
    pub(crate) async fn send_watched(
        &self,
        request: Request<RequestBody>,
        fault: Option<ClientFault>,
        departure: &Departure,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = self.addressed(request)?;
        let capture = capture_connection(&mut request);
        self.answer(departure.watch(capture, self.client.request(request)), fault).await
    }

    /// The request with the upstream's address.
    fn addressed(&self, mut request: Request<RequestBody>) -> Result<Request<RequestBody>, Failure> {
        let uri = self.target(request.uri())?;
        self.set_host(&mut request);
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        Ok(request)
    }

    /// The head of the answer within the limits, or why there is none.
    async fn answer(
        &self,
        sending: impl Future<Output = Result<Response<Incoming>, Error>>,
        fault: Option<ClientFault>,
    ) -> Result<Response<Incoming>, Failure> {
        match tokio::time::timeout(self.config.first_byte_timeout, sending).await {
            Ok(Ok(response)) => Ok(response),
            Err(_) => Err(Failure::UpstreamTimeout),
            Ok(Err(error)) => {
                if let Some(failure) = fault.and_then(|fault| fault.failure()) {
                    return Err(failure);
                }
                let mut why = error.to_string();
                let (mut timed_out, mut invalid) = (false, false);
                let mut source = error.source();
                while let Some(cause) = source {
                    why = format!("{why}: {cause}");
                    let io = cause.downcast_ref::<std::io::Error>();
                    invalid |= cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
                    timed_out |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut);
                    source = cause.source();
                }
                tracing::debug!(why, "the upstream did not answer");
                Err(match (timed_out, invalid) {
                    (true, _) => Failure::UpstreamTimeout,
                    (false, true) => Failure::UpstreamInvalid(why.into()),
                    (false, false) => Failure::UpstreamUnreachable,
                })
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
