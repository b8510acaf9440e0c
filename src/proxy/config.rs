//! What the proxy is configured with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::audit::config::AuditRule;
use super::cut::CutEvent;
use super::refusal::RefusalText;
use crate::model::event::EventType;

/// The public listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Worker threads, each with its own connections and upstream pool; 0 is one a core.
    pub workers: usize,
    /// Client connections at once.
    pub max_connections: usize,
    /// Of these, from one client address; 0 is as many as there are. Trusted proxies are not counted.
    pub max_connections_per_client: usize,
    /// How long a client may take to send its headers.
    pub header_timeout: Duration,
    /// How long a connection may be idle between two requests.
    pub keep_alive_timeout: Duration,
    /// The protocols that a connection may be switched to, in small letters.
    pub upgrades: Vec<String>,
    /// How long neither side of a switched connection may say anything.
    pub upgrade_idle_timeout: Duration,
    /// Bytes of a request's head.
    pub max_header_bytes: usize,
    /// Header lines of a request.
    pub max_headers: usize,
    /// Bytes of requests held at once: heads, bodies that are inspected, and the texts taken from them.
    pub max_buffered_bytes: usize,
    /// The same, of one client address.
    pub max_client_buffered_bytes: usize,
    /// How long a request waits for room among them.
    pub buffer_wait: Duration,
    /// Bytes a second that a body which is inspected must come with; 0 is no limit.
    pub min_body_rate: u64,
    /// How long it may stay behind that.
    pub body_grace: Duration,
    /// How long all of it may take.
    pub body_timeout: Duration,
    /// Answers read on at once after their clients left, all routes together.
    pub max_drains: usize,
    /// How long exchanges in flight may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// The service behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Its address: scheme and authority; a path is put before every request's.
    pub url: http::Uri,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long the answer's head may take, once the request's body has been sent.
    pub first_byte_timeout: Duration,
    /// How long a body (either way) may pause between two chunks.
    pub idle_timeout: Duration,
    /// Idle connections kept, per worker.
    pub pool_idle: usize,
    /// How this hop is named in `Via`, in both directions; `None`: not at all.
    pub via: Option<String>,
}

/// One way to name the tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A claim of a verified bearer token.
    Jwt {
        /// The claim.
        claim: String,
        /// How tokens are verified.
        key: JwtKey,
    },
    /// A session id in the request's JSON, looked up in the service's database.
    Session {
        /// Where the id stands (RFC 6901).
        json: String,
        /// The look-up: one text parameter, one row, one column.
        query: Arc<str>,
    },
    /// A header, believed only from `trust_header_from`.
    Header(String),
    /// A value in the request's JSON (RFC 6901).
    Json(String),
    /// A parameter of the query string.
    Query(String),
    /// A segment of the route's path, by its name there. Only of a route's own sources.
    Path(String),
    /// A value in the answer's JSON (RFC 6901): the tenant does not exist before. Only the last of a route's own
    /// sources.
    Answer(String),
}

/// How a bearer token is verified.
#[derive(Clone, PartialEq, Eq)]
pub enum JwtKey {
    /// HS256, with the secret taken from an environment variable.
    Hs256 {
        /// The variable's name.
        secret_env: String,
        /// Its value; `None` when it is not set, and then every token is refused.
        secret: Option<String>,
    },
    /// RS256 or ES256, with a public key from a PEM file.
    Pem {
        /// The file, for messages.
        file: String,
        /// Its content.
        pem: Vec<u8>,
        /// `RS256` or `ES256`.
        algorithm: jsonwebtoken::Algorithm,
    },
}

impl std::fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JwtKey::Hs256 { secret_env, secret } => {
                write!(f, "HS256 from ${secret_env} ({})", if secret.is_some() { "set" } else { "not set" })
            }
            JwtKey::Pem { file, algorithm, .. } => write!(f, "{algorithm:?} from {file}"),
        }
    }
}

