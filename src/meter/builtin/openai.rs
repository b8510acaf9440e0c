//! OpenAI's formats, and those of the many who speak them.

use super::super::format::{BillingConfig, CallsConfig, FormatConfig, RequestConfig};
use super::lists::{ENVELOPES, list, names_first, openai_prompt, places_first, when, when_at};

/// Where a chat completion's usage stands: at the top, Groq's, Moonshot's.
const USAGES: [&str; 3] = ["/usage", "/x_groq/usage", "/choices/*/usage"];

/// What of a chat completion has a price of its own. `cost` is OpenRouter's (openrouter.ai/docs, "Usage accounting"):
/// with a key of the customer's own (`is_byok`) it is its fee alone.
fn openai_billing() -> BillingConfig {
    BillingConfig {
        tier: list(&["/service_tier"]),
        audio_input: list(&["/usage/prompt_tokens_details/audio_tokens"]),
        audio_output: list(&["/usage/completion_tokens_details/audio_tokens"]),
        image_input: list(&["/usage/prompt_tokens_details/image_tokens"]),
        image_output: list(&["/usage/completion_tokens_details/image_tokens"]),
        cache_write_1h: list(&["/usage/cache_creation/ephemeral_1h_input_tokens"]),
        web_searches: list(&["/usage/server_tool_use/web_search_requests", "/usage/num_search_queries"]),
        reported_cost: list(&["/usage/cost", "/usage/cost/total_cost"]),
        reported_cost_unless: list(&["/usage/is_byok"]),
        ..BillingConfig::default()
    }
}

/// Chat completions of OpenAI (platform.openai.com/docs/api-reference/chat) and of those who speak it: Azure, Groq
/// (`x_groq.usage`), Mistral (`connector_tokens` of its conversations), xAI, DeepSeek (`prompt_cache_hit_tokens`),
/// LiteLLM, OpenRouter, Together, Fireworks, vLLM, LM Studio, Moonshot (the last choice of a stream has the usage).
///
/// A completion has one `id`, but some proxies make up another for each chunk.
pub(super) fn openai_chat() -> FormatConfig {
    FormatConfig {
        envelopes: list(&ENVELOPES),
        calls: CallsConfig {
            event_id: list(&["/id"]),
            end: list(&["/choices/*/finish_reason"]),
            ..CallsConfig::default()
        },
        billing: openai_billing(),
        input: places_first(&USAGES, &["prompt_tokens"]),
        extra_input: list(&["/usage/connector_tokens"]),
        cached_input: names_first(
            &USAGES,
            &[
                "prompt_tokens_details/cached_tokens",
                "prompt_cache_hit_tokens",
                "cache_read_input_tokens",
                "cached_tokens",
                "num_cached_tokens",
            ],
        ),
        cache_write_input: list(&[
            "/usage/prompt_tokens_details/cache_write_tokens",
            "/usage/prompt_tokens_details/cache_creation_tokens",
            "/usage/cache_creation_input_tokens",
        ]),
        output: places_first(&USAGES, &["completion_tokens"]),
        reasoning: names_first(&USAGES, &["completion_tokens_details/reasoning_tokens", "reasoning_tokens"]),
        total: places_first(&USAGES, &["total_tokens"]),
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
        choices: list(&["/choices/*/index"]),
        request: RequestConfig {
            text: list(&["/messages/*/content", "/messages/*/content/*/text"]),
            model: list(&["/model"]),
            ..openai_prompt("/messages/*")
        },
        ..FormatConfig::default()
    }
}

/// Perplexity (docs.perplexity.ai, "Sonar deep research"): what its searches read is billed as `citation_tokens` and what
/// it thought as `reasoning_tokens`, and neither is in the other counts, nor in the sum.
pub(super) fn perplexity() -> FormatConfig {
    FormatConfig {
        envelopes: list(&ENVELOPES),
        input: list(&["/usage/prompt_tokens"]),
        extra_input: list(&["/usage/citation_tokens"]),
        output: list(&["/usage/completion_tokens"]),
        reasoning: list(&["/usage/reasoning_tokens"]),
        total: list(&["/usage/total_tokens"]),
        output_includes_reasoning: false,
        calls: openai_chat().calls,
        billing: BillingConfig {
            web_searches: list(&["/usage/num_search_queries"]),
            reported_cost: list(&["/usage/cost/total_cost"]),
            ..BillingConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// platform.openai.com/docs/api-reference/responses. The terminal event is `response.completed`, `.incomplete` or
/// `.failed`; all may have usage. Audio transcriptions and images report in the same names.
pub(super) fn openai_responses() -> FormatConfig {
    let searches = || when_at(&["/output/*/type", "/response/output/*/type"], &["web_search_call"]);
    let parts = |side: &str, kind: &str| {
        let names =
            [format!("{side}_tokens_details/{kind}_tokens"), format!("{side}_token_details/{kind}_tokens")];
        names_first(&["/response/usage", "/usage"], &names.each_ref().map(String::as_str))
    };
    FormatConfig {
        envelopes: list(&["/result", "/data", "/output", "/body", "/payload", "/response/body"]),
        calls: CallsConfig { id: list(&["/response/id"]), ..CallsConfig::default() },
        billing: BillingConfig {
            tier: list(&["/response/service_tier", "/service_tier"]),
            audio_input: parts("input", "audio"),
            audio_output: parts("output", "audio"),
            image_input: parts("input", "image"),
            image_output: parts("output", "image"),
            web_searches_when: searches(),
            ..BillingConfig::default()
        },
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
            calls: list(&["/input/*/name"]),
            aside: list(&["/input/*/arguments", "/input/*/output"]),
            names: Vec::new(),
            ..openai_prompt("/input/*")
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
