use proptest::prelude::*;

use super::*;
use crate::model::billing::Billing;

/// A served call whose answer came whole, of a request with text.
fn facts<'a>(outcome: Outcome, status: Option<u16>, reading: &'a Reading) -> Facts<'a> {
    let whole = outcome == Outcome::Completed;
    Facts { outcome, status, reading, whole, request_text: true, request_unread: false, expects_text: true }
}

fn basis_of(outcome: Outcome, status: Option<u16>, reading: &Reading) -> Basis {
    basis(&facts(outcome, status, reading))
}

fn completed(reading: &Reading) -> Facts<'_> {
    facts(Outcome::Completed, Some(200), reading)
}

fn usage(input: Option<u64>, output: Option<u64>, total: Option<u64>) -> Reading {
    let usage = TokenUsage { input, output, total, ..TokenUsage::default() };
    Reading { usage, has_body: true, ..Reading::default() }
}

fn reported(total: u64) -> Reading {
    usage(None, None, Some(total))
}

fn text() -> Reading {
    Reading { text: Text::whole("hello"), found_text: true, has_body: true, ..Reading::default() }
}

/// An answer with a body in which nothing was found.
fn strange() -> Reading {
    Reading { has_body: true, ..Reading::default() }
}

/// What a call is charged that has reserved 450 tokens for three messages, of a request of one word.
fn priced(basis: Basis, outcome: Outcome, reading: &Reading, counted: Option<&Counted>) -> Priced {
    let request = Text::whole("word");
    let known = Known {
        outcome,
        reading,
        request: &request,
        counted,
        held: 450,
        floor: 450,
        request_text: true,
        expects_text: true,
    };
    price(basis, &known)
}

const COUNTED: Counted = Counted { input: 3, output: 4, extrapolated: false, with: None };

#[test]
fn a_whole_answer_is_charged_what_it_reports_else_what_its_text_counts() {
    let of = |reading: &Reading| basis_of(Outcome::Completed, Some(200), reading);
    assert_eq!(of(&reported(5)), Basis::Reported(TokenSource::Reported));
    assert_eq!(of(&text()), Basis::Text(TokenSource::Counted));
}

#[test]
fn an_embedding_that_reports_its_input_alone_has_reported_all() {
    let of = |reading: &Reading| basis_of(Outcome::Completed, Some(200), reading);
    assert_eq!(of(&usage(Some(2), None, None)), Basis::Reported(TokenSource::Reported));
    assert_eq!(of(&usage(None, Some(5), None)), Basis::Text(TokenSource::Counted));
}

#[test]
fn fault_49_an_upstream_error_gives_tokens_and_messages_back() {
    for status in [301, 400, 429, 500, 503] {
        assert_eq!(basis_of(Outcome::Completed, Some(status), &reported(5)), Basis::Free);
        assert!(!is_served(Outcome::Completed, Some(status), &reported(5)));
    }
}

#[test]
fn an_answer_that_could_not_be_read_is_charged_its_reservation() {
    for flag in ["bomb", "corrupt_encoding", "unknown_encoding", "unreadable_text", "malformed"] {
        let unreadable = Reading { flag: Some(flag), ..strange() };
        for outcome in [Outcome::Completed, Outcome::Timeout, Outcome::UpstreamError, Outcome::Cut] {
            assert_eq!(basis_of(outcome, Some(200), &unreadable), Basis::Reserved, "{flag} {outcome:?}");
        }
        let priced = priced(Basis::Reserved, Outcome::Completed, &unreadable, None);
        assert_eq!((priced.tokens, priced.source, priced.charged), (450, TokenSource::Reserved, 450));
    }
}

#[test]
fn an_answer_in_which_nothing_was_found_is_charged_its_reservation_and_not_zero() {
    let (answer, flagged) = (strange(), Reading { flag: Some(UNKNOWN_FORMAT), ..strange() });
    for reading in [&answer, &flagged] {
        assert_eq!(basis(&completed(reading)), Basis::Reserved);
        assert_eq!(unread(&completed(reading)), Unread { request: false, answer: true });
        let priced = priced(Basis::Reserved, Outcome::Completed, reading, Some(&COUNTED));
        assert_eq!((priced.tokens, priced.source), (450, TokenSource::Reserved));
        // What was not seen is no zero.
        assert_eq!((priced.usage.input, priced.usage.output), (Some(3), None));
    }
}

#[test]
fn what_is_known_beside_an_unread_side_is_charged_where_it_is_more_than_the_reservation() {
    let counted = Counted { input: 3, output: 2000, ..Counted::default() };
    let priced = priced(Basis::Reserved, Outcome::Completed, &text(), Some(&counted));
    assert_eq!((priced.tokens, priced.charged, priced.source), (2003, 2003, TokenSource::Reserved));
}

