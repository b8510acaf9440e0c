//! Which requests are metered: decided by path and method.
//!
//! For matching only, a path is read as a lenient backend would read it; the request itself is forwarded as it came.
//! A spelling that the backend takes for the chat route and we don't would be a way round the quota.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use super::audit;
use super::config::{BodyConfig, IdentifyConfig, PathMatch, RouteConfig, SourceConfig};
use super::identify::{Rejection, Rules};
use super::model_name::ModelRules;
use super::notice::Notice;
use super::pattern::{Piece, pieces};
use crate::meter::{Format, Formats};

/// A metered route, compiled.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) config: RouteConfig,
    pub(crate) format: Arc<Format>,
    /// How its requests are given a tenant.
    pub(crate) sources: Arc<Rules>,
    pub(crate) audit: audit::Rules,
    pub(crate) model: ModelRules,
    /// That its calls can't be read.
    pub(crate) unread: Notice,
}

impl Route {
    fn new(config: &RouteConfig, formats: &Formats, shared: &Shared<'_>) -> Result<Self, String> {
        let format = formats
            .format(&config.format)
            .ok_or_else(|| format!("there is no format named {:?}", config.format))?;
        let segments: Vec<String> = pieces(&config.path).filter_map(Piece::name).map(str::to_owned).collect();
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
        let model = ModelRules::new(config)?;
        Ok(Self { config: config.clone(), format, sources, audit, model, unread: Notice::new() })
    }

    /// Whether its calls are metered without being read.
    pub(crate) fn is_opaque(&self) -> bool {
        matches!(self.config.body, BodyConfig::Opaque { .. })
    }

    /// Whether a request that can't be given a tenant passes unmetered.
    pub(crate) fn lets_pass(&self, rejection: &Rejection) -> bool {
        match (self.config.pass_unidentified, rejection) {
            (None, Rejection::Unidentified(_) | Rejection::UnknownSession) => self.sources.pass_unidentified,
            (
                Some(pass),
                Rejection::Unidentified(_) | Rejection::UnknownSession | Rejection::TokenInvalid,
            ) => pass,
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
                    let path = shape(&normalise(&config.path));
                    match loose.iter_mut().find(|(known, _)| *known == path) {
                        Some((_, routes)) => routes.push(route),
                        None => loose.push((path, vec![route])),
                    }
                }
            }
        }
        // The closest fit first: `{model}:verb` before `{model}`.
        exact.sort_by_key(|route: &Arc<Route>| std::cmp::Reverse(suffix_bytes(&route.config.path)));
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
        let loosely = |path: &str| {
            let found = self.loose.at(path).ok()?;
            let route = found.value.iter().find(takes)?.clone();
            let segments = found.params.iter().map(|(_, segment)| segment.to_owned()).collect();
            Some(Found { route, segments })
        };
        loosely(&normalise(path)).or_else(|| {
            let mut found = loosely(&with_escaped_slashes(path)?)?;
            for segment in &mut found.segments {
                *segment = percent_decode_str(segment).decode_utf8_lossy().into_owned();
            }
            Some(found)
        })
    }
}

/// A pattern with its names numbered: two that differ in names alone are one to the router.
fn shape(pattern: &str) -> String {
    let number = |(at, piece): (usize, Piece<'_>)| match piece {
        Piece::Literal(text) => format!("/{text}"),
        Piece::Named { suffix, .. } => format!("/{{p{at}}}{suffix}"),
    };
    pieces(pattern).enumerate().map(number).collect()
}

fn suffix_bytes(pattern: &str) -> usize {
    let bytes = |piece: Piece<'_>| match piece {
        Piece::Literal(_) => 0,
        Piece::Named { suffix, .. } => suffix.len(),
    };
    pieces(pattern).map(bytes).sum()
}

/// The segments of `path` that `pattern` has names for, where it is that pattern's, byte for byte.
fn segments_of(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut named, mut segments) = (Vec::new(), path.strip_prefix('/')?.split('/'));
    for piece in pieces(pattern) {
        let segment = segments.next()?;
        match piece {
            Piece::Literal(text) if text == segment => {}
            Piece::Literal(_) => return None,
            Piece::Named { suffix, .. } => named.push(before(segment, suffix)?.to_owned()),
        }
    }
    segments.next().is_none().then_some(named)
}

