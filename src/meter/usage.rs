//! From a provider's own counts to token classes that overlap nowhere and leave nothing out.
//!
//! A [`Shape`] is one provider's way to report. Whether its input count includes what a cache gave, and its output
//! count what was spent on thinking, is the shape's; where a sum is reported too, the sum has the last word, for the
//! same field names mean different things at different providers (xAI's `completion_tokens` leaves reasoning out,
//! OpenAI's doesn't). What a sum holds beyond both sides is output that is told nowhere else: Gemini's thoughts, where
//! it speaks OpenAI's format. A sum below both sides is no reason to doubt them: some leave the cache out of it too.

use crate::model::billing::Billing;
use crate::model::tokens::TokenUsage;

/// What a number at a pointer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Input,
    /// Input that is counted apart, and never in the input: added.
    ExtraInput,
    CachedInput,
    CacheWrite,
    Output,
    Reasoning,
    Total,
    BilledInput,
    BilledOutput,
    // From here on: what has a price of its own beside the tokens. It says nothing about which shape fits.
    CacheWrite1h,
    AudioInput,
    AudioOutput,
    ImageInput,
    ImageOutput,
    WebSearches,
    RerankUnits,
    /// Nano-dollars.
    Cost,
}

/// How many classes are counts of tokens.
pub(super) const TOKEN_CLASSES: usize = Class::CacheWrite1h as usize;
/// How many classes there are.
const CLASSES: usize = Class::Cost as usize + 1;

/// How the numbers of several events become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Merge {
    /// The last event that has the field: counts are cumulative.
    #[default]
    Last,
    /// Every event counts for itself.
    Sum,
    /// The largest.
    Max,
}

/// A number as the answer has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Amount {
    #[default]
    Unknown,
    Known(u64),
    /// There is something that is not a count: negative, a fraction, a word.
    Bad,
    /// A count beyond what one call can use.
    TooLarge,
}

/// Why a count was not believed, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// It is not a count.
    Bad,
    /// It is larger than one call's usage can be.
    Implausible,
    /// It is zero beside a text.
    Zero,
}

impl Doubt {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Doubt::Bad => "bad_usage",
            Doubt::Implausible => "implausible_usage",
            Doubt::Zero => "zero_usage",
        }
    }

    /// The graver of two.
    pub(super) fn or(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.into_iter().chain(other).min()
    }
}

const LARGEST: u64 = i64::MAX as u64;

impl Amount {
    /// A number or literal as written. `None` for `null`, which says nothing.
    pub(super) fn parse(raw: &[u8]) -> Option<Self> {
        if raw == b"null" {
            return None;
        }
        if !raw.is_empty() && raw.iter().all(u8::is_ascii_digit) {
            return Some(digits(raw).filter(|n| *n <= LARGEST).map_or(Self::Bad, Self::Known));
        }
        let Ok(text) = std::str::from_utf8(raw) else { return Some(Self::Bad) };
        // Some services send whole numbers as `345.0`. Above 2^53 such a number is a guess.
        let whole = text
            .parse::<f64>()
            .ok()
            .filter(|n| n.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(n));
        Some(
            whole
                .filter(|_| raw.first().is_some_and(u8::is_ascii_digit))
                .map_or(Self::Bad, |n| Self::Known(n as u64)),
        )
    }

