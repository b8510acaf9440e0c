//! Query parameters and bodies, read strictly: what is not known, repeated or malformed is refused by name.

use std::time::Duration;

use axum::body::{Body, Bytes};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use percent_encoding::percent_decode_str;

use super::problem::Problem;
use crate::model::tenant::TenantId;
use crate::store::report::Between;

/// Rows in one page where the call doesn't say.
pub(super) const DEFAULT_LIMIT: u32 = 100;

/// Rows in one page at most.
pub(super) const MAX_LIMIT: u32 = 1000;

/// The longest range that a call may ask for: ten years and the leap days.
const MAX_RANGE_DAYS: i64 = 3_660;

/// The longest body, in bytes: what a call takes is a few fields.
const MAX_BODY: usize = 32 * 1024;

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

const SECONDS_PER_DAY: i64 = 86_400;

/// The parameters of one call.
#[derive(Debug)]
pub(super) struct Params(Vec<(&'static str, String)>);

impl Params {
    /// Reads `query` (the part after `?`), in which only `known` names may stand, each once.
    pub(super) fn parse(query: Option<&str>, known: &[&'static str]) -> Result<Self, Problem> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).map_err(|reason| Problem::parameter("query", reason))?;
            let Some(known) = known.iter().find(|k| **k == name) else {
                return Err(unknown(&name, known));
            };
            if found.iter().any(|(n, _)| n == known) {
                return Err(Problem::parameter(*known, "given twice"));
            }
            let value = decode(value).map_err(|reason| Problem::parameter(*known, reason))?;
            found.push((*known, value));
        }
        Ok(Self(found))
    }

    /// The value of `name`, if it was given. An empty one counts as given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    /// One of `choices`, or the default, `choices[0]`.
    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, Problem> {
        let Some(value) = self.text(name) else { return Ok(default) };
        choices.iter().find(|(n, _)| *n == value).map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(n, _)| *n).collect();
            Problem::parameter(name, format!("must be one of {}", names.join(", ")))
        })
    }

    /// A tenant id.
    pub(super) fn tenant(&self, name: &'static str) -> Result<Option<TenantId>, Problem> {
        let parse = |text| TenantId::parse(text).map_err(|e| Problem::parameter(name, e.to_string()));
        self.text(name).map(parse).transpose()
    }

    /// A word such as an event type: 1 to 64 of `[a-z0-9_]`.
    pub(super) fn word(&self, name: &'static str) -> Result<Option<&str>, Problem> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_';
        if value.is_empty() || value.len() > 64 || !value.as_bytes().iter().all(plain) {
            return Err(Problem::parameter(name, "must be 1 to 64 characters of a-z 0-9 _"));
        }
        Ok(Some(value))
    }

    /// `limit`: 1 to [`MAX_LIMIT`].
    pub(super) fn limit(&self) -> Result<u32, Problem> {
        let Some(value) = self.text("limit") else { return Ok(DEFAULT_LIMIT) };
        let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { value.parse().ok() } else { None };
        number.filter(|n| (1..=MAX_LIMIT).contains(n)).ok_or_else(|| {
            Problem::parameter("limit", format!("must be a whole number from 1 to {MAX_LIMIT}"))
        })
    }

    /// `startDate` and `endDate`. The end is `now` unless given; the start is `default_start(end)`.
    pub(super) fn range(
        &self,
        now: Timestamp,
        default_start: impl FnOnce(Timestamp) -> Timestamp,
    ) -> Result<Between, Problem> {
        let instant = |name| self.text(name).map(|text| instant(name, text)).transpose();
        // A span must not leave out what is recorded in this very microsecond.
        let end = instant("endDate")?.unwrap_or_else(|| after(now));
        let start = instant("startDate")?.unwrap_or_else(|| default_start(end));
        if start >= end {
            return Err(Problem::parameter("startDate", "must be before endDate"));
        }
        if end.as_second() - start.as_second() > MAX_RANGE_DAYS * SECONDS_PER_DAY {
            return Err(Problem::parameter(
                "startDate",
                format!("the range must not exceed {MAX_RANGE_DAYS} days"),
            ));
        }
        Ok(Between { start, end })
    }
}

