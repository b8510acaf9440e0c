//! Requests that ask for another protocol on their connection.
//!
//! 1. An offer is passed on only where it is a proper handshake of a protocol that the config lists. Of every other the
//!    headers are removed, and the request goes on as HTTP/1.1 (RFC 9110 §7.8 lets a server ignore any offer).
//! 2. HTTP itself is never among them: what went through such a connection would be calls that nobody sees.
//! 3. What the service switches to must be what was asked for.

use std::sync::{Arc, Mutex, PoisonError};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::failure::Failure;
use super::route::{Found, Table};
use super::tunnel::Tunnel;

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const WEBSOCKET: &str = "websocket";

/// Where a connection finds what it goes on as, once it has switched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Switch(Arc<Mutex<Option<Tunnel>>>);

impl Switch {
    pub(crate) fn put(&self, tunnel: Tunnel) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    pub(crate) fn take(&self) -> Option<Tunnel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A handshake that may be passed on.
#[derive(Debug)]
pub(crate) struct Offer {
    /// As the client spelled it.
    protocol: HeaderValue,
    pub(crate) client: OnUpgrade,
    pub(crate) switch: Switch,
}

impl Offer {
    /// Takes the offer off a request, whose headers hold nothing of it afterwards. `None` unless it may be passed on:
    /// `allowed` are the protocols that may, in small letters.
    pub(crate) fn take(
        head: &mut Parts,
        has_body: bool,
        allowed: &[String],
        switch: &Switch,
    ) -> Option<Self> {
        let client = head.extensions.remove::<OnUpgrade>();
        head.headers.remove(HTTP2_SETTINGS);
        let offered = head.headers.remove(header::UPGRADE)?;
        // Of several lines the others are no protocol of ours; what is left of them goes with `Connection`.
        let protocol =
            offered.to_str().ok()?.split(',').map(str::trim).find(|offered| is_in(allowed, offered))?;
        let asked = head.version == Version::HTTP_11 && !has_body && names_upgrade(&head.headers);
        if !asked || (protocol.eq_ignore_ascii_case(WEBSOCKET) && !is_websocket(&head.method, &head.headers))
        {
            return None;
        }
        let protocol = HeaderValue::from_str(protocol).ok()?;
        Some(Self { protocol, client: client?, switch: switch.clone() })
    }

    /// Puts it on the request for the service.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }

    /// Whether the service has switched to it.
    pub(crate) fn is_taken_by(&self, response: &Response<Incoming>) -> bool {
        let taken = response.headers().get(header::UPGRADE);
        response.status() == StatusCode::SWITCHING_PROTOCOLS
            && taken.is_some_and(|taken| taken.as_bytes().eq_ignore_ascii_case(self.protocol.as_bytes()))
    }

    /// As rows name it: in small letters.
    pub(crate) fn protocol(&self) -> String {
        String::from_utf8_lossy(self.protocol.as_bytes()).to_ascii_lowercase()
    }
}

/// The metered route of a path, whatever its methods: a handshake is a GET, also where calls are a POST.
///
/// # Errors
/// The path has several, by how the service reads it.
pub(crate) fn metered(routes: &Table, path: &str) -> Result<Option<Found>, Failure> {
    let methods =
        [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, query()];
    methods.iter().find_map(|method| routes.find(method.as_str(), path).transpose()).transpose()
}

/// Every other method that a route may name has a constant.
fn query() -> Method {
    Method::from_bytes(b"QUERY").unwrap_or(Method::GET)
}

fn is_in(allowed: &[String], protocol: &str) -> bool {
    allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(protocol))
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
}

/// Whether it is a handshake as RFC 6455 §4.2.1 has it: a key of 16 bytes in base64, and version 13.
fn is_websocket(method: &Method, headers: &HeaderMap) -> bool {
    let only = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(|value| value.as_bytes().trim_ascii())
    };
    let key = only(header::SEC_WEBSOCKET_KEY).and_then(|key| key.strip_suffix(b"=="));
    let in_base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    *method == Method::GET
        && key.is_some_and(|key| key.len() == 22 && key.iter().all(in_base64))
        && only(header::SEC_WEBSOCKET_VERSION) == Some(b"13")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(method: &str, lines: &[(&str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        is_websocket(&method.parse().unwrap(), &headers)
    }

    #[test]
    fn a_handshake_has_a_key_of_16_bytes_and_version_13() {
        let (key, version) = ("sec-websocket-key", "sec-websocket-version");
        let good = "dGhlIHNhbXBsZSBub25jZQ==";
        assert!(asking("GET", &[(key, good), (version, "13")]));
        for (method, lines) in [
            ("POST", &[(key, good), (version, "13")][..]),
            ("GET", &[(key, good)]),
            ("GET", &[(version, "13")]),
            ("GET", &[(key, good), (version, "8")]),
            ("GET", &[(key, good), (version, "13"), (version, "13")]),
            ("GET", &[(key, good), (key, good), (version, "13")]),
            ("GET", &[(key, "dGhlIHNhbXBsZSBub25jZQ"), (version, "13")]),
            ("GET", &[(key, "c2hvcnQ="), (version, "13")]),
            ("GET", &[(key, "dGhlIHNhbXBsZSBub25j\u{e9}Q=="), (version, "13")]),
        ] {
            assert!(!asking(method, lines), "{method} {lines:?}");
        }
    }
}