#[test]
fn an_empty_body_has_nothing_to_be_understood() {
    let empty = Reading { flag: Some(UNKNOWN_FORMAT), ..Reading::default() };
    for reading in [&Reading::default(), &empty] {
        assert_eq!(basis(&completed(reading)), Basis::Text(TokenSource::Counted), "the request is counted");
        let nothing = Facts { request_text: false, ..completed(reading) };
        assert_eq!(basis(&nothing), Basis::Free);
        assert!(!unread(&nothing).any());
    }
}

#[test]
fn an_empty_text_at_its_place_is_an_answer() {
    let silent = Reading { found_text: true, ..strange() };
    assert_eq!(basis(&completed(&silent)), Basis::Text(TokenSource::Counted));
}

#[test]
fn an_answer_that_has_no_text_by_its_nature_is_charged_its_requests() {
    let vectors = Facts { expects_text: false, ..completed(&DEFAULT_STRANGE) };
    assert_eq!(basis(&vectors), Basis::Text(TokenSource::Counted));
    assert_eq!(basis(&Facts { request_text: false, ..vectors }), Basis::Reserved, "nothing is known of it");
    let found = Reading { results: Some(0), ..strange() };
    assert_eq!(basis(&completed(&found)), Basis::Text(TokenSource::Counted), "its results were found");
    let ranked = Billing { rerank_units: Some(1), ..Billing::default() };
    let ranked = Reading { billing: ranked, ..strange() };
    assert_eq!(basis(&completed(&ranked)), Basis::Text(TokenSource::Counted), "its units were");
    let bomb = Reading { flag: Some("bomb"), ..strange() };
    assert_eq!(basis(&Facts { expects_text: false, ..completed(&bomb) }), Basis::Reserved);
}

static DEFAULT_STRANGE: std::sync::LazyLock<Reading> = std::sync::LazyLock::new(strange);

#[test]
fn a_request_whose_text_nobody_found_is_charged_at_least_its_reservation() {
    let hidden =
        |reading: &Reading| basis(&Facts { request_text: false, request_unread: true, ..completed(reading) });
    let output = usage(None, Some(9), None);
    for reading in [&text(), &Reading::default(), &strange(), &output] {
        assert_eq!(hidden(reading), Basis::Reserved);
    }
    // Who reports the input needs no text.
    for reading in [&usage(Some(7), Some(9), None), &usage(Some(7), None, None), &reported(16)] {
        assert_eq!(hidden(reading), Basis::Reported(TokenSource::Reported));
    }
    let priced = priced(Basis::Reserved, Outcome::Completed, &output, None);
    assert_eq!((priced.tokens, priced.usage.input, priced.usage.output), (450, None, Some(9)));
}

#[test]
fn a_failure_under_a_200_is_a_failed_call() {
    let failed = |reading: Reading| Reading { failed: true, has_body: true, ..reading };
    let guessed = Reading { guessed: true, ..text() };
    for reading in [Reading::default(), usage(Some(0), Some(0), None), guessed] {
        let reading = failed(reading);
        assert!(is_failure(&reading));
        assert_eq!(basis_of(Outcome::UpstreamError, Some(200), &reading), Basis::Free);
        assert!(!is_served(Outcome::UpstreamError, Some(200), &reading), "its messages are given back");
        assert_eq!(basis_of(Outcome::ClientAborted, Some(200), &reading), Basis::Free, "whoever saw it");
    }
}

#[test]
fn an_error_beside_an_answer_is_charged_for_what_it_has() {
    for reading in [text(), usage(Some(5), Some(6), None), usage(Some(5), None, None), reported(5)] {
        let reading = Reading { failed: true, ..reading };
        assert!(!is_failure(&reading));
        assert!(is_served(Outcome::Completed, Some(200), &reading));
        assert_ne!(basis_of(Outcome::Completed, Some(200), &reading), Basis::Free);
        assert_ne!(
            basis_of(Outcome::UpstreamError, Some(200), &reading),
            Basis::Free,
            "a stream that failed"
        );
    }
}

#[test]
fn an_answer_that_broke_off_is_charged_what_was_seen_of_it() {
    for outcome in [Outcome::UpstreamError, Outcome::Timeout, Outcome::Cut, Outcome::Crashed] {
        let of = |request_text, reading: &Reading| {
            basis(&Facts { request_text, ..facts(outcome, Some(200), reading) })
        };
        assert_eq!(of(true, &text()), Basis::Text(TokenSource::Partial));
        assert_eq!(of(true, &strange()), Basis::Text(TokenSource::Partial), "half a document tells nothing");
        assert_eq!(of(false, &strange()), Basis::Reserved);
        assert_eq!(of(false, &Reading::default()), Basis::Free, "nobody said anything");
    }
}

