//! Which price holds, and what it makes of a count.

use proptest::prelude::*;

use super::*;
use crate::model::billing::{Billing, Tier};
use crate::model::tokens::TokenUsage;
use jiff::Timestamp;

fn price(input: f64) -> Price {
    Price::per_million(input, None, None, 1.0).unwrap()
}

fn of(usual: Rates) -> Price {
    Price { standard: Scale { usual, long: None }, long_above: u64::MAX, ..Price::default() }
}

fn cost(price: &Price, usage: &TokenUsage) -> u64 {
    price.cost_nanousd(usage, &Billing::default())
}

fn table<const N: usize>(entries: [(&str, f64); N]) -> PriceTable {
    PriceTable::new(price(9.0), entries.map(|(name, input)| (name.to_owned(), price(input).into())))
}

fn found<'a>(table: &'a PriceTable, model: &str) -> (Option<&'a str>, Rule) {
    let found = table.find(model);
    (found.entry, found.rule)
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_dated_model_is_priced_as_its_family_and_never_as_a_shorter_name() {
    let table = table([("gpt-4o", 2.5), ("gpt-4o-mini", 0.15), ("gpt-4", 30.0)]);
    let input = |model| table.price(Some(model), Timestamp::UNIX_EPOCH).0.usual().input;
    assert_eq!(input("gpt-4o-mini-2024-07-18"), 150_000);
    assert_eq!(input("gpt-4o-2024-08-06"), 2_500_000);
    assert_eq!(input("openai/gpt-4o"), 2_500_000);
    assert_eq!(input("gpt-4.1"), 9_000_000);
    assert_eq!(table.price(None, Timestamp::UNIX_EPOCH), (&price(9.0), false));
}

#[test]
fn an_exact_name_beats_a_family_and_a_family_beats_a_pattern() {
    let table = table([("m-1", 1.0), ("m-1-mini", 2.0), ("m-1*", 3.0), ("m-1-mini-2024*", 4.0)]);
    assert_eq!(found(&table, "m-1-mini"), (Some("m-1-mini"), Rule::Exact));
    assert_eq!(found(&table, "m-1-mini-2024-07-18"), (Some("m-1-mini"), Rule::Family));
    assert_eq!(found(&table, "m-1.5"), (Some("m-1*"), Rule::Pattern));
    assert_eq!(found(&table, "m-2"), (None, Rule::Default));
}

#[test]
fn of_patterns_the_most_literal_wins_and_of_equals_the_first_by_name() {
    let table = table([("*", 1.0), ("claude*", 2.0), ("claude-s*", 3.0), ("*son*et", 4.0), ("*onnet*", 5.0)]);
    assert_eq!(found(&table, "claude-sonnet").0, Some("claude-s*"));
    assert_eq!(found(&table, "claude-opus").0, Some("claude*"));
    assert_eq!(found(&table, "a-sonnet").0, Some("*onnet*"), "it and *son*et have as many literal bytes");
    assert_eq!(found(&table, "anything").0, Some("*"));
}

#[test]
fn the_order_in_which_entries_are_given_makes_no_difference() {
    let names = ["a*c", "ab*", "*bc", "a*", "*c", "abc"];
    let entries = |names: Vec<&str>| {
        PriceTable::new(price(9.0), names.iter().map(|name| ((*name).to_owned(), price(1.0).into())))
    };
    let backwards = names.iter().rev().copied().collect();
    assert_eq!(entries(names.to_vec()), entries(backwards));
}

#[test]
fn a_path_that_an_entry_names_counts_and_any_other_is_dropped() {
    let table =
        table([("gpt-4o", 2.5), ("openrouter/*", 3.0), ("*-4o", 4.0), ("*claude*", 5.0), ("cl*", 6.0)]);
    assert_eq!(found(&table, "openrouter/openai/gpt-4o").0, Some("openrouter/*"));
    assert_eq!(found(&table, "azure/gpt-4o"), (Some("gpt-4o"), Rule::Exact), "not *-4o, which names no path");
    assert_eq!(found(&table, "azure/o-4o").0, Some("*-4o"));
    assert_eq!(found(&table, "arn:aws:model/us.claude-9").0, Some("*claude*"));
    assert_eq!(found(&table, "vertex/claude").0, Some("*claude*"), "closer than cl*");
    assert_eq!(found(&table, "vertex/clown").0, Some("cl*"));
}

#[test]
fn a_name_that_no_model_has_is_not_looked_for() {
    let table = table([("*", 1.0)]);
    assert_eq!(found(&table, &"-".repeat(MAX_NAME_BYTES)).1, Rule::Pattern);
    assert_eq!(found(&table, &"-".repeat(MAX_NAME_BYTES + 1)).1, Rule::Default);
}

#[test]
fn a_price_holds_from_its_instant_until_the_next_and_never_before() {
    let changes = [(at("2027-01-01T00:00:00Z"), price(3.0)), (at("2026-12-01T00:00:00Z"), price(2.0))];
    let table = PriceTable::new(price(9.0), [("m".to_owned(), Tariff::new(price(1.0), changes))]);
    let input = |instant| table.price(Some("m"), at(instant)).0.usual().input;
    assert_eq!(input("2026-11-30T23:59:59.999999Z"), 1_000_000);
    assert_eq!(input("2026-12-01T00:00:00Z"), 2_000_000);
    assert_eq!(input("2026-12-31T23:59:59Z"), 2_000_000);
    assert_eq!(input("2027-01-01T00:00:00Z"), 3_000_000);
    assert_eq!(input("1970-01-01T00:00:00Z"), 1_000_000);
}

#[test]
fn cached_tokens_are_a_part_of_the_input_and_billed_once() {
    let price = Price::per_million(2.5, Some(1.25), None, 10.0).unwrap();
    let usage = TokenUsage {
        input: Some(2006),
        cached_input: Some(1920),
        output: Some(300),
        reasoning: Some(192),
        ..TokenUsage::default()
    };
    assert_eq!(cost(&price, &usage), 86 * 2500 + 1920 * 1250 + 300 * 10_000);
}

#[test]
fn a_request_has_its_own_price_once() {
    let price = Price { per_request_nanousd: 5_000_000, ..Price::per_million(1.0, None, None, 0.0).unwrap() };
    let usage = TokenUsage { input: Some(2), ..TokenUsage::default() };
    assert_eq!(cost(&price, &usage), 5_000_000 + 2 * 1000);
}

#[test]
fn absurd_counts_saturate() {
    let price = Price::per_million(1e9, None, None, 1e9).unwrap();
    let usage = TokenUsage { input: Some(u64::MAX), output: Some(u64::MAX), ..TokenUsage::default() };
    assert_eq!(cost(&price, &usage), u64::MAX);
}

fn counts() -> impl Strategy<Value = TokenUsage> {
    let count = || proptest::option::of(0u64..2_000_000_000);
    (count(), count(), count(), count(), count(), count()).prop_map(
        |(input, cached_input, cache_write_input, output, reasoning, total)| TokenUsage {
            input,
            cached_input,
            cache_write_input,
            output,
            reasoning,
            total,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// At one price for all that goes in and one for all that comes out, it makes no difference how a provider
    /// divides them: whatever it says of its classes, no token is billed twice and none is left out.
    #[test]
    fn no_class_is_billed_twice(usage in counts(), input in 0u64..1_000, output in 0u64..1_000) {
        let (rate, out) = (input * 1000, output * 1000);
        let usual = Rates {
            input: rate, cached_input: rate, cache_write_input: rate, cache_write_1h: rate, output: out,
            ..Rates::default()
        };
        let price = of(usual);
        let whole = TokenUsage { input: usage.input, output: usage.output, total: usage.total, ..TokenUsage::default() };
        prop_assert_eq!(cost(&price, &usage), cost(&price, &whole));
        if let (Some(i), Some(o)) = (usage.input, usage.output) {
            prop_assert_eq!(cost(&price, &usage), i * input + o * output);
        }
    }

    /// Each class at a price of 1 in turn counts its tokens: together they are what went in.
    #[test]
    fn the_classes_of_the_input_sum_to_the_input(usage in counts()) {
        let one = 1000;
        let zero = Rates::default();
        let parts = [
            of(Rates { input: one, ..zero }),
            of(Rates { cached_input: one, ..zero }),
            of(Rates { cache_write_input: one, ..zero }),
        ];
        let sum: u64 = parts.iter().map(|price| cost(price, &usage)).sum();
        let whole = usage.input.unwrap_or_else(|| usage.total.unwrap_or(0).saturating_sub(usage.output.unwrap_or(0)));
        prop_assert_eq!(sum, whole);
    }

    /// Whatever is asked for, the entry that is found is one that is there, and it is its own exact match.
    #[test]
    fn what_is_found_is_in_the_table(model in "[a-c*/:-]{0,12}", names in proptest::collection::vec("[a-c*/:-]{1,6}", 0..8)) {
        let entries = names.iter().map(|name| (name.clone(), Tariff::from(price(1.0))));
        let table = PriceTable::new(price(9.0), entries);
        let found = table.find(&model);
        match found.entry {
            Some(entry) => prop_assert!(names.iter().any(|name| name == entry)),
            None => prop_assert_eq!(found.rule, Rule::Default),
        }
        if names.contains(&model) && !model.contains('*') {
            prop_assert_eq!((found.entry, found.rule), (Some(model.as_str()), Rule::Exact));
        }
    }
}

/// A price with all classes apart, so that a token in the wrong one shows. Millionths of a dollar per million tokens.
fn apart() -> Price {
    let usual = Rates {
        input: 3_000_000,
        cached_input: 300_000,
        cache_write_input: 3_750_000,
        cache_write_1h: 6_000_000,
        output: 15_000_000,
        audio_input: Some(32_000_000),
        audio_output: Some(64_000_000),
        image_input: Some(5_000_000),
        image_output: Some(30_000_000),
    };
    let standard = Scale { usual, long: Some(usual.zip(&usual, |rate, _| rate * 2)) };
    let flex = Scale::like(usual.zip(&usual, |rate, _| rate / 2), &standard);
    Price {
        standard,
        flex: Some(flex),
        long_above: 200_000,
        per_request_nanousd: 7,
        per_web_search_nanousd: Some(10_000_000),
        per_rerank_unit_nanousd: Some(2_000_000),
        ..Price::default()
    }
}

#[test]
fn an_hour_in_the_cache_costs_more_than_five_minutes() {
    let usage = TokenUsage {
        input: Some(100_010),
        cache_write_input: Some(100_000),
        output: Some(100),
        ..TokenUsage::default()
    };
    let cost = |hour| apart().cost_nanousd(&usage, &Billing { cache_write_1h: hour, ..Billing::default() });
    let rest = 7 + 10 * 3000 + 100 * 15_000;
    assert_eq!(cost(None), rest + 100_000 * 3750);
    assert_eq!(cost(Some(100_000)), rest + 100_000 * 6000);
    assert_eq!(cost(Some(50_000)), rest + 50_000 * 3750 + 50_000 * 6000);
    assert_eq!(cost(Some(u64::MAX)), rest + 100_000 * 6000, "a part is never more than the whole");
}

#[test]
fn an_hour_without_a_price_costs_what_its_provider_publishes() {
    let named = |write| Price::per_million(3.0, None, Some(write), 15.0).unwrap().usual().cache_write_1h;
    assert_eq!(named(3.75), 6_000_000, "as Anthropic has it");
    assert_eq!(named(3.0), 3_000_000, "as any cache write");
}

#[test]
fn audio_and_images_have_their_own_price_and_leave_the_rest_to_text() {
    let usage = TokenUsage { input: Some(1000), output: Some(500), ..TokenUsage::default() };
    let billing = Billing {
        audio_input: Some(600),
        image_input: Some(100),
        audio_output: Some(200),
        image_output: Some(50),
        ..Billing::default()
    };
    let input = 300 * 3000 + 600 * 32_000 + 100 * 5000;
    let output = 250 * 15_000 + 200 * 64_000 + 50 * 30_000;
    assert_eq!(apart().cost_nanousd(&usage, &billing), 7 + input + output);
}

#[test]
fn a_long_prompt_has_other_prices_for_all_tokens_of_its_call() {
    let usage = |input| TokenUsage {
        input: Some(input),
        cached_input: Some(150_000),
        output: Some(10),
        ..TokenUsage::default()
    };
    let usual = 50_000 * 3000 + 150_000 * 300 + 10 * 15_000;
    assert_eq!(cost(&apart(), &usage(200_000)), 7 + usual);
    assert_eq!(
        cost(&apart(), &usage(200_001)),
        7 + 2 * (usual + 3000),
        "what a cache had makes it long, too"
    );
}

#[test]
fn a_tier_has_its_price_and_one_without_has_the_standard_one_and_is_told() {
    let usage = |input| TokenUsage { input: Some(input), output: Some(10), ..TokenUsage::default() };
    let tier = |tier| Billing { tier: Some(tier), ..Billing::default() };
    let price = apart();
    let cost = |input, billing: &Billing| price.cost_nanousd(&usage(input), billing);
    assert_eq!(cost(1000, &tier(Tier::Flex)), 7 + (1000 * 3000 + 10 * 15_000) / 2);
    assert_eq!(cost(1000, &tier(Tier::Batch)), 7 + 1000 * 3000 + 10 * 15_000);
    assert_eq!(cost(300_000, &tier(Tier::Flex)), 7 + 300_000 * 3000 + 10 * 15_000, "half of the double");
    let unpriced = |billing: &Billing| price.unpriced(billing).collect::<Vec<_>>();
    assert_eq!(unpriced(&tier(Tier::Flex)), Vec::<&str>::new());
    assert_eq!(unpriced(&tier(Tier::Batch)), ["tier"]);
}

#[test]
fn searches_and_units_cost_each_and_what_has_no_price_is_told_and_not_free_in_silence() {
    let billing = Billing {
        web_searches: Some(3),
        rerank_units: Some(2),
        audio_input: Some(1),
        image_output: Some(0),
        ..Billing::default()
    };
    let usage = TokenUsage::default();
    assert_eq!(apart().cost_nanousd(&usage, &billing), 7 + 3 * 10_000_000 + 2 * 2_000_000);
    assert_eq!(apart().unpriced(&billing).count(), 0);
    let text = Price::per_million(1.0, None, None, 1.0).unwrap();
    assert_eq!(text.unpriced(&billing).collect::<Vec<_>>(), ["audio_input", "web_searches", "rerank_units"]);
}

#[test]
fn what_an_answer_says_that_it_cost_counts_only_where_the_model_has_no_price() {
    let table = table([("known", 1.0)]);
    let usage = TokenUsage { input: Some(1000), ..TokenUsage::default() };
    let cost = |model, usage: &TokenUsage, said| {
        let billing = Billing { reported_cost_nanousd: said, ..Billing::default() };
        let call = Call { model, at: Timestamp::UNIX_EPOCH, usage, billing: &billing, unseen: 0 };
        let cost = table.cost(&call);
        (cost.nanousd, cost.by)
    };
    assert_eq!(cost(Some("known"), &usage, Some(5)), (1_000_000, PricedBy::Own));
    assert_eq!(cost(Some("unheard-of"), &usage, Some(5)), (5, PricedBy::Answer));
    assert_eq!(cost(None, &usage, Some(5)), (5, PricedBy::Answer));
    assert_eq!(cost(Some("unheard-of"), &usage, None), (9_000_000, PricedBy::Default));
    assert_eq!(
        cost(Some("unheard-of"), &usage, Some(0)),
        (9_000_000, PricedBy::Default),
        "no price is no cost"
    );
    assert_eq!(cost(Some("unheard-of"), &TokenUsage::default(), Some(0)), (0, PricedBy::Answer));
}

#[test]
fn a_familys_price_is_never_given_to_a_sibling_of_another_kind() {
    let table = table([
        ("gpt-4o", 2.5),
        ("gemini-2.5-flash", 0.3),
        ("claude-opus-4", 15.0),
        ("gpt-4o-mini-tts", 0.6),
    ]);
    let siblings = [
        "gpt-4o-audio-preview",
        "gpt-4o-realtime-preview-2024-12-17",
        "openai/gpt-4o-transcribe",
        "GPT-4o-Search-Preview",
        "gpt-4o-mini",
        "gemini-2.5-flash-image-preview",
        "gemini-2.5-flash:free",
        "gemini-2.5-flash-8b",
        "claude-opus-4-9",
    ];
    for model in siblings {
        assert_eq!(found(&table, model), (None, Rule::Default), "{model}");
    }
    assert_eq!(found(&table, "gpt-4o-mini-tts-2025-03-20"), (Some("gpt-4o-mini-tts"), Rule::Family));
    assert_eq!(found(&table, "claude-opus-4-0").1, Rule::Family);
}

#[test]
fn names_are_found_whatever_their_case() {
    let table = table([("GPT-4o", 2.5), ("*Claude*", 3.0)]);
    assert_eq!(found(&table, "gpt-4O-2024-08-06"), (Some("GPT-4o"), Rule::Family));
    assert_eq!(found(&table, "us.anthropic.CLAUDE-9"), (Some("*Claude*"), Rule::Pattern));
}

fn billings() -> impl Strategy<Value = Billing> {
    let count = || proptest::option::of(0u64..400_000);
    let tier = proptest::option::of(proptest::sample::select(vec![Tier::Flex, Tier::Priority, Tier::Batch]));
    (
        (count(), count(), count(), count(), count()),
        tier,
        proptest::option::of(0u64..9),
        proptest::option::of(0u64..9),
    )
        .prop_map(
            |((hour, audio_input, audio_output, image_input, image_output), tier, searches, units)| Billing {
                tier,
                cache_write_1h: hour,
                audio_input,
                audio_output,
                image_input,
                image_output,
                web_searches: searches,
                rerank_units: units,
                reported_cost_nanousd: None,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However the parts overlap, the classes of a price of one nano-dollar for any token count each token once.
    #[test]
    fn every_token_is_billed_once_whatever_its_parts(usage in counts(), billing in billings()) {
        let one = Rates {
            input: 1000, cached_input: 1000, cache_write_input: 1000, cache_write_1h: 1000, output: 1000,
            audio_input: Some(1000), audio_output: Some(1000), image_input: Some(1000), image_output: Some(1000),
        };
        let output = usage.output.unwrap_or(0);
        let input = usage.input.unwrap_or_else(|| usage.total.unwrap_or(0).saturating_sub(output));
        prop_assert_eq!(of(one).cost_nanousd(&usage, &billing), input + output);
    }

    /// A price that is dearer in one class makes no call cheaper, and one more token in a class of its own never does.
    #[test]
    fn cost_is_monotone_in_each_class(usage in counts(), billing in billings(), class in 0usize..4, more in 1u64..1000) {
        let price = apart();
        let before = price.cost_nanousd(&usage, &billing);
        let (mut dearer, mut longer) = (price, usage);
        let rate = match class {
            0 => &mut dearer.standard.usual.input,
            1 => &mut dearer.standard.usual.cache_write_1h,
            2 => &mut dearer.standard.usual.output,
            _ => &mut dearer.standard.usual.cached_input,
        };
        *rate += more;
        prop_assert!(dearer.cost_nanousd(&usage, &billing) >= before);
        match class {
            0 | 1 => longer.input = usage.input.map(|input| input + more),
            // With the input unknown, more output would leave less of the total to the input.
            _ if usage.input.is_none() => {}
            _ => longer.output = usage.output.map(|output| output + more),
        }
        prop_assert!(price.cost_nanousd(&longer, &billing) >= before);
        let searched = Billing { web_searches: Some(billing.web_searches.unwrap_or(0) + 1), ..billing };
        prop_assert_eq!(price.cost_nanousd(&usage, &searched), before + 10_000_000);
    }

    /// However absurd, a cost is a number.
    #[test]
    fn any_count_has_a_cost(count in proptest::num::u64::ANY, part in proptest::num::u64::ANY) {
        let usage = TokenUsage { input: Some(count), output: Some(count), cached_input: Some(part), ..TokenUsage::default() };
        let billing = Billing { audio_output: Some(part), web_searches: Some(count), ..Billing::default() };
        prop_assert!(apart().cost_nanousd(&usage, &billing) >= apart().cost_nanousd(&TokenUsage::default(), &Billing::default()));
    }
}
