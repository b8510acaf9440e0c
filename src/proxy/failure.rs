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
    /// A `Transfer-Encoding` other than chunked.
    UnknownTransferCoding,
    /// CONNECT or TRACE.
    MethodRefused,
    /// The body broke off, or its framing is wrong.
    BodyBroken,
    /// The body paused for longer than the idle limit.
    BodyTimeout,
    /// The body is larger than what can be inspected.
    BodyTooLarge { limit: usize },
    /// The body's `Content-Encoding` can't be decoded for inspection.
    UnsupportedEncoding,
    /// No source named a tenant.
    TenantUnidentified(&'static str),
    /// A bearer token that does not verify.
    TokenInvalid,
    /// A token that contradicts the session.
    TenantMismatch,
    /// An operator has blocked the tenant.
    TenantBlocked,
    /// Over quota.
    OverQuota(Box<Refusal>),
    /// No connection to the upstream, or it broke before an answer.
    UpstreamUnreachable,
    /// The upstream's answer is not HTTP as it should be, and why.
    UpstreamInvalid(&'static str),
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
            Failure::Draining | Failure::QuotaUnavailable | Failure::Overloaded => Side::Us,
            _ => Side::Client,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Failure::Malformed(_) | Failure::BodyBroken | Failure::TenantUnidentified(_) => {
                StatusCode::BAD_REQUEST
            }
            Failure::UnknownTransferCoding => StatusCode::NOT_IMPLEMENTED,
            Failure::MethodRefused => StatusCode::METHOD_NOT_ALLOWED,
            Failure::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Failure::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Failure::TokenInvalid => StatusCode::UNAUTHORIZED,
            // Not 429: no waiting and no other plan helps, and a widget must not be told to try again.
            Failure::TenantMismatch | Failure::TenantBlocked => StatusCode::FORBIDDEN,
            Failure::OverQuota(_) => StatusCode::TOO_MANY_REQUESTS,
            Failure::UpstreamUnreachable | Failure::UpstreamInvalid(_) => StatusCode::BAD_GATEWAY,
            Failure::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Failure::Draining | Failure::QuotaUnavailable | Failure::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The `code` that programs go by.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Failure::Malformed(_) => "bad_request",
            Failure::UnknownTransferCoding => "unknown_transfer_coding",
            Failure::MethodRefused => "method_not_allowed",
            Failure::BodyBroken => "body_incomplete",
            Failure::BodyTimeout => "body_timeout",
            Failure::BodyTooLarge { .. } => "body_too_large",
            Failure::UnsupportedEncoding => "unsupported_encoding",
            Failure::TenantUnidentified(_) => "tenant_unidentified",
            Failure::TokenInvalid => "token_invalid",
            Failure::TenantMismatch => "tenant_mismatch",
            Failure::TenantBlocked => "tenant_blocked",
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

    /// The sentence that people read.
    pub(crate) fn message(&self) -> String {
        match self {
            Failure::Malformed(why) => format!("Bad request: {why}."),
            Failure::UnknownTransferCoding => {
                "The request body's Transfer-Encoding is not supported: send it as chunked, or with a length."
                    .into()
            }
            Failure::MethodRefused => "This method is not allowed here.".into(),
            Failure::BodyBroken => "The request body ended before it was complete.".into(),
            Failure::BodyTimeout => "The request body took too long to arrive.".into(),
            Failure::BodyTooLarge { limit } => format!("The request body is larger than {limit} bytes."),
            Failure::UnsupportedEncoding => {
                "The request body's Content-Encoding is not supported: send it as gzip, deflate, br, zstd or plain."
                    .into()
            }
            Failure::TenantUnidentified(why) => format!("The tenant of this call could not be named: {why}."),
            Failure::TokenInvalid => "The bearer token is invalid or has expired.".into(),
            Failure::TenantMismatch => "The bearer token does not belong to this session's tenant.".into(),
            Failure::TenantBlocked => "This account is blocked. Please contact support.".into(),
            Failure::OverQuota(_) if self.code() == "rate_limited" => "Rate limit exceeded".into(),
            Failure::OverQuota(_) => "Quota exceeded. Please upgrade your plan.".into(),
            Failure::UpstreamUnreachable => "The service could not be reached. Please try again.".into(),
            Failure::UpstreamInvalid(_) => "The service gave an answer that is not valid. Please try again.".into(),
            Failure::UpstreamTimeout => "The service took too long to answer. Please try again.".into(),
            Failure::Draining => "The gateway is restarting. Please try again.".into(),
            Failure::Overloaded => "Too much is being sent at once. Please try again.".into(),
            Failure::QuotaUnavailable => "Quotas can't be checked right now. Please try again.".into(),
        }
    }

    /// Whether the client's connection ends with the answer: the rest of its body is unread, or what follows it need
    /// not be a request (after a CONNECT it may be anything).
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(
            self,
            Failure::BodyBroken
                | Failure::BodyTimeout
                | Failure::BodyTooLarge { .. }
                | Failure::Overloaded
                | Failure::Malformed(_)
                | Failure::UnknownTransferCoding
                | Failure::MethodRefused
        )
    }
}
