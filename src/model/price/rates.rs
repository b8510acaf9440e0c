//! What one model costs, and what that makes of a call.

use crate::model::billing::{Billing, Tier};
use crate::model::tokens::TokenUsage;

/// Pico-dollars per token: USD per million tokens × 10⁶, so that a price of 0.0375 $/M is a whole number.
pub type PicoUsdPerToken = u64;

/// What a token costs, by its class. All fallbacks are filled in but those of audio and images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Input that no cache had.
    pub input: PicoUsdPerToken,
    /// Input read from a cache.
    pub cached_input: PicoUsdPerToken,
    /// Input written to a cache, for as long as the provider keeps it unasked (Anthropic: five minutes).
    pub cache_write_input: PicoUsdPerToken,
    /// Input written to a cache that is kept for an hour.
    pub cache_write_1h: PicoUsdPerToken,
    /// Output. Reasoning is a part of it and is billed as such: no provider in the built-in table lists a price of
    /// its own for it.
    pub output: PicoUsdPerToken,
    /// Audio input that no cache had; `None`: none is published, and it costs what input costs.
    pub audio_input: Option<PicoUsdPerToken>,
    /// Audio output; `None`: as output.
    pub audio_output: Option<PicoUsdPerToken>,
    /// Image input that no cache had; `None`: as input.
    pub image_input: Option<PicoUsdPerToken>,
    /// Image output; `None`: as output.
    pub image_output: Option<PicoUsdPerToken>,
}

impl Rates {
    /// Each class by `of`, which is given its price here and in `other`.
    pub fn zip(
        &self,
        other: &Self,
        of: impl Fn(PicoUsdPerToken, PicoUsdPerToken) -> PicoUsdPerToken,
    ) -> Self {
        let either = |mine: Option<_>, others: Option<_>, my: u64, their: u64| {
            (mine.is_some() || others.is_some()).then(|| of(mine.unwrap_or(my), others.unwrap_or(their)))
        };
        Self {
            input: of(self.input, other.input),
            cached_input: of(self.cached_input, other.cached_input),
            cache_write_input: of(self.cache_write_input, other.cache_write_input),
            cache_write_1h: of(self.cache_write_1h, other.cache_write_1h),
            output: of(self.output, other.output),
            audio_input: either(self.audio_input, other.audio_input, self.input, other.input),
            audio_output: either(self.audio_output, other.audio_output, self.output, other.output),
            image_input: either(self.image_input, other.image_input, self.input, other.input),
            image_output: either(self.image_output, other.image_output, self.output, other.output),
        }
    }

    /// What an hour's cache write costs where no price is named for it: twice the input where one for five minutes
    /// costs 1.25 times the input, as Anthropic publishes it
    /// (<https://platform.claude.com/docs/en/build-with-claude/prompt-caching>), else what any cache write costs.
    pub fn hour_by(input: PicoUsdPerToken, cache_write: PicoUsdPerToken) -> PicoUsdPerToken {
        let anthropic = u128::from(cache_write) * 4 == u128::from(input) * 5;
        if anthropic { input.saturating_mul(2) } else { cache_write }
    }
}

/// The rates of one tier: usually, and for prompts over the model's threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// Of a prompt up to the threshold.
    pub usual: Rates,
    /// Of all tokens of a call whose prompt is longer.
    pub long: Option<Rates>,
}

impl Scale {
    /// The rates of a tier whose own for long prompts are not known: those of `standard`, moved as the usual ones are.
    pub fn like(usual: Rates, standard: &Self) -> Self {
        let grown = |long: &Rates| {
            // What its tier changes, class by class, and then what its length changes.
            let moved = long.zip(&standard.usual, ratio_ppm);
            usual.zip(&moved, scaled)
        };
        Self { usual, long: standard.long.as_ref().map(grown) }
    }
}

/// One rate as a multiple of another, in millionths. Of nothing there is no multiple: it stays as it is.
fn ratio_ppm(rate: u64, of: u64) -> u64 {
    if of == 0 {
        return 1_000_000;
    }
    let ppm = (u128::from(rate) * 1_000_000 + u128::from(of) / 2) / u128::from(of);
    u64::try_from(ppm).unwrap_or(u64::MAX)
}

fn scaled(rate: u64, ppm: u64) -> u64 {
    let scaled = (u128::from(rate) * u128::from(ppm) + 500_000) / 1_000_000;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// What one model costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Of the standard tier.
    pub standard: Scale,
    /// Of [`Tier::Flex`]; `None`: as standard.
    pub flex: Option<Scale>,
    /// Of [`Tier::Priority`]; `None`: as standard.
    pub priority: Option<Scale>,
    /// Of [`Tier::Batch`]; `None`: as standard.
    pub batch: Option<Scale>,
    /// A prompt of more input tokens (cached ones included) is a long one.
    pub long_above: u64,
    /// Added once for each request, in nano-dollars.
    pub per_request_nanousd: u64,
    /// Added for each web search, in nano-dollars; `None`: none is published.
    pub per_web_search_nanousd: Option<u64>,
    /// Added for each unit of reranking, in nano-dollars; `None`: none is published.
    pub per_rerank_unit_nanousd: Option<u64>,
}

/// The tokens of a call by what they cost: each token in one class.
struct Parts {
    fresh: u64,
    cached: u64,
    written: u64,
    written_1h: u64,
    audio_input: u64,
    image_input: u64,
    output: u64,
    audio_output: u64,
    image_output: u64,
}

