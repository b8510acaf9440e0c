//! Who is calling: the configured sources, in order.
//!
//! The first source that answers names the tenant. A bearer token that does not verify refuses the request even when
//! another source could name it, and so does one that contradicts the session: a caller who shows a false token is
//! not to be served as somebody else.

use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::header::{self, HeaderMap, HeaderName};
use ipnet::IpNet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::audit::Bearer;
use super::config::{IdentifyConfig, JwtKey, SourceConfig};
use super::failure::Failure;
use super::headers::is_in;
use crate::meter::Inspected;
use crate::model::tenant::TenantId;
use crate::tenant::{Answer, Directory};

/// Clocks of token issuers may differ from ours by so many seconds.
const JWT_LEEWAY_SECONDS: u64 = 30;

/// The sources, ready for use.
#[derive(Debug)]
pub(crate) struct Rules {
    sources: Vec<Source>,
    pointers: Vec<String>,
    tenant_headers: Vec<HeaderName>,
    trust_header_from: Vec<IpNet>,
    pub(crate) pass_unidentified: bool,
    pub(crate) plan_query: Option<Arc<str>>,
}

#[derive(Debug)]
enum Source {
    Jwt(Box<Verifier>),
    /// A session id at a pointer, and the look-up of its tenant.
    Session {
        at: usize,
        query: Arc<str>,
    },
    Header(HeaderName),
    Json {
        at: usize,
    },
    Query(String),
    /// A segment of the path, by its place among those that have names.
    Path {
        at: usize,
    },
    Answer,
}

struct Verifier {
    claim: String,
    /// `None`: the secret is not set, so no token can be believed.
    key: Option<DecodingKey>,
    validation: Validation,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({})", self.claim)
    }
}

/// A named tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) tenant: TenantId,
    /// The session could not be looked up, so `tenant` stands for the session itself.
    pub(crate) provisional: bool,
    /// The token, where it named the tenant.
    pub(crate) bearer: Option<Bearer>,
}

/// Who is calling, as far as a request tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tenancy {
    /// A tenant.
    Known(Identity),
    /// One that only the answer names.
    InAnswer,
}

/// A bearer token that verifies: its tenant, and what else it says.
pub(crate) type Token = (TenantId, Bearer);

/// Why nobody is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// No source named a tenant, and why.
    Unidentified(&'static str),
    /// The token does not verify.
    TokenInvalid,
    /// The token is of one tenant, the session of another.
    Mismatch { token: TenantId, session: String },
}

impl Rejection {
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Rejection::Unidentified(why) => Failure::TenantUnidentified(why),
            Rejection::TokenInvalid => Failure::TokenInvalid,
            Rejection::Mismatch { .. } => Failure::TenantMismatch,
        }
    }
}

/// What of a request can name its tenant.
pub(crate) struct Evidence<'a> {
    /// What [`Rules::token`] gave, where it was asked before.
    pub(crate) token: Option<Token>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) target: &'a Uri,
    pub(crate) peer: IpAddr,
    /// `None`: the body is not JSON.
    pub(crate) body: Option<&'a Inspected>,
    /// The segments of the path that the route has names for.
    pub(crate) segments: &'a [String],
}

impl Rules {
    /// Checks and compiles the sources, for a path that has names for `segments`. An error is one sentence that names
    /// the source.
    pub(crate) fn new(config: &IdentifyConfig, segments: &[String]) -> Result<Self, String> {
        let mut pointers = Vec::new();
        let mut tenant_headers = Vec::new();
        let mut sources = Vec::new();
        let mut point = |pointer: &String| {
            pointers.push(pointer.clone());
            pointers.len() - 1
        };
        for source in &config.sources {
            sources.push(match source {
                SourceConfig::Jwt { claim, key } => Source::Jwt(Box::new(verifier(claim, key)?)),
                SourceConfig::Session { json, query } => {
                    Source::Session { at: point(json), query: query.clone() }
                }
                SourceConfig::Json(pointer) => Source::Json { at: point(pointer) },
                SourceConfig::Query(name) => Source::Query(name.clone()),
                SourceConfig::Path(name) => Source::Path {
                    at: segments
                        .iter()
                        .position(|segment| segment == name)
                        .ok_or_else(|| format!("tenant source path: the route's path has no {{{name}}}"))?,
                },
                SourceConfig::Answer(_) => Source::Answer,
                SourceConfig::Header(name) => {
                    let name = header_name(name)?;
                    tenant_headers.push(name.clone());
                    Source::Header(name)
                }
            });
        }
        Ok(Self {
            sources,
            pointers,
            tenant_headers,
            trust_header_from: config.trust_header_from.clone(),
            pass_unidentified: config.pass_unidentified,
            plan_query: config.plan_query.clone(),
        })
    }

