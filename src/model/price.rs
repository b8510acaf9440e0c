//! Prices and what they make of a token count. Money is integer nano-dollars here; a decimal only in a column.
//!
//! 1. A price is found by the model's name and the instant of the event that is priced, so what a model costs from
//!    some day on never changes what an earlier event cost.
//! 2. Token classes are parts of input and output: no token is billed twice, whatever a provider reports.
//! 3. Finding a price allocates nothing and takes a bounded time, whatever a client claims the model to be.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::pattern::Pattern;
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
    /// Output. Reasoning is a part of it and is billed as such: no provider in the built-in table lists a price of
    /// its own for it.
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

/// What an entry of the table costs over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tariff {
    first: Price,
    /// Earliest first.
    changes: Vec<(Timestamp, Price)>,
}

impl Tariff {
    /// `first` until the earliest of `changes`, and each of them from its instant on.
    pub fn new(first: Price, changes: impl IntoIterator<Item = (Timestamp, Price)>) -> Self {
        let mut changes: Vec<_> = changes.into_iter().collect();
        changes.sort_by_key(|(from, _)| *from);
        Self { first, changes }
    }

    /// The price that holds at `at`.
    pub fn at(&self, at: Timestamp) -> &Price {
        let begun = self.changes.iter().rev().find(|(from, _)| *from <= at);
        begun.map_or(&self.first, |(_, price)| price)
    }

    /// The prices that hold from some instant on, earliest first.
    pub fn changes(&self) -> &[(Timestamp, Price)] {
        &self.changes
    }
}

impl From<Price> for Tariff {
    fn from(price: Price) -> Self {
        Self::new(price, [])
    }
}

/// How a model came to its price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The entry is the model's name.
    Exact,
    /// The entry is what the name begins with, as that of a dated model.
    Family,
    /// The entry is a pattern that fits the name.
    Pattern,
    /// No entry is the model's: the default.
    Default,
}

impl Rule {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Exact => "exact",
            Rule::Family => "family",
            Rule::Pattern => "pattern",
            Rule::Default => "default",
        }
    }
}

/// The entry that prices a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The entry's name; none for the default.
    pub entry: Option<&'a str>,
    /// How it was found.
    pub rule: Rule,
    /// What it costs.
    pub tariff: &'a Tariff,
}

/// The longest name, in bytes, that is looked for. The longest that we know, of a model behind an ARN, has about 150.
pub const MAX_NAME_BYTES: usize = 256;

/// The prices of all known models, and one for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceTable {
    models: BTreeMap<String, Tariff>,
    /// The closest fit first: the most literal bytes, then by name.
    patterns: Vec<(Pattern, Tariff)>,
    default: Tariff,
}

impl PriceTable {
    /// A table with `default` for the models that it doesn't know. A name with a `*` is a pattern.
    pub fn new(default: impl Into<Tariff>, entries: impl IntoIterator<Item = (String, Tariff)>) -> Self {
        let mut table = Self { default: default.into(), ..Self::default() };
        for (name, tariff) in entries {
            match Pattern::parse(&name) {
                Some(pattern) => table.patterns.push((pattern, tariff)),
                None => drop(table.models.insert(name, tariff)),
            }
        }
        let closeness = |pattern: &Pattern| std::cmp::Reverse(pattern.literal_bytes());
        table.patterns.sort_by(|(a, _), (b, _)| {
            closeness(a).cmp(&closeness(b)).then_with(|| a.as_str().cmp(b.as_str()))
        });
        table
    }

    /// What `model` costs at `at`, and whether it has an entry of its own.
    pub fn price(&self, model: Option<&str>, at: Timestamp) -> (&Price, bool) {
        let found = model.map_or_else(|| self.unknown(), |model| self.find(model));
        (found.tariff.at(at), found.rule != Rule::Default)
    }

    /// The entry of `model`.
    ///
    /// First the name itself, then its family (`gpt-4o-mini-2024-07-18` is priced as `gpt-4o-mini`: the longest entry
    /// wins, and it must end where a `-`, `@`, `:` or `/` begins, so `gpt-4o` is never `gpt-4`), then the pattern with
    /// the most literal bytes. A path before the name (`openai/gpt-4o`) is dropped when no entry names the path.
    pub fn find(&self, model: &str) -> Found<'_> {
        if model.len() > MAX_NAME_BYTES {
            return self.unknown();
        }
        let bare = model.rsplit_once('/').map(|(_, name)| name);
        let with_its_path =
            |pattern: &Pattern| bare.is_some() && pattern.names_a_path() && pattern.fits(model);
        let any = |pattern: &Pattern| pattern.fits(model) || bare.is_some_and(|bare| pattern.fits(bare));
        self.named(model)
            .or_else(|| self.fitting(with_its_path))
            .or_else(|| self.named(bare?))
            .or_else(|| self.fitting(any))
            .unwrap_or_else(|| self.unknown())
    }

    fn named(&self, model: &str) -> Option<Found<'_>> {
        let found = |name: &str, rule| {
            let (entry, tariff) = self.models.get_key_value(name)?;
            Some(Found { entry: Some(entry.as_str()), rule, tariff })
        };
        let mut ends = model.char_indices().rev().filter(|(_, c)| "-@:/".contains(*c));
        found(model, Rule::Exact).or_else(|| ends.find_map(|(at, _)| found(&model[..at], Rule::Family)))
    }

    fn fitting(&self, fits: impl Fn(&Pattern) -> bool) -> Option<Found<'_>> {
        let (pattern, tariff) = self.patterns.iter().find(|(pattern, _)| fits(pattern))?;
        Some(Found { entry: Some(pattern.as_str()), rule: Rule::Pattern, tariff })
    }

    fn unknown(&self) -> Found<'_> {
        Found { entry: None, rule: Rule::Default, tariff: &self.default }
    }

    /// All entries with their prices: names in order, then patterns in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tariff)> {
        let names = self.models.iter().map(|(name, tariff)| (name.as_str(), tariff));
        names.chain(self.patterns.iter().map(|(pattern, tariff)| (pattern.as_str(), tariff)))
    }

    /// The price of what is not known.
    pub fn default_price(&self) -> &Tariff {
        &self.default
    }
}

#[cfg(test)]
mod tests;