/// What of a segment comes before `suffix`. Some clients escape its `:`.
fn before<'a>(segment: &'a str, suffix: &str) -> Option<&'a str> {
    let strip = |rest: &'a str, c: char| {
        let escaped = || rest.strip_suffix("%3A").or_else(|| rest.strip_suffix("%3a"));
        rest.strip_suffix(c).or_else(|| if c == ':' { escaped() } else { None })
    };
    let name = suffix.chars().rev().try_fold(segment, strip)?;
    (!name.is_empty()).then_some(name)
}

/// The path as a lenient backend reads it: percent-decoded once, backslashes and repeated slashes as one slash
/// (the URL parsers of browsers and Node do so), dot segments resolved (RFC 3986 §5.2.4), no trailing slash.
fn normalise(path: &str) -> Cow<'_, str> {
    if is_normal(path) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(resolved(&percent_decode_str(path).decode_utf8_lossy()))
}

/// The same for a backend that splits a path before it decodes it, where that makes a difference: an escaped slash is a
/// part of its segment, as in the ARN of a model (`/model/arn%3Aaws%3A…%2F…/converse`). What is left to decode is in the
/// segments.
fn with_escaped_slashes(path: &str) -> Option<String> {
    const KEPT: [&str; 3] = ["2F", "5C", "25"];
    memchr::memchr(b'%', path.as_bytes())?;
    let mut escapes = path.split('%');
    let mut text = Vec::with_capacity(path.len());
    let mut kept_slash = false;
    text.extend_from_slice(escapes.next()?.as_bytes());
    for rest in escapes {
        let code = rest.get(..2).unwrap_or_default();
        match KEPT.iter().find(|kept| kept.eq_ignore_ascii_case(code)) {
            Some(kept) => {
                kept_slash |= *kept != "25";
                text.push(b'%');
                text.extend_from_slice(rest.as_bytes());
            }
            None => text.extend(percent_decode_str(&format!("%{rest}"))),
        }
    }
    kept_slash.then(|| resolved(&String::from_utf8_lossy(&text)))
}

/// Without dot segments, and with one slash for several.
fn resolved(decoded: &str) -> String {
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
    format!("/{}", segments.join("/"))
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
    fn a_name_with_an_operation_behind_it_is_found_in_exact_paths() {
        let of = |path| segments_of("/models/{m}:generateContent", path);
        assert_eq!(of("/models/gemini-2.5-pro:generateContent"), Some(vec!["gemini-2.5-pro".to_owned()]));
        assert_eq!(of("/models/a:b%3AgenerateContent"), Some(vec!["a:b".to_owned()]));
        assert_eq!(of("/models/a%3agenerateContent"), Some(vec!["a".to_owned()]));
        for other in ["/models/:generateContent", "/models/a:countTokens", "/models/a:generateContent/"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn an_escaped_slash_stays_in_its_segment_where_the_path_is_split_first() {
        let of = |path| with_escaped_slashes(path);
        assert_eq!(
            of("/model/arn%3aaws%3Abedrock%2fanthropic.claude-v2%3A1//converse/").as_deref(),
            Some("/model/arn:aws:bedrock%2fanthropic.claude-v2:1/converse")
        );
        assert_eq!(of("/a%2Fb%2541%C3%A4").as_deref(), Some("/a%2Fb%2541ä"));
        assert_eq!(of("/model/a%20b"), None, "there it makes no difference");
        assert_eq!(of("/a%2"), None);
        assert_eq!(of("/a%2Fb%ä%"), Some("/a%2Fb%ä%".to_owned()));
    }

    #[test]
    fn patterns_that_differ_in_names_alone_are_one() {
        assert_eq!(shape("/a/{x}/b/{y}:go"), shape("/a/{tenant}/b/{model}:go"));
        assert_ne!(shape("/a/{x}:go"), shape("/a/{x}"));
        assert_eq!(shape("/"), "/");
    }

    #[test]
    fn an_ordinary_path_is_not_copied() {
        assert!(matches!(normalise("/api/widget/chat"), Cow::Borrowed(_)));
    }
}
