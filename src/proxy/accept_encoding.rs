//! What the service is offered of the codings that a client accepts.

use http::header::{self, HeaderMap, HeaderValue};

/// The codings that the meter reads, as `Accept-Encoding` names them.
const READABLE: [&str; 5] = ["gzip", "x-gzip", "deflate", "br", "zstd"];

/// Takes out of `Accept-Encoding` (RFC 9110 §12.5.3) what the meter can't read, so that the service does not choose it. The
/// client's own weights stay, what it did not accept is never added, and where nothing is left it is `identity`. A list that
/// offers no other coding goes on as it came.
pub(crate) fn narrow_accept_encoding(headers: &mut HeaderMap) {
    let offered: Vec<&str> = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("unreadable").split(','))
        .map(str::trim)
        .collect();
    let coding = |member: &str| member.split(';').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let is_readable = |coding: &str| READABLE.contains(&coding) || ["", "identity"].contains(&coding);
    // What is not wanted at all can stay.
    let is_refused = |member: &str| weight(member) == Some("0");
    if offered.iter().all(|member| is_readable(&coding(member)) || is_refused(member)) {
        return;
    }
    let mut narrowed: Vec<String> = Vec::new();
    for member in &offered {
        let name = coding(member);
        if is_readable(&name) || is_refused(member) {
            narrowed.push((*member).to_owned());
        } else if name == "*" {
            let weight = member.split_once(';').map_or(String::new(), |(_, weight)| format!(";{weight}"));
            let named = |readable: &&&str| !offered.iter().any(|member| coding(member) == **readable);
            let others = READABLE.iter().filter(|readable| **readable != "x-gzip").filter(named);
            narrowed.extend(others.map(|readable| format!("{readable}{weight}")));
        }
    }
    narrowed.retain(|member| !member.is_empty());
    let text = if narrowed.is_empty() { "identity".to_owned() } else { narrowed.join(", ") };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(header::ACCEPT_ENCODING, value);
    }
}

/// The weight of a member of a list; `0` for every way to write a zero.
fn weight(member: &str) -> Option<&str> {
    let mut parameters = member.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let (_, weight) = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))?;
    let weight = weight.trim();
    let is_zero = weight.strip_prefix('0').is_some_and(|rest| rest.bytes().all(|b| b == b'.' || b == b'0'));
    Some(if is_zero { "0" } else { weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codings_that_the_meter_reads_are_offered_with_the_clients_own_weights() {
        for (came, goes) in [
            (&["gzip, deflate, br, zstd"][..], &["gzip, deflate, br, zstd"][..]),
            (&["gzip,deflate ,BR;q=0.5"], &["gzip,deflate ,BR;q=0.5"]),
            (&["gzip", "x-gzip;q=0.1"], &["gzip", "x-gzip;q=0.1"]),
            (&["gzip, deflate, br, zstd, dcb, dcz"], &["gzip, deflate, br, zstd"]),
            (&["dcb;q=1.0, gzip;q=0.8, identity;q=0.1", "compress"], &["gzip;q=0.8, identity;q=0.1"]),
            (&["compress"], &["identity"]),
            (&["compress", "lzma"], &["identity"]),
            (&["*"], &["gzip, deflate, br, zstd"]),
            (&["gzip;q=0, *;q=0.3"], &["gzip;q=0, deflate;q=0.3, br;q=0.3, zstd;q=0.3"]),
            (&["gzip, *;q=0"], &["gzip, *;q=0"]),
            (&["identity, *; Q=0.000"], &["identity, *; Q=0.000"]),
            (&["compress;q=0"], &["compress;q=0"]),
            (&["identity;q=0, compress"], &["identity;q=0"]),
            (&[""], &[""]),
            (&["identity"], &["identity"]),
            (&[], &[]),
            (&["gzip, b\u{e4}r"], &["identity"]),
        ] {
            let mut headers = HeaderMap::new();
            for value in came {
                headers.append("accept-encoding", HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            narrow_accept_encoding(&mut headers);
            let seen: Vec<_> =
                headers.get_all("accept-encoding").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(seen, goes, "{came:?}");
        }
    }
}
