//! What the stand-in service says, and how many tokens it says that took: the same words for the same question.

/// Tokens of system prompt and retrieved passages that the service counts with each message.
const CONTEXT_TOKENS: u64 = 160;

const REPLIES: [(&str, &str); 5] = [
    ("hours", "We are open Monday to Friday from nine to six, and on Saturdays until two in the afternoon."),
    (
        "deliver",
        "Orders placed before noon leave the same day; delivery within the country takes two working days.",
    ),
    (
        "return",
        "You can return anything within thirty days. Send it back with the label that came with it, and we refund the full price.",
    ),
    (
        "price",
        "Prices include tax. From ten pieces on there is a discount of five per cent, shown in the basket.",
    ),
    ("human", "Of course. Leave your address here and one of my colleagues writes back within the hour."),
];

const OTHERWISE: &str = "I could not find that in our pages. Could you say it in other words, or shall I pass you to a colleague?";

/// The reply to `question`, cut to `limit` characters at most.
pub(super) fn reply(question: &str, limit: Option<usize>) -> String {
    let question = question.to_lowercase();
    let found = REPLIES.iter().find(|(word, _)| question.contains(word));
    let text = found.map_or(OTHERWISE, |(_, text)| text);
    text.chars().take(limit.unwrap_or(usize::MAX)).collect()
}

/// The service's own count for one message: a quarter of the characters, and the context it sent along.
pub(super) fn tokens_used(question: &str, reply: &str) -> u64 {
    CONTEXT_TOKENS + estimate(question) + estimate(reply)
}

/// A quarter of the characters, rounded up.
pub(super) fn estimate(text: &str) -> u64 {
    (text.chars().count() as u64).div_ceil(4)
}

/// The text in the pieces that a stream sends it in: a word each, with the blank that follows it.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_question_gets_the_same_words_and_the_same_count() {
        let (first, second) = (reply("What are your HOURS?", None), reply("opening hours", None));
        assert_eq!(first, second);
        assert_eq!(tokens_used("abcd", "efghi"), CONTEXT_TOKENS + 1 + 2);
    }

    #[test]
    fn a_character_limit_is_kept() {
        assert_eq!(reply("hours", Some(6)), "We are");
    }

    #[test]
    fn the_pieces_of_a_text_make_the_text() {
        assert_eq!(pieces(OTHERWISE).collect::<String>(), OTHERWISE);
    }
}