    /// A count written as a string of digits, as some services do.
    pub(super) fn parse_string(value: Option<&[u8]>) -> Self {
        let digits = value.filter(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit));
        digits.and_then(Self::parse).unwrap_or(Self::Bad)
    }

    /// Dollars as a decimal number (`0.00014`, `1.4e-05`), in nano-dollars, the rest rounded half up. Nothing is
    /// computed in floating point.
    pub(super) fn parse_dollars(raw: &[u8]) -> Option<Self> {
        if raw == b"null" {
            return None;
        }
        Some(std::str::from_utf8(raw).ok().and_then(nano_dollars).map_or(Self::Bad, Self::Known))
    }

    pub(super) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, amount) | (amount, Self::Unknown) => amount,
            (Self::Known(a), Self::Known(b)) => {
                a.checked_add(b).filter(|sum| *sum <= LARGEST).map_or(Self::Bad, Self::Known)
            }
            (Self::TooLarge, _) | (_, Self::TooLarge) => Self::TooLarge,
            _ => Self::Bad,
        }
    }

    /// The amount, unless it is more than one call can use.
    pub(super) fn within(self, bound: u64) -> Self {
        match self {
            Self::Known(count) if count > bound => Self::TooLarge,
            amount => amount,
        }
    }

    pub(super) fn doubt(self) -> Option<Doubt> {
        match self {
            Self::Unknown | Self::Known(_) => None,
            Self::Bad => Some(Doubt::Bad),
            Self::TooLarge => Some(Doubt::Implausible),
        }
    }

    /// A count of something: neither nothing, nor zero.
    pub(super) fn positive(self) -> Option<u64> {
        self.known().filter(|count| *count > 0)
    }

    /// Of a call's counts the later one, except that a zero, or what is not a count, never replaces a count: services
    /// send placeholders before and after the real one.
    pub(super) fn merge(self, next: Self, how: Merge) -> Self {
        match (how, self, next) {
            (_, before, Self::Unknown) => before,
            (Merge::Last, Self::Known(count), Self::Known(0) | Self::Bad | Self::TooLarge) if count > 0 => {
                self
            }
            (Merge::Last, _, next) => next,
            (Merge::Sum, before, next) => before.plus(next),
            (Merge::Max, Self::Known(a), Self::Known(b)) => Self::Known(a.max(b)),
            (Merge::Max, Self::Known(a), Self::Bad | Self::TooLarge) => Self::Known(a),
            (Merge::Max, _, next) => next,
        }
    }

    pub(super) fn known(self) -> Option<u64> {
        match self {
            Self::Known(count) => Some(count),
            Self::Unknown | Self::Bad | Self::TooLarge => None,
        }
    }
}

/// A number as written, of nothing but digits; `None` where it is anything else, or too large.
pub(super) fn digits(raw: &[u8]) -> Option<u64> {
    raw.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn nano_dollars(text: &str) -> Option<u64> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if digits().next().is_none() || !digits().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let mut nano =
        digits().try_fold(0u128, |sum, digit| sum.checked_mul(10)?.checked_add(u128::from(digit - b'0')))?;
    let places = exponent.checked_add(9)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    if places >= 0 {
        let scale = if nano == 0 { 1 } else { 10u128.checked_pow(places.unsigned_abs())? };
        nano = nano.checked_mul(scale)?;
    } else {
        // What is divided by more than there are digits is nothing.
        let scale = 10u128.checked_pow(places.unsigned_abs());
        nano = scale.map_or(0, |scale| nano / scale + u128::from(nano % scale >= scale / 2));
    }
    u64::try_from(nano).ok().filter(|nano| *nano <= LARGEST)
}

/// One provider's way to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) merge: Merge,
    pub(super) input_includes_cached: bool,
    pub(super) output_includes_reasoning: bool,
}

/// A provider's counts, by class.
pub(super) type Counts = [Amount; CLASSES];

/// Of a shape's counts, what is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) usage: TokenUsage,
    /// What the provider bills, where it is not what it counts.
    pub(super) billed: Option<TokenUsage>,
    pub(super) billing: Billing,
    pub(super) doubt: Option<Doubt>,
}

