//! How single values are written: durations, sizes, addresses, URLs, pointers. Pure, one function for each.
//!
//! An error is the rest of a sentence that says what to write instead. None repeats a value that may be a secret.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::store::check_credentials;

/// `250ms`, `30s`, `5m`, `1h30m`, `2d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let no = || {
        format!(
            "{text:?} is no duration: write a whole number with a unit, such as \"250ms\", \"30s\" or \"5m\""
        )
    };
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(no());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| no())?;
        let nanos: u64 = match unit {
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(no()),
        };
        let part = number.checked_mul(nanos).map(Duration::from_nanos).ok_or_else(no)?;
        total = total.checked_add(part).ok_or_else(no)?;
        rest = tail;
    }
    Ok(total)
}

/// `512B`, `64KiB`, `1GiB`, `10MB`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let no = || {
        format!(
            "{text:?} is no size: write a whole number with a unit, such as \"64KiB\", \"1MiB\" or \"2GiB\""
        )
    };
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| no())?;
    let unit: u64 = match unit.trim_start() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(no()),
    };
    number.checked_mul(unit).ok_or_else(no)
}

/// A duration as [`duration`] reads it, in its largest whole unit.
pub(super) fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let units =
        [("d", 86_400_000_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000)];
    let unit = units.into_iter().chain([("ms", 1_000_000)]).find(|(_, size)| nanos.is_multiple_of(*size));
    let (unit, size) = unit.unwrap_or(("us", 1_000));
    format!("{}{unit}", nanos / size)
}

/// A size as [`size`] reads it, in its largest whole unit.
pub(super) fn show_size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.into_iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    let (unit, size) = unit.unwrap_or(("B", 1));
    format!("{}{unit}", bytes / size)
}

/// `IP:port` to listen on.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).unwrap_or(8080);
        let reach = if text.starts_with("localhost") { "127.0.0.1" } else { "0.0.0.0" };
        format!("{text:?} is no address to listen on: write IP:port, such as \"{reach}:{port}\"")
    })
}

/// A network (`10.0.0.0/8`) or a single address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    text.parse::<IpNet>().map(|network| network.trunc()).map_err(|_| {
        format!(
            "{text:?} is no network: write an address or a CIDR block, such as \"10.0.0.7\" or \"10.0.0.0/8\""
        )
    })
}

/// The service's address.
pub(super) fn upstream_url(text: &str) -> Result<http::Uri, String> {
    let example = "write http://HOST:PORT or https://HOST, such as \"http://127.0.0.1:3000\"";
    let uri: http::Uri = text.parse().map_err(|_| format!("is no URL: {example}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(format!("has no http or https scheme: {example}"));
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(format!("must not hold a user or password: {example}"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("names no host: {example}"));
    }
    if authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']') && port.parse::<u16>().is_err())
    {
        return Err(format!("has no valid port: {example}"));
    }
    if uri.query().is_some() || text.contains('#') {
        return Err("must not have a query or a fragment: remove it".to_owned());
    }
    Ok(uri)
}

/// How a hop is named in `Via`: a host, or a name that stands for one (RFC 9110, section 7.6.3). Empty is no name.
pub(super) fn via(text: &str) -> Result<Option<String>, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&byte);
    match text.bytes().all(fits) {
        true => Ok((!text.is_empty()).then(|| text.to_owned())),
        false => {
            Err(format!("{text:?} can't stand in a Via header: write a name such as \"tollgate\", or a host"))
        }
    }
}

/// Where alerts are sent. The message never repeats any of it: what follows the host may be a secret.
pub(super) fn webhook_url(text: &str) -> Result<http::Uri, String> {
    let example = "write https://HOST/PATH or http://HOST:PORT/PATH";
    // The checks of host and port are those of an upstream, which has no query.
    let base = text.split_once('?').map_or(text, |(base, _)| base);
    upstream_url(base).map_err(|reason| match reason.split_once(": ") {
        Some((reason, _)) => format!("{reason}: {example}"),
        None => format!("{reason}: {example}"),
    })?;
    if text.contains('#') {
        return Err("must not have a fragment: remove it".to_owned());
    }
    text.parse().map_err(|_| format!("is no URL: {example}"))
}

/// A URL of which only scheme and host are shown.
pub(super) fn mask_path(text: &str) -> String {
    match text.parse::<http::Uri>() {
        Ok(uri) => match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) if uri.path() == "/" && uri.query().is_none() => {
                mask(&format!("{scheme}://{authority}/"))
            }
            (Some(scheme), Some(authority)) => mask(&format!("{scheme}://{authority}/***")),
            _ => "***".to_owned(),
        },
        Err(_) => "***".to_owned(),
    }
}

