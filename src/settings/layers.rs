//! The layers of a config, as typed: built-in default, `DATABASE_URL`, file, environment.
//!
//! The `config` crate merges them: tables key by key, anything else as a whole. What it does not do is done here, so
//! that every fault can name its place:
//!
//! 1. Each value carries its origin: `FILE:LINE`, the variable's name, or `built-in default`. The crate's own file
//!    source knows no lines, reads `x.toml` when `x` is missing, and stops at the first syntax error.
//! 2. Table names (plans, tenants, models) keep their case and their dots. The crate's own environment source lowers
//!    all names and takes a dot for a level.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use config::{Map, Source, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::Fault;
use super::units;

/// How faults name the default that is compiled in.
pub(super) const BUILT_IN: &str = "built-in default";
/// What the variables of single keys begin with.
pub(super) const PREFIX: &str = "TOLLGATE__";
/// The sections whose second level is a name of the operator's.
const NAMED: [&str; 4] = ["plans", "overrides", "prices", "formats"];
/// Far more than any config; keeps a mistaken path (a device, a database file) from filling the memory.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// One step from a table or list to what is in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A table's key.
    Key(String),
    /// A list's element.
    Index(usize),
}

/// One layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    root: Value,
    /// Whether its values are text that takes the type that the key needs.
    textual: bool,
}

/// All layers, lowest first, and what they come to.
#[derive(Debug)]
pub(super) struct Layers {
    layers: Vec<Layer>,
    /// What they come to.
    pub(super) merged: Map<String, Value>,
    /// Whether the file is no valid TOML, so that what was read of it may not be what was meant.
    pub(super) torn: bool,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        self.root.clone().into_table()
    }
}

impl Layers {
    /// Reads all layers. What can't be read is a fault; the rest is there all the same.
    pub(super) fn read(
        default: &str,
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut layers = vec![toml_layer(default, None, faults).0];
        layers.extend(environment.get("DATABASE_URL").map(|url| database_url_layer(url)));
        let file = file.and_then(|path| file_layer(path, faults));
        let torn = file.as_ref().is_some_and(|(_, torn)| *torn);
        layers.extend(file.map(|(layer, _)| layer));
        let variables = variable_layer(environment, &layers, faults);
        layers.push(variables);
        let builder =
            layers.iter().fold(config::Config::builder(), |builder, layer| builder.add_source(layer.clone()));
        let merged = match builder.build().and_then(|merged| merged.cache.into_table()) {
            Ok(merged) => merged,
            Err(error) => {
                faults.push(Fault { origin: BUILT_IN.into(), key: String::new(), reason: error.to_string() });
                Map::new()
            }
        };
        Self { layers, merged, torn }
    }

    /// Where the value at `path` comes from, and whether it is text that takes the type it needs. For a key that
    /// is not there, where the table comes from that lacks it.
    pub(super) fn origin(&self, path: &[Step]) -> (&str, bool) {
        (0..=path.len())
            .rev()
            .find_map(|length| self.layers.iter().rev().find_map(|layer| layer.origin(&path[..length])))
            .unwrap_or((BUILT_IN, false))
    }
}

impl Layer {
    fn origin(&self, path: &[Step]) -> Option<(&str, bool)> {
        let found = path.iter().try_fold(&self.root, |value, step| match (step, &value.kind) {
            (Step::Key(key), ValueKind::Table(table)) => table.get(key),
            (Step::Index(at), ValueKind::Array(list)) => list.get(*at),
            _ => None,
        })?;
        Some((found.origin()?, self.textual))
    }

    /// The names in the table `section`.
    fn names(&self, section: &str) -> impl Iterator<Item = &str> {
        let table = match &self.root.kind {
            ValueKind::Table(root) => root.get(section),
            _ => None,
        };
        let table = match table.map(|value| &value.kind) {
            Some(ValueKind::Table(table)) => Some(table),
            _ => None,
        };
        table.into_iter().flat_map(|table| table.keys().map(String::as_str))
    }
}

fn file_layer(path: &Path, faults: &mut Vec<Fault>) -> Option<(Layer, bool)> {
    let shown = path.display().to_string();
    let mut fault = |reason: String| faults.push(Fault { origin: shown.clone(), key: String::new(), reason });
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        fault(format!("can't be read: {error}"));
        return None;
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        fault("is larger than any config: is it the right file?".to_owned());
        return None;
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Some(toml_layer(text.strip_prefix('\u{feff}').unwrap_or(text), Some(&shown), faults)),
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            faults.push(Fault {
                origin: format!("{shown}:{line}"),
                key: String::new(),
                reason: "is not UTF-8 text here: save the file as UTF-8".to_owned(),
            });
            None
        }
    }
}