impl Resolved {
    /// Two calls of one answer, together. A side that one of them does not report is what the other reports; where
    /// one of them reports a sum alone, so do both together.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            usage: sum(&self.usage, &other.usage),
            billed: match (self.billed, other.billed) {
                (Some(one), Some(other)) => Some(sum(&one, &other)),
                (one, other) => one.or(other),
            },
            billing: self.billing,
            doubt: Doubt::or(self.doubt, other.doubt),
        }
    }

    /// What the body does not report, from the `other` place that does (the answer's headers).
    pub(super) fn or(mut self, other: &Self) -> Self {
        let ours = &mut self.usage;
        let agrees = ours.total.is_none() || ours.total == other.usage.total();
        if agrees && (ours.input.is_none() || ours.output.is_none()) {
            if ours.input.is_none() {
                ours.input = other.usage.input;
                ours.cached_input = ours.cached_input.or(other.usage.cached_input);
                ours.cache_write_input = ours.cache_write_input.or(other.usage.cache_write_input);
            }
            if ours.output.is_none() {
                ours.output = other.usage.output;
                ours.reasoning = ours.reasoning.or(other.usage.reasoning);
            }
            let whole = ours.input.is_some() && ours.output.is_some();
            ours.total = if whole { None } else { ours.total.or(other.usage.total) };
        }
        self.billing.reported_cost_nanousd =
            self.billing.reported_cost_nanousd.or(other.billing.reported_cost_nanousd);
        self.doubt = Doubt::or(self.doubt, other.doubt);
        self
    }

    /// A zero is not a count: an answer with a text, or with output, had an input; and one with a text had an output.
    /// Such a side is unknown, and its text is to be counted.
    pub(super) fn disbelieve_zeros(&mut self, has_text: bool) {
        let usage = &mut self.usage;
        let no_output = has_text && usage.output == Some(0);
        let no_input = usage.input == Some(0) && (has_text || usage.output.is_some_and(|output| output > 0));
        let no_total = has_text && usage.total == Some(0);
        if !(no_output || no_input || no_total) {
            return;
        }
        if no_output {
            (usage.output, usage.reasoning) = (None, None);
        }
        if no_input {
            (usage.input, usage.cached_input, usage.cache_write_input) = (None, None, None);
        }
        usage.total = None;
        self.billed = None;
        self.doubt = Doubt::or(self.doubt, Some(Doubt::Zero));
    }
}

fn sum(one: &TokenUsage, other: &TokenUsage) -> TokenUsage {
    let add = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other).min(LARGEST)),
        (one, other) => one.or(other),
    };
    if one.total.is_some() || other.total.is_some() {
        return TokenUsage { total: add(one.total(), other.total()), ..TokenUsage::default() };
    }
    TokenUsage {
        input: add(one.input, other.input),
        cached_input: add(one.cached_input, other.cached_input),
        cache_write_input: add(one.cache_write_input, other.cache_write_input),
        output: add(one.output, other.output),
        reasoning: add(one.reasoning, other.reasoning),
        total: None,
    }
}

/// How well a shape's fields fit what was seen: the sides that have a count, then all that it has.
pub(super) type Fit = (usize, usize);

/// How well a shape's fields fit these counts.
pub(super) fn fit(counts: &Counts) -> Fit {
    let sides = [Class::Input, Class::Output].map(|class| counts[class as usize].positive());
    let known = counts[..TOKEN_CLASSES].iter().filter(|amount| **amount != Amount::Unknown).count();
    (sides.iter().flatten().count(), known)
}

/// Whether nothing is left to be counted: both sides are known, and neither is a zero, which a text that follows
/// would make unknown.
pub(super) fn complete(usage: &TokenUsage) -> bool {
    [usage.input, usage.output].iter().all(|side| side.is_some_and(|count| count > 0))
}

/// The counts that have a price of their own; a zero has none. Parts are never larger than what they are parts of.
pub(super) fn billing(counts: &Counts, usage: &TokenUsage) -> Billing {
    let of = |class: Class| counts[class as usize].positive();
    let part = |class: Class, whole: Option<u64>| of(class).map(|part| part.min(whole.unwrap_or(part)));
    Billing {
        tier: None,
        cache_write_1h: part(Class::CacheWrite1h, usage.cache_write_input),
        audio_input: part(Class::AudioInput, usage.input),
        audio_output: part(Class::AudioOutput, usage.output),
        image_input: part(Class::ImageInput, usage.input),
        image_output: part(Class::ImageOutput, usage.output),
        web_searches: of(Class::WebSearches),
        rerank_units: of(Class::RerankUnits),
        reported_cost_nanousd: of(Class::Cost),
    }
}

