//! `tollgate prices`: the effective price table, or what single models cost.

mod decimal;
pub(super) mod import;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::table::{columns, plain};
use crate::model::price::{Found, Price, Rates, Rule, Tariff};
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
        let mut head = vec![
            "ENTRY",
            "INPUT",
            "CACHED",
            "CACHE WRITE",
            "OUTPUT",
            "PER REQUEST",
            "CHANGES",
            "SOURCE",
            "ALSO",
        ];
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
            "unit": "USD per million tokens; per_request, per_web_search, per_rerank_unit: USD",
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
        cells.push(others_text(price));
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

/// The prices that every model has, in US dollars: per million tokens, and per request.
fn classes(price: &Price) -> [(&'static str, f64); 5] {
    let usual = price.usual();
    [
        ("input", usd(usual.input)),
        ("cached_input", usd(usual.cached_input)),
        ("cache_write_input", usd(usual.cache_write_input)),
        ("output", usd(usual.output)),
        ("per_request", dollars(price.per_request_nanousd)),
    ]
}

/// Picodollars a token are millionths of a dollar per million tokens. Both are far below 2⁵³ for any real price.
fn usd(pico: u64) -> f64 {
    pico as f64 / 1e6
}

fn dollars(nanousd: u64) -> f64 {
    nanousd as f64 / 1e9
}

/// The prices that some models have, by their keys in the config.
fn others(price: &Price) -> Map<String, Value> {
    let usual = price.usual();
    let hour = (usual.cache_write_1h != usual.cache_write_input).then_some(usual.cache_write_1h);
    let mut others = Map::new();
    let tokens = [
        ("cache_write_1h_input", hour),
        ("audio_input", usual.audio_input),
        ("audio_output", usual.audio_output),
        ("image_input", usual.image_input),
        ("image_output", usual.image_output),
    ];
    others.extend(tokens.into_iter().filter_map(|(key, rate)| Some((key.to_owned(), json!(usd(rate?))))));
    let fees = [
        ("per_web_search", price.per_web_search_nanousd),
        ("per_rerank_unit", price.per_rerank_unit_nanousd),
    ];
    others.extend(fees.into_iter().filter_map(|(key, fee)| Some((key.to_owned(), json!(dollars(fee?))))));
    if let Some(long) = &price.standard.long {
        let mut rates = rates_json(long);
        rates.insert("above".into(), json!(price.long_above));
        others.insert("long".into(), Value::Object(rates));
    }
    for (key, tier) in [("flex", &price.flex), ("priority", &price.priority), ("batch", &price.batch)] {
        let Some(tier) = tier else { continue };
        let mut rates = rates_json(&tier.usual);
        rates.extend(tier.long.iter().map(|long| ("long".to_owned(), Value::Object(rates_json(long)))));
        others.insert(key.into(), Value::Object(rates));
    }
    others
}

fn rates_json(rates: &Rates) -> Map<String, Value> {
    let classes = [
        ("input", Some(rates.input)),
        ("cached_input", Some(rates.cached_input)),
        ("cache_write_input", Some(rates.cache_write_input)),
        ("cache_write_1h_input", Some(rates.cache_write_1h)),
        ("output", Some(rates.output)),
        ("audio_input", rates.audio_input),
        ("audio_output", rates.audio_output),
        ("image_input", rates.image_input),
        ("image_output", rates.image_output),
    ];
    classes.into_iter().filter_map(|(key, rate)| Some((key.to_owned(), json!(usd(rate?))))).collect()
}

/// `cache_write_1h_input 6, per_web_search 0.01, long, batch`: figures where there is one.
fn others_text(price: &Price) -> String {
    let one = |(key, value): (&String, &Value)| match value {
        Value::Object(_) => key.clone(),
        value => format!("{key} {}", value.as_f64().unwrap_or_default()),
    };
    let all: Vec<String> = others(price).iter().map(one).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn price_json(price: &Price) -> Map<String, Value> {
    let mut all: Map<_, _> =
        classes(price).map(|(name, usd)| (name.to_owned(), json!(usd))).into_iter().collect();
    all.extend(others(price));
    all
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
