//! `tollgate formats`: what each answer format reports, or one of them as a rule.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;

use super::table::columns;
use crate::meter::{FormatConfig, Formats, HeadersConfig};

const HEAD: [&str; 5] = ["FORMAT", "REPORTS", "MERGED", "NAMES ITS MODEL", "WHERE IT REPORTS NOTHING"];

/// A table for people, in columns.
pub(super) fn text(formats: &Formats) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(formats.rules().map(|(name, rules)| cells(name, rules).to_vec()));
    columns(&rows)
}

/// The same as Markdown.
pub(super) fn markdown(formats: &Formats) -> String {
    let mut text =
        String::from("| format | reports | merged | names its model | where it reports nothing |\n");
    text.push_str("| --- | --- | --- | --- | --- |\n");
    for (name, rules) in formats.rules() {
        let [name, rest @ ..] = cells(name, rules);
        let _ = writeln!(text, "| `{name}` | {} |", rest.join(" | "));
    }
    text
}

fn cells(name: &str, rules: &FormatConfig) -> [String; 5] {
    let mut reported: Vec<_> = rules.reports().collect();
    if rules.headers != HeadersConfig::default() {
        reported.push("answer headers");
    }
    let reported = if reported.is_empty() { "nothing".to_owned() } else { reported.join(", ") };
    let merged = serde_json::to_value(rules.merge).ok();
    let merged = merged.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    let named = if rules.model.is_empty() { "no" } else { "yes" };
    let answered = !(rules.text.is_empty() && rules.final_text.is_empty());
    let unreported = match (!rules.request.text.is_empty(), answered) {
        (true, true) => "question and answer are counted",
        (true, false) => "the question is counted",
        (false, true) => "the answer is counted",
        (false, false) => "the reservation",
    };
    [name.to_owned(), reported, merged, named.to_owned(), unreported.to_owned()]
}

/// The rules of one format as TOML, what has its default left out.
///
/// # Errors
/// There is no such format, or it is not made of rules (`auto`, `text`, `none`).
pub(super) fn rule(formats: &Formats, name: &str) -> anyhow::Result<String> {
    let known = || {
        let names: Vec<_> = formats.rules().map(|(name, _)| name).collect();
        format!("there are no rules of the name `{name}`; there are {}", names.join(", "))
    };
    let (_, rules) = formats.rules().find(|(known, _)| *known == name).with_context(known)?;
    let defaults = serde_json::to_value(FormatConfig::default())?;
    let mut text = String::new();
    section(&mut text, &format!("formats.{name}"), &serde_json::to_value(rules)?, &defaults);
    Ok(text)
}

/// A table of TOML, and then those within it.
fn section(text: &mut String, path: &str, values: &Value, defaults: &Value) {
    let _ = writeln!(text, "[{path}]");
    let mut within = Vec::new();
    let changed = values.as_object().into_iter().flatten().filter(|(key, value)| defaults[*key] != **value);
    for (key, value) in changed {
        match value {
            Value::Object(_) => within.push((key, value)),
            Value::Array(many) if value.to_string().len() > 80 => {
                let lines: Vec<_> = many.iter().map(|one| format!("    {one},\n")).collect();
                let _ = writeln!(text, "{} = [\n{}]", quoted(key), lines.concat());
            }
            // Strings, numbers and lists of them are written alike in JSON and TOML.
            _ => {
                let _ = writeln!(text, "{} = {value}", quoted(key));
            }
        }
    }
    for (key, value) in within {
        text.push('\n');
        section(text, &format!("{path}.{key}"), value, &defaults[key]);
    }
}

/// A key of TOML: bare where it may be.
fn quoted(key: &str) -> String {
    let bare = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare { key.to_owned() } else { Value::from(key).to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::settings::Settings;

    #[test]
    fn a_rule_that_is_printed_is_read_as_the_same_rule() {
        let formats = Formats::builtin();
        // Of the config's own formats, those are listed that are for `auto` too.
        let joined = |name| rule(&formats, name).unwrap().replacen('\n', "\nauto = true\n", 1);
        let printed: String = formats.rules().map(|(name, _)| joined(name) + "\n").collect();
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), &printed).unwrap();
        let read = Settings::load(Some(config.path()), &BTreeMap::new()).unwrap().formats;
        for (name, rules) in formats.rules() {
            let (_, read) = read.rules().find(|(known, _)| *known == name).unwrap();
            assert_eq!(*read, FormatConfig { auto: true, ..rules.clone() }, "{printed}");
        }
        let error = rule(&formats, "auto").unwrap_err().to_string();
        assert!(
            error.starts_with("there are no rules of the name `auto`; there are chat-service, "),
            "{error}"
        );
    }

    #[test]
    fn the_page_of_formats_has_every_format_as_it_is() {
        const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md");
        const MARKS: [&str; 2] = ["<!-- tollgate formats --markdown -->\n", "<!-- end -->\n"];
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (before, rest) = page.split_once(MARKS[0]).unwrap();
        let (_, after) = rest.split_once(MARKS[1]).unwrap();
        let [begin, end] = MARKS;
        let written = format!("{before}{begin}{}{end}{after}", markdown(&Formats::builtin()));
        if std::env::var_os("WRITE_DOCS").is_some() {
            return std::fs::write(PAGE, written).unwrap();
        }
        assert!(
            page == written,
            "docs/formats.md is not what the formats are: `make docs` writes its table anew"
        );
    }
}
