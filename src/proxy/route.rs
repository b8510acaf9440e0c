//! Which requests are metered: decided by path and method.
//!
//! For matching only, a path is read as lenient services read it (`spelling`); the request itself is forwarded as it
//! came. A spelling that the service takes for the chat route and we don't would be a way round the quota. Which of its
//! readings the service takes we can't know: where they are of several routes, or name several things, the request is
//! refused.

use std::sync::Arc;

use http::request::Parts;
use percent_encoding::percent_decode_str;

use super::audit;
use super::config::{BodyConfig, IdentifyConfig, PathMatch, RouteConfig, SourceConfig};
use super::failure::Failure;
use super::headers::overriding_methods;
use super::identify::{Rejection, Rules};
use super::model_name::ModelRules;
use super::notice::Notice;
use super::origins::Origins;
use super::pattern::{Piece, pieces};
use super::spelling::{Reading, in_small_letters, normalise, readings, without_tails};
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
    /// That its calls are refused for bodies that can't be read.
    pub(crate) unreadable: Notice,
    /// The pages that may read its answers with cookies.
    pub(crate) origins: Origins,
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
        Ok(Self {
            config: config.clone(),
            format,
            sources,
            audit,
            model,
            unread: Notice::new(),
            unreadable: Notice::new(),
            origins: Origins::new(),
        })
    }

    /// Whether its calls are metered without being read.
    pub(crate) fn is_opaque(&self) -> bool {
        matches!(self.config.body, BodyConfig::Opaque { .. })
    }

    /// Whether a request that can't be given a tenant passes unmetered: never with a credential of ours, however it
    /// is spoilt.
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
                    let path = shape(&normalise(&config.path).path);
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

    /// The metered route of a request, if it is one: by its method, or by the one that a service may be told to take it
    /// for.
    ///
    /// # Errors
    /// It is one of several, by how the service reads it.
    pub(crate) fn find_for(&self, head: &Parts) -> Result<Option<Found>, Failure> {
        let path = head.uri.path();
        let found = self.find(head.method.as_str(), path)?;
        overriding_methods(head).try_fold(found, |found, method| agreed(found, self.find(&method, path)?))
    }

    /// Some metered route at `path`, whatever its methods: the one that a preflight asks about.
    pub(crate) fn at(&self, path: &str) -> Option<Arc<Route>> {
        let exactly = self.exact.iter().find(|route| segments_of(&route.config.path, path).is_some());
        exactly.cloned().or_else(|| Some(self.loose.at(&in_small_letters(path)).ok()?.value.first()?.clone()))
    }

    /// The metered route of `method` at `path`. `OPTIONS` never has one: a preflight carries no tenant. Methods are compared
    /// in any case, as ASP.NET, werkzeug and Symfony compare them.
    ///
    /// # Errors
    /// The path has several, by how the service reads it.
    pub(crate) fn find(&self, method: &str, path: &str) -> Result<Option<Found>, Failure> {
        if method.eq_ignore_ascii_case("OPTIONS") {
            return Ok(None);
        }
        let takes = |route: &&Arc<Route>| {
            let methods = &route.config.methods;
            methods.is_empty() || methods.iter().any(|taken| taken.as_str().eq_ignore_ascii_case(method))
        };
        let exactly = |route: &Arc<Route>| Some((route.clone(), segments_of(&route.config.path, path)?));
        if let Some((route, segments)) = self.exact.iter().filter(takes).find_map(exactly) {
            return Ok(Some(Found { route, segments }));
        }
        let found = readings(path).map(|reading| self.read_as(&reading, &takes)).try_fold(None, agreed)?;
        Ok(found.or_else(|| without_tails(path).find_map(|reading| self.read_as(&reading, &takes))))
    }

    /// The route of one reading of a path. The case of letters does not count, but names keep theirs.
    fn read_as(&self, reading: &Reading<'_>, takes: &impl Fn(&&Arc<Route>) -> bool) -> Option<Found> {
        let path = in_small_letters(&reading.path);
        let found = self.loose.at(&path).ok()?;
        let route = found.value.iter().find(|route| takes(route))?.clone();
        let as_it_came = |(_, segment): (&str, &str)| {
            let begin = segment.as_ptr() as usize - path.as_ptr() as usize;
            let segment = reading.path.get(begin..begin + segment.len()).unwrap_or(segment);
            match reading.split_first {
                true => percent_decode_str(segment).decode_utf8_lossy().into_owned(),
                false => segment.to_owned(),
            }
        };
        let segments = found.params.iter().map(as_it_came).collect();
        Some(Found { route, segments })
    }
}

/// What two readings of a request find, where that is one and the same.
fn agreed(one: Option<Found>, other: Option<Found>) -> Result<Option<Found>, Failure> {
    match (one, other) {
        (Some(one), Some(other))
            if !Arc::ptr_eq(&one.route, &other.route) || one.segments != other.segments =>
        {
            Err(Failure::Malformed("the path or the method can be read in several ways: write it plainly"))
        }
        (one, other) => Ok(one.or(other)),
    }
}

/// A pattern with its names numbered: two that differ in names alone are one to the router.
fn shape(pattern: &str) -> String {
    let number = |(at, piece): (usize, Piece<'_>)| match piece {
        Piece::Literal(text) => format!("/{}", text.to_ascii_lowercase()),
        Piece::Named { suffix, .. } => format!("/{{p{at}}}{}", suffix.to_ascii_lowercase()),
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn patterns_that_differ_in_names_alone_are_one() {
        assert_eq!(shape("/a/{x}/b/{y}:go"), shape("/a/{tenant}/b/{model}:go"));
        assert_ne!(shape("/a/{x}:go"), shape("/a/{x}"));
        assert_eq!(shape("/"), "/");
    }
}
