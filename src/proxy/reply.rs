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
use super::refusal::{RefusalFacts, RefusalText};
use crate::model::quota::{Standing, Unit};

/// The gateway's answer to a failure.
pub(crate) fn reply(
    failure: &Failure,
    request_id: &HeaderValue,
    origin: Option<&HeaderValue>,
    words: Option<&RefusalText>,
    now: Timestamp,
) -> Response<Body> {
    let id = request_id.to_str().unwrap_or_default();
    let mut body = json!({"error": failure.message(), "code": failure.code(), "request_id": id});
    if let Some(detail) = failure.detail() {
        body["detail"] = json!(detail);
    }
    let mut own = None;
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = failure.status();
    let headers = response.headers_mut();
    match failure {
        Failure::OverQuota(refusal) => {
            let standing = &refusal.standing;
            let unit = standing.dimension.unit;
            body["quota_remaining"] = json!(standing.remaining().map(|amount| unit.shown(amount)));
            body["dimension"] = json!(standing.dimension.to_string());
            body["limit"] = json!(standing.limit.map(|amount| unit.shown(amount)));
            body["used"] = json!(unit.shown(standing.used));
            body["resets_at"] = json!(standing.span.end.to_string());
            let retry_after = seconds_until(standing.span.end, now);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
            own = words.map(|words| {
                let (error, code) = (failure.message(), failure.code());
                words.fill(&RefusalFacts { error, code, request_id: id, standing, retry_after })
            });
            set_rate_limits(headers, &refusal.standings, now);
        }
        Failure::Draining | Failure::QuotaUnavailable | Failure::TenantUnavailable | Failure::Overloaded => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Failure::TokenInvalid => {
            headers
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
        }
        // RFC 9110 §15.5.22: with what it is to be asked instead.
        Failure::UpgradeRefused => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
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
        end_connection(headers);
    }
    if let Some(origin) = origin {
        allow_origin(headers, origin);
    }
    let bytes = own.unwrap_or_else(|| serde_json::to_vec(&body).unwrap_or_default());
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    *response.body_mut() = Body::whole(bytes.into());
    response
}

