//! Answers that the gateway makes itself.
//!
//! They are readable by a widget on another origin (CORS), and say what to do. What the log says of the same failure
//! is another matter and another place: nothing here carries an upstream's or a database's own words to a client.

use http::Response;
use http::header::{self, HeaderMap, HeaderValue};
use jiff::Timestamp;
use serde_json::json;

use super::body::Body;
use super::failure::Failure;
use super::headers::X_REQUEST_ID;
use crate::model::quota::Standing;

/// The gateway's answer to a failure.
pub(crate) fn reply(
    failure: &Failure,
    request_id: &HeaderValue,
    origin: Option<&HeaderValue>,
    now: Timestamp,
) -> Response<Body> {
    let id = request_id.to_str().unwrap_or_default();
    let mut body = json!({"error": failure.message(), "code": failure.code(), "request_id": id});
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = failure.status();
    let headers = response.headers_mut();
    match failure {
        Failure::OverQuota(refusal) => {
            let standing = &refusal.standing;
            body["quota_remaining"] = json!(standing.remaining());
            body["dimension"] = json!(standing.dimension.to_string());
            body["limit"] = json!(standing.limit);
            body["used"] = json!(standing.used);
            body["resets_at"] = json!(standing.span.end.to_string());
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds_until(standing.span.end, now)));
            set_rate_limits(headers, &refusal.standings, now);
        }
        Failure::Draining | Failure::QuotaUnavailable => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Failure::TokenInvalid => {
            headers
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
        }
        Failure::MethodRefused => {
            headers.insert(
                header::ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        _ => {}
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, request_id.clone());
    if failure.ends_connection() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(origin) = origin {
        allow_origin(headers, origin);
    }
    let bytes = serde_json::to_vec(&body).unwrap_or_default();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    *response.body_mut() = Body::whole(bytes.into());
    response
}

/// Lets a page of `origin` read the answer and the headers that matter to it (Fetch standard, "CORS protocol").
fn allow_origin(headers: &mut HeaderMap, origin: &HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("Retry-After, RateLimit, RateLimit-Policy, x-request-id"),
    );
}

/// Sets `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10): one item for each limited
/// dimension, with `q` the quota, `w` the window in seconds, `r` what is left and `t` the seconds to the reset.
pub(crate) fn set_rate_limits(headers: &mut HeaderMap, standings: &[Standing], now: Timestamp) {
    use std::fmt::Write;
    let (mut policy, mut state) = (String::new(), String::new());
    for standing in standings {
        let (Some(limit), Some(remaining)) = (standing.limit, standing.remaining()) else { continue };
        if !policy.is_empty() {
            policy.push_str(", ");
            state.push_str(", ");
        }
        let dimension = standing.dimension;
        let window = standing.span.end.as_second() - standing.span.start.as_second();
        let _ = write!(policy, "\"{dimension}\";q={limit};w={window}");
        let _ = write!(state, "\"{dimension}\";r={remaining};t={}", seconds_until(standing.span.end, now));
    }
    if policy.is_empty() {
        return;
    }
    if let (Ok(policy), Ok(state)) = (HeaderValue::try_from(policy), HeaderValue::try_from(state)) {
        headers.insert("ratelimit-policy", policy);
        headers.insert("ratelimit", state);
    }
}

/// Whole seconds until `end`, rounded up: a client that waits so long finds the window turned.
fn seconds_until(end: Timestamp, now: Timestamp) -> i64 {
    let millis = end.as_millisecond().saturating_sub(now.as_millisecond());
    (millis.max(0) + 999) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::quota::{Dimension, Unit};
    use crate::model::window::{Span, Window};
    use crate::quota::Refusal;

    fn standing(unit: Unit, window: Window, limit: Option<u64>, used: u64) -> Standing {
        let at = |text: &str| text.parse().unwrap();
        let span = Span { start: at("2026-11-24T00:00:00Z"), end: at("2026-11-25T00:00:00Z") };
        Standing { dimension: Dimension { unit, window }, limit, used, span }
    }

    #[test]
    fn rate_limit_headers_name_each_limited_dimension() {
        let now = "2026-11-24T12:00:00.5Z".parse().unwrap();
        let mut headers = HeaderMap::new();
        let standings = [
            standing(Unit::Tokens, Window::Day, Some(10_000), 520),
            standing(Unit::Embeddings, Window::Day, None, 3),
            standing(Unit::ChatMessages, Window::Day, Some(100), 170),
        ];
        set_rate_limits(&mut headers, &standings, now);
        assert_eq!(
            headers["ratelimit-policy"],
            "\"tokens_per_day\";q=10000;w=86400, \"chat_messages_per_day\";q=100;w=86400"
        );
        assert_eq!(
            headers["ratelimit"],
            "\"tokens_per_day\";r=9480;t=43200, \"chat_messages_per_day\";r=0;t=43200"
        );
    }

    #[test]
    fn a_minute_is_a_rate_and_a_day_is_a_quota() {
        let refusal = |window| {
            let standing = standing(Unit::ApiCalls, window, Some(1), 1);
            Failure::OverQuota(Box::new(Refusal { standing, needed: 1, standings: vec![standing] }))
        };
        assert_eq!(refusal(Window::Minute).code(), "rate_limited");
        assert_eq!(refusal(Window::Day).code(), "quota_exceeded");
    }
}
