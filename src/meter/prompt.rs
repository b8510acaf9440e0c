//! What a chat's prompt holds beside the words of its messages.
//!
//! Providers wrap each message in a few tokens of their own, and put tools and images into the prompt in forms that the
//! request doesn't show. The numbers are OpenAI's: "How to count tokens with tiktoken" of its cookbook
//! (github.com/openai/openai-cookbook) for messages and names; `prompt_tokens` that people recorded for the rest
//! (github.com/hmarr/openai-chat-tokens and github.com/chrisdinn/tokens, their tests; `tests/cases/prompts.json` has
//! those that we hold ourselves to).

use std::borrow::Cow;

use super::text::Prompt;
use super::tools;

/// Three for each message, and one for its role's name.
const MESSAGE: u64 = 4;
/// Every answer is primed with `<|start|>assistant<|message|>`.
const START: u64 = 3;
/// A name stands in place of nothing, with a separator.
pub(super) const NAME: u64 = 1;
/// A call of a tool in an assistant's message, beside its arguments and its name. (The name goes into the prompt twice: its
/// result bears it, too.)
pub(super) const CALL: u64 = 5;
/// Several calls in one message.
pub(super) const CALLS_TOGETHER: u64 = 13;
/// A message that has both words and calls.
pub(super) const WORDS_AND_CALLS: u64 = 4;
/// Headings above the rendered tools.
const TOOLS: u64 = 5;

impl Prompt {
    /// Whether there is nothing of all this.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A part of [`Prompt::aside`] as it is put before the model.
    pub(super) fn aside_text(part: &str) -> Cow<'_, str> {
        if part.starts_with('{') { tools::arguments(part) } else { Cow::Borrowed(part) }
    }

    /// The tools as they are put before the model.
    pub(super) fn tools_text(&self) -> String {
        tools::render(&self.tools)
    }

    /// Tokens beside all text.
    pub(super) fn framing(&self) -> u64 {
        let start = if self.messages > 0 { START } else { 0 };
        // Tools go into the system's message; where there is none they make one.
        let tools = match (self.tools.is_empty(), self.system) {
            (true, _) => 0,
            (false, true) => TOOLS,
            (false, false) => TOOLS + MESSAGE,
        };
        (self.messages.saturating_mul(MESSAGE) + start + tools).saturating_add(self.tokens)
    }
}