/// The disjoint classes of `counts`.
pub(super) fn resolve(shape: &Shape, counts: &Counts) -> Resolved {
    let of = |class: Class| counts[class as usize];
    let spoilt = counts[..TOKEN_CLASSES].iter().filter_map(|amount| amount.doubt()).min();

    let cached = of(Class::CachedInput).known();
    let written = of(Class::CacheWrite).known();
    let reasoning = of(Class::Reasoning).known();
    let total = of(Class::Total).known();
    let base_input = of(Class::Input).plus(of(Class::ExtraInput));
    let base_input = if of(Class::Input) == Amount::Unknown { Amount::Unknown } else { base_input };
    let base_output = of(Class::Output);
    let from_cache = Amount::Known(cached.unwrap_or(0)).plus(Amount::Known(written.unwrap_or(0)));

    // The shape's own reading first, then its neighbours: the first that adds up, else the first that is possible.
    let mut best: Option<(Amount, Amount)> = None;
    for (flip_cache, flip_reasoning) in [(false, false), (false, true), (true, false), (true, true)] {
        // Who says that the cache is apart is believed, whatever the sum.
        if flip_cache && !shape.input_includes_cached {
            continue;
        }
        let add_cache = shape.input_includes_cached == flip_cache;
        let add_reasoning = shape.output_includes_reasoning == flip_reasoning;
        let with = |base: Amount, part: Amount, add: bool| match base {
            Amount::Known(_) if add => base.plus(part),
            _ => base,
        };
        let input = with(base_input, from_cache, add_cache);
        let output = with(base_output, Amount::Known(reasoning.unwrap_or(0)), add_reasoning);
        if !holds(input, from_cache) || !holds(output, Amount::Known(reasoning.unwrap_or(0))) {
            continue;
        }
        let sum = input.plus(output).known();
        let adds_up = match (input.known(), output.known(), total) {
            (Some(_), Some(_), Some(total)) => sum == Some(total),
            _ => true,
        };
        if adds_up {
            best = Some((input, output));
            break;
        }
        best = best.or(Some((input, output)));
    }
    let (input, mut output) = best.unwrap_or((base_input, base_output));
    if let (Some(input), Some(known), Some(total)) = (input.known(), output.known(), total)
        && let Some(beyond) = total.checked_sub(input).filter(|rest| *rest > known)
    {
        output = Amount::Known(beyond);
    }
    let doubt = Doubt::or(spoilt, Doubt::or(input.doubt(), output.doubt()));

    let mut usage = TokenUsage {
        input: input.known(),
        cached_input: cached,
        cache_write_input: written,
        output: output.known(),
        reasoning,
        total: None,
    };
    if let Some(total) = total {
        // A side that is left out (an embedding has no output) is what remains of the sum; a spoilt one stays unknown.
        match (input, output) {
            (Amount::Known(input), Amount::Unknown) => {
                usage.output = rest(total, input, Amount::Known(reasoning.unwrap_or(0)));
            }
            (Amount::Unknown, Amount::Known(output)) => usage.input = rest(total, output, from_cache),
            _ => {}
        }
        if usage.input.is_none() || usage.output.is_none() {
            usage.total = Some(total);
        }
    }
    let billed = billed(of(Class::BilledInput), of(Class::BilledOutput));
    Resolved { usage, billed, billing: Billing::default(), doubt }
}

fn holds(whole: Amount, part: Amount) -> bool {
    match (whole, part) {
        (Amount::Known(whole), Amount::Known(part)) => part <= whole,
        (Amount::Known(_), Amount::Bad | Amount::TooLarge) => false,
        _ => true,
    }
}

fn rest(total: u64, side: u64, part: Amount) -> Option<u64> {
    total.checked_sub(side).filter(|rest| holds(Amount::Known(*rest), part))
}