impl Parts {
    /// A part that is larger than its whole is the whole: a provider's mistake costs no token twice.
    fn of(usage: &TokenUsage, billing: &Billing) -> Self {
        let output = usage.output.unwrap_or(0);
        let input = match (usage.input, usage.output) {
            (Some(input), _) => input,
            (None, Some(_)) => usage.total.unwrap_or(0).saturating_sub(output),
            (None, None) => usage.total.unwrap_or(0),
        };
        let part = |of: Option<u64>, left: &mut u64| {
            let part = of.unwrap_or(0).min(*left);
            *left -= part;
            part
        };
        let (mut fresh, mut left) = (input, output);
        let cached = part(usage.cached_input, &mut fresh);
        let mut written = part(usage.cache_write_input, &mut fresh);
        Self {
            cached,
            written_1h: part(billing.cache_write_1h, &mut written),
            written,
            audio_input: part(billing.audio_input, &mut fresh),
            image_input: part(billing.image_input, &mut fresh),
            fresh,
            audio_output: part(billing.audio_output, &mut left),
            image_output: part(billing.image_output, &mut left),
            output: left,
        }
    }

    /// The length of the prompt.
    fn input(&self) -> u64 {
        let parts =
            [self.fresh, self.cached, self.written, self.written_1h, self.audio_input, self.image_input];
        parts.into_iter().fold(0, u64::saturating_add)
    }
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
        let (input, output) = (Self::pico(input)?, Self::pico(output)?);
        let cache_write_input = cache_write.map_or(Some(input), Self::pico)?;
        let usual = Rates {
            input,
            cached_input: cached_input.map_or(Some(input), Self::pico)?,
            cache_write_input,
            cache_write_1h: Rates::hour_by(input, cache_write_input),
            output,
            ..Rates::default()
        };
        Some(Self { standard: Scale { usual, long: None }, ..Self::default() })
    }

    /// A price in USD per million tokens, as it is kept; `None` as for [`Price::per_million`].
    pub fn pico(usd: f64) -> Option<PicoUsdPerToken> {
        let pico = (usd * 1e6).round();
        (usd.is_finite() && (0.0..=1e15).contains(&pico)).then_some(pico as u64)
    }

    /// The usual rates of the standard tier.
    pub fn usual(&self) -> &Rates {
        &self.standard.usual
    }

    /// What the tier costs; `None` where nothing is published for it.
    fn tier(&self, tier: Tier) -> Option<&Scale> {
        match tier {
            Tier::Flex => self.flex.as_ref(),
            Tier::Priority => self.priority.as_ref(),
            Tier::Batch => self.batch.as_ref(),
        }
    }

    /// What `usage` costs with what is billed apart in `billing`, in nano-dollars, rounded half up once at the end.
    /// Saturates rather than wraps. Pure: the answer's own figure of its cost is left alone here.
    ///
    /// A count of which only the sum is known is priced as input, the cheaper side: an estimate never
    /// invents money. Audio and images that a cache had cost what the cache's tokens do.
    pub fn cost_nanousd(&self, usage: &TokenUsage, billing: &Billing) -> u64 {
        let parts = Parts::of(usage, billing);
        let scale = billing.tier.and_then(|tier| self.tier(tier)).unwrap_or(&self.standard);
        let long = scale.long.as_ref().filter(|_| parts.input() > self.long_above);
        let rates = long.unwrap_or(&scale.usual);
        let pico = [
            (parts.fresh, rates.input),
            (parts.cached, rates.cached_input),
            (parts.written, rates.cache_write_input),
            (parts.written_1h, rates.cache_write_1h),
            (parts.audio_input, rates.audio_input.unwrap_or(rates.input)),
            (parts.image_input, rates.image_input.unwrap_or(rates.input)),
            (parts.output, rates.output),
            (parts.audio_output, rates.audio_output.unwrap_or(rates.output)),
            (parts.image_output, rates.image_output.unwrap_or(rates.output)),
        ]
        .into_iter()
        // Nine products of 64 bits need up to 132: saturates.
        .fold(0u128, |sum, (tokens, rate)| sum.saturating_add(u128::from(tokens) * u128::from(rate)));
        let nano = pico.saturating_add(500) / 1000;
        let fees = [
            (billing.web_searches, self.per_web_search_nanousd),
            (billing.rerank_units, self.per_rerank_unit_nanousd),
        ]
        .map(|(count, fee)| count.unwrap_or(0).saturating_mul(fee.unwrap_or(0)));
        u64::try_from(nano)
            .unwrap_or(u64::MAX)
            .saturating_add(self.per_request_nanousd)
            .saturating_add(fees[0])
            .saturating_add(fees[1])
    }

    /// What of `billing` has no price here: by the names of its fields. The tokens of it were priced as their class is,
    /// searches and units of reranking as nothing.
    pub fn unpriced(&self, billing: &Billing) -> impl Iterator<Item = &'static str> + use<> {
        let used = |count: Option<u64>| count.is_some_and(|count| count > 0);
        let usual = self.usual();
        [
            ("tier", billing.tier.is_some_and(|tier| self.tier(tier).is_none())),
            ("audio_input", used(billing.audio_input) && usual.audio_input.is_none()),
            ("audio_output", used(billing.audio_output) && usual.audio_output.is_none()),
            ("image_input", used(billing.image_input) && usual.image_input.is_none()),
            ("image_output", used(billing.image_output) && usual.image_output.is_none()),
            ("web_searches", used(billing.web_searches) && self.per_web_search_nanousd.is_none()),
            ("rerank_units", used(billing.rerank_units) && self.per_rerank_unit_nanousd.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
    }
}
