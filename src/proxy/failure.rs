//! Why a request gets an answer from the gateway instead of the upstream's, and what that is in HTTP: the one place
//! where a failure is given its status, its code and its sentence.

use http::StatusCode;

use crate::model::window::Window;
use crate::quota::Refusal;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
    Us,
}

/// Why a request gets an answer from the gateway instead of the upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Not HTTP as it should be.
    Malformed(&'static str),
    /// A head that can't be parsed.
    NotHttp { status: StatusCode, why: String },
    /// A `Transfer-Encoding` other than chunked.
    UnknownTransferCoding,
    /// CONNECT or TRACE.
    MethodRefused,
    /// A switch to another protocol on a path whose calls are metered.
    UpgradeRefused,
    /// The body broke off, or its framing is wrong.
    BodyBroken,
    /// The body paused for longer than the idle limit.
    BodyTimeout,
    /// The body is larger than what can be inspected.
    BodyTooLarge { limit: usize },
    /// The body's `Content-Encoding` can't be decoded for inspection.
    UnsupportedEncoding,
    /// The body is not JSON that can be read, and what it holds would have to be known.
    BodyUnreadable,
    /// No source named a tenant.
    TenantUnidentified(&'static str),
    /// The service has no such session.
    SessionUnknown,
    /// A bearer token that does not verify.
    TokenInvalid,
    /// A token that contradicts the session.
    TenantMismatch,
    /// An operator has blocked the tenant.
    TenantBlocked,
    /// The service's database can't say just now whose call it is, or what its tenant may use.
    TenantUnavailable,
    /// Over quota.
    OverQuota(Box<Refusal>),
    /// No connection to the upstream, or it broke before an answer.
    UpstreamUnreachable,
    /// What the upstream answered is not HTTP as it should be; in the parser's words, for the log.
    UpstreamInvalid(Box<str>),
    /// The upstream took too long to answer.
    UpstreamTimeout,
    /// The gateway is stopping.
    Draining,
    /// Quotas can't be checked, and the config says to refuse then.
    QuotaUnavailable,
    /// No memory was had for the request for too long.
    Overloaded,
}

impl Failure {
    pub(crate) fn side(&self) -> Side {
        match self {
            Failure::UpstreamUnreachable | Failure::UpstreamInvalid(_) | Failure::UpstreamTimeout => {
                Side::Upstream
            }
            Failure::Draining
            | Failure::QuotaUnavailable
            | Failure::TenantUnavailable
            | Failure::Overloaded => Side::Us,
            _ => Side::Client,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Failure::Malformed(_)
            | Failure::BodyBroken
            | Failure::BodyUnreadable
            | Failure::TenantUnidentified(_) => StatusCode::BAD_REQUEST,
            Failure::NotHttp { status, .. } => *status,
            Failure::UnknownTransferCoding => StatusCode::NOT_IMPLEMENTED,
            Failure::MethodRefused => StatusCode::METHOD_NOT_ALLOWED,
            Failure::SessionUnknown => StatusCode::NOT_FOUND,
            Failure::UpgradeRefused => StatusCode::UPGRADE_REQUIRED,
            Failure::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Failure::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Failure::TokenInvalid => StatusCode::UNAUTHORIZED,
            // Not 429: no waiting and no other plan helps, and a widget must not be told to try again.
            Failure::TenantMismatch | Failure::TenantBlocked => StatusCode::FORBIDDEN,
            Failure::OverQuota(_) => StatusCode::TOO_MANY_REQUESTS,
            Failure::UpstreamUnreachable | Failure::UpstreamInvalid(_) => StatusCode::BAD_GATEWAY,
            Failure::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Failure::Draining
            | Failure::QuotaUnavailable
            | Failure::TenantUnavailable
            | Failure::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The `code` that programs go by.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Failure::Malformed(_) => "bad_request",
            Failure::NotHttp { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, .. } => "head_too_large",
            Failure::NotHttp { status: StatusCode::URI_TOO_LONG, .. } => "uri_too_long",
            Failure::NotHttp { .. } => "bad_request",
            Failure::UnknownTransferCoding => "unknown_transfer_coding",
            Failure::MethodRefused => "method_not_allowed",
            Failure::UpgradeRefused => "upgrade_refused",
            Failure::BodyBroken => "body_incomplete",
            Failure::BodyTimeout => "body_timeout",
            Failure::BodyTooLarge { .. } => "body_too_large",
            Failure::UnsupportedEncoding => "unsupported_encoding",
            Failure::BodyUnreadable => "body_unreadable",
            Failure::TenantUnidentified(_) => "tenant_unidentified",
            Failure::SessionUnknown => "session_not_found",
            Failure::TokenInvalid => "token_invalid",
            Failure::TenantMismatch => "tenant_mismatch",
            Failure::TenantBlocked => "tenant_blocked",
            Failure::TenantUnavailable => "tenant_unavailable",
            Failure::OverQuota(refusal)
                if matches!(refusal.standing.dimension.window, Window::Minute | Window::Moment) =>
            {
                "rate_limited"
            }
            Failure::OverQuota(_) => "quota_exceeded",
            Failure::UpstreamUnreachable => "upstream_unreachable",
            Failure::UpstreamInvalid(_) => "upstream_invalid",
            Failure::UpstreamTimeout => "upstream_timeout",
            Failure::Draining => "draining",
            Failure::QuotaUnavailable => "quota_unavailable",
            Failure::Overloaded => "overloaded",
        }
    }

    /// The sentence that visitors read, who know of no tenants, tokens or gateways. Some are the service's own words, which
    /// its widget knows.
    pub(crate) fn message(&self) -> &'static str {
        match self {
            Failure::Malformed(_) | Failure::NotHttp { .. } | Failure::UnknownTransferCoding => {
                "This request could not be understood."
            }
            Failure::MethodRefused | Failure::UpgradeRefused => "This can't be done here.",
            Failure::BodyBroken => "Your message did not arrive whole. Please send it again.",
            Failure::BodyTimeout => "Your message took too long to arrive. Please send it again.",
            Failure::BodyTooLarge { .. } => "This is too large to be sent.",
            Failure::UnsupportedEncoding | Failure::BodyUnreadable => "This request could not be read.",
            Failure::TenantUnidentified(_) => {
                "It is not clear whom this is for. Please reload the page and try again."
            }
            Failure::SessionUnknown => "Session not found",
            Failure::TokenInvalid => "Your access has expired. Please reload the page and try again.",
            Failure::TenantMismatch => "This chat is not yours. Please reload the page and try again.",
            Failure::TenantBlocked => "This account is blocked. Please contact support.",
            Failure::TenantUnavailable | Failure::QuotaUnavailable | Failure::Overloaded => {
                "This can't be answered right now. Please try again in a moment."
            }
            Failure::OverQuota(_) if self.code() == "rate_limited" => "Rate limit exceeded",
            Failure::OverQuota(_) => "Quota exceeded. Please upgrade your plan.",
            Failure::UpstreamUnreachable => "The service could not be reached. Please try again.",
            Failure::UpstreamInvalid(_) => "The service did not answer as it should. Please try again.",
            Failure::UpstreamTimeout => "The service took too long to answer. Please try again.",
            Failure::Draining => "The service is restarting. Please try again.",
        }
    }

    /// What who wrote the client should know, where the sentence for visitors does not say it. Nothing of ours or of the
    /// service behind.
    pub(crate) fn detail(&self) -> Option<String> {
        Some(match self {
            Failure::Malformed(why) => (*why).to_owned(),
            Failure::NotHttp { why, .. } => format!("not valid HTTP ({why})"),
            Failure::MethodRefused => "the method is not allowed".into(),
            Failure::UpgradeRefused => {
                "calls on this path are metered, so it can't be switched to another protocol: use plain HTTP".into()
            }
            Failure::UnknownTransferCoding => {
                "the request body's Transfer-Encoding is not supported: send it as chunked, or with a length".into()
            }
            Failure::BodyBroken => "the request body ended before it was complete".into(),
            Failure::BodyTimeout => "the request body took too long to arrive".into(),
            Failure::BodyTooLarge { limit } => format!("the request body is larger than {limit} bytes"),
            Failure::UnsupportedEncoding => {
                "the request body's Content-Encoding is not supported: send it as gzip, deflate, br, zstd or plain"
                    .into()
            }
            Failure::BodyUnreadable => "the request body can't be read: send it as JSON in UTF-8".into(),
            Failure::TenantUnidentified(why) => format!("the tenant of this call could not be named: {why}"),
            Failure::TokenInvalid => "the bearer token is invalid or has expired".into(),
            Failure::TenantMismatch => "the bearer token does not belong to this session's tenant".into(),
            _ => return None,
        })
    }

    /// Whether the client's connection ends with the answer, also where the request's body was read: what follows it need
    /// not be a request (after a CONNECT it may be anything), or memory is short.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(
            self,
            Failure::Overloaded
                | Failure::Malformed(_)
                | Failure::NotHttp { .. }
                | Failure::UnknownTransferCoding
                | Failure::MethodRefused
        )
    }
}
