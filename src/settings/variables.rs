//! The environment as values: `TOLLGATE__SECTION__KEY`, and `DATABASE_URL`.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};

use super::fault::Fault;
use super::toml_text;

/// What the variables of single keys begin with.
const PREFIX: &str = "TOLLGATE__";
/// The sections whose second level is a name of the operator's.
const NAMED: [&str; 5] = ["plans", "overrides", "prices", "price_sources", "formats"];

/// Where nothing else names a database.
pub(super) fn database_url(environment: &BTreeMap<String, String>) -> Option<Value> {
    let origin = "DATABASE_URL".to_owned();
    let url = Value::new(Some(&origin), environment.get(&origin)?.as_str());
    let mut root = Value::new(Some(&origin), Map::<String, Value>::new());
    insert(&mut root, &["database".to_owned(), "url".to_owned()], url, &origin);
    Some(root)
}

/// All `TOLLGATE__…`. `names` are those that the layers below have in a section.
pub(super) fn keys<'a>(
    environment: &BTreeMap<String, String>,
    names: &dyn Fn(&str) -> Vec<&'a str>,
    faults: &mut Vec<Fault>,
) -> Value {
    let mut root = Value::new(Some(&"environment".to_owned()), Map::<String, Value>::new());
    for (variable, text) in environment.range(PREFIX.to_owned()..) {
        let Some(name) = variable.strip_prefix(PREFIX) else { break };
        let placed = path(name, names).and_then(|path| Ok((path, value(variable, text)?)));
        match placed {
            Ok((path, value)) => insert(&mut root, &path, value, variable),
            Err(reason) => faults.push(Fault { origin: variable.clone(), key: String::new(), reason }),
        }
    }
    root
}

/// Where `SECTION__KEY` belongs. A name of the operator's (a plan, a tenant, a model) is found among those of the
/// layers below whatever its case, and with `_` for what a variable's name can't hold; the `*` of a pattern may also be
/// left out, where no other name is meant by that. A new one in capitals is taken as lower case.
fn path<'a>(name: &str, names: &dyn Fn(&str) -> Vec<&'a str>) -> Result<Vec<String>, String> {
    let mut path: Vec<String> = name.split("__").map(str::to_ascii_lowercase).collect();
    if path.iter().any(String::is_empty) {
        return Err(format!("is no key: write {PREFIX}SECTION__KEY, with two underscores between levels"));
    }
    if let Some(at) = path.iter().position(|step| step.bytes().all(|byte| byte.is_ascii_digit()))
        && at > usize::from(NAMED.contains(&path[0].as_str()))
    {
        let whole = path[..at].join("__").to_ascii_uppercase();
        return Err(format!(
            "an element of a list can't be set alone: set the list as a whole, {PREFIX}{whole}=[…]"
        ));
    }
    if path.len() >= 2 && NAMED.contains(&path[0].as_str()) {
        let typed = name.split("__").nth(1).unwrap_or_default();
        let names = names(&path[0]);
        let known_as = |form: &dyn Fn(&str) -> String| -> Vec<&str> {
            names.iter().copied().filter(|known| form(known) == variable_form(typed)).collect()
        };
        let mut alike = known_as(&variable_form);
        if alike.is_empty() {
            alike = known_as(&|known| variable_form(&known.replace('*', "")));
        }
        alike.sort_unstable();
        alike.dedup();
        path[1] = match alike[..] {
            _ if names.contains(&typed) => typed.to_owned(),
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
fn value(variable: &str, text: &str) -> Result<Value, String> {
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
    toml_text::value(trimmed, variable)
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
