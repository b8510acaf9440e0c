//! `[[routes]]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::audit::{self, Reach, SharedRule};
use super::path::bare_or_quoted;
use super::reader::{Slot, Table, all};
use super::tenants::{self, Surroundings};
use super::units;
use crate::meter::Formats;
use crate::model::event::EventType;
use crate::model::price::MAX_NAME_BYTES;
use crate::proxy::{
    BodyConfig, CutConfig, CutEvent, DrainConfig, Enforce, ModelConfig, PathMatch, RefusalText, RouteConfig,
    SourceConfig, segment_names,
};

/// What a chat message took in the service itself, before anything was known.
const RESERVE_TOKENS: u64 = 150;
/// Room for a chat with images in it, base64 and all.
const MAX_BODY_BYTES: usize = 8 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(60);
const DRAIN_BYTES: u64 = 16 << 20;

/// What routes must be checked against.
pub(super) struct Context<'a> {
    /// `None` where they have faults of their own; then no name is held against them.
    pub(super) formats: Option<&'a Formats>,
    /// The audit rules that are not a route's own.
    pub(super) shared: &'a [SharedRule],
    pub(super) around: &'a Surroundings<'a>,
}

pub(super) fn routes(root: &Table<'_>, context: &Context<'_>) -> Option<Vec<RouteConfig>> {
    let slot = root.key("routes");
    let list = slot.list()?;
    if list.is_empty() {
        slot.fault("is empty, so nothing is metered: name at least one route");
    }
    let routes: Vec<Option<RouteConfig>> = list.iter().map(|slot| route(slot, context)).collect();
    for (at, (route, slot)) in routes.iter().zip(&list).enumerate() {
        let Some(route) = route else { continue };
        if let Some(first) =
            routes[..at].iter().position(|earlier| earlier.as_ref().is_some_and(|r| same(r, route)))
        {
            slot.fault(format!("is the same path and method as routes[{first}]: remove one of them"));
        }
    }
    routes.into_iter().collect()
}

fn route(slot: &Slot<'_>, context: &Context<'_>) -> Option<RouteConfig> {
    let table = slot.table()?;
    let path = table.key("path").parse("a string", path);
    let methods = table.optional("methods").map_or(Some(Vec::new()), |methods| methods.strings(method));
    let events = EventType::ALL.map(|event| (event.as_str(), event));
    let event = optional(&table, "event", EventType::ApiCall, "api_call", |slot| slot.choice(&events));
    let path_match = optional(&table, "match", PathMatch::Loose, "loose", |slot| {
        slot.choice(&[("loose", PathMatch::Loose), ("exact", PathMatch::Exact)])
    });
    let enforce = optional(&table, "enforce", Enforce::Hard, "hard", |slot| {
        slot.choice(&[("hard", Enforce::Hard), ("shadow", Enforce::Shadow), ("off", Enforce::Off)])
    });
    let format = optional(&table, "format", "auto", "auto", |slot| format_name(slot, context.formats));
    let reserve_tokens = optional(&table, "reserve_tokens", RESERVE_TOKENS, RESERVE_TOKENS, |slot| {
        slot.integer(0..=1_000_000_000)
    });
    let model = model(&table, path.as_deref(), format);
    let narrow = optional(&table, "narrow_accept_encoding", true, true, |slot| slot.boolean());
    let body = body(&table);
    let unread_items = table.optional("unread_items").map(|slot| slot.integer(1..=1_000_000_000));
    let drain = drain(&table);
    let cut = cut(&table, enforce);
    let segments = path.as_deref().and_then(|path| segment_names(path).ok()).unwrap_or_default();
    let sources =
        table.optional("sources").map(|slot| sources(&slot.in_one_line(), &segments, context.around));
    let charge = charge(&table, sources.as_ref().and_then(Option::as_deref).unwrap_or_default());
    let unidentified = table.optional("unidentified");
    let unidentified = unidentified.map(|slot| slot.choice(&[("reject", false), ("pass", true)]));
    let reach =
        Reach { segments: Some(&segments), reads_body: !matches!(body, Some(BodyConfig::Opaque { .. })) };
    let refusal = table.optional("refusal").map(|slot| slot.parse("a string", RefusalText::new));
    let own = table.optional("audit").map_or(Some(Vec::new()), |slot| audit::of_route(&slot, &reach));
    let shared = context.shared.iter().filter_map(|rule| rule.of(event?));
    Some(RouteConfig {
        path: path?,
        methods: methods?,
        event: event?,
        path_match: path_match?,
        enforce: enforce?,
        charge: charge?,
        format: format?.to_owned(),
        model: model?,
        narrow_accept_encoding: narrow?,
        reserve_tokens: reserve_tokens?,
        body: body?,
        unread_items: given(unread_items)?,
        sources: given(sources)?,
        pass_unidentified: given(unidentified)?,
        drain: drain?,
        cut: cut?,
        refusal: given(refusal)?.map(Arc::new),
        audit: own?.into_iter().chain(shared).collect(),
    })
}

