//! Which requests are metered: decided by path and method.
//!
//! For matching only, a path is read as a lenient backend would read it; the request itself is forwarded as it came.
//! A spelling that the backend takes for the chat route and we don't would be a way round the quota.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use super::audit;
use super::config::{IdentifyConfig, PathMatch, RouteConfig, SourceConfig};
use super::identify::{Rejection, Rules};
use crate::meter::{Format, Formats};

/// A metered route, compiled.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) config: RouteConfig,
    pub(crate) format: Arc<Format>,
    /// How its requests are given a tenant.
    pub(crate) sources: Arc<Rules>,
    pub(crate) audit: audit::Rules,
}

impl Route {
    fn new(config: &RouteConfig, formats: &Formats, shared: &Shared<'_>) -> Result<Self, String> {
        let format = formats
            .format(&config.format)
            .ok_or_else(|| format!("there is no format named {:?}", config.format))?;
        let segments = names(&config.path);
        let sources = match &config.sources {
            Some(sources) => {
                let own = IdentifyConfig { sources: sources.clone(), ..shared.identify.clone() };
                Arc::new(Rules::new(&own, &segments)?)
            }
            None => shared.sources.clone(),
        };
        let tenant = config.sources.iter().flatten().find_map(|source| match source {
            SourceConfig::Answer(pointer) => Some(pointer.as_str()),
            _ => None,
        });
        let audit = audit::Rules::new(&config.audit, &segments, tenant)?;
        Ok(Self { config: config.clone(), format, sources, audit })
    }

    /// Whether a request that can't be given a tenant passes unmetered.
    pub(crate) fn lets_pass(&self, rejection: &Rejection) -> bool {
        match (self.config.pass_unidentified, rejection) {
            (None, Rejection::Unidentified(_)) => self.sources.pass_unidentified,
            (Some(pass), Rejection::Unidentified(_) | Rejection::TokenInvalid) => pass,
            _ => false,
        }
    }
}

/// What routes have in common.
struct Shared<'a> {
    identify: &'a IdentifyConfig,
    sources: &'a Arc<Rules>,
}

/// A request's route.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) route: Arc<Route>,
    /// The segments of its path that the route has names for, in order.
    pub(crate) segments: Vec<String>,
}

/// All metered routes.
#[derive(Debug)]
pub(crate) struct Table {
    loose: matchit::Router<Vec<Arc<Route>>>,
    exact: Vec<Arc<Route>>,
}

impl Table {
    /// Builds the table; `sources` are those of routes that have none of their own. An error names the route and what
    /// is wrong with it.
    pub(crate) fn new(
        configs: &[RouteConfig],
        formats: &Formats,
        identify: &IdentifyConfig,
        sources: &Arc<Rules>,
    ) -> Result<Self, String> {
        let shared = Shared { identify, sources };
        let mut loose: Vec<(String, Vec<Arc<Route>>)> = Vec::new();
        let mut exact = Vec::new();
        for config in configs {
            let route = Route::new(config, formats, &shared);
            let route = Arc::new(route.map_err(|why| format!("route {}: {why}", config.path))?);
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
    pub(crate) fn find(&self, method: &Method, path: &str) -> Option<Found> {
        if method == Method::OPTIONS {
            return None;
        }
        let takes =
            |route: &&Arc<Route>| route.config.methods.is_empty() || route.config.methods.contains(method);
        let exactly = |route: &Arc<Route>| Some((route.clone(), segments_of(&route.config.path, path)?));
        if let Some((route, segments)) = self.exact.iter().filter(takes).find_map(exactly) {
            return Some(Found { route, segments });
        }
        let normal = normalise(path);
        let found = self.loose.at(&normal).ok()?;
        let route = found.value.iter().find(takes)?.clone();
        Some(Found { route, segments: found.params.iter().map(|(_, segment)| segment.to_owned()).collect() })
    }
}

/// The segments of `path` that `pattern` has names for, where it is that pattern's, byte for byte.
fn segments_of(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut named, mut segments) = (Vec::new(), path.split('/'));
    for expected in pattern.split('/') {
        match segments.next()? {
            segment if expected.starts_with('{') && !segment.is_empty() => named.push(segment.to_owned()),
            segment if segment == expected => {}
            _ => return None,
        }
    }
    segments.next().is_none().then_some(named)
}

/// The names that a route's path has for its segments, in order.
fn names(path: &str) -> Vec<String> {
    let name = |segment: &str| Some(segment.strip_prefix('{')?.strip_suffix('}')?.to_owned());
    path.split('/').filter_map(name).collect()
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
    fn an_exact_path_has_its_segments_too() {
        let of = |path| segments_of("/a/{x}/b/{y}", path);
        assert_eq!(of("/a/1/b/2%20"), Some(vec!["1".to_owned(), "2%20".to_owned()]));
        for other in ["/a/1/b", "/a/1/b/2/", "/a//b/2", "/A/1/b/2", "/a/1/c/2"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(segments_of("/a", "/a"), Some(Vec::new()));
    }

    #[test]
    fn an_ordinary_path_is_not_copied() {
        assert!(matches!(normalise("/api/widget/chat"), Cow::Borrowed(_)));
    }
}
