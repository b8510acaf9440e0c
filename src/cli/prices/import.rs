//! `tollgate prices import`: LiteLLM's published price map (JSON) as `[prices]` of ours.
//!
//! 1. Prices are decimals from one end to the other: dollars per token become dollars per million by moving the point.
//! 2. What can't be taken is told with its reason, a model or a part of one; nothing is guessed.
//! 3. A model that costs nothing there is not taken: it may be free, or nobody wrote its price down.
//!
//! The map: <https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json>.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::decimal::{dollars, per_million};
use crate::cli::table::plain;
use crate::model::price::MAX_NAME_BYTES;
use crate::settings::Settings;

/// The source that the entries name.
pub(crate) const SOURCE: &str = "litellm-map";

/// Where the map is published.
const URL: &str = "https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json";

/// Their keys of a token's price, and ours.
const CLASSES: [(&str, &str); 9] = [
    ("input_cost_per_token", "input"),
    ("cache_read_input_token_cost", "cached_input"),
    ("cache_creation_input_token_cost", "cache_write_input"),
    ("cache_creation_input_token_cost_above_1hr", "cache_write_1h_input"),
    ("output_cost_per_token", "output"),
    ("input_cost_per_audio_token", "audio_input"),
    ("output_cost_per_audio_token", "audio_output"),
    ("input_cost_per_image_token", "image_input"),
    ("output_cost_per_image_token", "image_output"),
];

/// Their endings of a tier's prices, and our keys.
const TIERS: [(&str, &str); 3] = [("_flex", "flex"), ("_priority", "priority"), ("_batches", "batch")];

/// Models named for each reason.
const EXAMPLES: usize = 3;

/// Entries, by name, and what was left out.
#[derive(Debug, Default)]
pub(crate) struct Import {
    /// What follows the name in the TOML: `{ input = 0.15, … }`.
    entries: BTreeMap<String, String>,
    /// Models that were not taken, by reason.
    pub(crate) refused: BTreeMap<String, Vec<String>>,
    /// Parts of models that were not taken, by reason.
    pub(crate) parts: BTreeMap<String, Vec<String>>,
}

/// Makes the file `to` out of the map in the file `from`, and says what was done.
///
/// # Errors
/// When `from` is not such a map, has none of the `providers`, or when `to` is there already and not to be replaced.
pub(crate) fn run(from: &Path, to: &Path, providers: &[String], force: bool) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(from).with_context(|| format!("{} can't be read", from.display()))?;
    let map: Map<String, Value> = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a JSON object of models", from.display()))?;
    let import = read(&map, providers, &changing());
    if import.entries.is_empty() {
        anyhow::bail!("{} has no model that could be taken\n{}", from.display(), import.render(to));
    }
    let name = from.file_name().unwrap_or_default().to_string_lossy();
    let toml = import.toml(&name, &jiff::tz::TimeZone::UTC.to_datetime(Timestamp::now()).date().to_string());
    let mut open = OpenOptions::new();
    let open = if force { open.create(true).truncate(true) } else { open.create_new(true) };
    let mut file = open.write(true).open(to).with_context(|| match to.exists() && !force {
        true => format!(
            "{} is there already: name another file with --to, or replace it with --force",
            to.display()
        ),
        false => format!("{} can't be written", to.display()),
    })?;
    file.write_all(toml.as_bytes()).with_context(|| format!("{} can't be written", to.display()))?;
    Ok(import.render(to))
}

/// Names, in lower case, whose built-in price changes on some day.
fn changing() -> BTreeSet<String> {
    let built_in = Settings::load(None, &BTreeMap::new()).map(|settings| settings.prices).unwrap_or_default();
    let changing = built_in.iter().filter(|(_, tariff)| !tariff.changes().is_empty());
    changing.map(|(name, _)| name.to_ascii_lowercase()).collect()
}

/// Reads a map. With `providers`, only their models, named without the provider's path.
///
/// `changing` are names, in lower case, whose built-in price changes on some day: an entry of ours keeps its own.
pub(crate) fn read(map: &Map<String, Value>, providers: &[String], changing: &BTreeSet<String>) -> Import {
    let mut import = Import::default();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in map.iter().filter(|(key, _)| *key != "sample_spec") {
        let provider = value["litellm_provider"].as_str().unwrap_or_default();
        if !providers.is_empty() && !providers.iter().any(|wanted| wanted == provider) {
            continue;
        }
        let path = format!("{provider}/");
        let name = if providers.is_empty() { key } else { key.strip_prefix(&path).unwrap_or(key) };
        let mut parts = Vec::new();
        let entry = match names.get(&name.to_ascii_lowercase()) {
            Some(former) => Err(format!("has the name of another entry of the map: {former}")),
            None => entry(name, value, changing, &mut parts),
        };
        match entry {
            Ok(entry) => {
                names.insert(name.to_ascii_lowercase(), key.clone());
                import.entries.insert(name.to_owned(), entry);
                parts.into_iter().for_each(|part| import.parts.entry(part).or_default().push(key.clone()));
            }
            Err(reason) => import.refused.entry(reason).or_default().push(key.clone()),
        }
    }
    import
}