#[test]
fn hanging_up_early_costs_the_quota_what_all_its_messages_reserved() {
    let before_the_answer = basis_of(Outcome::ClientAborted, None, &Reading::default());
    assert_eq!(before_the_answer, Basis::Reserved);
    let of = |basis, reading: &Reading, counted| {
        let Priced { tokens, source, charged, .. } = priced(basis, Outcome::ClientAborted, reading, counted);
        (tokens, source, charged)
    };
    assert_eq!(of(before_the_answer, &Reading::default(), None), (450, TokenSource::Reserved, 450));
    let partial = TokenSource::Partial;
    assert_eq!(of(Basis::Text(partial), &text(), Some(&COUNTED)), (7, partial, 450));
    assert_eq!(of(Basis::Reported(partial), &reported(900), None), (900, partial, 900));
    let whole = TokenSource::Reported;
    assert_eq!(of(Basis::Reported(whole), &usage(Some(5), Some(6), None), None), (11, whole, 450));
}

#[test]
fn until_a_count_is_there_what_was_reserved_is_charged() {
    let priced = priced(Basis::Text(TokenSource::Counted), Outcome::Completed, &text(), None);
    assert_eq!((priced.tokens, priced.source, priced.charged), (450, TokenSource::Reserved, 450));
}

#[test]
fn a_sum_alone_is_split_by_the_text_of_both_and_stays_the_sum() {
    let answer = Text::whole("word ".repeat(300));
    let batch = Reading { text: answer, found_text: true, ..reported(9623) };
    let request = Text::whole("word ".repeat(100));
    let known = Known {
        outcome: Outcome::Completed,
        reading: &batch,
        request: &request,
        counted: None,
        held: 0,
        floor: 0,
        request_text: true,
        expects_text: true,
    };
    let split = price(Basis::Reported(TokenSource::Reported), &known);
    assert_eq!((split.tokens, split.source, split.split), (9623, TokenSource::Reported, true));
    let (input, output) = (split.usage.input.unwrap(), split.usage.output.unwrap());
    assert_eq!(input + output, 9623);
    assert_eq!(output, 375, "what the answer shows; the rest went into the prompt");
    // An embedding's sum is its input, by nature and not by estimate.
    let vectors = Known { reading: &reported(50), expects_text: false, ..known };
    let whole = price(Basis::Reported(TokenSource::Reported), &vectors);
    assert_eq!((whole.usage.input, whole.usage.output, whole.split), (Some(50), Some(0), false));
}

#[test]
fn a_call_that_only_counts_tokens_is_known_by_the_last_segment_of_its_route() {
    let is =
        |pattern: &str, segment: &str| only_counts(pattern, &[segment.to_owned()], EventType::ChatMessage);
    let counting = [
        ("/v1beta/models/{model}:countTokens", "gemini-2.5-pro"),
        ("/v1beta/models/{model}", "gemini-2.5-pro:countTokens"),
        ("/v1beta/models/{model}", "gemini-2.5-pro%3AcountTokens"),
        ("/v1/projects/p/locations/l/publishers/google/models/{m}", "m:computeTokens"),
        ("/v1/publishers/anthropic/models/{model}:rawPredict", "count-tokens"),
        ("/v1/messages/{verb}", "count_tokens"),
        ("/v1/messages/count_tokens", ""),
        ("/v1/messages/count_tokens/", ""),
        ("/model/{id}/count-tokens", "anthropic.claude"),
        ("/v1/responses/input_tokens", ""),
        ("/tokenize", ""),
        ("/v1/tokenize-text", ""),
        ("/v1/tokenizers/estimate-token-count", ""),
    ];
    for (pattern, segment) in counting {
        assert!(is(pattern, segment), "{pattern} {segment}");
    }
    let answering = [
        ("/v1/messages", ""),
        ("/v1beta/models/{model}:generateContent", "gemini-2.5-pro"),
        ("/v1/{verb}/chat", "count_tokens"),
        ("/v1/messages/{verb}", "chat;x:tokenize"),
        ("/api/tokenizer", ""),
        ("/", ""),
        ("", ""),
        ("/v1/discount_tokens", ""),
    ];
    for (pattern, segment) in answering {
        assert!(!is(pattern, segment), "{pattern} {segment}");
    }
}

#[test]
fn a_client_cannot_call_an_embedding_a_count_and_its_route_can() {
    let is = |pattern: &str, segment: &str| only_counts(pattern, &[segment.to_owned()], EventType::Embedding);
    assert!(!is("/v1/models/{model}", "m:countTokens"));
    assert!(!is("/v1/models/{model}:embedContent", "tokenize"));
    assert!(is("/v1/models/{model}:countTokens", "m"));
}

