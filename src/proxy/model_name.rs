//! Which model an exchange is priced as, where its answer names none. Whoever calls must not pick a price: a request's
//! word counts only where the route says so. The path's word is another matter: by it the service finds the model.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::config::{ModelConfig, PathMatch, RouteConfig};
use super::pattern::{Piece, pieces};
use crate::model::price::MAX_NAME_BYTES;

/// The operations that Google's APIs put behind a model's name
/// (<https://ai.google.dev/api/generate-content>, <https://cloud.google.com/vertex-ai/docs/reference/rest>).
const GOOGLE_VERBS: [&str; 14] = [
    "generateContent",
    "streamGenerateContent",
    "generateAnswer",
    "countTokens",
    "computeTokens",
    "embedContent",
    "batchEmbedContents",
    "batchGenerateContent",
    "generateMessage",
    "generateText",
    "predict",
    "rawPredict",
    "streamRawPredict",
    "predictLongRunning",
];

/// What follows a model's id in the paths of Bedrock's runtime
/// (<https://docs.aws.amazon.com/bedrock/latest/APIReference/API_Operations_Amazon_Bedrock_Runtime.html>).
const BEDROCK_VERBS: [&str; 6] = [
    "converse",
    "converse-stream",
    "count-tokens",
    "invoke",
    "invoke-with-bidirectional-stream",
    "invoke-with-response-stream",
];

/// Who named a model that the answer did not name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// The path, in which the service finds it too.
    Path,
    /// The request's body.
    Request,
    /// The route's own `model`.
    Route,
    /// Nobody: the default's price.
    #[default]
    Default,
}

impl NamedBy {
    /// As the row's metadata spells it (`model_from`).
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            NamedBy::Path => "path",
            NamedBy::Request => "request",
            NamedBy::Route => "route",
            NamedBy::Default => "default",
        }
    }
}

/// The model that an exchange is priced as until its answer names one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) name: Option<String>,
    pub(crate) by: NamedBy,
}

/// Where a path names the model.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    /// The pattern itself has it.
    Literal(String),
    /// In these of the segments that have a name, joined by `/`.
    Segments(Vec<usize>),
}

/// A route's rules, compiled.
#[derive(Debug)]
pub(crate) struct ModelRules {
    place: Place,
    /// The path's segments come as they were sent, escapes and all.
    escaped: bool,
    believes_request: bool,
    route: Option<String>,
    names: BTreeMap<String, String>,
}

impl ModelRules {
    /// The rules of `config`; an error names what can't work.
    pub(crate) fn new(config: &RouteConfig) -> Result<Self, String> {
        let ModelConfig { route, request, segment, names } = &config.model;
        let place = match segment {
            Some(segment) => named(&config.path, segment)?,
            // What the operator names himself is not looked for.
            None if route.is_some() => Place::Nowhere,
            None => known(&config.path),
        };
        Ok(Self {
            place,
            escaped: config.path_match == PathMatch::Exact,
            believes_request: *request,
            route: route.clone(),
            names: names.clone(),
        })
    }

    /// The model of a request with these segments in its path and this name in its body.
    pub(crate) fn expected(&self, segments: &[String], asked: Option<&str>) -> Expected {
        let by_path = || Some((self.in_path(segments)?, NamedBy::Path));
        let by_request = || Some((asked.filter(|_| self.believes_request)?.to_owned(), NamedBy::Request));
        let named = by_path().into_iter().chain(by_request()).find(|(name, _)| is_name(name));
        match (named, &self.route) {
            (Some((name, by)), _) => {
                Expected { name: Some(self.names.get(&name).cloned().unwrap_or(name)), by }
            }
            (None, Some(route)) => Expected { name: Some(route.clone()), by: NamedBy::Route },
            (None, None) => Expected::default(),
        }
    }