/// `file` is `None` for the built-in default. Also whether there was anything that is no TOML.
fn toml_layer(text: &str, file: Option<&str>, faults: &mut Vec<Fault>) -> (Layer, bool) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let torn = !errors.is_empty();
    let mut lines = Lines { text, file, faults };
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        // Not the error's own rendering: that repeats the line, which may hold a password.
        lines.fault(at, String::new(), format!("is no valid TOML: {}", error.message()));
    }
    let mut root = Map::new();
    for (key, value) in table.into_inner() {
        let plain = key.get_ref().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if plain {
            let origin = lines.origin(key.span().start);
            root.insert(key.get_ref().to_string(), lines.value(value, Some(origin)));
        } else {
            // `config` would take a path expression for the name of a level.
            let key_text = format!("{:?}", key.get_ref());
            lines.fault(
                key.span().start,
                key_text,
                "is no section: write it as [section] and key".to_owned(),
            );
        }
    }
    (Layer { root: Value::new(Some(&file.unwrap_or(BUILT_IN).to_owned()), root), textual: false }, torn)
}

struct Lines<'a> {
    text: &'a str,
    file: Option<&'a str>,
    faults: &'a mut Vec<Fault>,
}

impl Lines<'_> {
    fn origin(&self, at: usize) -> String {
        let Some(file) = self.file else { return BUILT_IN.to_owned() };
        let line =
            1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count();
        format!("{file}:{line}")
    }

    fn fault(&mut self, at: usize, key: String, reason: String) {
        let origin = self.origin(at);
        self.faults.push(Fault { origin, key, reason });
    }

    /// `origin` is the key's place where there is a key, since that of a table's content may be elsewhere.
    fn value(&mut self, value: Spanned<DeValue<'_>>, origin: Option<String>) -> Value {
        let at = value.span().start;
        let origin = origin.unwrap_or_else(|| self.origin(at));
        let kind = match value.into_inner() {
            DeValue::String(text) => ValueKind::String(text.into_owned()),
            DeValue::Boolean(boolean) => ValueKind::Boolean(boolean),
            DeValue::Datetime(datetime) => ValueKind::String(datetime.to_string()),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(integer) => ValueKind::I64(integer),
                Err(_) => {
                    self.fault(at, String::new(), "a number here is larger than 64 bits can hold".to_owned());
                    ValueKind::Nil
                }
            },
            DeValue::Float(float) => ValueKind::Float(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Array(list) => {
                ValueKind::Array(list.into_iter().map(|element| self.value(element, None)).collect())
            }
            DeValue::Table(table) => ValueKind::Table(
                table
                    .into_iter()
                    .map(|(key, value)| {
                        let origin = self.origin(key.span().start);
                        (key.into_inner().into_owned(), self.value(value, Some(origin)))
                    })
                    .collect(),
            ),
        };
        Value::new(Some(&origin), kind)
    }
}

fn database_url_layer(url: &str) -> Layer {
    let origin = "DATABASE_URL".to_owned();
    let mut root = Value::new(Some(&origin), Map::<String, Value>::new());
    insert(&mut root, &["database".to_owned(), "url".to_owned()], Value::new(Some(&origin), url), &origin);
    Layer { root, textual: true }
}

fn variable_layer(environment: &BTreeMap<String, String>, below: &[Layer], faults: &mut Vec<Fault>) -> Layer {
    let mut root = Value::new(Some(&"environment".to_owned()), Map::<String, Value>::new());
    for (variable, text) in environment.range(PREFIX.to_owned()..) {
        let Some(name) = variable.strip_prefix(PREFIX) else { break };
        let placed = variable_path(name, below).and_then(|path| Ok((path, variable_value(variable, text)?)));
        match placed {
            Ok((path, value)) => insert(&mut root, &path, value, variable),
            Err(reason) => faults.push(Fault { origin: variable.clone(), key: String::new(), reason }),
        }
    }
    Layer { root, textual: true }
}

/// Where `SECTION__KEY` belongs. A name of the operator's (a plan, a tenant, a model) is found among those of the
/// layers below whatever its case, and with `_` for what a variable's name can't hold; a new one in capitals is
/// taken as lower case.
fn variable_path(name: &str, below: &[Layer]) -> Result<Vec<String>, String> {
    let mut path: Vec<String> = name.split("__").map(str::to_ascii_lowercase).collect();
    if path.iter().any(String::is_empty) {
        return Err(format!("is no key: write {PREFIX}SECTION__KEY, with two underscores between levels"));
    }
    if let Some(at) = path.iter().position(|step| step.bytes().all(|byte| byte.is_ascii_digit()))
        && at > 0
    {
        let whole = path[..at].join("__").to_ascii_uppercase();
        return Err(format!(
            "an element of a list can't be set alone: set the list as a whole, {PREFIX}{whole}=[…]"
        ));
    }
    if path.len() >= 2 && NAMED.contains(&path[0].as_str()) {
        let typed = name.split("__").nth(1).unwrap_or_default();
        let names = || below.iter().flat_map(|layer| layer.names(&path[0]));
        let mut alike: Vec<&str> =
            names().filter(|known| variable_form(known) == variable_form(typed)).collect();
        alike.sort_unstable();
        alike.dedup();
        path[1] = match alike[..] {
            _ if names().any(|known| known == typed) => typed.to_owned(),
            [only] => only.to_owned(),
            [] if typed.bytes().any(|byte| byte.is_ascii_lowercase()) => typed.to_owned(),
            [] => typed.to_ascii_lowercase(),
            [first, second, ..] => {
                return Err(format!("could be {first:?} or {second:?}: set it in the config file instead"));
            }
        };
    }
    Ok(path)
}

