//! What can go wrong with an operator's call, and the one place where that becomes HTTP.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::store::StoreError;

/// Why a call was not answered. Made into a response by [`render`], once the request's id is at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// A parameter, a path segment or a field of the body is not what it must be.
    Parameter { name: String, reason: String },
    /// The body as a whole is not what it must be.
    Body(String),
    /// No credentials, or wrong ones: which of the two is nobody's business.
    Unauthorized,
    /// The credentials are good, but not for this.
    Forbidden,
    /// Neither token is set.
    Disabled,
    /// Too many wrong credentials from this address.
    Throttled { retry_after: Duration },
    /// There is no such path, or no such thing.
    Missing(String),
    /// It is already so.
    Conflict(String),
    /// The path is there, but not for this method. `Allow` is set by the router.
    Method,
    /// Postgres is away, full, or not ours to use.
    DatabaseUnavailable,
    /// Postgres has no schema of ours, or an older one.
    SchemaMissing,
    /// The statement's time ran out.
    QueryTimeout,
    /// Not the caller's fault. The reason is in the log.
    Internal,
    /// An aggregation was started and did not end well.
    Aggregation(String),
}

impl Problem {
    pub(super) fn parameter(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Problem::Parameter { name: name.into(), reason: reason.into() }
    }

    /// The word for it, from a bounded set.
    pub(super) fn code(&self) -> &'static str {
        self.parts().1
    }

    /// The same in a sentence, for an answer that goes on without what the problem kept from it.
    pub(super) fn sentence(&self) -> String {
        self.parts().2
    }

    /// Status, `code` and `error` of the answer.
    fn parts(&self) -> (StatusCode, &'static str, String) {
        match self {
            Problem::Parameter { name, reason } => {
                (StatusCode::BAD_REQUEST, "invalid_parameter", format!("{name}: {reason}"))
            }
            Problem::Body(reason) => (StatusCode::BAD_REQUEST, "invalid_body", reason.clone()),
            Problem::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "Unauthorized".to_owned()),
            Problem::Forbidden => {
                (StatusCode::FORBIDDEN, "forbidden", "this token may read, not change".to_owned())
            }
            Problem::Disabled => (
                StatusCode::SERVICE_UNAVAILABLE,
                "admin_disabled",
                "the admin API is off: set ADMIN_TOKEN, and ADMIN_VIEWER_TOKEN for reading only".to_owned(),
            ),
            Problem::Throttled { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_attempts",
                "too many wrong credentials from this address".to_owned(),
            ),
            Problem::Missing(what) => (StatusCode::NOT_FOUND, "not_found", what.clone()),
            Problem::Conflict(why) => (StatusCode::CONFLICT, "conflict", why.clone()),
            Problem::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "see the Allow header".to_owned())
            }
            Problem::DatabaseUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "the database is away; requests are still metered, and recorded when it is back".to_owned(),
            ),
            Problem::SchemaMissing => (
                StatusCode::SERVICE_UNAVAILABLE,
                "schema_missing",
                "the database has no schema of this version: run `tollgate migrate`".to_owned(),
            ),
            Problem::QueryTimeout => (
                StatusCode::SERVICE_UNAVAILABLE,
                "query_timeout",
                "the database took too long: ask for a shorter range".to_owned(),
            ),
            Problem::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "something went wrong here; the log has the reason under this request_id".to_owned(),
            ),
            Problem::Aggregation(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, "aggregation_failed", reason.clone())
            }
        }
    }
}

/// Carries the problem to [`render`]; the body is made there.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(self);
        response
    }
}

/// Makes `problem` the answer, keeping the headers that `response` has.
pub(super) fn render(response: &mut Response, problem: &Problem, request_id: &str) {
    let (status, code, error) = problem.parts();
    let mut body = json!({ "error": error, "code": code, "request_id": request_id });
    if let (Problem::Parameter { name, .. }, Some(body)) = (problem, body.as_object_mut()) {
        body.insert("parameter".to_owned(), json!(name));
    }
    *response.status_mut() = status;
    *response.body_mut() = Body::from(body.to_string());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.remove(header::CONTENT_LENGTH);
    match problem {
        Problem::Unauthorized => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Problem::Throttled { retry_after } => {
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Problem::DatabaseUnavailable | Problem::QueryTimeout => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        _ => {}
    }
}

impl From<StoreError> for Problem {
    /// Logged here, once: what the operator is told names no table and no host.
    fn from(error: StoreError) -> Self {
        let problem = classify(&error);
        let reason = error.to_string();
        if problem == Problem::Internal {
            tracing::error!(reason, "an admin query failed");
        } else {
            tracing::warn!(reason, "an admin query was not answered");
        }
        problem
    }
}

fn classify(error: &StoreError) -> Problem {
    let StoreError::Query(error) = error else { return Problem::DatabaseUnavailable };
    let Some(code) = error.code() else {
        // Without a code nobody answered, save where a row could not be read: that is a fault of ours.
        let ours =
            std::error::Error::source(error).is_some_and(|s| s.is::<tokio_postgres::types::WrongType>());
        return if ours { Problem::Internal } else { Problem::DatabaseUnavailable };
    };
    // https://www.postgresql.org/docs/15/errcodes-appendix.html
    match code.code() {
        // A statement's time, or a lock's, ran out.
        "57014" | "55P03" => Problem::QueryTimeout,
        "42P01" | "42703" | "42883" | "3F000" => Problem::SchemaMissing,
        // Connection, credentials, no such database, resources, operator intervention, system, broken.
        code if ["08", "28", "3D", "53", "57", "58", "XX"].contains(&&code[..2]) => {
            Problem::DatabaseUnavailable
        }
        // Read only, deadlock, serialization: gone when asked again.
        "25006" | "40P01" | "40001" => Problem::DatabaseUnavailable,
        _ => Problem::Internal,
    }
}