/// A Postgres URL. The message never repeats any of it: it holds a password.
pub(super) fn database_url(text: &str) -> Result<String, String> {
    let example = "write postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full";
    if text.is_empty() {
        return Err("is empty: remove it, or name a database".to_owned());
    }
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err(format!("is no Postgres URL: {example}"));
    }
    check_credentials(text).map_err(|why| format!("is not plain: {why}"))?;
    // tokio-postgres knows not all of libpq's TLS options; what they mean, the store decides.
    let credentials = text.find('@').unwrap_or(0);
    let (base, query) = match text[credentials..].find('?') {
        Some(at) => (&text[..credentials + at], &text[credentials + at + 1..]),
        None => (text, ""),
    };
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full")) => {}
            // Not quoted: it may be the end of a password.
            Some(("sslmode", _)) => {
                return Err(
                    "has an unknown sslmode: write disable, prefer, require or verify-full".to_owned()
                );
            }
            Some(("sslrootcert" | "sslcert" | "sslkey", _)) => {}
            _ => kept.push(pair),
        }
    }
    let plain = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    match plain.parse::<tokio_postgres::Config>() {
        Ok(config) if config.get_hosts().is_empty() => Err(format!("names no host: {example}")),
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "is no valid Postgres URL (a special character in the password must be %-encoded): {example}"
        )),
    }
}

/// A JSON pointer (RFC 6901) to something within the document.
pub(super) fn pointer(text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    let escaped =
        (0..bytes.len()).all(|at| bytes[at] != b'~' || matches!(bytes.get(at + 1), Some(b'0' | b'1')));
    if text.starts_with('/') && escaped {
        Ok(text.to_owned())
    } else {
        let guess = text.trim_start_matches(['$', '.']).replace('.', "/");
        Err(format!("{text:?} is no JSON pointer: write \"/{}\" (RFC 6901)", guess.trim_start_matches('/')))
    }
}

/// A look-up with one parameter.
pub(super) fn look_up(text: &str) -> Result<String, String> {
    if !text.contains("$1") {
        return Err(
            "has no parameter: write a SELECT of one column with $1 where the value belongs".to_owned()
        );
    }
    if text.contains("$2") {
        return Err("has a second parameter: only $1 is given".to_owned());
    }
    Ok(text.to_owned())
}

/// A time zone of the IANA database, by name.
pub(super) fn zone(text: &str) -> Result<String, String> {
    match TimeZone::get(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => {
            Err(format!("{text:?} is no time zone: write an IANA name, such as \"UTC\" or \"Europe/Berlin\""))
        }
    }
}

/// A date, meant as its first instant in UTC, or an instant with its offset (RFC 3339).
pub fn date_or_instant(text: &str) -> Result<Timestamp, String> {
    let date = |text: &str| TimeZone::UTC.to_timestamp(text.parse::<Date>().ok()?.at(0, 0, 0, 0)).ok();
    let looks_like_date = text.len() == 10 && !text.contains(['T', 't', ' ']);
    let instant = if looks_like_date { date(text) } else { text.parse().ok() };
    instant.ok_or_else(|| {
        format!(
            "{text:?} is no date: write one such as \"2026-12-01\" (its 00:00 UTC), or date, time and offset \
             (RFC 3339), such as \"2026-12-01T00:00:00Z\""
        )
    })
}

/// The same, or how long before `now` it was: a duration such as `7d`.
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(ago) = duration(text) {
        let ago = jiff::SignedDuration::try_from(ago).map_err(|_| format!("{text:?} is longer than time"))?;
        return now.checked_sub(ago).map_err(|_| format!("{text:?} is before all calendars"));
    }
    date_or_instant(text).map_err(|reason| format!("{reason}, or how long ago it was, such as \"7d\""))
}

/// An instant with its offset (RFC 3339).
pub(super) fn instant(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        format!(
            "{text:?} is no instant: write date, time and offset (RFC 3339), such as \"2027-01-31T00:00:00Z\""
        )
    })
}