    /// The places in a request's JSON that sources read (RFC 6901).
    pub(crate) fn pointers(&self) -> impl Iterator<Item = &str> {
        self.pointers.iter().map(String::as_str)
    }

    /// Takes the headers of a route's own sources too for headers that name a tenant.
    pub(crate) fn also_strip<'a>(
        &mut self,
        sources: impl Iterator<Item = &'a SourceConfig>,
    ) -> Result<(), String> {
        for source in sources {
            if let SourceConfig::Header(name) = source {
                let name = header_name(name)?;
                if !self.tenant_headers.contains(&name) {
                    self.tenant_headers.push(name);
                }
            }
        }
        Ok(())
    }

    /// Headers that name a tenant.
    pub(crate) fn tenant_headers(&self) -> &[HeaderName] {
        &self.tenant_headers
    }

    /// Takes tenant headers off a request whose peer is not trusted to set them.
    pub(crate) fn strip_untrusted(&self, headers: &mut HeaderMap, peer: IpAddr) {
        if self.tenant_headers.is_empty() || is_in(&self.trust_header_from, peer) {
            return;
        }
        for name in &self.tenant_headers {
            headers.remove(name);
        }
    }

    /// Whether the body can name the tenant.
    pub(crate) fn reads_body(&self) -> bool {
        !self.pointers.is_empty()
    }

    /// The token of a request, where the first source goes by it.
    pub(crate) fn token(&self, headers: &HeaderMap) -> Result<Option<Token>, Rejection> {
        match self.sources.first() {
            Some(Source::Jwt(verifier)) => verifier.tenant(headers),
            _ => Ok(None),
        }
    }

    /// Names the tenant.
    ///
    /// While the service's database is away and has never answered for a session, the session itself is charged,
    /// as `session:<id>`: the call is served, held to the default plan, and its row can be reassigned later by its session id.
    pub(crate) async fn identify(
        &self,
        evidence: &Evidence<'_>,
        directory: &Arc<Directory>,
    ) -> Result<Tenancy, Rejection> {
        let mut by_token = evidence.token.clone();
        let mut missing = "no configured source names a tenant";
        let mut provisional = None;
        let known = |tenant| Ok(Tenancy::Known(Identity { tenant, provisional: false, bearer: None }));
        for source in &self.sources {
            match source {
                Source::Jwt(verifier) => {
                    if by_token.is_none() {
                        by_token = verifier.tenant(evidence.headers)?;
                    }
                }
                Source::Session { at, query } => {
                    let Some(session) = evidence.value(*at, &mut missing) else { continue };
                    match directory.look_up(query, session).await {
                        Answer::Known(tenant) => match by_token {
                            Some((token, _)) if token.as_str() != &*tenant => {
                                return Err(Rejection::Mismatch { token, session: session.to_owned() });
                            }
                            Some((tenant, bearer)) => return by_bearer(tenant, bearer),
                            None => return tenant_id(&tenant).and_then(known),
                        },
                        Answer::Absent => missing = "its session is not known",
                        Answer::Unavailable => provisional = provisional.or_else(|| session_tenant(session)),
                    }
                }
                // A token stands before what anyone can set.
                _ if by_token.is_some() => {}
                Source::Header(name) => {
                    if !is_in(&self.trust_header_from, evidence.peer) {
                        continue;
                    }
                    let mut values = evidence.headers.get_all(name).iter();
                    let Some(value) = values.next() else { continue };
                    if values.next().is_some() {
                        return Err(Rejection::Unidentified("the tenant header is repeated"));
                    }
                    return tenant_id(value.to_str().unwrap_or_default()).and_then(known);
                }
                Source::Json { at } => {
                    if let Some(value) = evidence.value(*at, &mut missing) {
                        return tenant_id(value).and_then(known);
                    }
                }
                Source::Query(name) => {
                    if let Some(value) = parameter(evidence.target.query(), name)? {
                        return tenant_id(&value).and_then(known);
                    }
                }
                Source::Path { at } => {
                    if let Some(value) = evidence.segments.get(*at) {
                        return tenant_id(value).and_then(known);
                    }
                }
                Source::Answer => return Ok(Tenancy::InAnswer),
            }
        }
        if let Some((tenant, bearer)) = by_token {
            return by_bearer(tenant, bearer);
        }
        match provisional {
            Some(tenant) => Ok(Tenancy::Known(Identity { tenant, provisional: true, bearer: None })),
            None => Err(Rejection::Unidentified(missing)),
        }
    }
}

