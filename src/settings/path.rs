//! Paths and values of the config as people write them.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::units;

/// One step from a table or list to what is in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A table's key.
    Key(String),
    /// A list's element.
    Index(usize),
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