fn variable_form(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// Lists, tables and quoted strings as in TOML; anything else is text, which takes the type that its key needs.
fn variable_value(variable: &str, text: &str) -> Result<Value, String> {
    if text.contains('\u{fffd}') {
        return Err("is not UTF-8 text".to_owned());
    }
    let trimmed = text.trim();
    let quoted = trimmed.len() >= 2
        && [b'"', b'\''].iter().any(|quote| {
            trimmed.as_bytes().first() == Some(quote) && trimmed.as_bytes().last() == Some(quote)
        });
    if !(trimmed.starts_with(['[', '{']) || quoted) {
        return Ok(Value::new(Some(&variable.to_owned()), text));
    }
    let document = format!("value = {trimmed}");
    let (table, errors) = DeTable::parse_recoverable(&document);
    if let Some(error) = errors.first() {
        return Err(format!("is no valid TOML value: {}", error.message()));
    }
    let mut faults = Vec::new();
    let value =
        table.into_inner().into_iter().find(|(key, _)| key.get_ref() == "value").map(|(_, value)| value);
    let value = value.ok_or_else(|| "is no valid TOML value".to_owned())?;
    let mut lines = Lines { text: &document, file: None, faults: &mut faults };
    let value = with_origin(lines.value(value, None), variable);
    faults.first().map_or(Ok(value), |fault| Err(fault.reason.clone()))
}

fn with_origin(value: Value, origin: &str) -> Value {
    let kind = match value.kind {
        ValueKind::Table(table) => ValueKind::Table(
            table.into_iter().map(|(key, value)| (key, with_origin(value, origin))).collect(),
        ),
        ValueKind::Array(list) => {
            ValueKind::Array(list.into_iter().map(|value| with_origin(value, origin)).collect())
        }
        other => other,
    };
    Value::new(Some(&origin.to_owned()), kind)
}

fn insert(root: &mut Value, path: &[String], value: Value, origin: &str) {
    if !matches!(root.kind, ValueKind::Table(_)) {
        *root = Value::new(Some(&origin.to_owned()), Map::<String, Value>::new());
    }
    let ValueKind::Table(table) = &mut root.kind else { return };
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let empty = || Value::new(Some(&origin.to_owned()), Map::<String, Value>::new());
            insert(table.entry(key.clone()).or_insert_with(empty), rest, value, origin);
        }
    }
}

/// Variables that look like keys of ours but for an underscore.
pub(super) fn near_misses<'a>(
    environment: &'a BTreeMap<String, String>,
    sections: &'a [&'a str],
) -> impl Iterator<Item = String> + 'a {
    environment.keys().filter_map(|variable| {
        let name = variable.strip_prefix("TOLLGATE_").filter(|name| !name.starts_with('_'))?;
        let section = sections.iter().find(|section| {
            name.strip_prefix(section.to_ascii_uppercase().as_str()).is_some_and(|rest| rest.starts_with('_'))
        })?;
        let key = name[section.len()..].trim_start_matches('_');
        let meant = format!("{PREFIX}{}__{key}", section.to_ascii_uppercase());
        Some(format!("{variable} is not read: the levels of a key are parted by two underscores, {meant}"))
    })
}

/// A path as people write it: `prices."gpt-4.1".input`, `routes[0].path`.
pub(super) fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(at) => text.push_str(&format!("[{at}]")),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&bare_or_quoted(key));
            }
        }
    }
    text
}

/// A key as TOML writes it.
pub(super) fn bare_or_quoted(key: &str) -> String {
    let bare =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if bare { key.to_owned() } else { quoted(key) }
}

/// A string as TOML writes it. JSON's escapes are a part of TOML's.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value as TOML writes it, in one line, with the passwords of URLs hidden.
pub(super) fn inline(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "\"\"".to_owned(),
        ValueKind::String(text) => quoted(&units::mask(text)),
        ValueKind::Float(float) => format!("{float:?}"),
        ValueKind::Array(list) => format!("[{}]", list.iter().map(inline).collect::<Vec<_>>().join(", ")),
        ValueKind::Table(table) => {
            let sorted: BTreeMap<_, _> = table.iter().collect();
            let pairs =
                sorted.into_iter().map(|(key, value)| format!("{} = {}", bare_or_quoted(key), inline(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