/// How requests are given a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyConfig {
    /// The sources, in order.
    pub sources: Vec<SourceConfig>,
    /// Whether a request that no source names is passed through unmetered instead of refused.
    pub pass_unidentified: bool,
    /// Whether a session that the service does not have is answered as the service answers it (404), and not as any other
    /// request that names no tenant.
    pub unknown_session_not_found: bool,
    /// Peers whose tenant header is believed.
    pub trust_header_from: Vec<IpNet>,
    /// The look-up of a tenant's plan.
    pub plan_query: Option<Arc<str>>,
}

/// How a route's path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// As a lenient backend would read it: decoded, slashes collapsed, dots resolved, trailing slash dropped.
    Loose,
    /// Byte for byte; only the `:` before an operation may be escaped.
    Exact,
}

/// What a quota does to a route's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforce {
    /// Over quota is refused.
    Hard,
    /// Over quota passes, and is recorded as what would have been refused.
    Shadow,
    /// Metered only.
    Off,
}

/// How far an answer is read on when its client has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainConfig {
    /// For how long, from then on.
    pub time: Duration,
    /// How many bytes, from then on.
    pub bytes: u64,
}

/// How a stream is ended when it has used up what its tenant has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutConfig {
    /// Its last event; `None` is the built-in one for its kind of stream.
    pub event: Option<CutEvent>,
}

/// A metered route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Its path; `{name}` stands for one segment, `{name}:verb` for one that ends so.
    pub path: String,
    /// Its methods; empty is every one but `OPTIONS`.
    pub methods: Vec<http::Method>,
    /// What is recorded.
    pub event: EventType,
    /// How the path is compared.
    pub path_match: PathMatch,
    /// What quotas do.
    pub enforce: Enforce,
    /// Whether its tenants are held to their quotas for it and charged. Not where anyone can name any tenant: what is
    /// false is recorded, and leaves every quota alone.
    pub charge: bool,
    /// The answer format, by name.
    pub format: String,
    /// Which model prices it where its answer names none.
    pub model: ModelConfig,
    /// Whether the upstream is offered only those content codings that the meter reads.
    pub narrow_accept_encoding: bool,
    /// Tokens reserved for each message before anything is known.
    pub reserve_tokens: u64,
    /// What is done with a request's body.
    pub body: BodyConfig,
    /// Messages, or texts to embed, that a call of a known tenant is charged as where its body can't be inspected; `None`
    /// refuses it, unless what names no tenant passes here.
    pub unread_items: Option<u64>,
    /// How its requests are given a tenant, where not as all others are.
    pub sources: Option<Vec<SourceConfig>>,
    /// Whether a request that names no tenant passes unmetered, and one whose token is none of ours or whose body can't
    /// be inspected is not refused for that; `None` is as [`IdentifyConfig::pass_unidentified`] says, and refuses those.
    pub pass_unidentified: Option<bool>,
    /// Whether an answer is read on when its client leaves, for its exact count; `None` cancels the upstream at once.
    pub drain: Option<DrainConfig>,
    /// Whether a stream is cut when it has used up what its tenant has left; `None` lets it finish.
    pub cut: Option<CutConfig>,
    /// The body of its refusals for quota; `None` is the service's own shape.
    pub refusal: Option<Arc<RefusalText>>,
    /// What its exchanges leave in the audit trail.
    pub audit: Vec<AuditRule>,
}

/// Which model a route's exchanges are priced as where their answers name none. First what the path names, then the
/// request, where it is believed, then the route's own; else the default's price holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelConfig {
    /// The route's own.
    pub route: Option<String>,
    /// Whether the request's word counts.
    pub request: bool,
    /// The segment of the path that names it, or several with a `/` between; `None` is where the paths of known
    /// providers do, unless the route has its own.
    pub segment: Option<String>,
    /// What is priced for a name that path or request give: a deployment's model, an alias's.
    pub names: BTreeMap<String, String>,
}

/// What is done with a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyConfig {
    /// Read whole, to be inspected.
    Json {
        /// The largest that can be.
        max_bytes: usize,
    },
    /// Streamed through, unread.
    Opaque {
        /// The largest that is let through, if there is a bound.
        max_bytes: Option<u64>,
    },
}
