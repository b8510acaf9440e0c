//! Which pages a service lets read its answers with cookies: learnt from its own answers, preflights among them, so that
//! the gateway's own answers are readable to the same pages and to no others.

use http::header::{self, HeaderMap, HeaderValue};
use quick_cache::sync::Cache;

/// Origins kept for a route. A widget stands on many sites.
const MAX_ORIGINS: usize = 1024;

/// The longest origin that is kept, in bytes. A host name has at most 253.
const MAX_BYTES: usize = 300;

/// The origins of one route's pages that may read answers with credentials.
pub(crate) struct Origins(Cache<Box<[u8]>, ()>);

impl std::fmt::Debug for Origins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Origins({})", self.0.len())
    }
}

impl Origins {
    pub(crate) fn new() -> Self {
        Self(Cache::new(MAX_ORIGINS))
    }

    /// Learns from an answer of the service to a page of `origin` (Fetch standard, "CORS protocol and credentials").
    pub(crate) fn learn(&self, origin: &HeaderValue, answer: &HeaderMap) {
        if answer.get(header::ACCESS_CONTROL_ALLOW_ORIGIN) != Some(origin) || origin.len() > MAX_BYTES {
            return;
        }
        let credentials = answer.get(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
        if credentials.is_some_and(|value| value == "true") {
            self.0.insert(origin.as_bytes().into(), ());
        } else {
            self.0.remove(origin.as_bytes());
        }
    }

    /// Whether a page of `origin` may read an answer with credentials, as far as the service has said so.
    pub(crate) fn allow_credentials(&self, origin: &HeaderValue) -> bool {
        self.0.get(origin.as_bytes()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_read_with_cookies_what_the_service_lets_it_read_with_cookies() {
        let origins = Origins::new();
        let shop = HeaderValue::from_static("https://shop.example");
        let answer = |origin: &'static str, credentials: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(origin));
            if let Some(credentials) = credentials {
                headers
                    .insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static(credentials));
            }
            headers
        };
        for (headers, allowed) in [
            (HeaderMap::new(), false),
            (answer("*", Some("true")), false),
            (answer("https://other.example", Some("true")), false),
            (answer("https://shop.example", None), false),
            (answer("https://shop.example", Some("TRUE")), false),
            (answer("https://shop.example", Some("true")), true),
            (HeaderMap::new(), true),
            (answer("https://shop.example", None), false),
        ] {
            origins.learn(&shop, &headers);
            assert_eq!(origins.allow_credentials(&shop), allowed, "{headers:?}");
        }
        assert!(!origins.allow_credentials(&HeaderValue::from_static("https://other.example")));
    }
}
