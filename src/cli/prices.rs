//! `tollgate prices`: the effective price table, or what single models cost.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::table::{columns, plain};
use crate::model::price::{Found, Price, Rule, Tariff};
use crate::settings::{DEFAULT_PRICE, PriceOrigin, Settings};

/// The whole table, or the entries that price `models`, as of `at`.
pub(super) struct Listing<'a> {
    at: Timestamp,
    lines: Vec<Line<'a>>,
}

/// One entry, and the model that was asked for.
struct Line<'a> {
    model: Option<&'a str>,
    entry: &'a str,
    rule: Option<Rule>,
    tariff: &'a Tariff,
    origin: Option<&'a PriceOrigin>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(settings: &'a Settings, models: &'a [String], at: Timestamp) -> Self {
        let line = |model, entry, rule, tariff| Line {
            model,
            entry,
            rule,
            tariff,
            origin: settings.price_origins.get(entry),
        };
        let prices = &settings.prices;
        let asked = models.iter().map(|model| {
            let Found { entry, rule, tariff } = prices.find(model);
            line(Some(model.as_str()), entry.unwrap_or(DEFAULT_PRICE), Some(rule), tariff)
        });
        let mut lines: Vec<_> = asked.collect();
        if models.is_empty() {
            lines.extend(prices.iter().map(|(entry, tariff)| line(None, entry, None, tariff)));
            lines.push(line(None, DEFAULT_PRICE, None, prices.default_price()));
        }
        Self { at, lines }
    }

    /// A table for people, in columns.
    pub(super) fn text(&self) -> String {
        let mut head =
            vec!["ENTRY", "INPUT", "CACHED", "CACHE WRITE", "OUTPUT", "PER REQUEST", "CHANGES", "SOURCE"];
        if self.lines.iter().any(|line| line.model.is_some()) {
            head.splice(0..0, ["MODEL", "MATCH"]);
        }
        let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
        rows.extend(self.lines.iter().map(|line| line.cells(self.at)));
        format!("USD per million tokens (per request: USD), as of {}\n\n{}", self.at, columns(&rows))
    }

    /// The same for programs.
    pub(super) fn json(&self) -> String {
        let prices: Vec<Value> = self.lines.iter().map(|line| line.json(self.at)).collect();
        let whole = json!({
            "at": self.at.to_string(),
            "unit": "USD per million tokens; per_request: USD",
            "prices": prices,
        });
        format!("{whole:#}\n")
    }
}

impl Line<'_> {
    fn cells(&self, at: Timestamp) -> Vec<String> {
        let price = self.tariff.at(at);
        let mut cells = Vec::new();
        if let (Some(model), Some(rule)) = (self.model, self.rule) {
            cells.extend([plain(model), rule.as_str().to_owned()]);
        }
        cells.push(plain(self.entry));
        cells.extend(classes(price).map(|(_, usd)| usd.to_string()));
        let later = self.tariff.changes().iter().filter(|(from, _)| *from > at);
        let days: Vec<String> = later.map(|(from, _)| day_or_instant(*from)).collect();
        cells.push(if days.is_empty() { "-".to_owned() } else { days.join(", ") });
        cells.push(self.origin.map(origin_text).unwrap_or_default());
        cells
    }

    fn json(&self, at: Timestamp) -> Value {
        let mut line = Map::new();
        if let (Some(model), Some(rule)) = (self.model, self.rule) {
            line.insert("model".into(), json!(model));
            line.insert("match".into(), json!(rule.as_str()));
        }
        line.insert("entry".into(), json!(self.entry));
        line.extend(price_json(self.tariff.at(at)));
        let begun = self.tariff.changes().iter().rev().find(|(from, _)| *from <= at);
        line.insert("since".into(), json!(begun.map(|(from, _)| from.to_string())));
        let later = self.tariff.changes().iter().filter(|(from, _)| *from > at);
        let later: Vec<Value> = later
            .map(|(from, price)| {
                let mut change = price_json(price);
                change.insert("from".into(), json!(from.to_string()));
                Value::Object(change)
            })
            .collect();
        line.insert("changes".into(), json!(later));
        let PriceOrigin { source, url, via, as_of } = self.origin.cloned().unwrap_or_default();
        line.extend(
            [("source", source), ("url", url), ("via", via), ("as_of", as_of)]
                .map(|(k, v)| (k.into(), json!(v))),
        );
        Value::Object(line)
    }
}

/// The price of each class in US dollars: per million tokens, and per request.
fn classes(price: &Price) -> [(&'static str, f64); 5] {
    // Picodollars a token are millionths of a dollar per million tokens. Both are far below 2⁵³ for any real price.
    let usd = |pico: u64| pico as f64 / 1e6;
    [
        ("input", usd(price.input)),
        ("cached_input", usd(price.cached_input)),
        ("cache_write_input", usd(price.cache_write_input)),
        ("output", usd(price.output)),
        ("per_request", price.per_request_nanousd as f64 / 1e9),
    ]
}

fn price_json(price: &Price) -> Map<String, Value> {
    classes(price).map(|(name, usd)| (name.to_owned(), json!(usd))).into_iter().collect()
}

/// `openai, 2026-11-24`.
fn origin_text(origin: &PriceOrigin) -> String {
    [&origin.source, &origin.as_of]
        .into_iter()
        .flatten()
        .map(|text| plain(text))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A day where the instant is its beginning, in UTC.
fn day_or_instant(at: Timestamp) -> String {
    let text = at.to_string();
    text.strip_suffix("T00:00:00Z").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_and_numbers_stand_to_the_right() {
        let rows = [["ENTRY", "INPUT"], ["größer", "0.15"], ["m", "10"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
        assert_eq!(columns(&rows), "ENTRY   INPUT\ngrößer   0.15\nm          10\n");
    }

    #[test]
    fn a_day_is_a_day_and_what_is_printed_commands_no_terminal() {
        assert_eq!(day_or_instant("2027-01-01T00:00:00Z".parse().unwrap()), "2027-01-01");
        assert_eq!(day_or_instant("2027-01-01T08:00:00Z".parse().unwrap()), "2027-01-01T08:00:00Z");
        assert_eq!(plain("a\x1b[31m"), "a\u{fffd}[31m");
    }
}
