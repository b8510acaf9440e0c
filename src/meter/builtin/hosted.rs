//! The formats of clouds that host the models of others, in names of their own.

use super::super::format::{BillingConfig, FormatConfig, RequestConfig};
use super::super::usage::Merge;
use super::lists::{list, places_first, unless, when};

/// DashScope's own API (help.aliyun.com/zh/model-studio, "Qwen API reference"): without `incremental_output` every event
/// has all the text so far. A failed call has a `code` and a `message`, and no `output`.
pub(super) fn dashscope() -> FormatConfig {
    let text = [
        "content",
        "content/*/text",
        "reasoning_content",
        "tool_calls/*/function/name",
        "tool_calls/*/function/arguments",
    ];
    FormatConfig {
        input: list(&["/usage/input_tokens"]),
        cached_input: list(&["/usage/prompt_tokens_details/cached_tokens"]),
        output: list(&["/usage/output_tokens"]),
        reasoning: list(&["/usage/output_tokens_details/reasoning_tokens"]),
        total: list(&["/usage/total_tokens"]),
        end_when: [
            when("/output/finish_reason", &["stop", "length", "tool_calls"]),
            when("/output/choices/*/finish_reason", &["stop", "length", "tool_calls"]),
        ]
        .into_iter()
        .flatten()
        .collect(),
        text: [list(&["/output/text"]), places_first(&["/output/choices/*/message"], &text)].concat(),
        request: RequestConfig {
            text: list(&["/input/prompt", "/input/messages/*/content", "/input/messages/*/content/*/text"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// MiniMax (platform.minimax.io/docs/api-reference): OpenAI's format, but failures in `base_resp` under a 200.
pub(super) fn minimax() -> FormatConfig {
    FormatConfig {
        error_unless: unless("/base_resp/status_code", &["0"]),
        text: list(&["/reply"]),
        ..super::openai::openai_completions()
    }
}

/// developers.cloudflare.com/workers-ai, text generation over REST: the answer under `result`.
pub(super) fn workers_ai() -> FormatConfig {
    FormatConfig {
        input: list(&["/result/usage/prompt_tokens"]),
        cached_input: list(&["/result/usage/prompt_tokens_details/cached_tokens"]),
        output: list(&["/result/usage/completion_tokens"]),
        total: list(&["/result/usage/total_tokens"]),
        error: list(&["/errors"]),
        error_unless: unless("/success", &["true", "1"]),
        text: list(&["/result/response", "/response"]),
        request: RequestConfig {
            text: list(&["/prompt", "/messages/*/content"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// ibm.github.io/watsonx-ai-node-sdk, `TextGenResult`: text generation, whole and streamed. The counts of a stream's
/// events go up to each.
pub(super) fn watsonx() -> FormatConfig {
    FormatConfig {
        input: list(&["/results/*/input_token_count"]),
        output: list(&["/results/*/generated_token_count"]),
        merge: Merge::Max,
        model: list(&["/model_id"]),
        error: list(&["/errors"]),
        text: list(&["/results/*/generated_text"]),
        request: RequestConfig {
            text: list(&["/input"]),
            model: list(&["/model_id"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// replicate.com/docs/topics/predictions: a prediction. Language models report their tokens among its metrics;
/// without them an output in pieces is left to the last resort (`/output/*` would be any member of others' `output`).
pub(super) fn replicate() -> FormatConfig {
    FormatConfig {
        input: list(&["/metrics/input_token_count"]),
        output: list(&["/metrics/output_token_count"]),
        model: list(&["/model"]),
        error: list(&["/error"]),
        error_when: when("/status", &["failed", "canceled"]),
        text: list(&["/output"]),
        request: RequestConfig {
            text: list(&["/input/prompt", "/input/system_prompt"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// Gemini's Interactions API (googleapis.github.io/js-genai, `Interactions.Usage`): whole, and in the event that ends a
/// stream. The output leaves thoughts out.
pub(super) fn gemini_interactions() -> FormatConfig {
    let under = |name: &str| places_first(&["/usage", "/interaction/usage"], &[name]);
    FormatConfig {
        input: under("total_input_tokens"),
        extra_input: under("total_tool_use_tokens"),
        cached_input: under("total_cached_tokens"),
        output: under("total_output_tokens"),
        reasoning: under("total_thought_tokens"),
        total: under("total_tokens"),
        output_includes_reasoning: false,
        model: list(&["/model", "/interaction/model"]),
        error: list(&["/error"]),
        error_when: when("/status", &["failed"]),
        end_when: when("/event_type", &["interaction.complete", "interaction.completed"]),
        text: list(&[
            "/outputs/*/text",
            "/steps/*/content/*/text",
            "/delta/text",
            "/interaction/outputs/*/text",
        ]),
        request: RequestConfig {
            text: list(&["/input", "/input/*/text", "/input/*/content", "/input/*/content/*/text"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// Gemini's usage in snake case, as Python's SDK dumps it and agents built on it send it (google.github.io/adk-docs).
pub(super) fn gemini_snake_case() -> FormatConfig {
    let under = |name: &str| places_first(&["/usage_metadata", "/*/usage_metadata"], &[name]);
    FormatConfig {
        input: under("prompt_token_count"),
        extra_input: under("tool_use_prompt_token_count"),
        cached_input: under("cached_content_token_count"),
        output: under("candidates_token_count"),
        reasoning: under("thoughts_token_count"),
        total: under("total_token_count"),
        named: ["/usage_metadata", "/*/usage_metadata"]
            .iter()
            .flat_map(|usage| {
                ["prompt", "candidates"].map(|side| format!("{usage}/{side}_tokens_details/*/modality"))
            })
            .map(|name| (name, list(&["token_count"])))
            .collect(),
        billing: BillingConfig {
            audio_input: under("prompt_tokens_details/*/AUDIO"),
            image_input: under("prompt_tokens_details/*/IMAGE"),
            audio_output: under("candidates_tokens_details/*/AUDIO"),
            image_output: under("candidates_tokens_details/*/IMAGE"),
            ..BillingConfig::default()
        },
        output_includes_reasoning: false,
        model: list(&["/model_version"]),
        error: list(&["/error"]),
        text: list(&["/candidates/*/content/parts/*/text", "/content/parts/*/text"]),
        ..FormatConfig::default()
    }
}