/// A text with the password hidden, where it is a URL: `postgres://user:***@host/db`.
pub(super) fn mask(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // A password that should have been %-encoded may hold the very characters that end an authority.
    let from = rest.rfind('@').unwrap_or(0);
    let end = rest[from..].find(['/', '?', '#']).map_or(rest.len(), |at| from + at);
    let (authority, tail) = rest.split_at(end);
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => format!("{user}@{host}"),
        },
        None => authority.to_owned(),
    };
    let tail = match tail.split_once('?') {
        Some((path, query)) => {
            let hide = |pair: &str| match pair.split_once('=') {
                Some((key, _)) if key.contains("password") => format!("{key}=***"),
                _ => pair.to_owned(),
            };
            format!("{path}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
        }
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}

/// The name among `known` that `typed` was most likely meant to be: a few letters off, or the beginning of one.
pub(super) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase().replace('-', "_");
    let distance = |name: &str| {
        let distance = strsim::damerau_levenshtein(&typed, &name.to_ascii_lowercase());
        let near = distance <= (name.len() / 3).max(1) || (typed.len() > 3 && name.starts_with(&typed));
        near.then_some(distance)
    };
    let candidates = known.into_iter().filter_map(|name| Some((distance(name)?, name)));
    candidates.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// `; did you mean …?`, or nothing.
pub(super) fn suggestion<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(typed, known).map_or(String::new(), |name| format!("; did you mean {name:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_a_time_a_date_or_so_long_ago() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (text, at) in [
            ("7d", "2026-11-17T12:00:00Z"),
            ("1h30m", "2026-11-24T10:30:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("2026-11-20T01:00:00+01:00", "2026-11-20T00:00:00Z"),
        ] {
            assert_eq!(since(text, now), Ok(at.parse().unwrap()), "{text}");
        }
        for text in ["", "7", "7 days", "soon", "-7d", "2026-02-30", "20000000d"] {
            assert!(since(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_with_their_units_and_never_without() {
        let ms = |text| duration(text).unwrap().as_millis();
        assert_eq!(
            (ms("250ms"), ms("30s"), ms("5m"), ms("1h30m"), ms("2d")),
            (250, 30_000, 300_000, 5_400_000, 172_800_000)
        );
        for bad in ["", "30", "s", "-1s", "1.5s", "30 s", "30sec", "99999999999999999d", "5s5"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for text in ["250ms", "30s", "5m", "90m", "2d", "0s", "7us"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_are_read_with_their_units_and_never_without() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        assert_eq!(size("10MB"), Ok(10_000_000));
        for bad in ["", "64", "KiB", "-1B", "1.5GiB", "64K", "99999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for text in ["512B", "64KiB", "1GiB", "0B"] {
            assert_eq!(show_size(size(text).unwrap()), text);
        }
    }

    #[test]
    fn passwords_of_urls_are_masked() {
        assert_eq!(
            mask("postgres://u:p@h:5432/db?sslmode=require"),
            "postgres://u:***@h:5432/db?sslmode=require"
        );
        assert_eq!(mask("postgres://u:p/w@x@h/db"), "postgres://u:***@h/db");
        assert_eq!(mask("postgres:///db?host=/run&password=p"), "postgres:///db?host=/run&password=***");
        assert_eq!(mask("postgres://u@h/db"), "postgres://u@h/db");
        assert_eq!(mask("http://127.0.0.1:3000"), "http://127.0.0.1:3000");
    }

    #[test]
    fn database_urls_are_checked_without_repeating_them() {
        for good in [
            "postgres://u:p@h:5432/db",
            "postgresql://u@h/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgres://u@h,i/db?target_session_attrs=read-write",
            "postgres:///db?host=/run/postgresql",
            "postgres://u:p?sslmode=x#y/z@h/db?sslmode=require",
        ] {
            assert_eq!(database_url(good), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "mysql://u:hunter2@h/db",
            "postgres://u:hunter2@h:port/db",
            "postgres://u:hunter2@h/db?sslmode=on",
            "postgres://u:p@hunter2@h/db",
            "postgres://u:p@#hunter2@h/db",
        ] {
            assert!(!database_url(bad).unwrap_err().contains("hunter2"));
        }
    }

    #[test]
    fn upstreams_must_be_plain_http_addresses() {
        for good in
            ["http://127.0.0.1:3000", "https://chat.example", "http://[::1]:3000/base", "http://[::1]"]
        {
            assert!(upstream_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:3000",
            "ftp://x",
            "http://u:p@x",
            "http://x/?a=1",
            "http://x:99999",
            "http://",
            "/x",
        ] {
            assert!(upstream_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn webhooks_are_checked_and_shown_without_their_paths() {
        for good in ["https://hooks.example/T0/B0?key=x", "http://127.0.0.1:9000", "http://[::1]:9/a"] {
            assert!(webhook_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "hooks.example/T0KEN",
            "ftp://x/T0KEN",
            "https://u:T0KEN@x/",
            "https://x/T0KEN#a",
            "https://x:p/T0KEN",
        ] {
            assert!(!webhook_url(bad).expect_err(bad).contains("T0KEN"), "{bad}");
        }
        assert_eq!(mask_path("https://hooks.example/T0/B0?key=x"), "https://hooks.example/***");
        assert_eq!(mask_path("https://u:p@hooks.example/T0"), "https://u:***@hooks.example/***");
        assert_eq!(mask_path("http://127.0.0.1:9000"), "http://127.0.0.1:9000/");
    }

    #[test]
    fn a_typing_slip_finds_the_word_that_was_meant() {
        let known = ["listen", "admin_listen", "workers"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("admin-listen", known), Some("admin_listen"));
        assert_eq!(nearest("work", known), Some("workers"));
        assert_eq!(nearest("colour", known), None);
    }
}