/// What was read of a key that need not be there; `None` only where it was, and had a fault.
fn given<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(None) => None,
        Some(value) => Some(value),
        None => Some(None),
    }
}

fn body(table: &Table<'_>) -> Option<BodyConfig> {
    let opaque =
        optional(table, "body", false, "json", |slot| slot.choice(&[("json", false), ("opaque", true)]));
    if opaque? {
        let limit = table.optional("max_body_bytes").map(|slot| slot.size(1..=1 << 50));
        return Some(BodyConfig::Opaque { max_bytes: given(limit)? });
    }
    let as_typed = units::show_size(MAX_BODY_BYTES as u64);
    let limit =
        optional(table, "max_body_bytes", MAX_BODY_BYTES, as_typed, |slot| slot.memory(1024..=256 << 20));
    Some(BodyConfig::Json { max_bytes: limit? })
}

/// A route's own sources. Who can name the tenant in them is told, unless it is the service's own route, which has
/// no other.
fn sources(slot: &Slot<'_>, segments: &[String], around: &Surroundings<'_>) -> Option<Vec<SourceConfig>> {
    let list = slot.list()?;
    if list.is_empty() {
        slot.fault("is empty, so no request of the route has a tenant: name a source, or leave the key out");
    }
    let sources = all(list.iter().map(|slot| tenants::source(slot, around, Some(segments))))?;
    for (slot, source) in list.iter().zip(&sources) {
        if !slot.is_built_in() {
            tenants::warn_of(slot.report(), &slot.path(), source, around);
        }
    }
    let last = sources.len().saturating_sub(1);
    if let Some(at) = sources.iter().position(|source| matches!(source, SourceConfig::Answer(_)))
        && at < last
    {
        list[at].fault("must be the last source: what comes after it is never asked");
    }
    Some(sources)
}

/// Whether calls are charged: not where a source of the route's own is anybody's word, unless the route says so. Whoever can
/// name any tenant could use up its rate limit.
fn charge(table: &Table<'_>, sources: &[SourceConfig]) -> Option<bool> {
    let anybodys = |source: &SourceConfig| {
        matches!(source, SourceConfig::Json(_) | SourceConfig::Query(_) | SourceConfig::Path(_))
    };
    let claimed = sources.iter().any(anybodys);
    if claimed && table.optional("charge").is_none() {
        table.report().warn(format!(
            "{}: anyone can name any tenant here, so its calls are recorded and charged to none: write charge = true \
             where only callers that you trust can reach it, else charge = false",
            table.path()
        ));
    }
    optional(table, "charge", !claimed, !claimed, |slot| slot.boolean())
}

/// Which model prices a route's exchanges where their answers name none.
fn model(table: &Table<'_>, path: Option<&str>, format: Option<&str>) -> Option<ModelConfig> {
    let route = given(table.optional("model").map(|slot| slot.parse("a string", model_name)));
    let own = !matches!(route, Some(None));
    let believed = !own && path.zip(format).is_some_and(|(path, format)| is_model_api(path, format));
    let request = optional(table, "request_model", believed, believed, |slot| slot.boolean());
    let of_path = |text: &str| {
        let path = path.unwrap_or_default();
        let names = segment_names(path).unwrap_or_default();
        match text.split('/').find(|name| !names.iter().any(|known| known == name)) {
            Some(name) if !path.is_empty() => {
                Err(format!("{name:?} is no segment of {path}: write {{{name}}} in the path"))
            }
            _ => Ok(text.to_owned()),
        }
    };
    let segment = given(table.optional("model_segment").map(|slot| slot.parse("a string", of_path)));
    let names = table.optional("models").map_or(Some(BTreeMap::new()), |slot| names(&slot.in_one_line()));
    Some(ModelConfig { route: route?, request: request?, segment: segment?, names: names? })
}

fn names(slot: &Slot<'_>) -> Option<BTreeMap<String, String>> {
    let named = slot.table()?.named();
    let pairs = named.into_iter().map(|(name, slot)| Some((name, slot.parse("a string", model_name)?)));
    Some(all(pairs)?.into_iter().collect())
}

fn model_name(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("is empty: write a model's name".to_owned()),
        1..=MAX_NAME_BYTES => Ok(text.to_owned()),
        _ => Err(format!("is longer than any model's name: {MAX_NAME_BYTES} bytes at most")),
    }
}

