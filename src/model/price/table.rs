//! Which price a model has, at which time.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::kind::same_kind;
use super::rates::Price;
use crate::model::billing::Billing;
use crate::model::pattern::Pattern;
use crate::model::tokens::TokenUsage;

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

/// What is to be priced.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What the answer names, or what stands for it.
    pub model: Option<&'a str>,
    /// When the call began.
    pub at: Timestamp,
    /// The tokens that are billed.
    pub usage: &'a TokenUsage,
    /// What decides the price beside them.
    pub billing: &'a Billing,
    /// Tokens charged beyond those seen: a floor, or a reservation. They are priced as input.
    pub unseen: u64,
}

/// Whose price a call was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PricedBy {
    /// The model's own.
    Own,
    /// The default: the model has none.
    Default,
    /// The answer's, which says what it cost: the model has none.
    Answer,
}

/// What a call costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost<'a> {
    /// In nano-dollars.
    pub nanousd: u64,
    /// By whose price.
    pub by: PricedBy,
    /// The price; with [`PricedBy::Answer`] the one that was not used.
    pub price: &'a Price,
}

/// The longest name, in bytes, that is looked for. The longest that we know, of a model behind an ARN, has about 150.
pub const MAX_NAME_BYTES: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// As it was written.
    name: String,
    tariff: Tariff,
}

/// The prices of all known models, and one for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceTable {
    /// By name in lower case.
    models: BTreeMap<String, Entry>,
    /// The closest fit first: the most literal bytes, then by name. In lower case.
    patterns: Vec<(Pattern, Entry)>,
    default: Tariff,
}

impl PriceTable {
    /// A table with `default` for the models that it doesn't know. A name with a `*` is a pattern.
    pub fn new(default: impl Into<Tariff>, entries: impl IntoIterator<Item = (String, Tariff)>) -> Self {
        let mut table = Self { default: default.into(), ..Self::default() };
        for (name, tariff) in entries {
            let lower = name.to_ascii_lowercase();
            let entry = Entry { name, tariff };
            match Pattern::parse(&lower) {
                Some(pattern) => table.patterns.push((pattern, entry)),
                None => drop(table.models.insert(lower, entry)),
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

    /// What `call` costs, by the model's own price, else by what the answer says, else by the default.
    ///
    /// An answer that says that it cost nothing is not believed beside tokens: services that know no price say so too.
    pub fn cost(&self, call: &Call<'_>) -> Cost<'_> {
        let (price, known) = self.price(call.model, call.at);
        let tokens = call.usage.total().unwrap_or(0) > 0;
        let said = call.billing.reported_cost_nanousd.filter(|cost| *cost > 0 || !tokens);
        if let (false, Some(nanousd)) = (known, said) {
            return Cost { nanousd, by: PricedBy::Answer, price };
        }
        let unseen = TokenUsage { total: Some(call.unseen), ..TokenUsage::default() };
        let extra =
            price.cost_nanousd(&unseen, &Billing::default()).saturating_sub(price.per_request_nanousd);
        let nanousd = price.cost_nanousd(call.usage, call.billing).saturating_add(extra);
        Cost { nanousd, by: if known { PricedBy::Own } else { PricedBy::Default }, price }
    }

    /// The entry of `model`, whatever its case.
    ///
    /// First the name itself, then its family (`gpt-4o-mini-2024-07-18` is priced as `gpt-4o-mini`: the longest entry
    /// wins, and it must end where a `-`, `@`, `:` or `/` begins, so `gpt-4o` is never `gpt-4`, and the model must be of
    /// the [same kind](same_kind), so `gpt-4o-audio-preview` is never `gpt-4o`), then the pattern with the most literal
    /// bytes. A path before the name (`openai/gpt-4o`) is dropped when no entry names the path.
    pub fn find(&self, model: &str) -> Found<'_> {
        let mut buffer = [0; MAX_NAME_BYTES];
        let Some(model) = lower(model, &mut buffer) else { return self.unknown() };
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

    /// `model` in lower case.
    fn named(&self, model: &str) -> Option<Found<'_>> {
        let found = |name: &str, rule| {
            let entry = self.models.get(name)?;
            Some(Found { entry: Some(entry.name.as_str()), rule, tariff: &entry.tariff })
        };
        let family = |at: usize| {
            let (name, rest) = model.split_at(at);
            found(name, Rule::Family).filter(|_| same_kind(name, rest))
        };
        let mut ends = model.char_indices().rev().filter(|(_, c)| "-@:/".contains(*c));
        found(model, Rule::Exact).or_else(|| ends.find_map(|(at, _)| family(at)))
    }

    fn fitting(&self, fits: impl Fn(&Pattern) -> bool) -> Option<Found<'_>> {
        let (_, entry) = self.patterns.iter().find(|(pattern, _)| fits(pattern))?;
        Some(Found { entry: Some(entry.name.as_str()), rule: Rule::Pattern, tariff: &entry.tariff })
    }

    fn unknown(&self) -> Found<'_> {
        Found { entry: None, rule: Rule::Default, tariff: &self.default }
    }

    /// All entries with their prices: names in order, then patterns in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tariff)> {
        let patterns = self.patterns.iter().map(|(_, entry)| entry);
        self.models.values().chain(patterns).map(|entry| (entry.name.as_str(), &entry.tariff))
    }

    /// The price of what is not known.
    pub fn default_price(&self) -> &Tariff {
        &self.default
    }
}

/// `name` in lower case; `None` where it is longer than any model's.
fn lower<'a>(name: &str, buffer: &'a mut [u8; MAX_NAME_BYTES]) -> Option<&'a str> {
    let buffer = buffer.get_mut(..name.len())?;
    buffer.copy_from_slice(name.as_bytes());
    let text = std::str::from_utf8_mut(buffer).ok()?;
    text.make_ascii_lowercase();
    Some(text)
}