impl<'a> Evidence<'a> {
    fn value(&self, at: usize, missing: &mut &'static str) -> Option<&'a str> {
        match self.body {
            Some(body) => body.values.get(at)?.as_deref(),
            None => {
                *missing = "the body is not the JSON it must be";
                None
            }
        }
    }
}

fn by_bearer(tenant: TenantId, bearer: Bearer) -> Result<Tenancy, Rejection> {
    Ok(Tenancy::Known(Identity { tenant, provisional: false, bearer: Some(bearer) }))
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    name.parse().map_err(|_| format!("tenant source header: {name:?} is no header name"))
}

fn tenant_id(text: &str) -> Result<TenantId, Rejection> {
    TenantId::parse(text).map_err(|_| Rejection::Unidentified("what names it is not a tenant id"))
}

fn session_tenant(session: &str) -> Option<TenantId> {
    TenantId::parse(&format!("session:{session}")).ok()
}

fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Rejection> {
    let query = query.unwrap_or_default();
    if !query.contains('=') {
        return Ok(None);
    }
    let mut values = url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let first = values.next();
    if values.next().is_some() {
        return Err(Rejection::Unidentified("the tenant parameter is repeated"));
    }
    Ok(first.map(|(_, value)| value.into_owned()))
}

fn is_bearer(credentials: &str) -> bool {
    credentials.split(' ').next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"))
}

fn verifier(claim: &str, key: &JwtKey) -> Result<Verifier, String> {
    let (key, algorithm) = match key {
        JwtKey::Hs256 { secret, .. } => {
            (secret.as_ref().map(|secret| DecodingKey::from_secret(secret.as_bytes())), Algorithm::HS256)
        }
        JwtKey::Pem { file, pem, algorithm } => {
            let key = match algorithm {
                Algorithm::RS256 => DecodingKey::from_rsa_pem(pem),
                Algorithm::ES256 => DecodingKey::from_ec_pem(pem),
                other => {
                    return Err(format!("tenant source jwt: {other:?} is not supported: use RS256 or ES256"));
                }
            };
            (
                Some(key.map_err(|error| format!("tenant source jwt: {file} holds no such key: {error}"))?),
                *algorithm,
            )
        }
    };
    let mut validation = Validation::new(algorithm);
    validation.leeway = JWT_LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.validate_aud = false;
    Ok(Verifier { claim: claim.to_owned(), key, validation })
}

impl Verifier {
    /// The tenant of the request's bearer token; `None` when it has none.
    fn tenant(&self, headers: &HeaderMap) -> Result<Option<(TenantId, Bearer)>, Rejection> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let invalid = Rejection::TokenInvalid;
        if values.next().is_some() {
            return Err(invalid);
        }
        let Ok(value) = value.to_str() else { return Err(invalid) };
        let Some((scheme, token)) = value.trim().split_once(' ') else { return Err(invalid) };
        if !scheme.eq_ignore_ascii_case("bearer") {
            // Two credentials in one line: which of them the service behind goes by is not for us to guess.
            let joined = value.split(',').skip(1).any(|part| is_bearer(part.trim_start()));
            return if joined { Err(invalid) } else { Ok(None) };
        }
        let Some(key) = &self.key else { return Err(invalid) };
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token.trim(), key, &self.validation);
        let Ok(claims) = claims else { return Err(invalid) };
        let mut claims = claims.claims;
        let tenant = claims.get(&self.claim).and_then(Value::as_str).and_then(|id| TenantId::parse(id).ok());
        let subject = match claims.remove("sub") {
            Some(Value::String(subject)) if self.claim != "sub" => Some(subject),
            _ => None,
        };
        tenant.map(|tenant| Some((tenant, Bearer { subject }))).ok_or(invalid)
    }
}
