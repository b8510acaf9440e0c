//! Which requests are metered: decided by path and method.
//!
//! For matching only, a path is read as a lenient backend would read it; the request itself is forwarded as it came.
//! A spelling that the backend takes for the chat route and we don't would be a way round the quota.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use super::config::{PathMatch, RouteConfig};
use crate::meter::{Format, Formats};

/// A metered route with its format looked up.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) config: RouteConfig,
    pub(crate) format: Arc<Format>,
}

/// All metered routes.
#[derive(Debug)]
pub(crate) struct Table {
    loose: matchit::Router<Vec<Arc<Route>>>,
    exact: Vec<Arc<Route>>,
}

impl Table {
    /// Builds the table. An error names the route and what is wrong with it.
    pub(crate) fn new(configs: &[RouteConfig], formats: &Formats) -> Result<Self, String> {
        let mut loose: Vec<(String, Vec<Arc<Route>>)> = Vec::new();
        let mut exact = Vec::new();
        for config in configs {
            let format = formats.format(&config.format).ok_or_else(|| {
                format!("route {}: there is no format named {:?}", config.path, config.format)
            })?;
            let route = Arc::new(Route { config: config.clone(), format });
            match config.path_match {
                PathMatch::Exact => exact.push(route),
                PathMatch::Loose => {
                    let path = normalise(&config.path).into_owned();
                    match loose.iter_mut().find(|(known, _)| *known == path) {
                        Some((_, routes)) => routes.push(route),
                        None => loose.push((path, vec![route])),
                    }
                }
            }
        }
        let mut router = matchit::Router::new();
        for (path, routes) in loose {
            router.insert(&path, routes).map_err(|error| format!("route {path}: {error}"))?;
        }
        Ok(Self { loose: router, exact })
    }

    /// The metered route of a request, if it is one. `OPTIONS` never is: a preflight carries no tenant.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Option<&Arc<Route>> {
        if method == Method::OPTIONS {
            return None;
        }
        let takes =
            |route: &&Arc<Route>| route.config.methods.is_empty() || route.config.methods.contains(method);
        if let Some(route) = self.exact.iter().filter(takes).find(|route| route.config.path == path) {
            return Some(route);
        }
        let normal = normalise(path);
        self.loose.at(&normal).ok().and_then(|found| found.value.iter().find(takes))
    }
}

/// The path as a lenient backend reads it: percent-decoded once, backslashes and repeated slashes as one slash
/// (the URL parsers of browsers and Node do so), dot segments resolved (RFC 3986 §5.2.4), no trailing slash.
fn normalise(path: &str) -> Cow<'_, str> {
    if is_normal(path) {
        return Cow::Borrowed(path);
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    Cow::Owned(format!("/{}", segments.join("/")))
}

fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    let odd = |pair: &[u8]| pair[0] == b'/' && (pair[1] == b'/' || pair[1] == b'.');
    bytes.first() == Some(&b'/')
        && (bytes.len() == 1 || bytes.last() != Some(&b'/'))
        && memchr::memchr2(b'%', b'\\', bytes).is_none()
        && !bytes.windows(2).any(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_17_every_spelling_of_the_chat_route_is_read_as_the_chat_route() {
        let spellings = [
            "/api/widget/chat",
            "/api/widget/chat/",
            "//api//widget/chat",
            "/api/widget/%63hat",
            "/api%2fwidget%2Fchat",
            "/x/../api/widget/chat",
            "/api/./widget/chat/.",
            "/api\\widget\\chat",
            "/../../api/widget/chat",
            "/x/%2e%2e/api/widget/chat",
        ];
        for path in spellings {
            assert_eq!(normalise(path), "/api/widget/chat", "{path}");
        }
    }

    #[test]
    fn fault_17_other_paths_stay_other_paths() {
        for path in
            ["/API/widget/chat", "/api/widget/chat;a=b", "/api/widget/chats", "/api/widget/%2563hat", "/"]
        {
            assert_ne!(normalise(path), "/api/widget/chat", "{path}");
        }
    }

    #[test]
    fn an_ordinary_path_is_not_copied() {
        assert!(matches!(normalise("/api/widget/chat"), Cow::Borrowed(_)));
    }
}
