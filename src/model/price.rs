//! Prices and what they make of a token count. Money is integer nano-dollars here; a decimal only in a column.

use std::collections::BTreeMap;

use super::tokens::TokenUsage;

/// Pico-dollars per token: USD per million tokens × 10⁶, so that a price of 0.0375 $/M is a whole number.
pub type PicoUsdPerToken = u64;

/// What one model costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Input that no cache had.
    pub input: PicoUsdPerToken,
    /// Input read from a cache. Where a provider names none, it is the input price.
    pub cached_input: PicoUsdPerToken,
    /// Input written to a cache. Where a provider names none, it is the input price.
    pub cache_write_input: PicoUsdPerToken,
    /// Output, reasoning included.
    pub output: PicoUsdPerToken,
    /// Added once for each request, in nano-dollars.
    pub per_request_nanousd: u64,
}

impl Price {
    /// A price from USD per million tokens, where only some classes are named.
    ///
    /// Returns `None` for a price that is negative, not finite, or above 10⁹ $/M.
    pub fn per_million(
        input: f64,
        cached_input: Option<f64>,
        cache_write: Option<f64>,
        output: f64,
    ) -> Option<Self> {
        let pico = |usd: f64| {
            let pico = (usd * 1e6).round();
            (usd.is_finite() && (0.0..=1e15).contains(&pico)).then_some(pico as u64)
        };
        Some(Self {
            input: pico(input)?,
            cached_input: pico(cached_input.unwrap_or(input))?,
            cache_write_input: pico(cache_write.unwrap_or(input))?,
            output: pico(output)?,
            per_request_nanousd: 0,
        })
    }

    /// What `usage` costs, in nano-dollars, rounded half up once at the end. Saturates rather than wraps.
    ///
    /// A count of which only the sum is known is priced as input, the cheaper side: an estimate never
    /// invents money.
    pub fn cost_nanousd(&self, usage: &TokenUsage) -> u64 {
        let output = usage.output.unwrap_or(0);
        let input = match (usage.input, usage.output) {
            (Some(input), _) => input,
            (None, Some(_)) => usage.total.unwrap_or(0).saturating_sub(output),
            (None, None) => usage.total.unwrap_or(0),
        };
        let cached = usage.cached_input.unwrap_or(0).min(input);
        let written = usage.cache_write_input.unwrap_or(0).min(input - cached);
        let fresh = input - cached - written;
        let pico = [
            (fresh, self.input),
            (cached, self.cached_input),
            (written, self.cache_write_input),
            (output, self.output),
        ]
        .into_iter()
        .fold(0u128, |sum, (tokens, rate)| sum + u128::from(tokens) * u128::from(rate));
        let nano = (pico + 500) / 1000;
        u64::try_from(nano).unwrap_or(u64::MAX).saturating_add(self.per_request_nanousd)
    }
}

/// The prices of all known models, and one for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceTable {
    models: BTreeMap<String, Price>,
    default: Price,
}

impl PriceTable {
    /// A table with `default` for the models that it doesn't know.
    pub fn new(default: Price, models: impl IntoIterator<Item = (String, Price)>) -> Self {
        Self { models: models.into_iter().collect(), default }
    }

    /// The price of `model` and whether it is the model's own.
    ///
    /// A dated or tagged name is its family's: `gpt-4o-mini-2024-07-18` is priced as `gpt-4o-mini`. The longest
    /// entry wins, and it must end where a `-`, `@`, `:` or `/` begins, so `gpt-4o` is never `gpt-4`. A path before
    /// the name (`openai/gpt-4o`) is dropped when the whole is not known.
    pub fn price(&self, model: Option<&str>) -> (&Price, bool) {
        let Some(model) = model else { return (&self.default, false) };
        let own =
            self.family(model).or_else(|| model.rsplit_once('/').and_then(|(_, name)| self.family(name)));
        own.map_or((&self.default, false), |price| (price, true))
    }

    fn family(&self, model: &str) -> Option<&Price> {
        if let Some(price) = self.models.get(model) {
            return Some(price);
        }
        let ends = model.char_indices().rev().filter(|(_, c)| "-@:/".contains(*c));
        ends.map(|(at, _)| &model[..at]).find_map(|family| self.models.get(family))
    }

    /// All models with their prices, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Price)> {
        self.models.iter().map(|(name, price)| (name.as_str(), price))
    }

    /// The price of what is not known.
    pub fn default_price(&self) -> &Price {
        &self.default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> PriceTable {
        let price = |input| Price::per_million(input, None, None, 1.0).unwrap();
        let models = [("gpt-4o", 2.5), ("gpt-4o-mini", 0.15), ("gpt-4", 30.0)];
        PriceTable::new(price(9.0), models.map(|(name, input)| (name.to_owned(), price(input))))
    }

    #[test]
    fn a_dated_model_is_priced_as_its_family_and_never_as_a_shorter_name() {
        let table = table();
        let input = |model| table.price(Some(model)).0.input;
        assert_eq!(input("gpt-4o-mini-2024-07-18"), 150_000);
        assert_eq!(input("gpt-4o-2024-08-06"), 2_500_000);
        assert_eq!(input("openai/gpt-4o"), 2_500_000);
        assert_eq!(input("gpt-4.1"), 9_000_000);
        assert_eq!(table.price(None), (table.default_price(), false));
    }

    #[test]
    fn cached_tokens_are_a_part_of_the_input_and_billed_once() {
        let price = Price::per_million(2.5, Some(1.25), None, 10.0).unwrap();
        let usage = TokenUsage {
            input: Some(2006),
            cached_input: Some(1920),
            output: Some(300),
            ..TokenUsage::default()
        };
        assert_eq!(price.cost_nanousd(&usage), 86 * 2500 + 1920 * 1250 + 300 * 10_000);
    }

    #[test]
    fn absurd_counts_saturate() {
        let price = Price::per_million(1e9, None, None, 1e9).unwrap();
        let usage = TokenUsage { input: Some(u64::MAX), output: Some(u64::MAX), ..TokenUsage::default() };
        assert_eq!(price.cost_nanousd(&usage), u64::MAX);
    }
}
