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

use super::fault::{BUILT_IN, Fault};
use super::path::Step;
use super::{toml_text, variables};

/// Far more than any config; keeps a mistaken path (a device, a database file) from filling the memory.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// One layer.
#[derive(Clone, Debug)]
struct Layer {
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
    /// Reads all layers; `limits` is a file over all others that may have limits only. What can't be read is a fault; the
    /// rest is there all the same.
    pub(super) fn read(
        default: &str,
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        limits: Option<&Path>,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut layers = vec![Layer { root: toml_text::document(default, None, faults).0, textual: false }];
        layers.extend(variables::database_url(environment).map(|root| Layer { root, textual: true }));
        let file = file.and_then(|path| read_file(path, faults));
        let mut torn = file.as_ref().is_some_and(|(_, torn)| *torn);
        layers.extend(file.map(|(root, _)| Layer { root, textual: false }));
        let names = |section: &str| layers.iter().flat_map(|layer| layer.names(section)).collect();
        let root = variables::keys(environment, &names, faults);
        layers.push(Layer { root, textual: true });
        if let Some((root, limits_torn)) = limits.and_then(|path| read_file(path, faults)) {
            torn |= limits_torn;
            let limits = Layer { root, textual: false };
            limits.only(&["plans", "overrides"], faults);
            layers.push(limits);
        }
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
        // A list is replaced as a whole: what lower layers have in its place counts for nothing.
        let list = path.iter().position(|step| matches!(step, Step::Index(_)));
        let last =
            list.and_then(|at| self.layers.iter().rposition(|layer| layer.origin(&path[..at]).is_some()));
        let layers = &self.layers[last.unwrap_or(0)..];
        (0..=path.len())
            .rev()
            .find_map(|length| layers.iter().rev().find_map(|layer| layer.origin(&path[..length])))
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

    /// Finds fault with every section that is none of `sections`.
    fn only(&self, sections: &[&str], faults: &mut Vec<Fault>) {
        let ValueKind::Table(root) = &self.root.kind else { return };
        for (key, value) in root.iter().filter(|(key, _)| !sections.contains(&key.as_str())) {
            faults.push(Fault {
                origin: value.origin().unwrap_or(BUILT_IN).to_owned(),
                key: key.clone(),
                reason:
                    "does not belong here: a file of limits has [plans.NAME] and [overrides.\"TENANT\"] only"
                        .to_owned(),
            });
        }
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

fn read_file(path: &Path, faults: &mut Vec<Fault>) -> Option<(Value, bool)> {
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
        Ok(text) => {
            Some(toml_text::document(text.strip_prefix('\u{feff}').unwrap_or(text), Some(&shown), faults))
        }
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
