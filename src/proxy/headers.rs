//! What a proxy takes off a message and puts on it.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Version, uri};
use uuid::Uuid;

/// `x-request-id`
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_ORIGINAL_URL: HeaderName = HeaderName::from_static("x-original-url");
const X_REWRITE_URL: HeaderName = HeaderName::from_static("x-rewrite-url");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The longest `x-request-id` that is kept.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Removes what concerns one connection only (RFC 9110 §7.6.1): the fields of the standard, and those that
/// `Connection` names.
///
/// A field that says who calls, where to, or how long the message is can't be removed by naming it in `Connection`:
/// a client could otherwise have the gateway read one tenant and the service another. `TE: trailers` stays, since
/// trailers are passed on.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap, tenant_headers: &[HeaderName]) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| !is_end_to_end(name) && !tenant_headers.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    if headers.remove(header::TRANSFER_ENCODING).is_some() {
        // The chunks said how long the message is (RFC 9112 §6.3); a length beside them would cut it.
        headers.remove(header::CONTENT_LENGTH);
    }
    headers.remove(header::UPGRADE);
    headers.remove(header::PROXY_AUTHORIZATION);
    headers.remove(header::PROXY_AUTHENTICATE);
    if let Some(te) = headers.remove(header::TE) {
        let trailers =
            te.to_str().is_ok_and(|te| te.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")));
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

fn is_end_to_end(name: &HeaderName) -> bool {
    const KEPT: [HeaderName; 14] = [
        header::AUTHORIZATION,
        header::COOKIE,
        header::HOST,
        header::ORIGIN,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::TE,
        X_REQUEST_ID,
        header::FORWARDED,
        X_FORWARDED_FOR,
        X_FORWARDED_PROTO,
        X_FORWARDED_HOST,
        X_REAL_IP,
    ];
    KEPT.contains(name)
}

/// Removes what would have the service take a request for another than it is here: the names by which IIS and Symfony are
/// told of a path that a proxy rewrote, and the look-alikes of the headers that say who calls, where to, and how long the
/// message is. To WSGI, PHP and CGI `X_Tenant_Id` is `X-Tenant-Id`. Says how many there were.
pub(crate) fn remove_misleading(headers: &mut HeaderMap, tenant_headers: &[HeaderName]) -> u64 {
    let rewritten = [X_ORIGINAL_URL, X_REWRITE_URL].map(|name| headers.remove(name));
    let odd: Vec<HeaderName> =
        headers.keys().filter(|name| is_look_alike(name, tenant_headers)).cloned().collect();
    for name in &odd {
        headers.remove(name);
    }
    (rewritten.iter().flatten().count() + odd.len()) as u64
}

/// Whether a name differs from one that matters in `-` and `_` alone.
fn is_look_alike(name: &HeaderName, tenant_headers: &[HeaderName]) -> bool {
    const MORE: [HeaderName; 3] = [header::TRANSFER_ENCODING, X_ORIGINAL_URL, X_REWRITE_URL];
    let name_text = name.as_str();
    let is_like =
        |guarded: &HeaderName| guarded != name && hyphenated(guarded.as_str()).eq(hyphenated(name_text));
    let odd = name_text.contains('_') && {
        let hyphenated: String = hyphenated(name_text).map(char::from).collect();
        let name = HeaderName::try_from(hyphenated);
        name.is_ok_and(|name| is_end_to_end(&name) || MORE.contains(&name))
    };
    !tenant_headers.contains(name) && (odd || tenant_headers.iter().any(is_like))
}

fn hyphenated(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte })
}

/// The methods that a service may take the request for instead of its own, where it lets them be overridden: Express's
/// method-override, Rails, Symfony, ASP.NET and others.
pub(crate) fn overriding_methods(head: &Parts) -> impl Iterator<Item = String> {
    const NAMES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
    let names = |name: &HeaderName| NAMES.iter().any(|known| hyphenated(name.as_str()).eq(known.bytes()));
    let by_header = head.headers.iter().filter(move |(name, _)| names(name));
    let by_header = by_header.filter_map(|(_, value)| value.to_str().ok()).flat_map(|value| value.split(','));
    let pairs = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
    let by_query = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("_method"));
    by_header.map(|value| value.trim().to_owned()).chain(by_query.map(|(_, value)| value.into_owned()))
}

/// The id of the exchange: the client's, when it is 1 to 128 visible ASCII characters, else a new UUIDv7.
pub(crate) fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    let usable = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    let given = headers.get(X_REQUEST_ID).filter(|value| usable(value)).cloned();
    let id = given.unwrap_or_else(|| {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let text: &str = Uuid::now_v7().hyphenated().encode_lower(&mut text);
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    });
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