/// Whether a route is that of a model's own API, by its format or, with `auto`, by the end of its path: there the
/// request's model is the one that answers. An application in between takes its model from its own settings.
fn is_model_api(path: &str, format: &str) -> bool {
    const FORMATS: [&str; 14] = [
        "openai-chat",
        "openai-responses",
        "openai-completions",
        "openai-embeddings",
        "anthropic",
        "gemini",
        "vertex-embeddings",
        "cohere",
        "bedrock-converse",
        "bedrock-invoke",
        "ollama",
        "llama-cpp",
        "llama-cpp-timings",
        "text-generation-inference",
    ];
    const ENDS: [&str; 5] =
        ["/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"];
    FORMATS.contains(&format)
        || (format == "auto" && ENDS.iter().any(|end| path.trim_end_matches('/').ends_with(end)))
}

/// What becomes of the upstream's answer when its client leaves.
fn drain(table: &Table<'_>) -> Option<Option<DrainConfig>> {
    let drains = optional(table, "on_client_gone", false, "cancel", |slot| {
        slot.choice(&[("cancel", false), ("drain", true)])
    });
    let time = optional(table, "drain_time", DRAIN_TIME, units::show_duration(DRAIN_TIME), |slot| {
        slot.duration(Duration::from_millis(1)..=Duration::from_secs(3600))
    });
    let bytes = optional(table, "drain_bytes", DRAIN_BYTES, units::show_size(DRAIN_BYTES), |slot| {
        slot.size(1024..=1 << 40)
    });
    let limits = DrainConfig { time: time?, bytes: bytes? };
    Some(drains?.then_some(limits))
}

/// What becomes of a stream that has used up what its tenant has left.
fn cut(table: &Table<'_>, enforce: Option<Enforce>) -> Option<Option<CutConfig>> {
    let cuts = optional(table, "over_limit", false, "finish", |slot| {
        let cuts = slot.choice(&[("finish", false), ("cut", true)])?;
        if cuts && enforce == Some(Enforce::Off) {
            slot.fault(
                "\"cut\" needs a limit to be held to: write enforce = \"hard\", or \"shadow\" to try it out",
            );
            return None;
        }
        Some(cuts)
    });
    let event = match table.optional("cut_event") {
        Some(slot) => Some(slot.parse("a string", CutEvent::new)?),
        None => None,
    };
    Some(cuts?.then_some(CutConfig { event }))
}

fn format_name<'a>(slot: &Slot<'a>, formats: Option<&Formats>) -> Option<&'a str> {
    let name = slot.string()?;
    if let Some(formats) = formats.filter(|formats| formats.format(name).is_none()) {
        let known = units::suggestion(name, formats.names());
        slot.fault(format!("there is no format {name:?}: define [formats.{}]{known}", bare_or_quoted(name)));
        return None;
    }
    Some(name)
}

fn optional<'a, T>(
    table: &Table<'a>,
    key: &str,
    default: T,
    as_typed: impl Into<config::Value>,
    read: impl FnOnce(&Slot<'a>) -> Option<T>,
) -> Option<T> {
    match table.optional(key) {
        Some(slot) => read(&slot),
        None => {
            table.assume(key, as_typed);
            Some(default)
        }
    }
}

fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is no path: begin it with /"));
    }
    if let Some(odd) = text.chars().find(|c| c.is_control() || c.is_whitespace() || "?#".contains(*c)) {
        return Err(format!("{text:?} holds {odd:?}: write the path alone, without a query"));
    }
    segment_names(text).map(|_| text.to_owned())
}

fn method(text: &str) -> Result<http::Method, String> {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "QUERY"];
    if let Some(known) = KNOWN.iter().find(|known| **known == text) {
        return known.parse().map_err(|_| format!("{text:?} is no method"));
    }
    match text.to_ascii_uppercase().as_str() {
        "OPTIONS" => Err("OPTIONS is never metered: remove it".to_owned()),
        "CONNECT" | "TRACE" => Err(format!("{text:?} is never forwarded: remove it")),
        _ => Err(format!("{text:?} is no method that can be metered: write {}{}", KNOWN.join(", "), {
            units::suggestion(text, KNOWN)
        })),
    }
}

/// Whether some request would be both, as far as names of segments and a closing slash go.
fn same(a: &RouteConfig, b: &RouteConfig) -> bool {
    let shape = |route: &RouteConfig| {
        let nameless = |segment: &str| match segment.split_once('}') {
            Some((_, suffix)) => format!("{{}}{suffix}"),
            None => segment.to_owned(),
        };
        let shape = route.path.split('/').map(nameless).collect::<Vec<_>>().join("/");
        match route.path_match {
            PathMatch::Loose => shape.trim_end_matches('/').to_ascii_lowercase(),
            PathMatch::Exact => shape,
        }
    };
    let overlap = a.methods.is_empty()
        || b.methods.is_empty()
        || a.methods.iter().any(|method| b.methods.contains(method));
    overlap && shape(a) == shape(b)
}