prop_compose! {
    fn some_reading()(
        sides in (some_count(), some_count(), some_count()),
        parts in (some_count(), some_count(), some_count()),
        said in "[a-z ]{0,40}",
        flag in prop::option::of(prop::sample::select(vec!["bomb", "malformed", "zero_usage", UNKNOWN_FORMAT])),
        (failed, has_body, guessed) in any::<(bool, bool, bool)>(),
        results in prop::option::of(0..3u64),
    ) -> Reading {
        let (input, output, total) = sides;
        let usage = TokenUsage {
            input, output, total,
            cached_input: parts.0.map(|part| part.min(input.or(total).unwrap_or(0)) / 2),
            cache_write_input: parts.1.map(|part| part.min(input.or(total).unwrap_or(0)) / 2),
            reasoning: parts.2.map(|part| part.min(output.unwrap_or(0))),
        };
        let has_body = has_body || usage.total().is_some() || !said.is_empty();
        let found_text = !said.is_empty();
        Reading { usage, text: Text::whole(said), found_text, flag, failed, has_body, guessed, results, ..Reading::default() }
    }
}

fn some_count() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![Just(None), (0..5000u64).prop_map(Some), (0..i64::MAX.cast_unsigned()).prop_map(Some)]
}

proptest! {
    #[test]
    fn unknown_is_never_free_and_no_charge_is_below_its_row(
        reading in some_reading(),
        outcome in prop::sample::select(Outcome::ALL.to_vec()),
        status in prop::option::of(prop::sample::select(vec![200u16, 201, 204, 302, 400, 500])),
        (read_on, request_text, hidden, expects_text, late) in any::<(bool, bool, bool, bool, bool)>(),
        floor in 1..1000u64,
        counts in (0..5000u64, 0..5000u64),
    ) {
        let status = status.filter(|_| outcome != Outcome::Refused);
        let whole = outcome == Outcome::Completed || (outcome == Outcome::ClientAborted && read_on);
        let request_unread = hidden && !request_text;
        let facts = Facts { outcome, status, reading: &reading, whole, request_text, request_unread, expects_text };
        let basis = basis(&facts);
        let request = Text::whole(if request_text { "a question" } else { "" });
        let counted = Counted { input: counts.0, output: counts.1, ..Counted::default() };
        let counted = Some(&counted).filter(|_| !late);
        let known = Known {
            outcome, reading: &reading, request: &request, counted, held: floor, floor, request_text, expects_text,
        };
        let priced = price(basis, &known);
        prop_assert!(priced.charged >= priced.tokens);
        let sum = priced.usage.input.unwrap_or(0).saturating_add(priced.usage.output.unwrap_or(0));
        match priced.source {
            TokenSource::None => prop_assert_eq!((priced.tokens, priced.charged), (0, 0)),
            TokenSource::Reserved => {
                prop_assert!(priced.tokens >= sum.max(1));
                prop_assert_eq!(priced.charged, priced.tokens);
            }
            _ => prop_assert_eq!(priced.tokens, sum),
        }
        if outcome == Outcome::ClientAborted && priced.source != TokenSource::None {
            prop_assert!(priced.charged >= floor);
        } else {
            prop_assert_eq!(priced.charged, priced.tokens, "only a client that left is charged a floor");
        }
        let served = is_served(outcome, status, &reading) && outcome != Outcome::Refused;
        if served && unread(&facts).any() {
            prop_assert_eq!(priced.source, TokenSource::Reserved);
            prop_assert!(priced.tokens >= floor);
        }
        if served && whole && reading.has_body && basis == Basis::Free {
            prop_assert!(false, "an answer with a body is never free");
        }
        if let (Some(total), Basis::Reported(_)) = (reading.usage.total, basis)
            && reading.usage.input.is_none() && reading.usage.output.is_none()
        {
            prop_assert_eq!(sum, total);
            let parts = reading.usage.cached_input.unwrap_or(0) + reading.usage.cache_write_input.unwrap_or(0);
            prop_assert!(priced.usage.input.unwrap_or(0) >= parts);
        }
    }
}

#[test]
fn what_answers_is_no_count_whatever_its_path_is_called() {
    let reported = |input, output, total| Reading {
        usage: TokenUsage { input, output, total, ..TokenUsage::default() },
        ..Reading::default()
    };
    assert!(is_a_count(&Reading::default()));
    assert!(is_a_count(&reported(Some(31), None, None)), "Anthropic's and Bedrock's");
    assert!(is_a_count(&reported(None, None, Some(31))), "Gemini's");
    assert!(!is_a_count(&reported(Some(31), Some(9), None)));
    assert!(!is_a_count(&Reading { text: Text::whole("Two shoes."), ..Reading::default() }));
}