impl Import {
    /// How many models were taken.
    pub(crate) fn taken(&self) -> usize {
        self.entries.len()
    }

    /// How many were not.
    pub(crate) fn left(&self) -> usize {
        self.refused.values().map(Vec::len).sum()
    }

    /// What was done, for people.
    fn render(&self, to: &Path) -> String {
        let mut text = format!("{} models taken into {}\n", self.taken(), to.display());
        if self.left() > 0 {
            let _ = writeln!(text, "\n{} models not taken:", self.left());
            self.refused.iter().for_each(|(reason, models)| text.push_str(&examples(reason, models)));
        }
        if !self.parts.is_empty() {
            text.push_str("\nparts of models that were not taken:\n");
            self.parts.iter().for_each(|(reason, models)| text.push_str(&examples(reason, models)));
        }
        text
    }

    /// The TOML. `via` is how the map came here, `as_of` a date.
    pub(crate) fn toml(&self, via: &str, as_of: &str) -> String {
        let mut text = format!(
            "# Prices by `tollgate prices import`: US dollars per million tokens. docs/prices.md has more.\n\
             [price_sources]\n{SOURCE} = {{ url = {}, via = {}, as_of = {} }}\n\n[prices]\n",
            quoted(URL),
            quoted(via),
            quoted(as_of)
        );
        for (name, entry) in &self.entries {
            text.push_str(&format!("{} = {entry}\n", quoted(name)));
        }
        text
    }
}

/// `  12  has no price per token: a, b, c, …`
fn examples(reason: &str, models: &[String]) -> String {
    let some: Vec<String> = models.iter().take(EXAMPLES).map(|model| plain(model)).collect();
    let more = if models.len() > some.len() { ", …" } else { "" };
    format!("{:>6}  {}: {}{more}\n", models.len(), plain(reason), some.join(", "))
}