/// Says that the connection ends with the answer.
pub(crate) fn end_connection(headers: &mut HeaderMap) {
    let close = HeaderValue::from_static("close");
    if !headers.get_all(header::CONNECTION).iter().any(|value| value == close) {
        headers.append(header::CONNECTION, close);
    }
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

/// Lets it read the answer to a request with cookies as well.
pub(crate) fn allow_credentials(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
}

/// Lets the page that may read the upstream's answer read what the gateway added to its headers as well: where the
/// answer is one for another origin, they join those that it exposes.
///
/// `*` stays as it is. (It does not count for a request with credentials, and then names nothing: a service that takes
/// cookies has to list what it exposes.)
pub(crate) fn expose_added(headers: &mut HeaderMap) {
    const ADDED: [&str; 3] = ["RateLimit", "RateLimit-Policy", "x-request-id"];
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    let exposed = headers.get_all(header::ACCESS_CONTROL_EXPOSE_HEADERS);
    let names = || exposed.iter().filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
    if names().any(|name| name.trim() == "*") {
        return;
    }
    let told = |added: &&str| !names().any(|name| name.trim().eq_ignore_ascii_case(added));
    let added = ADDED.into_iter().filter(told).collect::<Vec<_>>().join(", ");
    // A line of its own is the same list (RFC 9110, section 5.3), and the upstream's stays as it came.
    if let (false, Ok(added)) = (added.is_empty(), HeaderValue::try_from(added)) {
        headers.append(header::ACCESS_CONTROL_EXPOSE_HEADERS, added);
    }
}

/// Sets `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10): one item for each limited
/// dimension, with `q` the quota, `w` the window in seconds, `r` what is left and `t` the seconds to the reset.
///
/// Both are integers, so cost is in micro-dollars (`qu="micro-usd"`), rounded down. Exchanges at once have neither window
/// nor reset (`qu="concurrent-requests"`). A soft limit is none to a client: it is not told. Items that the service has set
/// itself stay.
pub(crate) fn set_rate_limits(headers: &mut HeaderMap, standings: &[Standing], now: Timestamp) {
    use std::fmt::Write;
    let (mut policy, mut state) = (String::new(), String::new());
    for standing in standings.iter().filter(|standing| !standing.soft) {
        let (Some(limit), Some(remaining)) = (standing.limit, standing.remaining()) else { continue };
        if !policy.is_empty() {
            policy.push_str(", ");
            state.push_str(", ");
        }
        let dimension = standing.dimension;
        let (window, left) =
            (seconds_until(standing.span.end, standing.span.start), seconds_until(standing.span.end, now));
        let _ = match dimension.unit {
            Unit::ConcurrentRequests => {
                let _ = write!(policy, "\"{dimension}\";q={limit};qu=\"concurrent-requests\"");
                write!(state, "\"{dimension}\";r={remaining}")
            }
            Unit::Cost => {
                let (limit, remaining) = (limit / NANO_PER_MICRO, remaining / NANO_PER_MICRO);
                let _ = write!(policy, "\"{dimension}\";q={limit};qu=\"micro-usd\";w={window}");
                write!(state, "\"{dimension}\";r={remaining};t={left}")
            }
            _ => {
                let _ = write!(policy, "\"{dimension}\";q={limit};w={window}");
                write!(state, "\"{dimension}\";r={remaining};t={left}")
            }
        };
    }
    if policy.is_empty() {
        return;
    }
    join(headers, "ratelimit-policy", policy);
    join(headers, "ratelimit", state);
}

/// Adds `items` to a list that the service may have set itself: one line with all of them, its own first.
fn join(headers: &mut HeaderMap, name: &'static str, items: String) {
    let own: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    let own = own.into_iter().map(str::trim).filter(|list| !list.is_empty());
    let joined = own.chain([items.as_str()]).collect::<Vec<_>>().join(", ");
    if let Ok(joined) = HeaderValue::try_from(joined) {
        headers.insert(name, joined);
    }
}

/// Nano-dollars in a micro-dollar.
const NANO_PER_MICRO: u64 = 1000;

/// Whole seconds until `end`, rounded up: a client that waits so long finds the window turned.
fn seconds_until(end: Timestamp, now: Timestamp) -> i64 {
    let millis = end.as_millisecond().saturating_sub(now.as_millisecond());
    (millis.max(0) + 999) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::quota::Dimension;
    use crate::model::window::{Span, Window};
    use crate::quota::Refusal;

    fn standing(unit: Unit, window: Window, limit: Option<u64>, used: u64) -> Standing {
        let at = |text: &str| text.parse().unwrap();
        let span = Span { start: at("2026-11-24T00:00:00Z"), end: at("2026-11-25T00:00:00Z") };
        Standing { dimension: Dimension { unit, window }, limit, used, span, soft: false }
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
    fn the_services_own_items_stay_in_the_list() {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.append("ratelimit", HeaderValue::from_static("\"svc\";r=9;t=60"));
        headers.append("ratelimit", HeaderValue::from_static("\"other\";r=1"));
        headers.append("ratelimit-policy", HeaderValue::from_static(" "));
        set_rate_limits(&mut headers, &[standing(Unit::Tokens, Window::Day, Some(10), 7)], now);
        assert_eq!(headers.get_all("ratelimit").iter().count(), 1);
        assert_eq!(headers["ratelimit"], "\"svc\";r=9;t=60, \"other\";r=1, \"tokens_per_day\";r=3;t=43200");
        assert_eq!(headers["ratelimit-policy"], "\"tokens_per_day\";q=10;w=86400");
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

    #[test]
    fn cost_is_told_in_micro_dollars_and_what_runs_at_once_without_a_window() {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        let mut headers = HeaderMap::new();
        let standings = [
            standing(Unit::Cost, Window::Day, Some(2_500_000_000), 1_000_000_001),
            standing(Unit::ConcurrentRequests, Window::Moment, Some(4), 1),
            Standing { soft: true, ..standing(Unit::Tokens, Window::Day, Some(10), 70) },
        ];
        set_rate_limits(&mut headers, &standings, now);
        assert_eq!(
            headers["ratelimit-policy"],
            "\"cost_usd_per_day\";q=2500000;qu=\"micro-usd\";w=86400, \
             \"concurrent_requests\";q=4;qu=\"concurrent-requests\""
        );
        assert_eq!(
            headers["ratelimit"],
            "\"cost_usd_per_day\";r=1499999;t=43200, \"concurrent_requests\";r=3"
        );
    }

    /// What a refusal says of when to come back, in a window of `zone`.
    fn told(window: Window, zone: &str, now: &str) -> (String, i64, i64) {
        let now: Timestamp = now.parse().unwrap();
        let zone = jiff::tz::TimeZone::get(zone).unwrap();
        let unit = Unit::Tokens;
        let span = window.span(&zone, now);
        let standing = Standing { span, ..standing(unit, window, Some(1), 1) };
        let refusal = Refusal { standing, needed: 1, standings: vec![standing] };
        let id = HeaderValue::from_static("id");
        let answer = reply(&Failure::OverQuota(Box::new(refusal)), &id, None, None, now);
        let number = |name: &str| answer.headers()[name].to_str().unwrap().parse().unwrap();
        let policy = answer.headers()["ratelimit-policy"].to_str().unwrap().to_owned();
        let width = policy.rsplit_once("w=").unwrap().1.parse().unwrap();
        (span.end.to_string(), number("retry-after"), width)
    }

    #[test]
    fn who_is_refused_comes_back_when_the_window_turns_wherever_that_is() {
        let berlin = "Europe/Berlin";
        let day = 86_400;
        for (window, zone, now, resets_at, retry_after, width) in [
            // Before and at midnight; a part of a second is waited for whole.
            (Window::Day, "UTC", "2026-11-24T23:59:59.2Z", "2026-11-25T00:00:00Z", 1, day),
            (Window::Day, "UTC", "2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z", day, day),
            (Window::Day, "Asia/Tokyo", "2026-11-24T14:59:00Z", "2026-11-24T15:00:00Z", 60, day),
            // Ends of months, of a leap February and of a year.
            (Window::Month, "UTC", "2026-11-30T23:59:30Z", "2026-12-01T00:00:00Z", 30, 30 * day),
            (Window::Month, "UTC", "2028-02-29T23:00:00Z", "2028-03-01T00:00:00Z", 3600, 29 * day),
            (Window::Month, "UTC", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z", 1, 31 * day),
            // The clocks turn: a day of 23 hours, one of 25, the hour that is shown twice and is one
            // window, a month with an hour less.
            (Window::Day, berlin, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", 23 * 3600, 23 * 3600),
            (Window::Day, berlin, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", 25 * 3600, 25 * 3600),
            (Window::Hour, berlin, "2026-10-25T00:59:00Z", "2026-10-25T02:00:00Z", 3660, 7200),
            (Window::Hour, berlin, "2026-10-25T01:59:00Z", "2026-10-25T02:00:00Z", 60, 7200),
            (Window::Month, berlin, "2026-03-31T21:59:00Z", "2026-03-31T22:00:00Z", 60, 31 * day - 3600),
        ] {
            let expected = (resets_at.to_owned(), retry_after, width);
            assert_eq!(told(window, zone, now), expected, "{window} {zone} {now}");
        }
    }

    #[test]
    fn what_is_added_joins_what_an_answer_for_another_origin_exposes() {
        let exposed = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            expose_added(&mut headers);
            let all = headers.get_all(header::ACCESS_CONTROL_EXPOSE_HEADERS);
            all.iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (allow, expose) = ("access-control-allow-origin", "access-control-expose-headers");
        assert_eq!(exposed(&[(allow, "https://a.example")]), ["RateLimit, RateLimit-Policy, x-request-id"]);
        assert_eq!(
            exposed(&[(allow, "*"), (expose, "X-Own, X-Request-Id")]),
            ["X-Own, X-Request-Id", "RateLimit, RateLimit-Policy"]
        );
        assert_eq!(exposed(&[(allow, "*"), (expose, "*")]), ["*"]);
        assert_eq!(exposed(&[(expose, "X-Own")]), ["X-Own"]);
        assert_eq!(exposed(&[]), Vec::<String>::new());
    }
}
