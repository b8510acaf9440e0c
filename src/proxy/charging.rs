//! What an exchange is charged: pure rules over what happened.

use crate::meter::Counted;
use crate::meter::Reading;
use crate::model::event::Outcome;
use crate::model::quota::Amounts;
use crate::model::tokens::{TokenSource, TokenUsage};

/// What happened, as far as it decides the charge.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) outcome: Outcome,
    /// The status of the upstream's answer; `None` when it never answered.
    pub(crate) status: Option<u16>,
    pub(crate) reading: &'a Reading,
    /// Whether the answer was read to its end, whoever was there to see it.
    pub(crate) whole: bool,
    /// Whether the request has text that can be counted.
    pub(crate) request_text: bool,
}

/// Where the number of tokens comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// No tokens: the upstream refused or failed before it said anything.
    Free,
    /// The answer reports them.
    Reported(TokenSource),
    /// The text must be counted; the source is what the row will say.
    Text(TokenSource),
    /// Nothing is known; a client that left is charged one message's reservation.
    Reserved,
    /// Nothing is known and nothing can be: recorded as unknown.
    Unknown,
}

/// Whether the upstream served the call: then its messages count. A redirect or an error gives them back.
pub(crate) fn is_served(outcome: Outcome, status: Option<u16>) -> bool {
    match status {
        Some(status) => status < 300,
        // It left before an answer; the upstream was at work on it.
        None => outcome == Outcome::ClientAborted,
    }
}

/// Decides where the number of tokens comes from.
///
/// A whole answer is charged what it reports, else what its text counts. A broken one is charged what was seen of
/// it. A client that leaves early is charged no less than one message's reservation, so hanging up is never free.
pub(crate) fn basis(facts: &Facts<'_>) -> Basis {
    let Facts { outcome, status, reading, whole, request_text } = facts;
    if *outcome == Outcome::Refused || !is_served(*outcome, *status) {
        return Basis::Free;
    }
    // One side alone (Ollama leaves out a cached prompt) is no total: the other is counted where there is text for it.
    // Where there is none (an embedding has no output) there is nothing more to know.
    let usage = &reading.usage;
    let all_known = usage.total.is_some() || (usage.input.is_some() && usage.output.is_some());
    let to_count =
        (usage.input.is_none() && *request_text) || (usage.output.is_none() && reading.text.seen_bytes > 0);
    if all_known || (usage.total().is_some() && !to_count) {
        return Basis::Reported(if *whole { TokenSource::Reported } else { TokenSource::Partial });
    }
    // An answer that could not be read has no text, however much it said.
    let unreadable = reading.flag.is_some() && reading.text.seen_bytes == 0;
    let countable = !unreadable && (reading.text.seen_bytes > 0 || (*request_text && status.is_some()));
    if countable {
        return Basis::Text(if *whole { TokenSource::Counted } else { TokenSource::Partial });
    }
    if *outcome == Outcome::ClientAborted { Basis::Reserved } else { Basis::Unknown }
}

/// Tokens with their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Priced {
    pub(crate) usage: TokenUsage,
    /// Charged; `None` is unknown.
    pub(crate) tokens: Option<u64>,
    pub(crate) source: TokenSource,
}

/// The number of tokens to charge. Where a count is needed and not there (yet), it is what was reserved.
pub(crate) fn price(
    basis: &Basis,
    outcome: Outcome,
    reading: &Reading,
    counted: Option<&Counted>,
    reserved: Amounts,
    floor: u64,
) -> Priced {
    let least = if outcome == Outcome::ClientAborted { floor } else { 0 };
    match (basis, counted) {
        (Basis::Free, _) => {
            Priced { usage: TokenUsage::default(), tokens: Some(0), source: TokenSource::None }
        }
        (Basis::Unknown, _) => {
            Priced { usage: TokenUsage::default(), tokens: None, source: TokenSource::None }
        }
        (Basis::Reserved, _) => {
            Priced { usage: TokenUsage::default(), tokens: Some(least), source: TokenSource::Reserved }
        }
        (Basis::Reported(source), _) => {
            let tokens = reading.usage.total().map(|total| total.max(least));
            Priced { usage: reading.usage, tokens, source: *source }
        }
        (Basis::Text(source), Some(counted)) => {
            let usage = usage_of(&reading.usage, counted);
            Priced { usage, tokens: usage.total().map(|total| total.max(least)), source: *source }
        }
        // At least one, so that there is a charge for the amendment to correct.
        (Basis::Text(_), None) => Priced {
            usage: TokenUsage::default(),
            tokens: Some(reserved.tokens.max(1)),
            source: TokenSource::Reserved,
        },
    }
}

