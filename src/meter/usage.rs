//! From a provider's own counts to token classes that overlap nowhere and leave nothing out.
//!
//! A [`Shape`] is one provider's way to report. Whether its input count includes what a cache gave, and its output
//! count what was spent on thinking, is the shape's; where a sum is reported too, the sum has the last word, for the
//! same field names mean different things at different providers (xAI's `completion_tokens` leaves reasoning out,
//! OpenAI's doesn't). What a sum holds beyond both sides is output that is told nowhere else: Gemini's thoughts, where
//! it speaks OpenAI's format. A sum below both sides is no reason to doubt them: some leave the cache out of it too.

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
}

/// How many classes there are.
pub(super) const CLASSES: usize = 9;

/// How the numbers of several events become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
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
    /// There is something, but no count: negative, absurd, a string.
    Bad,
}

const LARGEST: u64 = i64::MAX as u64;

impl Amount {
    /// A number or literal as written. `None` for `null`, which says nothing.
    pub(super) fn parse(raw: &[u8]) -> Option<Self> {
        if raw == b"null" {
            return None;
        }
        let Ok(text) = std::str::from_utf8(raw) else { return Some(Self::Bad) };
        if !raw.is_empty() && raw.iter().all(u8::is_ascii_digit) {
            return Some(text.parse().ok().filter(|n| *n <= LARGEST).map_or(Self::Bad, Self::Known));
        }
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

    pub(super) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, amount) | (amount, Self::Unknown) => amount,
            (Self::Known(a), Self::Known(b)) => {
                a.checked_add(b).filter(|sum| *sum <= LARGEST).map_or(Self::Bad, Self::Known)
            }
            _ => Self::Bad,
        }
    }

    pub(super) fn merge(self, next: Self, how: Merge) -> Self {
        match (how, self, next) {
            (_, before, Self::Unknown) => before,
            (Merge::Last, _, next) => next,
            (Merge::Sum, before, next) => before.plus(next),
            (Merge::Max, Self::Known(a), Self::Known(b)) => Self::Known(a.max(b)),
            (Merge::Max, Self::Known(a), Self::Bad) => Self::Known(a),
            (Merge::Max, _, next) => next,
        }
    }

    fn known(self) -> Option<u64> {
        match self {
            Self::Known(count) => Some(count),
            Self::Unknown | Self::Bad => None,
        }
    }
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
    pub(super) bad: bool,
}

/// How well a shape's fields fit what was seen.
pub(super) fn fit(counts: &Counts) -> usize {
    counts.iter().filter(|amount| **amount != Amount::Unknown).count()
}

/// Whether nothing is left to be counted.
pub(super) fn complete(usage: &TokenUsage) -> bool {
    usage.total.is_some() || (usage.input.is_some() && usage.output.is_some())
}

/// The disjoint classes of `counts`.
pub(super) fn resolve(shape: &Shape, counts: &Counts) -> Resolved {
    let of = |class: Class| counts[class as usize];
    let mut bad = counts.contains(&Amount::Bad);

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
    bad |= input == Amount::Bad || output == Amount::Bad;

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
    Resolved { usage, billed: billed(of(Class::BilledInput), of(Class::BilledOutput)), bad }
}

fn holds(whole: Amount, part: Amount) -> bool {
    match (whole, part) {
        (Amount::Known(whole), Amount::Known(part)) => part <= whole,
        (Amount::Known(_), Amount::Bad) => false,
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
        assert_eq!((resolved.usage.input, resolved.bad), (None, true));
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
