//! `[prices.*]` and `[price_sources.*]`.

use std::collections::BTreeMap;

use super::reader::{Slot, Table, all};
use super::units;
use crate::model::price::{MAX_NAME_BYTES, Price, PriceTable, Tariff};

/// The entry for the models that are not named.
pub const DEFAULT: &str = "default";

/// Where a price is from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceOrigin {
    /// The price list: a name out of `[price_sources]`, else whatever the operator wrote; without either, the file with
    /// its line or the variable that sets the price.
    pub source: Option<String>,
    /// Where the list stands.
    pub url: Option<String>,
    /// How the figures came from there to here.
    pub via: Option<String>,
    /// The date at which the list said so.
    pub as_of: Option<String>,
}

type Origins = BTreeMap<String, PriceOrigin>;

pub(super) fn prices(root: &Table<'_>) -> Option<(PriceTable, Origins)> {
    let sources = sources(root);
    let table = root.key("prices").table()?;
    let entries = all(table
        .named()
        .into_iter()
        .map(|(name, slot)| entry(&name, &slot.in_one_line(), sources.as_ref()).map(|entry| (name, entry))));
    let mut entries: BTreeMap<String, (Tariff, PriceOrigin)> = entries?.into_iter().collect();
    let origins = entries.iter().map(|(name, (_, origin))| (name.clone(), origin.clone())).collect();
    let default = entries.remove(DEFAULT);
    if default.is_none() {
        table.fault("has no default: add [prices.default] for the models that are not named");
    }
    let tariffs = entries.into_iter().map(|(name, (tariff, _))| (name, tariff));
    Some((PriceTable::new(default?.0, tariffs), sources.map(|_| origins)?))
}

fn sources(root: &Table<'_>) -> Option<Origins> {
    let Some(slot) = root.optional("price_sources") else { return Some(Origins::new()) };
    let named = slot.table()?.named();
    let source = |(name, slot): (String, Slot<'_>)| {
        let table = slot.in_one_line().table()?;
        let (url, via, as_of) = (text(&table, "url"), text(&table, "via"), as_of(&table));
        let origin = PriceOrigin { source: Some(name.clone()), url: url?, via: via?, as_of: as_of? };
        Some((name, origin))
    };
    Some(all(named.into_iter().map(source))?.into_iter().collect())
}

/// What one table names; what it leaves out holds on from the price before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Named {
    input: Option<f64>,
    cached_input: Option<f64>,
    cache_write_input: Option<f64>,
    output: Option<f64>,
    per_request: Option<f64>,
}

impl Named {
    /// The price keys of `table`, and the places of those that are there.
    fn read<'a>(table: &Table<'a>) -> (Option<Self>, Vec<Slot<'a>>) {
        let slots = ["input", "cached_input", "cache_write_input", "output", "per_request"]
            .map(|key| table.optional(key));
        // Each is read, so that each fault is found, before any is used.
        let values = slots.each_ref().map(|slot| match slot {
            Some(slot) => slot.dollars().map(Some),
            None => Some(None),
        });
        let named = || {
            let [input, cached_input, cache_write_input, output, per_request] = values;
            Some(Self {
                input: input?,
                cached_input: cached_input?,
                cache_write_input: cache_write_input?,
                output: output?,
                per_request: per_request?,
            })
        };
        (named(), slots.into_iter().flatten().collect())
    }

    fn over(self, before: Self) -> Self {
        Self {
            input: self.input.or(before.input),
            cached_input: self.cached_input.or(before.cached_input),
            cache_write_input: self.cache_write_input.or(before.cache_write_input),
            output: self.output.or(before.output),
            per_request: self.per_request.or(before.per_request),
        }
    }

    /// What an embedding model has no use for, output, costs nothing where it is not named.
    fn price(self, table: &Table<'_>) -> Option<Price> {
        let output = self.output.unwrap_or(0.0);
        let price = Price::per_million(self.input?, self.cached_input, self.cache_write_input, output);
        if price.is_none() {
            table.fault("is out of range: prices are US dollars per million tokens");
        }
        let per_request_nanousd = (self.per_request.unwrap_or(0.0) * 1e9).round() as u64;
        price.map(|price| Price { per_request_nanousd, ..price })
    }
}