    fn in_path(&self, segments: &[String]) -> Option<String> {
        let of = |at: &usize| {
            let segment = segments.get(*at)?;
            match self.escaped {
                true => Some(percent_decode_str(segment).decode_utf8_lossy().into_owned()),
                false => Some(segment.clone()),
            }
        };
        match &self.place {
            Place::Nowhere => None,
            Place::Literal(name) => Some(name.clone()),
            Place::Segments(places) => {
                let parts: Option<Vec<String>> = places.iter().map(of).collect();
                Some(without_verb(&parts?.join("/")).to_owned())
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

/// A model's name without Google's operation behind it, where a route has one name for both.
fn without_verb(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((model, verb)) if GOOGLE_VERBS.contains(&verb) => model,
        _ => name,
    }
}

/// The place that the config names: a segment's name, or several with a `/` between.
fn named(path: &str, segment: &str) -> Result<Place, String> {
    let names: Vec<&str> = pieces(path).filter_map(|piece| piece.name()).collect();
    let place = |wanted: &str| {
        let at = names.iter().position(|name| *name == wanted);
        at.ok_or_else(|| {
            format!("model_segment {wanted:?} is no segment of {path}: write {{{wanted}}} there")
        })
    };
    Ok(Place::Segments(segment.split('/').map(place).collect::<Result<_, _>>()?))
}

/// Where the paths of Bedrock, Gemini, Vertex and Azure name their model.
fn known(path: &str) -> Place {
    let pieces: Vec<Piece<'_>> = pieces(path).collect();
    let mut named = 0;
    for (at, piece) in pieces.iter().enumerate() {
        let before =
            |back: usize| at.checked_sub(back).and_then(|at| pieces[at].literal()).unwrap_or_default();
        let next = pieces.get(at + 1);
        let is_model = match before(1) {
            // `{model}:generateContent`, or one name for both.
            "models" | "tunedModels" => piece.has_verb() || (piece.name().is_some() && next.is_none()),
            "model" => next.is_some_and(|next| match next.literal() {
                Some(verb) => BEDROCK_VERBS.contains(&verb),
                None => true,
            }),
            // A deployment is not a model, but the config may say whose it is.
            "deployments" => before(2) == "openai",
            _ => false,
        };
        match (is_model, piece) {
            (true, Piece::Named { .. }) => return Place::Segments(vec![named]),
            (true, Piece::Literal(text)) => {
                let text = percent_decode_str(text).decode_utf8_lossy();
                return Place::Literal(without_verb(&text).to_owned());
            }
            (false, Piece::Named { .. }) => named += 1,
            (false, Piece::Literal(_)) => {}
        }
    }
    Place::Nowhere
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, segments: &[&str]) -> Option<String> {
        let rules = ModelRules {
            place: known(path),
            escaped: false,
            believes_request: false,
            route: None,
            names: BTreeMap::new(),
        };
        rules.expected(&segments.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), None).name
    }

    #[test]
    fn the_paths_of_known_providers_name_their_model() {
        for (path, segments, model) in [
            ("/model/{id}/converse", &["anthropic.claude-v2:1"][..], "anthropic.claude-v2:1"),
            ("/model/{id}/{verb}", &["amazon.nova-lite-v1:0", "invoke"], "amazon.nova-lite-v1:0"),
            ("/bedrock/model/{id}/invoke-with-response-stream", &["a/b"], "a/b"),
            ("/model/meta.llama3-8b-instruct-v1%3A0/invoke", &[], "meta.llama3-8b-instruct-v1:0"),
            ("/v1beta/models/{m}:generateContent", &["gemini-2.5-pro"], "gemini-2.5-pro"),
            ("/v1beta/models/{call}", &["gemini-2.5-pro:streamGenerateContent"], "gemini-2.5-pro"),
            ("/v1beta/models/gemini-2.5-pro:generateContent", &[], "gemini-2.5-pro"),
            (
                "/v1/projects/{p}/locations/{l}/publishers/anthropic/models/{m}:rawPredict",
                &["p", "l", "claude-sonnet-4@20250514"],
                "claude-sonnet-4@20250514",
            ),
            ("/openai/deployments/{d}/chat/completions", &["prod"], "prod"),
            ("/openai/deployments/gpt-4o/chat/completions", &[], "gpt-4o"),
        ] {
            assert_eq!(found(path, segments).as_deref(), Some(model), "{path}");
        }
    }

    #[test]
    fn other_paths_name_none() {
        for path in [
            "/api/widget/chat",
            "/v1/models/{owner}/{name}/predictions",
            "/model/{id}",
            "/model/{id}/train",
            "/deployments/{d}/chat",
            "/v1/models/list",
        ] {
            assert_eq!(found(path, &["x", "y"]), None, "{path}");
        }
    }

    #[test]
    fn a_name_longer_than_any_models_is_none() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert_eq!(found("/model/{id}/converse", &[&long]), None);
        assert_eq!(found("/model/{id}/converse", &[""]), None);
    }

    #[test]
    fn several_segments_are_one_name_and_one_that_is_not_there_is_a_fault() {
        let place = named("/v1/models/{owner}/{name}/predictions", "owner/name");
        assert_eq!(place, Ok(Place::Segments(vec![0, 1])));
        let fault = named("/v1/{x}", "model").unwrap_err();
        assert_eq!(fault, "model_segment \"model\" is no segment of /v1/{x}: write {model} there");
    }
}
