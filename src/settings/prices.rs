//! `[prices.*]` and `[price_sources.*]`.

use std::collections::BTreeMap;

use config::ValueKind;

use super::reader::{Slot, Table, all};
use super::units;
use crate::model::price::{MAX_NAME_BYTES, Price, PriceTable, Rates, Scale, Tariff};

/// The entry for the models that are not named.
pub const DEFAULT: &str = "default";

/// The longest prompt, in tokens, that a threshold may be set at.
const MAX_PROMPT: u64 = 1_000_000_000;

/// The most that a tier may cost, as a multiple of the standard one.
const MAX_FACTOR: f64 = 1000.0;

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
    let slots = table.named();
    let entries = all(slots.iter().map(|(name, slot)| {
        entry(name, &slot.clone().in_one_line(), sources.as_ref()).map(|entry| (name.clone(), entry))
    }));
    let mut entries: BTreeMap<String, (Tariff, PriceOrigin)> = entries?.into_iter().collect();
    one_of_each_case(&table, &slots, &mut entries)?;
    let origins = entries.iter().map(|(name, (_, origin))| (name.clone(), origin.clone())).collect();
    let default = entries.remove(DEFAULT);
    if default.is_none() {
        table.fault("has no default: add [prices.default] for the models that are not named");
    }
    let tariffs = entries.into_iter().map(|(name, (tariff, _))| (name, tariff));
    Some((PriceTable::new(default?.0, tariffs), sources.map(|_| origins)?))
}

/// Models are found whatever their case, so of names that differ by it alone one can hold: the operator's over the
/// built-in one.
fn one_of_each_case(
    table: &Table<'_>,
    slots: &[(String, Slot<'_>)],
    entries: &mut BTreeMap<String, (Tariff, PriceOrigin)>,
) -> Option<()> {
    let mut seen: BTreeMap<String, &(String, Slot<'_>)> = BTreeMap::new();
    let mut sound = Some(());
    for named in slots {
        let Some(former) = seen.insert(named.0.to_ascii_lowercase(), named) else { continue };
        let built_in = |(_, slot): &&(String, Slot<'_>)| !is_own(slot);
        match [named, former].into_iter().find(built_in) {
            Some((name, _)) => drop(entries.remove(name)),
            None => {
                table.fault(format!(
                    "has {:?} and {:?}, which are the same model: keep one",
                    former.0, named.0
                ));
                sound = None;
            }
        }
    }
    sound
}

/// Whether a file or a variable sets anything of it.
fn is_own(slot: &Slot<'_>) -> bool {
    slot.origin().is_some()
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

/// The classes of tokens that have a price, by their keys.
const CLASSES: [&str; 9] = [
    "input",
    "cached_input",
    "cache_write_input",
    "cache_write_1h_input",
    "output",
    "audio_input",
    "audio_output",
    "image_input",
    "image_output",
];

/// Dollars for one thing each, and not for a million.
const FEES: [&str; 3] = ["per_request", "per_web_search", "per_rerank_unit"];

/// Prices of tokens that one table names, in US dollars per million, in the order of [`CLASSES`].
type Tokens = [Option<f64>; 9];

/// What a tier costs.
#[expect(clippy::large_enum_variant, reason = "read once, and then made into a price")]
#[derive(Clone, Copy, Debug, PartialEq)]
enum TierPrice {
    /// A multiple of the standard price.
    Factor(f64),
    /// Prices of its own, usually and for long prompts; what is not named costs what it does in the standard tier.
    Own(Tokens, Option<Tokens>),
}

/// Prices of long prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Long {
    above: Option<u64>,
    tokens: Tokens,
}

/// What one table names; what it leaves out holds on from the price before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Named {
    tokens: Tokens,
    fees: [Option<f64>; 3],
    long: Option<Long>,
    flex: Option<TierPrice>,
    priority: Option<TierPrice>,
    batch: Option<TierPrice>,
}

impl Named {
    /// The price keys of `table`, and the places of those that are there.
    fn read<'a>(table: &Table<'a>) -> (Option<Self>, Vec<Slot<'a>>) {
        // Each is read, so that each fault is found, before any is used.
        let tokens = tokens(table);
        let fees = FEES.map(|key| dollars(table, key));
        let long = optionally(table.optional("long"), |slot| long(slot, "above"));
        let [flex, priority, batch] =
            ["flex", "priority", "batch"].map(|key| optionally(table.optional(key), tier));
        let keys = CLASSES.iter().chain(&FEES).chain(&["long", "flex", "priority", "batch"]);
        let slots = keys.filter_map(|key| table.optional(key)).collect();
        let named = || {
            let [request, search, unit] = fees;
            Some(Self {
                tokens: tokens?,
                fees: [request?, search?, unit?],
                long: long?,
                flex: flex?,
                priority: priority?,
                batch: batch?,
            })
        };
        (named(), slots)
    }

    fn over(self, before: Self) -> Self {
        let long = match (self.long, before.long) {
            (Some(long), Some(former)) => {
                Some(Long { above: long.above.or(former.above), tokens: or(long.tokens, former.tokens) })
            }
            (long, former) => long.or(former),
        };
        Self {
            tokens: or(self.tokens, before.tokens),
            fees: or(self.fees, before.fees),
            long,
            flex: self.flex.or(before.flex),
            priority: self.priority.or(before.priority),
            batch: self.batch.or(before.batch),
        }
    }

    /// What an embedding model has no use for, output, costs nothing where it is not named.
    fn price(self, table: &Table<'_>) -> Option<Price> {
        self.tokens[0]?;
        let price = self.scaled();
        if price.is_none() {
            table.fault("is out of range: prices are US dollars per million tokens");
        }
        price
    }

    fn scaled(self) -> Option<Price> {
        let usual = rates(self.tokens, None)?;
        let long = self.long.map(|long| rates(long.tokens, Some(&usual)));
        let standard = Scale { usual, long: flat(long)? };
        let of = |tier: Option<TierPrice>| flat(tier.map(|tier| tier.scale(&standard)));
        let [request, search, unit] = self.fees.map(|fee| fee.map(|usd| (usd * 1e9).round() as u64));
        Some(Price {
            standard,
            flex: of(self.flex)?,
            priority: of(self.priority)?,
            batch: of(self.batch)?,
            long_above: self.long.and_then(|long| long.above).unwrap_or(u64::MAX),
            per_request_nanousd: request.unwrap_or(0),
            per_web_search_nanousd: search,
            per_rerank_unit_nanousd: unit,
        })
    }
}

impl TierPrice {
    fn scale(self, standard: &Scale) -> Option<Scale> {
        match self {
            Self::Factor(factor) => {
                let times = |rates: &Rates| rates.zip(rates, |rate, _| (rate as f64 * factor).round() as u64);
                Some(Scale { usual: times(&standard.usual), long: standard.long.as_ref().map(times) })
            }
            Self::Own(tokens, long) => {
                let usual = rates(tokens, Some(&standard.usual))?;
                let like = Scale::like(usual, standard);
                let own = long.map(|long| rates(long, Some(&like.long.unwrap_or(usual))));
                Some(Scale { usual, long: flat(own)?.or(like.long) })
            }
        }
    }
}

/// The rates that `named` has; what it leaves out is `like` that of another price, or is filled in as
/// `config/default.toml` says.
fn rates(named: Tokens, like: Option<&Rates>) -> Option<Rates> {
    let mut pico = [None; CLASSES.len()];
    for (rate, usd) in pico.iter_mut().zip(named) {
        *rate = optionally(usd, |usd| Price::pico(*usd))?;
    }
    let [input, cached, write, hour, output, audio_in, audio_out, image_in, image_out] = pico;
    let input_rate = input.or(like.map(|like| like.input))?;
    let written = write.or(like.map(|like| like.cache_write_input)).unwrap_or(input_rate);
    // By the rule for hours, where this table says what a write costs; else as before.
    let kept = like.filter(|_| write.is_none()).map(|like| like.cache_write_1h);
    Some(Rates {
        input: input_rate,
        cached_input: cached.or(like.map(|like| like.cached_input)).unwrap_or(input_rate),
        cache_write_input: written,
        cache_write_1h: hour.or(kept).unwrap_or_else(|| Rates::hour_by(input_rate, written)),
        output: output.or(like.map(|like| like.output)).unwrap_or(0),
        audio_input: audio_in.or(like.and_then(|like| like.audio_input)),
        audio_output: audio_out.or(like.and_then(|like| like.audio_output)),
        image_input: image_in.or(like.and_then(|like| like.image_input)),
        image_output: image_out.or(like.and_then(|like| like.image_output)),
    })
}

/// `None` where something was there and could not be had.
fn flat<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        Some(None) => None,
        Some(Some(value)) => Some(Some(value)),
        None => Some(None),
    }
}