fn billed(input: Amount, output: Amount) -> Option<TokenUsage> {
    let (input, output) = (input.known(), output.known());
    (input.is_some() || output.is_some()).then(|| TokenUsage { input, output, ..TokenUsage::default() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPENAI: Shape =
        Shape { merge: Merge::Last, input_includes_cached: true, output_includes_reasoning: true };
    const ANTHROPIC: Shape = Shape { input_includes_cached: false, ..OPENAI };

    fn counts(pairs: &[(Class, u64)]) -> Counts {
        let mut counts = Counts::default();
        for (class, count) in pairs {
            counts[*class as usize] = Amount::Known(*count);
        }
        counts
    }

    #[test]
    fn numbers_that_are_no_counts_are_bad_and_null_says_nothing() {
        for raw in [
            "-1",
            "1e308",
            "9223372036854775808",
            "1.5",
            "true",
            "99999999999999999999999",
            "-0",
            "NaN",
            "inf",
        ] {
            assert_eq!(Amount::parse(raw.as_bytes()), Some(Amount::Bad), "{raw}");
        }
        assert_eq!(Amount::parse(b"null"), None);
        assert_eq!(Amount::parse(b"9223372036854775807"), Some(Amount::Known(LARGEST)));
        assert_eq!(Amount::parse(b"345.0"), Some(Amount::Known(345)));
    }

    #[test]
    fn the_reported_sum_decides_whether_reasoning_is_within_the_output() {
        let apart = [(Class::Input, 12), (Class::Output, 1), (Class::Reasoning, 290), (Class::Total, 303)];
        assert_eq!(resolve(&OPENAI, &counts(&apart)).usage.output, Some(291));
        let within = [(Class::Input, 12), (Class::Output, 300), (Class::Reasoning, 290), (Class::Total, 312)];
        assert_eq!(resolve(&OPENAI, &counts(&within)).usage.output, Some(300));
    }

    #[test]
    fn a_part_larger_than_its_whole_was_counted_apart() {
        let usage = resolve(&OPENAI, &counts(&[(Class::Input, 5), (Class::CachedInput, 100)])).usage;
        assert_eq!(usage.input, Some(105));
    }

    #[test]
    fn a_sum_that_would_overflow_is_unknown() {
        let huge = [(Class::Input, LARGEST), (Class::CachedInput, LARGEST), (Class::Output, 1)];
        let resolved = resolve(&ANTHROPIC, &counts(&huge));
        assert_eq!((resolved.usage.input, resolved.doubt), (None, Some(Doubt::Bad)));
    }

    proptest! {
        #[test]
        fn parts_never_exceed_their_whole(
            shape in prop_oneof![Just(OPENAI), Just(ANTHROPIC)],
            numbers in prop::array::uniform7(prop_oneof![
                Just(Amount::Unknown), Just(Amount::Bad), (0..500u64).prop_map(Amount::Known),
                (0..=LARGEST).prop_map(Amount::Known),
            ]),
        ) {
            let mut counts = Counts::default();
            counts[..7].copy_from_slice(&numbers);
            let usage = resolve(&shape, &counts).usage;
            if let Some(input) = usage.input {
                let parts = usage.cached_input.unwrap_or(0) + usage.cache_write_input.unwrap_or(0);
                prop_assert!(parts <= input);
            }
            if let Some(output) = usage.output {
                prop_assert!(usage.reasoning.unwrap_or(0) <= output);
            }
        }

        #[test]
        fn classes_add_up_to_the_sum_that_the_provider_reports(
            fresh in 0..10_000u64, cached in 0..10_000u64, written in 0..10_000u64,
            said in 0..10_000u64, thought in 0..10_000u64,
            cache_within: bool, thought_within: bool, shape in prop_oneof![Just(OPENAI), Just(ANTHROPIC)],
        ) {
            let cache_within = cache_within && shape.input_includes_cached;
            let total = fresh + cached + written + said + thought;
            let counts = counts(&[
                (Class::Input, if cache_within { fresh + cached + written } else { fresh }),
                (Class::CachedInput, cached), (Class::CacheWrite, written),
                (Class::Output, if thought_within { said + thought } else { said }),
                (Class::Reasoning, thought), (Class::Total, total),
            ]);
            let usage = resolve(&shape, &counts).usage;
            prop_assert_eq!(usage.input.zip(usage.output).map(|(i, o)| i + o), Some(total));
        }
    }
}
