//! TOML as values that know their line.

use config::{Map, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{BUILT_IN, Fault};

/// `file` is `None` for the built-in default. Also whether there was anything that is no TOML.
pub(super) fn document(text: &str, file: Option<&str>, faults: &mut Vec<Fault>) -> (Value, bool) {
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
    (Value::new(Some(&file.unwrap_or(BUILT_IN).to_owned()), root), torn)
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

/// A single value, as it stands behind a `=`. All of it is of the one `origin`.
pub(super) fn value(text: &str, origin: &str) -> Result<Value, String> {
    let document = format!("value = {text}");
    let (table, errors) = DeTable::parse_recoverable(&document);
    if let Some(error) = errors.first() {
        return Err(format!("is no valid TOML value: {}", error.message()));
    }
    let mut faults = Vec::new();
    let value =
        table.into_inner().into_iter().find(|(key, _)| key.get_ref() == "value").map(|(_, value)| value);
    let value = value.ok_or_else(|| "is no valid TOML value".to_owned())?;
    let mut lines = Lines { text: &document, file: None, faults: &mut faults };
    let value = with_origin(lines.value(value, None), origin);
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
