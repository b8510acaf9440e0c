//! OpenAI's formats, and those of the many who speak them.

use super::super::format::{FormatConfig, RequestConfig};
use super::lists::{list, places_first, when};

/// Chat completions of OpenAI (platform.openai.com/docs/api-reference/chat) and of those who speak it: Azure, Groq
/// (`x_groq.usage`), Mistral (`connector_tokens` of its conversations), xAI, DeepSeek (`prompt_cache_hit_tokens`),
/// LiteLLM, OpenRouter, Perplexity, Together, Fireworks, vLLM, LM Studio.
pub(super) fn openai_chat() -> FormatConfig {
    FormatConfig {
        input: list(&["/usage/prompt_tokens", "/x_groq/usage/prompt_tokens"]),
        extra_input: list(&["/usage/connector_tokens"]),
        cached_input: list(&[
            "/usage/prompt_tokens_details/cached_tokens",
            "/x_groq/usage/prompt_tokens_details/cached_tokens",
            "/usage/prompt_cache_hit_tokens",
            "/usage/cache_read_input_tokens",
            "/usage/cached_tokens",
            "/usage/num_cached_tokens",
        ]),
        cache_write_input: list(&[
            "/usage/prompt_tokens_details/cache_write_tokens",
            "/usage/prompt_tokens_details/cache_creation_tokens",
            "/usage/cache_creation_input_tokens",
        ]),
        output: list(&["/usage/completion_tokens", "/x_groq/usage/completion_tokens"]),
        reasoning: list(&[
            "/usage/completion_tokens_details/reasoning_tokens",
            "/x_groq/usage/completion_tokens_details/reasoning_tokens",
            "/usage/reasoning_tokens",
        ]),
        total: list(&["/usage/total_tokens", "/x_groq/usage/total_tokens"]),
        model: list(&["/model"]),
        error: list(&["/error", "/x_groq/error"]),
        text: places_first(
            &["/choices/*/delta", "/choices/*/message"],
            &[
                "content",
                "content/*/text",
                "content/*/thinking/*/text",
                "reasoning_content",
                "reasoning",
                "refusal",
                "audio/transcript",
                "tool_calls/*/function/name",
                "tool_calls/*/function/arguments",
                "tool_calls/*/custom/input",
                "function_call/name",
                "function_call/arguments",
            ],
        ),
        request: RequestConfig {
            text: list(&["/messages/*/content", "/messages/*/content/*/text"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// platform.openai.com/docs/api-reference/responses. The terminal event is `response.completed`, `.incomplete` or
/// `.failed`; all may have usage. Audio transcriptions and images report in the same names.
pub(super) fn openai_responses() -> FormatConfig {
    FormatConfig {
        input: list(&["/response/usage/input_tokens", "/usage/input_tokens"]),
        cached_input: list(&[
            "/response/usage/input_tokens_details/cached_tokens",
            "/usage/input_tokens_details/cached_tokens",
        ]),
        cache_write_input: list(&[
            "/response/usage/input_tokens_details/cache_write_tokens",
            "/usage/input_tokens_details/cache_write_tokens",
        ]),
        output: list(&["/response/usage/output_tokens", "/usage/output_tokens"]),
        reasoning: list(&[
            "/response/usage/output_tokens_details/reasoning_tokens",
            "/usage/output_tokens_details/reasoning_tokens",
        ]),
        total: list(&["/response/usage/total_tokens", "/usage/total_tokens"]),
        model: list(&["/response/model", "/model"]),
        error: list(&["/response/error", "/error"]),
        error_when: when("/type", &["error", "response.failed"]),
        end_when: when("/type", &["response.completed", "response.incomplete", "response.failed"]),
        text: list(&[
            "/delta",
            "/output/*/content/*/text",
            "/output/*/content/*/refusal",
            "/output/*/summary/*/text",
            "/output/*/arguments",
        ]),
        final_text: list(&[
            "/response/output/*/content/*/text",
            "/response/output/*/content/*/refusal",
            "/response/output/*/summary/*/text",
            "/response/output/*/arguments",
        ]),
        request: RequestConfig {
            text: list(&["/input", "/input/*/content", "/input/*/content/*/text", "/instructions"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// platform.openai.com/docs/api-reference/completions (legacy).
pub(super) fn openai_completions() -> FormatConfig {
    FormatConfig {
        text: list(&["/choices/*/text"]),
        request: RequestConfig {
            text: list(&["/prompt", "/prompt/*"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..openai_usage()
    }
}

/// platform.openai.com/docs/api-reference/embeddings; Voyage and Jina report the sum only.
pub(super) fn openai_embeddings() -> FormatConfig {
    FormatConfig {
        request: RequestConfig {
            embeddings: list(&["/input", "/texts"]),
            text: list(&["/input", "/input/*", "/texts/*"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..openai_usage()
    }
}

fn openai_usage() -> FormatConfig {
    FormatConfig { text: Vec::new(), request: RequestConfig::default(), ..openai_chat() }
}