/// The prices of one model, as far as we have a place for them.
#[derive(Default)]
struct Prices {
    /// By tier (none: the standard one) and threshold (0: none), ours by our key.
    tokens: BTreeMap<(&'static str, u64), BTreeMap<&'static str, String>>,
    fees: Vec<(&'static str, String)>,
}

fn entry(
    name: &str,
    value: &Value,
    changing: &BTreeSet<String>,
    parts: &mut Vec<String>,
) -> Result<String, String> {
    let Value::Object(model) = value else { return Err("is not an object".to_owned()) };
    if name.contains(['*', '"', '\\'])
        || name.contains(char::is_control)
        || name.len() > MAX_NAME_BYTES
        || name.is_empty()
        || name == "default"
    {
        return Err("has a name that no model has".to_owned());
    }
    if model.contains_key("tiered_pricing") {
        return Err("has prices for several lengths of prompts, and we have one threshold".to_owned());
    }
    let prices = prices(model, parts)?;
    let thresholds: BTreeSet<u64> =
        prices.tokens.keys().map(|(_, above)| *above).filter(|n| *n > 0).collect();
    if thresholds.len() > 1 {
        return Err("has prices for several lengths of prompts, and we have one threshold".to_owned());
    }
    let threshold = thresholds.first().copied().unwrap_or(0);
    let mut fields = prices.fields("", 0);
    if threshold > 0 {
        let long = prices.fields("", threshold);
        fields.push(format!("long = {{ above = {threshold}, {} }}", long.join(", ")));
        // A tier's price for long prompts needs one of the standard tier beside it.
        if long.is_empty() {
            return Err("has a price for long prompts in a tier alone".to_owned());
        }
    }
    for (_, tier) in TIERS {
        let (mut own, long) = (prices.fields(tier, 0), prices.fields(tier, threshold));
        if threshold > 0 && !long.is_empty() {
            own.push(format!("long = {{ {} }}", long.join(", ")));
        }
        if !own.is_empty() {
            fields.push(format!("{tier} = {{ {} }}", own.join(", ")));
        }
    }
    fields.extend(prices.fees.iter().map(|(key, usd)| format!("{key} = {usd}")));
    fields.push(format!("source = {}", quoted(SOURCE)));
    if changing.contains(&name.to_ascii_lowercase()) {
        fields.push("changes = []".to_owned());
    }
    Ok(format!("{{ {} }}", fields.join(", ")))
}

impl Prices {
    fn fields(&self, tier: &'static str, above: u64) -> Vec<String> {
        let tokens = self.tokens.get(&(tier, above));
        let order = CLASSES.iter().filter_map(|(_, key)| Some((key, tokens?.get(key)?)));
        order.map(|(key, usd)| format!("{key} = {usd}")).collect()
    }

    fn has(&self, key: &str) -> bool {
        self.tokens.get(&("", 0)).is_some_and(|tokens| tokens.contains_key(key))
    }
}

fn prices(model: &Map<String, Value>, parts: &mut Vec<String>) -> Result<Prices, String> {
    let mut prices = Prices::default();
    let mode = model.get("mode").and_then(Value::as_str).unwrap_or_default();
    for (key, value) in model.iter().filter(|(key, _)| key.contains("cost")) {
        if let Some((class, tier, above)) = token_price(key) {
            let usd = per_million(value).map_err(|why| format!("{key} {why}"))?;
            prices.tokens.entry((tier, above)).or_default().insert(class, usd);
            continue;
        }
        match (key.as_str(), value) {
            ("input_cost_per_request", value) => {
                prices.fees.push(("per_request", dollars(value).map_err(|why| format!("{key} {why}"))?));
            }
            ("input_cost_per_query", value) if mode == "rerank" => {
                prices.fees.push(("per_rerank_unit", dollars(value).map_err(|why| format!("{key} {why}"))?));
            }
            ("search_context_cost_per_query", Value::Object(sizes)) => search(sizes, &mut prices, parts),
            ("output_cost_per_reasoning_token", value)
                if Some(value) == model.get("output_cost_per_token") => {}
            ("input_cost_per_token_cache_hit", value)
                if Some(value) == model.get("cache_read_input_token_cost") => {}
            _ => parts.push(format!("{key} has no place in [prices]")),
        }
    }
    whole(mode, &mut prices)?;
    Ok(prices)
}

/// Refuses what would be free for want of a price, and fills in what is free by its nature.
fn whole(mode: &str, prices: &mut Prices) -> Result<(), String> {
    let standard = prices.tokens.entry(("", 0)).or_default();
    let fee = !prices.fees.is_empty();
    if mode == "rerank" && fee {
        standard.entry("input").or_insert_with(|| "0.0".to_owned());
    }
    if !standard.contains_key("input") {
        return Err("has no price per input token".to_owned());
    }
    if matches!(mode, "embedding" | "rerank" | "moderation") {
        standard.entry("output").or_insert_with(|| "0.0".to_owned());
    }
    let free = standard.values().all(|usd| usd == "0.0") && !fee;
    if !prices.has("output") {
        return Err("has no price per output token".to_owned());
    }
    if free { Err("costs nothing there: free, or not known".to_owned()) } else { Ok(()) }
}

/// What a price of tokens is of: our class, the tier, and the length of the prompt above which it holds (0: any).
fn token_price(key: &str) -> Option<(&'static str, &'static str, u64)> {
    let (rest, tier) =
        TIERS.iter().find_map(|(ending, tier)| Some((key.strip_suffix(ending)?, *tier))).unwrap_or((key, ""));
    let threshold = |rest: &'_ str| {
        let (class, above) = rest.strip_suffix("k_tokens")?.rsplit_once("_above_")?;
        Some((class.len(), above.parse::<u64>().ok()?.checked_mul(1000).filter(|above| *above > 0)?))
    };
    let (rest, above) = match threshold(rest) {
        Some((end, above)) => (&rest[..end], above),
        None => (rest, 0),
    };
    let (_, class) = CLASSES.iter().find(|(theirs, _)| *theirs == rest)?;
    Some((class, tier, above))
}

/// A search costs by the size of its context there, and alike here.
fn search(sizes: &Map<String, Value>, prices: &mut Prices, parts: &mut Vec<String>) {
    let costs: BTreeSet<Option<String>> = sizes.values().map(|value| dollars(value).ok()).collect();
    match costs.into_iter().collect::<Vec<_>>().as_slice() {
        [Some(usd)] if usd == "0.0" => {}
        [Some(usd)] => prices.fees.push(("per_web_search", usd.clone())),
        _ => parts.push("search_context_cost_per_query differs by the size of the context".to_owned()),
    }
}

/// As TOML writes a text without control characters.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
