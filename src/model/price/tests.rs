//! Which price holds, and what it makes of a count.

use proptest::prelude::*;

use super::*;

fn price(input: f64) -> Price {
    Price::per_million(input, None, None, 1.0).unwrap()
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
    let input = |model| table.price(Some(model), Timestamp::UNIX_EPOCH).0.input;
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
    let input = |instant| table.price(Some("m"), at(instant)).0.input;
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
    assert_eq!(price.cost_nanousd(&usage), 86 * 2500 + 1920 * 1250 + 300 * 10_000);
}

#[test]
fn a_request_has_its_own_price_once() {
    let price = Price { per_request_nanousd: 5_000_000, ..Price::per_million(1.0, None, None, 0.0).unwrap() };
    let usage = TokenUsage { input: Some(2), ..TokenUsage::default() };
    assert_eq!(price.cost_nanousd(&usage), 5_000_000 + 2 * 1000);
}

#[test]
fn absurd_counts_saturate() {
    let price = Price::per_million(1e9, None, None, 1e9).unwrap();
    let usage = TokenUsage { input: Some(u64::MAX), output: Some(u64::MAX), ..TokenUsage::default() };
    assert_eq!(price.cost_nanousd(&usage), u64::MAX);
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
        let price = Price {
            input: rate, cached_input: rate, cache_write_input: rate, output: out, per_request_nanousd: 0,
        };
        let whole = TokenUsage { input: usage.input, output: usage.output, total: usage.total, ..TokenUsage::default() };
        prop_assert_eq!(price.cost_nanousd(&usage), price.cost_nanousd(&whole));
        if let (Some(i), Some(o)) = (usage.input, usage.output) {
            prop_assert_eq!(price.cost_nanousd(&usage), i * input + o * output);
        }
    }

    /// Each class at a price of 1 in turn counts its tokens: together they are what went in.
    #[test]
    fn the_classes_of_the_input_sum_to_the_input(usage in counts()) {
        let one = 1000;
        let zero = Price::default();
        let parts = [
            Price { input: one, ..zero },
            Price { cached_input: one, ..zero },
            Price { cache_write_input: one, ..zero },
        ];
        let sum: u64 = parts.iter().map(|price| price.cost_nanousd(&usage)).sum();
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