/// The whole of a body, within bounds of size and time.
pub(super) async fn whole(body: Body) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Problem::Body(format!("the body must come whole and not exceed {MAX_BODY} bytes"))),
        Err(_) => Err(Problem::Body("the body took too long".to_owned())),
    }
}

/// `days` days of 24 hours before `instant`.
pub(super) fn days_before(instant: Timestamp, days: i64) -> Timestamp {
    Timestamp::from_second(instant.as_second() - days * SECONDS_PER_DAY).unwrap_or(Timestamp::MIN)
}

fn after(now: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(now.as_microsecond() + 1).unwrap_or(Timestamp::MAX)
}

/// What a caller wrote, cut and escaped to be shown: it goes into a log line as well.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(40).collect::<String>().escape_debug().collect()
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    let shown = shown(name);
    let reason = if known.is_empty() {
        "this call takes no parameters".to_owned()
    } else {
        format!("no such parameter; known are {}", known.join(", "))
    };
    Problem::parameter(shown, reason)
}

fn decode(text: &str) -> Result<String, &'static str> {
    let malformed = text.as_bytes().iter().enumerate().any(|(at, b)| {
        let hex = |offset| text.as_bytes().get(at + offset).is_some_and(u8::is_ascii_hexdigit);
        *b == b'%' && !(hex(1) && hex(2))
    });
    if malformed {
        return Err("a % must be followed by two hexadecimal digits");
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| "is not UTF-8")?;
    if decoded.contains('\0') {
        return Err("must not contain NUL");
    }
    Ok(decoded.into_owned())
}

/// An instant, as calls write it.
pub(super) fn instant(name: &'static str, text: &str) -> Result<Timestamp, Problem> {
    parse_instant(text).ok_or_else(|| {
        let hint = if text.contains(' ') { " (in a query, write + as %2B)" } else { "" };
        Problem::parameter(
            name,
            format!(
                "must be a date such as 2026-11-24 or an RFC 3339 time such as 2026-11-24T09:30:00Z{hint}"
            ),
        )
    })
}

/// A date (its first instant, UTC) or an RFC 3339 time; nothing else of what date parsers like to accept.
fn parse_instant(text: &str) -> Option<Timestamp> {
    let years = 1970..=9998;
    if shape(text, "0000-00-00") {
        let date: Date = text.parse().ok()?;
        let start = TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
        return years.contains(&date.year()).then_some(start);
    }
    let (head, tail) = text.split_at_checked(19)?;
    let (fraction, offset) = tail.split_at(tail.find(['Z', '+', '-'])?);
    let fraction_ok = fraction.is_empty()
        || (2..=10).contains(&fraction.len())
            && fraction.starts_with('.')
            && fraction[1..].bytes().all(|b| b.is_ascii_digit());
    // RFC 3339, section 5.6: time-hour is 00-23 and time-minute 00-59, in the offset as well.
    let offset_ok = offset == "Z"
        || shape(&offset[1..], "00:00")
            && offset[1..3].parse::<u8>().ok()? < 24
            && offset[4..].parse::<u8>().ok()? < 60;
    if !shape(head, "0000-00-00T00:00:00") || !fraction_ok || !offset_ok {
        return None;
    }
    let time: Timestamp = text.parse().ok()?;
    years.contains(&TimeZone::UTC.to_datetime(time).year()).then_some(time)
}

