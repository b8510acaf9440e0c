//! Who stands at the other end of a request, and what the service is told of it.

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
        let said: Vec<&str> =
            headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        client = first_untrusted(&said, trusted).unwrap_or(peer);
        for part in said {
            chain.push_str(part);
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

/// The last address in the chain that is no trusted proxy: whatever stands before it, the client wrote. Empty elements
/// say nothing; before one that is no address (`unknown`) nobody can be believed.
fn first_untrusted(said: &[&str], trusted: &[IpNet]) -> Option<IpAddr> {
    let parts = said.iter().rev().flat_map(|value| value.rsplit(','));
    let mut last = None;
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        let Some(address) = address(part) else { break };
        last = Some(address);
        if !is_in(trusted, address) {
            break;
        }
    }
    last
}

/// An element of `X-Forwarded-For`: an address, and perhaps a port, brackets, quotes or a zone, as different proxies write
/// them. An IPv4 address within an IPv6 one is itself.
fn address(element: &str) -> Option<IpAddr> {
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
}
