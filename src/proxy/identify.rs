//! Who is calling: the configured sources, in order.
//!
//! The first source that answers names the tenant. A bearer token that does not verify refuses the request even when
//! another source could name it, and so does one that contradicts the session: a caller who shows a false token is
//! not to be served as somebody else.

use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::header::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::audit::Bearer;
use super::config::{IdentifyConfig, SourceConfig};
use super::failure::Failure;
use super::forwarding::is_in;
use super::token::{Unbelieved, Verifier};
use crate::meter::Inspected;
use crate::model::spelling::canonical;
use crate::model::tenant::TenantId;
use crate::tenant::{Answer, Directory, Fault};

/// Why a session names no tenant.
const UNKNOWN_SESSION: &str = "its session is not known";

/// The sources, ready for use.
#[derive(Debug)]
pub(crate) struct Rules {
    sources: Vec<Source>,
    pointers: Vec<String>,
    tenant_headers: Vec<HeaderName>,
    trust_header_from: Vec<IpNet>,
    unknown_session_not_found: bool,
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

/// A named tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) tenant: TenantId,
    /// Its session could not be looked up: `tenant` stands for all such sessions.
    pub(crate) unresolved: bool,
    /// The session as the service knows it, where that is not the canonical id; as it came, where that is not known.
    pub(crate) session: Option<Box<str>>,
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
    /// The token does not verify, and nothing says that it is one of ours.
    TokenInvalid,
    /// A token of ours that is not to be believed now: expired, shown twice, or with what we don't understand.
    TokenRefused,
    /// Two spellings of one key name different tenants.
    Ambiguous,
    /// The token is of one tenant, the session of another.
    Mismatch { token: TenantId, session: String },
    /// The service has no such session, and that is to be said as the service says it.
    UnknownSession,
    /// The session can't be looked up in time: there are too many at once.
    Busy,
}

impl From<Unbelieved> for Rejection {
    fn from(token: Unbelieved) -> Self {
        match token {
            Unbelieved::Foreign => Rejection::TokenInvalid,
            Unbelieved::Ours => Rejection::TokenRefused,
        }
    }
}

impl Rejection {
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Rejection::Unidentified(why) => Failure::TenantUnidentified(why),
            Rejection::TokenInvalid | Rejection::TokenRefused => Failure::TokenInvalid,
            Rejection::Ambiguous => {
                Failure::TenantUnidentified("keys that differ in capitals alone name different ones")
            }
            Rejection::Mismatch { .. } => Failure::TenantMismatch,
            Rejection::UnknownSession => Failure::SessionUnknown,
            Rejection::Busy => Failure::TenantUnavailable,
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
    pub(crate) client: IpAddr,
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
                SourceConfig::Jwt { claim, key } => Source::Jwt(Box::new(Verifier::new(claim, key)?)),
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
            unknown_session_not_found: config.unknown_session_not_found,
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
            Some(Source::Jwt(verifier)) => Ok(verifier.tenant(headers)?),
            _ => Ok(None),
        }
    }

    /// Names the tenant.
    ///
    /// While the service's database is away and has never answered for a session, the call is served out of a budget that
    /// all such sessions share: its tenant is [`TenantId::unresolved`]. While the database is only busy it is not.
    pub(crate) async fn identify(
        &self,
        mut evidence: Evidence<'_>,
        directory: &Arc<Directory>,
    ) -> Result<Tenancy, Rejection> {
        let mut by_token = evidence.token.take();
        let mut missing = "no configured source names a tenant";
        let mut unanswered: Option<(Fault, &str)> = None;
        if evidence.body.is_some_and(|body| body.ambiguous) {
            return Err(Rejection::Ambiguous);
        }
        let known =
            |tenant| Ok(Tenancy::Known(Identity { tenant, unresolved: false, session: None, bearer: None }));
        for source in &self.sources {
            match source {
                Source::Jwt(verifier) => {
                    if by_token.is_none() {
                        by_token = verifier.tenant(evidence.headers).map_err(Rejection::from)?;
                    }
                }
                Source::Session { at, query } => {
                    let Some(session) = evidence.value(*at, &mut missing) else { continue };
                    let client = Some(evidence.client);
                    let (answer, spelling) = directory.look_up_session(query, session, client).await;
                    match answer {
                        Answer::Known(tenant) => match by_token {
                            Some((token, bearer)) if TenantId::parse(&tenant).as_ref() == Ok(&token) => {
                                return by_session(token, &spelling, Some(bearer));
                            }
                            Some((token, _)) => {
                                return Err(Rejection::Mismatch { token, session: session.to_owned() });
                            }
                            None => return by_session(tenant_id(&tenant)?, &spelling, None),
                        },
                        Answer::Absent => missing = UNKNOWN_SESSION,
                        Answer::Unavailable(fault) => {
                            unanswered.get_or_insert((fault, session));
                        }
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
        match unanswered {
            Some((Fault::Busy, _)) => Err(Rejection::Busy),
            Some((Fault::Away | Fault::Broken, session)) => {
                let (tenant, session) = (TenantId::unresolved(), Some(session.into()));
                Ok(Tenancy::Known(Identity { tenant, unresolved: true, session, bearer: None }))
            }
            None if missing == UNKNOWN_SESSION && self.unknown_session_not_found => {
                Err(Rejection::UnknownSession)
            }
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
    Ok(Tenancy::Known(Identity { tenant, unresolved: false, session: None, bearer: Some(bearer) }))
}

fn by_session(tenant: TenantId, session: &str, bearer: Option<Bearer>) -> Result<Tenancy, Rejection> {
    let session = (canonical(session) != session).then(|| session.into());
    Ok(Tenancy::Known(Identity { tenant, unresolved: false, session, bearer }))
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    name.parse().map_err(|_| format!("tenant source header: {name:?} is no header name"))
}

fn tenant_id(text: &str) -> Result<TenantId, Rejection> {
    TenantId::parse(text).map_err(|_| Rejection::Unidentified("what names it is not a tenant id"))
}

fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Rejection> {
    let query = query.unwrap_or_default();
    if !query.contains('=') {
        return Ok(None);
    }
    // ASP.NET does not tell the case of a parameter's letters.
    let mut values =
        url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key.eq_ignore_ascii_case(name));
    let first = values.next();
    if values.next().is_some() {
        return Err(Rejection::Unidentified("the tenant parameter is repeated"));
    }
    Ok(first.map(|(_, value)| value.into_owned()))
}
