//! `[prices.*]`.

use super::reader::{Slot, Table, all};
use crate::model::price::{Price, PriceTable};

/// The table for the models that are not named.
const DEFAULT: &str = "default";

pub(super) fn prices(root: &Table<'_>) -> Option<PriceTable> {
    let table = root.key("prices").table()?;
    let models = table.named();
    let mut models =
        all(models.iter().map(|(name, slot)| Some((name.clone(), price(&slot.clone().in_one_line())?))))?;
    let default = models.iter().position(|(name, _)| name == DEFAULT).map(|at| models.swap_remove(at).1);
    if default.is_none() {
        table.fault("has no default: add [prices.default] for the models that are not named");
    }
    Some(PriceTable::new(default?, models))
}

fn price(slot: &Slot<'_>) -> Option<Price> {
    let table = slot.table()?;
    let dollars = |key: &str| match table.optional(key) {
        Some(slot) => slot.dollars().map(Some),
        None => Some(None),
    };
    let (input, output) = (table.key("input").dollars(), table.key("output").dollars());
    let (cached_input, cache_write) = (dollars("cached_input"), dollars("cache_write_input"));
    let per_request = dollars("per_request");
    let price = Price::per_million(input?, cached_input?, cache_write?, output?);
    if price.is_none() {
        table.fault("is out of range: prices are US dollars per million tokens");
    }
    let nanousd = (per_request?.unwrap_or(0.0) * 1e9).round() as u64;
    price.map(|price| Price { per_request_nanousd: nanousd, ..price })
}