/// Whether `text` has a digit wherever `pattern` has a `0`, and is `pattern` elsewhere.
fn shape(text: &str, pattern: &str) -> bool {
    let fits = |(b, p): (u8, u8)| if p == b'0' { b.is_ascii_digit() } else { b == p };
    text.len() == pattern.len() && text.bytes().zip(pattern.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn params(query: &str) -> Result<Params, Problem> {
        Params::parse(Some(query), &["startDate", "endDate", "limit", "tenantId", "eventType"])
    }

    fn named(problem: Problem) -> String {
        let Problem::Parameter { name, .. } = problem else { panic!("{problem:?}") };
        name
    }

    #[test]
    fn dates_and_rfc_3339_times_are_read() {
        for (text, expected) in [
            ("2026-11-24", "2026-11-24T00:00:00Z"),
            ("2028-02-29", "2028-02-29T00:00:00Z"),
            ("2026-11-24T09:30:00Z", "2026-11-24T09:30:00Z"),
            ("2026-11-24T09:30:00.25+02:00", "2026-11-24T07:30:00.25Z"),
            ("2026-11-24T00:30:00-23:59", "2026-11-25T00:29:00Z"),
        ] {
            assert_eq!(parse_instant(text), Some(at(expected)), "{text}");
        }
    }

    #[test]
    fn fault_98_dates_that_do_not_exist_are_refused() {
        let bad = "2026-02-30 2026-13-01 2026-00-10 2027-02-29 infinity -infinity now today epoch 20261124 2026-1-1 \
                   +2026-01-01 -002026-01-01 0000-01-01 1969-12-31 9999-12-31 2026-11-24T09:30:00 2026-11-24T25:00:00Z \
                   2026-11-24T09:30:00+24:00 2026-11-24T09:30:00+9:00 2026-11-24T09:30:00+0900 2026-11-24T09:30:00+09:60 \
                   2026-11-24T09:30:00+25:59 2026-11-24T09:30Z 2026-11-24t09:30:00z 2026-11-24T09:30:00Z[UTC] \
                   2026-11-24T09:30:00.Z 2026-11-24T09:30:00,5Z ２026-01-01 2026-11-24';--";
        for text in bad.split_whitespace().chain([
            "",
            " 2026-11-24",
            "2026-11-24 09:30:00Z",
            "2026-11-24T09:30:00 02:00",
        ]) {
            assert_eq!(parse_instant(text), None, "{text}");
        }
    }

    #[test]
    fn fault_99_limits_outside_1_to_1000_are_refused() {
        let huge = format!("1{}", "0".repeat(30));
        for limit in ["0", "-1", "1001", "", "1.5", "1e3", "+5", "%2B5", " 5", "0x10", "٣", &huge] {
            let params = params(&format!("limit={limit}")).unwrap();
            assert_eq!(named(params.limit().unwrap_err()), "limit", "{limit}");
        }
        assert_eq!(params("limit=1").unwrap().limit(), Ok(1));
        assert_eq!(params("limit=1000").unwrap().limit(), Ok(1000));
        assert_eq!(params("").unwrap().limit(), Ok(DEFAULT_LIMIT));
    }

    #[test]
    fn fault_97_a_range_of_a_thousand_years_is_refused() {
        let now = at("2026-11-24T00:00:00Z");
        let range = |query: &str| params(query).unwrap().range(now, |end| days_before(end, 30));
        assert_eq!(named(range("startDate=1999-01-01&endDate=2999-01-01").unwrap_err()), "startDate");
        assert_eq!(named(range("startDate=2026-11-25&endDate=2026-11-24").unwrap_err()), "startDate");
        assert_eq!(named(range("startDate=2026-11-24&endDate=2026-11-24").unwrap_err()), "startDate");
        assert_eq!(named(range("startDate=2026-02-30").unwrap_err()), "startDate");
        assert_eq!(named(range("endDate=soon").unwrap_err()), "endDate");
        let ten_years = range("startDate=2016-12-01").unwrap();
        assert!(ten_years.start < ten_years.end);
    }

    #[test]
    fn what_is_unknown_repeated_or_badly_encoded_is_refused_by_name() {
        assert_eq!(named(params("tenant=x").unwrap_err()), "tenant");
        assert_eq!(named(params("limit=1&limit=2").unwrap_err()), "limit");
        assert_eq!(named(params("tenantId=%ff").unwrap_err()), "tenantId");
        assert_eq!(named(params("tenantId=%2").unwrap_err()), "tenantId");
        assert_eq!(named(params("tenantId=a%00b").unwrap_err()), "tenantId");
        assert_eq!(named(params("a%0d%0ab=1").unwrap_err()), "a\\r\\nb");
        assert_eq!(named(params("tenantId=").unwrap().tenant("tenantId").unwrap_err()), "tenantId");
        assert_eq!(named(params("eventType=a'--").unwrap().word("eventType").unwrap_err()), "eventType");
        assert_eq!(params("%74enantId=tn_one").unwrap().text("tenantId"), Some("tn_one"));
    }
}