/// What was reported, with a count for the side that was not.
pub(crate) fn usage_of(reported: &TokenUsage, counted: &Counted) -> TokenUsage {
    let (input, output) = (reported.input.or(Some(counted.input)), reported.output.or(Some(counted.output)));
    TokenUsage { input, output, ..*reported }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Text;

    fn facts(outcome: Outcome, status: Option<u16>, reading: &Reading) -> Basis {
        let whole = outcome == Outcome::Completed;
        basis(&Facts { outcome, status, reading, whole, request_text: true })
    }

    fn reported(total: u64) -> Reading {
        Reading { usage: TokenUsage { total: Some(total), ..TokenUsage::default() }, ..Reading::default() }
    }

    fn text() -> Reading {
        Reading { text: Text::whole("hello"), ..Reading::default() }
    }

    #[test]
    fn a_whole_answer_is_charged_what_it_reports_else_what_its_text_counts() {
        assert_eq!(
            facts(Outcome::Completed, Some(200), &reported(5)),
            Basis::Reported(TokenSource::Reported)
        );
        assert_eq!(facts(Outcome::Completed, Some(200), &text()), Basis::Text(TokenSource::Counted));
    }

    #[test]
    fn an_embedding_that_reports_its_input_alone_has_reported_all() {
        let side = |input, output| Reading {
            usage: TokenUsage { input, output, ..TokenUsage::default() },
            ..Reading::default()
        };
        let reported = Basis::Reported(TokenSource::Reported);
        assert_eq!(facts(Outcome::Completed, Some(200), &side(Some(2), None)), reported);
        let counted = Basis::Text(TokenSource::Counted);
        assert_eq!(facts(Outcome::Completed, Some(200), &side(None, Some(5))), counted);
    }

    #[test]
    fn fault_49_an_upstream_error_gives_tokens_and_messages_back() {
        for status in [301, 400, 429, 500, 503] {
            assert_eq!(facts(Outcome::Completed, Some(status), &reported(5)), Basis::Free);
            assert!(!is_served(Outcome::Completed, Some(status)));
        }
    }

    #[test]
    fn an_answer_that_could_not_be_read_is_unknown_and_not_zero() {
        let bomb = Reading { flag: Some("bomb"), ..Reading::default() };
        assert_eq!(facts(Outcome::Completed, Some(200), &bomb), Basis::Unknown);
        let priced = price(&Basis::Unknown, Outcome::Completed, &bomb, None, Amounts::default(), 150);
        assert_eq!((priced.tokens, priced.source), (None, TokenSource::None));
    }

    #[test]
    fn hanging_up_early_is_never_free() {
        let nothing = Reading::default();
        let before_the_answer = facts(Outcome::ClientAborted, None, &nothing);
        assert_eq!(before_the_answer, Basis::Reserved);
        let reserved = Amounts { tokens: 450, ..Amounts::default() };
        let charge = |basis: &Basis, reading: &Reading, counted: Option<&Counted>| {
            price(basis, Outcome::ClientAborted, reading, counted, reserved, 150).tokens
        };
        assert_eq!(charge(&before_the_answer, &nothing, None), Some(150));
        let counted = Counted { input: 3, output: 4, ..Counted::default() };
        assert_eq!(charge(&Basis::Text(TokenSource::Partial), &text(), Some(&counted)), Some(150));
        assert_eq!(charge(&Basis::Reported(TokenSource::Partial), &reported(900), None), Some(900));
    }

    #[test]
    fn until_a_count_is_there_what_was_reserved_is_charged() {
        let reserved = Amounts { tokens: 150, ..Amounts::default() };
        let priced =
            price(&Basis::Text(TokenSource::Counted), Outcome::Completed, &text(), None, reserved, 150);
        assert_eq!((priced.tokens, priced.source), (Some(150), TokenSource::Reserved));
    }
}