/// What makes a request one that must not be forwarded: a missing, repeated or malformed `Host` (RFC 9112 §3.2), or
/// a target that says it no better.
pub(crate) fn check_host(
    version: Version,
    target: &http::Uri,
    headers: &HeaderMap,
) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err("the Host header is repeated");
    }
    if target.authority().is_some_and(|authority| !is_host(authority)) {
        return Err("the request target's host is malformed");
    }
    match first {
        None if version == Version::HTTP_11 => Err("the Host header is missing"),
        None => Ok(()),
        Some(host) if host.is_empty() && target.authority().is_none() => Ok(()),
        Some(host) => match uri::Authority::try_from(host.as_bytes()) {
            Ok(host) if is_host(&host) => Ok(()),
            _ => Err("the Host header is malformed"),
        },
    }
}

/// Whether it is a host and perhaps a port: an authority may hold a user and anything for a port.
fn is_host(authority: &uri::Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host());
    rest.is_some_and(|rest| match rest.strip_prefix(':') {
        Some(port) => {
            port.is_empty() || port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
        }
        None => rest.is_empty(),
    })
}

/// Takes the host from the target, where it stands there: it comes before the `Host` header (RFC 9112 §3.2.2), and in
/// HTTP/2 it may be all there is (RFC 9113 §8.3.1). The service behind gets it in the header, and no other.
pub(crate) fn take_host(headers: &mut HeaderMap, target: &http::Uri) {
    let host = target.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
}

/// Takes out of `Trailer` what only a head may say: who calls, where to, how long the message is. Trailers that are
/// not announced are not forwarded, so a service that merges them into the headers finds none of these.
pub(crate) fn restrict_trailers(headers: &mut HeaderMap, tenant_headers: &[HeaderName]) {
    let announced = headers.get_all(header::TRAILER).iter().filter_map(|value| value.to_str().ok());
    let announced: Vec<HeaderName> =
        announced.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    let allowed = |name: &&HeaderName| {
        !is_end_to_end(name) && !tenant_headers.contains(name) && !is_look_alike(name, tenant_headers)
    };
    if announced.iter().all(|name| allowed(&name)) {
        return;
    }
    headers.remove(header::TRAILER);
    for name in announced.iter().filter(allowed) {
        headers.append(header::TRAILER, name.clone().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn hop_by_hop_fields_go_and_so_do_those_that_connection_names() {
        let mut headers = map(&[
            ("connection", "close, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers, deflate"),
            ("x-kept", "1"),
        ]);
        remove_hop_by_hop(&mut headers, &[]);
        assert_eq!(headers, map(&[("te", "trailers"), ("x-kept", "1")]));
    }

    #[test]
    fn fault_16_connection_cannot_take_the_credentials_or_the_tenant_away() {
        let tenant = HeaderName::from_static("x-tenant-id");
        let mut headers = map(&[
            ("connection", "x-tenant-id, authorization, host, content-length"),
            ("x-tenant-id", "tn_one"),
            ("authorization", "Bearer x"),
            ("host", "a"),
            ("content-length", "2"),
        ]);
        remove_hop_by_hop(&mut headers, &[tenant]);
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn a_request_id_that_could_harm_a_log_is_replaced() {
        assert_eq!(request_id(&mut map(&[("x-request-id", "abc-1")])), "abc-1");
        for bad in ["", "a b", &"a".repeat(129)] {
            assert_eq!(request_id(&mut map(&[("x-request-id", bad)])).len(), 36, "{bad:?}");
        }
    }

    #[test]
    fn fault_9_a_missing_repeated_or_malformed_host_is_refused() {
        let target = http::Uri::from_static("/");
        let check = |headers: &HeaderMap| check_host(Version::HTTP_11, &target, headers);
        assert!(check(&map(&[("host", "a.example:80")])).is_ok());
        assert!(check(&map(&[])).is_err());
        assert!(check(&map(&[("host", "a"), ("host", "a")])).is_err());
        for bad in ["a b", "user@a", "a@a", "a:b", "a:99999", "a:+1", "[::1", "a/b"] {
            assert!(check(&map(&[("host", bad)])).is_err(), "{bad}");
        }
        for good in ["a", "a:", "a:65535", "[::1]:80", "127.0.0.1", ""] {
            assert!(check(&map(&[("host", good)])).is_ok(), "{good}");
        }
        assert!(check_host(Version::HTTP_10, &target, &map(&[])).is_ok());
    }

    #[test]
    fn fault_15_a_trailer_cannot_say_what_only_a_head_may() {
        let tenant = HeaderName::from_static("x-tenant-id");
        let mut headers = map(&[("trailer", "X-Tenant-Id, x-sum"), ("trailer", "authorization,,x-more")]);
        restrict_trailers(&mut headers, &[tenant]);
        assert_eq!(headers, map(&[("trailer", "x-sum"), ("trailer", "x-more")]));
    }
}
