//! The effective config: what every key came to, printed with secrets masked, and compared on reload.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use config::{Value, ValueKind};

use super::path::{Step, bare_or_quoted, dotted};

/// One key with its value. Holds no secret: of the value only what may be shown, and a hash to tell a change.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    path: Vec<Step>,
    /// The key, dotted.
    key: String,
    /// The value in TOML, masked.
    shown: String,
    fingerprint: u64,
    /// Where it was set; `None` is the built-in default.
    origin: Option<String>,
}

impl Leaf {
    pub(super) fn new(path: Vec<Step>, value: &Value, shown: String, origin: Option<String>) -> Self {
        let key = dotted(&path);
        Self { path, key, shown, fingerprint: fingerprint(value), origin }
    }

    /// What is no key, but tells two configs apart.
    pub(super) fn aside(key: String, shown: &str, raw: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        raw.hash(&mut hasher);
        Self { path: Vec::new(), key, shown: shown.to_owned(), fingerprint: hasher.finish(), origin: None }
    }
}

fn fingerprint(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    hash(value, &mut hasher);
    hasher.finish()
}

fn hash(value: &Value, hasher: &mut DefaultHasher) {
    match &value.kind {
        ValueKind::Table(table) => {
            let mut pairs: Vec<_> = table.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            pairs.iter().for_each(|(key, value)| {
                key.hash(hasher);
                hash(value, hasher);
            });
        }
        ValueKind::Array(list) => list.iter().for_each(|value| {
            hasher.write_u8(1);
            hash(value, hasher);
        }),
        scalar => scalar.to_string().hash(hasher),
    }
}

/// One key whose value differs between two configs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, dotted.
    pub key: String,
    /// Its former value in TOML, masked; `None` if it was not set.
    pub old: Option<String>,
    /// Its value now, likewise.
    pub new: Option<String>,
    /// Whether it takes hold only when the gateway starts anew.
    pub needs_restart: bool,
}

/// Every key's value, in reading order.
#[derive(Clone, Debug, Default)]
pub(super) struct Effective(pub(super) Vec<Leaf>);

impl Effective {
    /// The origin of a key, unless it is the built-in default.
    pub(super) fn origin(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|leaf| leaf.key == key)?.origin.as_deref()
    }

    /// TOML, with the origin of what is not the built-in default behind it.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        let mut header = String::new();
        for leaf in self.0.iter().filter(|leaf| !leaf.path.is_empty()) {
            let Some((Step::Key(key), table)) = leaf.path.split_last() else { continue };
            let place = dotted(table);
            if place != header {
                let title = match table {
                    [lists @ .., Step::Index(_)] => {
                        // A list within a list's element: TOML takes it for the latest element's.
                        let keys = lists.iter().filter(|step| matches!(step, Step::Key(_))).cloned();
                        format!("[[{}]]", dotted(&keys.collect::<Vec<_>>()))
                    }
                    _ => format!("[{place}]"),
                };
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}{title}\n"));
                header = place;
            }
            let origin = leaf.origin.as_ref().map_or(String::new(), |origin| format!("  # {origin}"));
            text.push_str(&format!("{} = {}{origin}\n", bare_or_quoted(key), leaf.shown));
        }
        let asides: Vec<_> = self.0.iter().filter(|leaf| leaf.path.is_empty()).collect();
        if !asides.is_empty() {
            text.push('\n');
        }
        for leaf in asides {
            text.push_str(&format!("# {}: {}\n", leaf.key, leaf.shown));
        }
        text
    }

    /// What differs from `old`, by key.
    pub(super) fn changes(&self, old: &Effective) -> Vec<Change> {
        let find = |leaves: &Effective, key: &str| leaves.0.iter().find(|leaf| leaf.key == key).cloned();
        let mut keys: Vec<&str> = old.0.iter().chain(&self.0).map(|leaf| leaf.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        let changed = |key: &&str| {
            let (old, new) = (find(old, key), find(self, key));
            old.as_ref().map(|leaf| leaf.fingerprint) != new.as_ref().map(|leaf| leaf.fingerprint)
        };
        let change = |key: &str| Change {
            key: key.to_owned(),
            old: find(old, key).map(|leaf| leaf.shown),
            new: find(self, key).map(|leaf| leaf.shown),
            needs_restart: needs_restart(key),
        };
        keys.into_iter().filter(changed).map(change).collect()
    }
}

/// Whether a change of `key` takes hold only when the gateway starts anew: what sockets, pools, threads and the
/// journal were made with.
pub fn needs_restart(key: &str) -> bool {
    const SECTIONS: [&str; 7] =
        ["server.", "upstream.", "database.", "service_database.", "data.", "quota.", "alerts."];
    const KEYS: [&str; 5] = [
        "tenant.cache_ttl",
        "tenant.cache_negative_ttl",
        "tenant.cache_capacity",
        "tenant.look_up_timeout",
        "jobs.aggregate_interval",
    ];
    SECTIONS.iter().any(|section| key.starts_with(section)) || KEYS.contains(&key)
}

/// How a secret is shown.
pub(super) fn shown_secret(set: bool) -> &'static str {
    if set { "***" } else { "not set" }
}
