//! The formats of other providers of models.

use super::super::format::{BillingConfig, CallsConfig, FormatConfig, HeadersConfig, RequestConfig};
use super::super::usage::Merge;
use super::lists::{list, names_first, places_first, when};

/// docs.anthropic.com/en/api/messages. The input count leaves out what a cache gave or took. `message_start` has
/// the input; its `output_tokens` is a first guess that is left alone, so that an answer that breaks off is counted
/// by its text; the `output_tokens` of every `message_delta` is cumulative.
///
/// Where the server compacts the context or asks an adviser, `usage.iterations` has a usage for each sampling, and the
/// counts beside it leave out those that are not plain messages (platform.claude.com/docs, "Compaction"): all of them
/// are billed.
pub(super) fn anthropic() -> FormatConfig {
    FormatConfig {
        envelopes: list(&["/result", "/data", "/output", "/body", "/payload", "/response/body"]),
        parts: when("/usage/iterations/*/type", &["message"]),
        calls: CallsConfig {
            id: list(&["/message/id"]),
            event_id: list(&["/id"]),
            end: list(&["/stop_reason"]),
            ..CallsConfig::default()
        },
        billing: BillingConfig {
            tier: list(&["/usage/service_tier", "/message/usage/service_tier"]),
            cache_write_1h: list(&[
                "/message/usage/cache_creation/ephemeral_1h_input_tokens",
                "/usage/cache_creation/ephemeral_1h_input_tokens",
            ]),
            web_searches: list(&[
                "/usage/server_tool_use/web_search_requests",
                "/message/usage/server_tool_use/web_search_requests",
            ]),
            ..BillingConfig::default()
        },
        input: list(&["/message/usage/input_tokens", "/usage/input_tokens"]),
        cached_input: list(&["/message/usage/cache_read_input_tokens", "/usage/cache_read_input_tokens"]),
        cache_write_input: list(&[
            "/message/usage/cache_creation_input_tokens",
            "/usage/cache_creation_input_tokens",
        ]),
        output: list(&["/usage/output_tokens"]),
        reasoning: list(&["/usage/output_tokens_details/thinking_tokens"]),
        input_includes_cached: false,
        model: list(&["/message/model", "/model"]),
        error: list(&["/error"]),
        error_when: when("/type", &["error"]),
        end_when: when("/type", &["message_stop"]),
        text: list(&[
            "/content/*/text",
            "/content/*/thinking",
            "/delta/text",
            "/delta/thinking",
            "/delta/partial_json",
            "/completion",
        ]),
        request: RequestConfig {
            text: list(&[
                "/system",
                "/system/*/text",
                "/messages/*/content",
                "/messages/*/content/*/text",
                "/messages/*/content/*/content",
                "/messages/*/content/*/content/*/text",
            ]),
            model: list(&["/model"]),
            roles: list(&["/messages/*/role"]),
            tools: list(&["/tools"]),
            images: list(&["/messages/*/content/*/source"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// What Gemini parts by modality.
const SIDES: [&str; 3] = ["prompt", "candidates", "response"];

/// ai.google.dev/api/generate-content#UsageMetadata. The candidates' count leaves thoughts out; a tool's results are
/// input that the prompt's count leaves out. Without `alt=sse` a stream is one array of the same objects.
///
/// Google's Agent Development Kit (google.github.io/adk-docs) passes on the same counts in its events, each with an `id`
/// of its own; those that are `partial` have the prompt's count of the one that they belong to.
pub(super) fn gemini() -> FormatConfig {
    let both = |name: &str| {
        places_first(&["/usageMetadata", "/*/usageMetadata", "/response/usageMetadata"], &[name])
    };
    FormatConfig {
        input: both("promptTokenCount"),
        extra_input: both("toolUsePromptTokenCount"),
        cached_input: both("cachedContentTokenCount"),
        output: [both("candidatesTokenCount"), both("responseTokenCount")].concat(),
        reasoning: both("thoughtsTokenCount"),
        total: both("totalTokenCount"),
        output_includes_reasoning: false,
        named: ["/usageMetadata", "/*/usageMetadata", "/response/usageMetadata"]
            .iter()
            .flat_map(|usage| SIDES.map(|side| format!("{usage}/{side}TokensDetails/*/modality")))
            .map(|name| (name, list(&["tokenCount"])))
            .collect(),
        billing: BillingConfig {
            audio_input: both("promptTokensDetails/*/AUDIO"),
            image_input: both("promptTokensDetails/*/IMAGE"),
            audio_output: [both("candidatesTokensDetails/*/AUDIO"), both("responseTokensDetails/*/AUDIO")]
                .concat(),
            image_output: [both("candidatesTokensDetails/*/IMAGE"), both("responseTokensDetails/*/IMAGE")]
                .concat(),
            ..BillingConfig::default()
        },
        model: list(&["/modelVersion", "/*/modelVersion", "/response/modelVersion"]),
        calls: CallsConfig {
            each: list(&["/*"]),
            id: list(&["/*/id", "/*/responseId"]),
            event_id: list(&["/id", "/responseId"]),
            end: list(&["/candidates/*/finishReason"]),
            ..CallsConfig::default()
        },
        error: list(&["/error", "/0/error"]),
        text: list(&[
            "/candidates/*/content/parts/*/text",
            "/*/candidates/*/content/parts/*/text",
            "/response/candidates/*/content/parts/*/text",
        ]),
        choices: list(&["/candidates/*/index"]),
        request: RequestConfig {
            text: list(&[
                "/contents/*/parts/*/text",
                "/contents/parts/*/text",
                "/systemInstruction/parts/*/text",
                "/system_instruction/parts/*/text",
                "/contents",
                "/contents/*",
                "/systemInstruction/parts/text",
            ]),
            model: list(&["/model"]),
            roles: list(&["/contents/*/role"]),
            tools: list(&["/tools"]),
            images: list(&["/contents/*/parts/*/inlineData", "/contents/*/parts/*/inline_data"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// Google's `predict` of text embeddings (cloud.google.com/vertex-ai, "Get text embeddings"): a count for each text.
pub(super) fn vertex_embeddings() -> FormatConfig {
    FormatConfig {
        input: list(&["/predictions/*/embeddings/statistics/token_count"]),
        merge: Merge::Sum,
        request: RequestConfig {
            embeddings: list(&["/instances/*/content"]),
            text: list(&["/instances/*/content"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// docs.cohere.com/reference/chat, v1 and v2. What is billed (`billed_units`) is not what is counted (`tokens`);
/// embed and rerank report billed units alone.
pub(super) fn cohere() -> FormatConfig {
    let places = ["/usage", "/meta", "/delta/usage", "/response/meta"];
    let under = |names: &[&str]| names_first(&places, names);
    FormatConfig {
        input: under(&["tokens/input_tokens", "billed_units/input_tokens"]),
        cached_input: under(&["cached_tokens"]),
        output: under(&["tokens/output_tokens", "billed_units/output_tokens"]),
        billed_input: under(&["billed_units/input_tokens"]),
        billed_output: under(&["billed_units/output_tokens"]),
        billing: BillingConfig {
            rerank_units: under(&["billed_units/search_units"]),
            ..BillingConfig::default()
        },
        text: list(&["/text", "/message/content/*/text", "/delta/message/content/text"]),
        final_text: list(&["/response/text"]),
        error_when: when("/delta/finish_reason", &["ERROR", "ERROR_TOXIC", "ERROR_LIMIT"]),
        end_when: [when("/type", &["message-end"]), when("/event_type", &["stream-end"])]
            .into_iter()
            .flatten()
            .collect(),
        request: RequestConfig {
            text: list(&[
                "/message",
                "/preamble",
                "/chat_history/*/message",
                "/documents/*",
                "/documents/*/text",
                "/documents/*/snippet",
                "/query",
                "/messages/*/content",
                "/messages/*/content/*/text",
                "/texts/*",
            ]),
            embeddings: list(&["/texts"]),
            model: list(&["/model"]),
            roles: list(&["/messages/*/role", "/chat_history/*/role"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html: `inputTokens` leaves the cache out.
/// The invocation metrics are what the last event of a streamed InvokeModel has.
pub(super) fn bedrock_converse() -> FormatConfig {
    FormatConfig {
        input: list(&[
            "/usage/inputTokens",
            "/metadata/usage/inputTokens",
            "/amazon-bedrock-invocationMetrics/inputTokenCount",
        ]),
        cached_input: list(&[
            "/usage/cacheReadInputTokens",
            "/metadata/usage/cacheReadInputTokens",
            "/amazon-bedrock-invocationMetrics/cacheReadInputTokenCount",
        ]),
        cache_write_input: list(&[
            "/usage/cacheWriteInputTokens",
            "/metadata/usage/cacheWriteInputTokens",
            "/amazon-bedrock-invocationMetrics/cacheWriteInputTokenCount",
        ]),
        output: list(&[
            "/usage/outputTokens",
            "/metadata/usage/outputTokens",
            "/amazon-bedrock-invocationMetrics/outputTokenCount",
        ]),
        total: list(&["/usage/totalTokens", "/metadata/usage/totalTokens"]),
        input_includes_cached: false,
        text: list(&[
            "/output/message/content/*/text",
            "/output/message/content/*/reasoningContent/reasoningText/text",
            "/contentBlockDelta/delta/text",
            "/contentBlockDelta/delta/reasoningContent/text",
            "/contentBlockDelta/delta/toolUse/input",
            "/delta/text",
            "/delta/reasoningContent/text",
            "/delta/toolUse/input",
        ]),
        request: RequestConfig {
            text: list(&["/messages/*/content/*/text", "/system/*/text"]),
            roles: list(&["/messages/*/role"]),
            tools: list(&["/toolConfig/tools"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// What `InvokeModel` passes through of Titan and Llama (docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html).
/// A streamed Llama names the prompt in its first chunk alone, and both count the output up to each chunk. The headers of
/// an answer that is no stream have the counts of every model, also of those whose body has none (Mistral, Cohere); as in
/// Converse, the input leaves the cache out.
pub(super) fn bedrock_invoke() -> FormatConfig {
    FormatConfig {
        headers: HeadersConfig {
            input: list(&["x-amzn-bedrock-input-token-count"]),
            cached_input: list(&["x-amzn-bedrock-cache-read-input-token-count"]),
            cache_write_input: list(&["x-amzn-bedrock-cache-write-input-token-count"]),
            output: list(&["x-amzn-bedrock-output-token-count"]),
            ..HeadersConfig::default()
        },
        input_includes_cached: false,
        input: list(&["/inputTextTokenCount", "/prompt_token_count"]),
        output: list(&["/results/*/tokenCount", "/totalOutputTextTokenCount", "/generation_token_count"]),
        text: list(&[
            "/results/*/outputText",
            "/outputText",
            "/generation",
            "/outputs/*/text",
            "/generations/*/text",
        ]),
        request: RequestConfig { text: list(&["/inputText", "/prompt"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}
