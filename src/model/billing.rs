//! What decides a price beside the classes of [`TokenUsage`](super::tokens::TokenUsage).

use serde::{Deserialize, Serialize};

/// A provider's processing tier: the same tokens at another price. An unknown name is the standard tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Slower and cheaper (OpenAI's `flex`).
    Flex,
    /// Faster and dearer (OpenAI's `priority`).
    Priority,
    /// Answered within a day (OpenAI's, Anthropic's and Google's batches).
    Batch,
}

impl Tier {
    /// The tier that an answer names; `None` for the standard one, whatever it is called.
    pub fn parse(name: &[u8]) -> Option<Self> {
        match name {
            b"flex" => Some(Self::Flex),
            b"priority" => Some(Self::Priority),
            b"batch" => Some(Self::Batch),
            _ => None,
        }
    }

    /// As providers and the config spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Priority => "priority",
            Self::Batch => "batch",
        }
    }
}

/// What an answer reports that has a price of its own. All token counts here are parts of the usage's classes, never
/// added on top; `None` is not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Billing {
    /// The processing tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// The part of the cache writes that is kept for an hour; the rest is kept for five minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write_1h: Option<u64>,
    /// The part of the input that is audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_input: Option<u64>,
    /// The part of the output that is audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_output: Option<u64>,
    /// The part of the input that is images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_input: Option<u64>,
    /// The part of the output that is images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_output: Option<u64>,
    /// Web searches made for the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_searches: Option<u64>,
    /// Units of reranking (Cohere's `search_units`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerank_units: Option<u64>,
    /// What the answer says that it cost, in nano-dollars (OpenRouter's `usage.cost`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reported_cost_nanousd: Option<u64>,
}

impl Billing {
    /// Whether nothing of it was reported.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