fn entry(name: &str, slot: &Slot<'_>, sources: Option<&Origins>) -> Option<(Tariff, PriceOrigin)> {
    let table = slot.table()?;
    let short = name.len() <= MAX_NAME_BYTES;
    if !short {
        table.fault(format!("is longer than any model's name: {MAX_NAME_BYTES} bytes at most"));
    }
    let (first, slots) = Named::read(&table);
    if table.optional("input").is_none() {
        table.key("input").dollars(); // says that it is missing
    }
    let own = slots.iter().any(|slot| slot.origin().is_some());
    if own && first.is_some_and(|first| first.output.is_none()) && !name.contains("embed") {
        slot.report().warn(format!(
            "{} names no output, which costs nothing then: write output = 0.0 if it has none",
            slot.path()
        ));
    }
    let origin = origin(&table, &slots, sources);
    let price = first.and_then(|first| first.price(&table));
    let changes = changes(&table, &slots, first);
    short.then_some(())?;
    Some((Tariff::new(price?, changes?), origin?))
}

/// `changes`: each holds from its instant on, and what it does not name stays as it was. `slots` are those of the
/// price before them.
fn changes(
    table: &Table<'_>,
    slots: &[Slot<'_>],
    first: Option<Named>,
) -> Option<Vec<(jiff::Timestamp, Price)>> {
    let Some(slot) = table.optional("changes") else { return Some(Vec::new()) };
    let list = slot.list()?;
    let own = slots.iter().find_map(Slot::origin);
    if let (None, Some(own), false) = (slot.origin(), own, list.is_empty()) {
        slot.report().warn(format!(
            "{own} sets a price that the built-in default changes on a later day: {} = [] keeps it",
            slot.path()
        ));
    }
    let (mut last, mut before) = (None, first);
    all(list.iter().map(|element| {
        let table = element.table()?;
        let from_slot = table.key("from");
        let from = from_slot.parse("a string with a date", units::date_or_instant);
        let (named, _) = Named::read(&table);
        if named == Some(Named::default()) {
            table.fault("changes nothing: name a price, such as input");
        }
        if let (Some(from), Some((last, place))) = (from, &last) {
            match from.cmp(last) {
                std::cmp::Ordering::Equal => {
                    from_slot.fault(format!("is the same instant as that of {place}"))
                }
                std::cmp::Ordering::Less => {
                    from_slot.fault(format!(
                        "is before that of {place}: write the changes in the order of their dates"
                    ));
                }
                std::cmp::Ordering::Greater => {}
            }
        }
        last = from.map(|from| (from, element.path())).or(last.take());
        before = named.zip(before).map(|(named, before)| named.over(before));
        Some((from?, before?.price(&table)?))
    }))
}

/// Where the price is from. A price that the operator sets is not from the list that the built-in default names.
fn origin(table: &Table<'_>, slots: &[Slot<'_>], sources: Option<&Origins>) -> Option<PriceOrigin> {
    let slot = table.optional("source");
    let (source, as_of) = (text(table, "source"), as_of(table));
    let (source, as_of) = (source?, as_of?);
    let built_in = slot.is_none_or(|slot| slot.origin().is_none());
    if let (true, Some(own)) = (built_in, slots.iter().find_map(Slot::origin)) {
        return Some(PriceOrigin { source: Some(own.to_owned()), ..PriceOrigin::default() });
    }
    let listed = source.as_ref().and_then(|name| sources?.get(name)).cloned();
    let origin = listed.unwrap_or(PriceOrigin { source, ..PriceOrigin::default() });
    Some(PriceOrigin { as_of: as_of.or(origin.as_of), ..origin })
}

fn text(table: &Table<'_>, key: &str) -> Option<Option<String>> {
    match table.optional(key) {
        Some(slot) => slot.string().map(|text| Some(text.to_owned())),
        None => Some(None),
    }
}

fn as_of(table: &Table<'_>) -> Option<Option<String>> {
    match table.optional("as_of") {
        Some(slot) => slot
            .parse("a string with a date", |text| {
                units::date_or_instant(text)?;
                Ok(text.to_owned())
            })
            .map(Some),
        None => Some(None),
    }
}
