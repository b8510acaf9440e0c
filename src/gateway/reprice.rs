//! Rows whose model had no price, by the prices of today's config: `tollgate reprice`.
//!
//! The price is the one that holds, by that config, at the time of the event: a change on a later day does not reach back.

use jiff::Timestamp;
use serde_json::json;

use crate::model::pattern::Pattern;
use crate::model::price::{Call, PriceTable, PricedBy};
use crate::settings::Settings;
use crate::store::Store;
use crate::store::report::Between;
use crate::store::reprice::{Order, Repriced, Repricing, Unpriced};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Reprice {
    /// Calls that arrived from then on,
    pub since: Timestamp,
    /// and before this.
    pub until: Timestamp,
    /// Only models of this name, or that fit this pattern; whatever the case.
    pub model: Option<String>,
    /// Who asks.
    pub author: String,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// Prices what `store` has by the prices of `settings`.
pub(super) async fn reprice(
    settings: &Settings,
    store: &Store,
    asked: &Reprice,
) -> anyhow::Result<Repricing> {
    let wanted = asked.model.as_deref().map(str::to_ascii_lowercase);
    let pattern = wanted.as_deref().and_then(Pattern::parse);
    let wants = |model: &str| match (&pattern, &wanted) {
        (Some(pattern), _) => pattern.fits(&model.to_ascii_lowercase()),
        (None, Some(name)) => name.eq_ignore_ascii_case(model),
        (None, None) => true,
    };
    let order = Order {
        between: Between { start: asked.since, end: asked.until },
        author: &asked.author,
        asked: json!({
            "since": asked.since.to_string(), "until": asked.until.to_string(), "model": asked.model,
        }),
        dry_run: asked.dry_run,
    };
    let price = |row: &Unpriced| wants(&row.model).then(|| own(&settings.prices, row)).flatten();
    Ok(store.reprice(&order, price).await?)
}

/// What `row` costs by the price of its own model; `None` where that has none still.
fn own(prices: &PriceTable, row: &Unpriced) -> Option<Repriced> {
    let Unpriced { model, at, usage, billing, unseen } = row;
    let cost = prices.cost(&Call { model: Some(model), at: *at, usage, billing, unseen: *unseen });
    let repriced = || Repriced { nanousd: cost.nanousd, unpriced: cost.price.unpriced(billing).collect() };
    (cost.by == PricedBy::Own).then(repriced)
}