fn or<const N: usize>(mut first: [Option<f64>; N], second: [Option<f64>; N]) -> [Option<f64>; N] {
    first.iter_mut().zip(second).for_each(|(mine, other)| *mine = mine.or(other));
    first
}

/// Reads what may be there: `None` where it is there and faulty.
fn optionally<S, T>(there: Option<S>, read: impl FnOnce(&S) -> Option<T>) -> Option<Option<T>> {
    flat(there.map(|there| read(&there)))
}

fn dollars(table: &Table<'_>, key: &str) -> Option<Option<f64>> {
    optionally(table.optional(key), Slot::dollars)
}

fn tokens(table: &Table<'_>) -> Option<Tokens> {
    let read = CLASSES.map(|key| dollars(table, key));
    read.iter().all(Option::is_some).then(|| read.map(Option::flatten))
}

/// A table of prices for long prompts. In one that stands in another, `above` is that of the other.
fn long(slot: &Slot<'_>, above: &str) -> Option<Long> {
    let table = slot.table()?;
    let above =
        if above.is_empty() { Some(None) } else { table.key(above).integer(1..=MAX_PROMPT).map(Some) };
    let tokens = tokens(&table);
    Some(Long { above: above?, tokens: tokens? })
}

fn tier(slot: &Slot<'_>) -> Option<TierPrice> {
    if !matches!(slot.present()?.kind, ValueKind::Table(_)) {
        return slot.number(0.0..=MAX_FACTOR).map(TierPrice::Factor);
    }
    let table = slot.table()?;
    let tokens = tokens(&table);
    let long = optionally(table.optional("long"), |slot| long(slot, ""));
    Some(TierPrice::Own(tokens?, long?.map(|long| long.tokens)))
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
    if own && first.is_some_and(|first| first.tokens[4].is_none()) && !name.contains("embed") {
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
