//! Who stands at the other end of a request, and what the service is told of it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderValue};
use ipnet::IpNet;

use super::headers::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REAL_IP};

/// Who stands at the other end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The peer of the connection.
    pub(crate) peer: IpAddr,
    /// The client: the peer, or whom a trusted proxy names.
    pub(crate) client: IpAddr,
}

/// Sets the forwarding headers, and finds the client.
///
/// What the client itself says of its address, scheme or host is believed only when it is a trusted proxy; else it
/// is replaced, so that the service behind never reads a forged one.
pub(crate) fn set_forwarding(headers: &mut HeaderMap, peer: SocketAddr, trusted: &[IpNet]) -> Caller {
    let peer = peer.ip().to_canonical();
    let believed = is_in(trusted, peer);
    let mut client = peer;
    let mut chain = String::new();
    if believed {
        let said: Vec<_> = headers
            .get_all(&X_FORWARDED_FOR)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let addresses = addresses(&said);
        client = first_untrusted(&addresses, trusted).unwrap_or(peer);
        for (element, _) in addresses.iter().rev() {
            chain.push_str(element);
            chain.push_str(", ");
        }
    } else {
        headers.remove(X_REAL_IP);
        headers.remove(header::FORWARDED);
    }
    use std::fmt::Write;
    let _ = write!(chain, "{peer}");
    if let Ok(value) = HeaderValue::try_from(chain) {
        headers.insert(X_FORWARDED_FOR, value);
    }
    if !believed || !headers.contains_key(&X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !believed || !headers.contains_key(&X_FORWARDED_HOST) {
        match headers.get(header::HOST).cloned() {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    Caller { peer, client }
}

/// The addresses of a chain, from its end, each with how it is written. Empty elements say nothing; before one that is no
/// address (`unknown`) nobody can be believed, neither by us nor by the service.
fn addresses<'a>(said: &'a [Cow<'_, str>]) -> Vec<(&'a str, IpAddr)> {
    let parts = said.iter().rev().flat_map(|value| value.rsplit(','));
    let parts = parts.map(str::trim).filter(|part| !part.is_empty());
    parts.map_while(|part| Some((part, address(part)?))).collect()
}

/// The last address in the chain that is no trusted proxy: whatever stands before it, the client wrote.
fn first_untrusted(addresses: &[(&str, IpAddr)], trusted: &[IpNet]) -> Option<IpAddr> {
    let stranger = addresses.iter().find(|(_, address)| !is_in(trusted, *address));
    stranger.or(addresses.last()).map(|(_, address)| *address)
}

/// An element of `X-Forwarded-For`: an address, and perhaps a port, brackets, quotes or a zone, as different proxies write
/// them. An IPv4 address within an IPv6 one is itself.
fn address(element: &str) -> Option<IpAddr> {
    if !element.is_ascii() {
        return None;
    }
    let element = element.trim_matches('"');
    let host = match element.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        // One colon comes before a port; several are an IPv6 address's own.
        None => match element.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => element,
        },
    };
    let host = host.split('%').next()?;
    Some(host.parse::<IpAddr>().ok()?.to_canonical())
}

/// Whether `address` lies in one of `nets`.
pub(crate) fn is_in(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
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

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn fault_90_a_forged_forwarding_header_is_replaced() {
        let mut headers =
            map(&[("x-forwarded-for", "1.1.1.1"), ("x-real-ip", "1.1.1.1"), ("host", "shop.example")]);
        let caller = set_forwarding(&mut headers, "9.9.9.9:1".parse().unwrap(), &[]);
        assert_eq!(caller.client.to_string(), "9.9.9.9");
        assert_eq!(headers["x-forwarded-for"], "9.9.9.9");
        assert_eq!(headers["x-forwarded-host"], "shop.example");
        assert!(!headers.contains_key("x-real-ip"));
    }

    #[test]
    fn a_trusted_proxy_is_believed_up_to_the_first_stranger() {
        let trusted = nets(&["10.0.0.0/8"]);
        let mut headers = map(&[("x-forwarded-for", "6.6.6.6, 7.7.7.7"), ("x-forwarded-for", "10.0.0.2")]);
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        let caller = set_forwarding(&mut headers, "10.0.0.1:1".parse().unwrap(), &trusted);
        assert_eq!(caller.client.to_string(), "7.7.7.7");
        assert_eq!(headers["x-forwarded-for"], "6.6.6.6, 7.7.7.7, 10.0.0.2, 10.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn only_addresses_are_written_on_and_none_that_stands_before_something_else() {
        let trusted = nets(&["10.0.0.0/8"]);
        for (said, client, written) in [
            (&b"\xe9, 1.2.3.4"[..], "1.2.3.4", "1.2.3.4, 10.0.0.1"),
            (b"6.6.6.6, unknown, 10.0.0.2", "10.0.0.2", "10.0.0.2, 10.0.0.1"),
            (b"6.6.6.6, ,1.2.3.4:80,", "1.2.3.4", "6.6.6.6, 1.2.3.4:80, 10.0.0.1"),
            (b"6.6.6.6, fe80::1%\xe9, [::1]:80", "::1", "[::1]:80, 10.0.0.1"),
            (b"unknown", "10.0.0.1", "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(X_FORWARDED_FOR, HeaderValue::from_bytes(said).unwrap());
            let caller = set_forwarding(&mut headers, "10.0.0.1:1".parse().unwrap(), &trusted);
            assert_eq!(
                (caller.client.to_string().as_str(), &headers["x-forwarded-for"]),
                (client, &HeaderValue::from_static(written))
            );
        }
    }
}
