//! The formats of frameworks, which pass on what a provider reported, in their own words.

use std::collections::BTreeMap;

use super::super::format::{BillingConfig, CallsConfig, FormatConfig, RequestConfig};
use super::super::usage::Merge;
use super::lists::{list, names_first, places_first, when};

/// The AI SDK (ai-sdk.dev): `generateText` as JSON, its data stream (version 4) and its UI message stream (5 to 7),
/// where the application decides what of the usage goes into `messageMetadata` or a part of its own (`data-usage`). Its
/// input includes the cached part.
pub(super) fn vercel_ai() -> FormatConfig {
    let places = [
        "/totalUsage",
        "/messageMetadata/totalUsage",
        "/messageMetadata/usage",
        "/messageMetadata",
        "/metadata/usage",
        "/usage",
        "/data/usage",
        "/data",
    ];
    let under = |names: &[&str]| places_first(&places, names);
    FormatConfig {
        input: under(&["inputTokens", "inputTokens/total", "promptTokens"]),
        cached_input: under(&[
            "inputTokenDetails/cacheReadTokens",
            "cachedInputTokens",
            "inputTokens/cacheRead",
        ]),
        cache_write_input: under(&["inputTokenDetails/cacheWriteTokens", "inputTokens/cacheWrite"]),
        output: under(&["outputTokens", "outputTokens/total", "completionTokens"]),
        reasoning: under(&[
            "outputTokenDetails/reasoningTokens",
            "reasoningTokens",
            "outputTokens/reasoning",
        ]),
        total: under(&["totalTokens"]),
        model: list(&[
            "/messageMetadata/model",
            "/messageMetadata/modelId",
            "/data/modelId",
            "/response/modelId",
            "/model",
            "/modelId",
        ]),
        error_when: when("/type", &["error"]),
        text: list(&["/text", "/delta", "/textDelta", "/inputTextDelta", "/argsTextDelta"]),
        request: RequestConfig {
            text: list(&[
                "/prompt",
                "/system",
                "/messages/*/content",
                "/messages/*/content/*/text",
                "/messages/*/parts/*/text",
                "/message/content",
                "/message/parts/*/text",
            ]),
            model: list(&["/model"]),
            roles: list(&["/messages/*/role"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// docs.dify.ai, chat and completion messages and workflows. Every `message` event has the next piece in `answer`. The
/// request's `inputs` are the application's own variables.
pub(super) fn dify() -> FormatConfig {
    FormatConfig {
        input: list(&["/metadata/usage/prompt_tokens"]),
        output: list(&["/metadata/usage/completion_tokens"]),
        total: list(&["/metadata/usage/total_tokens", "/data/total_tokens"]),
        error_when: when("/event", &["error"]),
        end_when: when("/event", &["message_end", "workflow_finished"]),
        text: list(&["/answer", "/data/text"]),
        request: RequestConfig { text: list(&["/query", "/inputs/*"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// LangChain's messages: as `dumps()` writes them under whatever key, as LangServe sends them, one or a batch, and as
/// LangGraph's server does (docs.langchain.com, "Streaming API"): one message told again as it grows, or in a thread's
/// state, or in a node's update. The numbers stand twice (`usage_metadata`, and the provider's own in
/// `response_metadata`) and count once. The chunks of a message add up, as LangChain itself adds them; a whole message
/// (`ai`) has the sum. In a state, what stands before the last human message is an earlier run's.
pub(super) fn langchain() -> FormatConfig {
    const MESSAGES: [&str; 7] = [
        "/*",
        "/messages/*",
        "/*/messages",
        "/*/messages/*",
        "/output/*",
        "/data/output",
        "/data/output/messages/*",
    ];
    let at = |places: &[&str], name: &str| -> Vec<String> {
        places.iter().map(|place| format!("{place}{name}")).collect()
    };
    let or_dumped = |name: &str| {
        let dumped = format!("/kwargs{name}");
        [at(&MESSAGES, name), at(&MESSAGES, &dumped)].concat()
    };
    let names = |pointers: Vec<String>, names: &[&str]| {
        pointers.into_iter().map(|pointer| (pointer, list(names))).collect::<BTreeMap<_, _>>()
    };
    let places = [vec![String::new()], at(&MESSAGES, ""), at(&MESSAGES, "/kwargs")].concat();
    let places: Vec<_> = places.iter().map(String::as_str).collect();
    let under = |names: &[&str]| names_first(&places, names);
    let states = ["/messages/*", "/output/messages/*", "/values/messages/*", "/data/output/messages/*"];
    FormatConfig {
        input: under(&["usage_metadata/input_tokens", "response_metadata/token_usage/prompt_tokens"]),
        cached_input: under(&["usage_metadata/input_token_details/cache_read"]),
        cache_write_input: under(&["usage_metadata/input_token_details/cache_creation"]),
        output: under(&["usage_metadata/output_tokens", "response_metadata/token_usage/completion_tokens"]),
        reasoning: under(&["usage_metadata/output_token_details/reasoning"]),
        total: under(&["usage_metadata/total_tokens", "response_metadata/token_usage/total_tokens"]),
        billing: BillingConfig {
            audio_input: under(&["usage_metadata/input_token_details/audio"]),
            audio_output: under(&["usage_metadata/output_token_details/audio"]),
            ..BillingConfig::default()
        },
        calls: CallsConfig {
            each: list(&MESSAGES),
            id: or_dumped("/id"),
            event_id: list(&["/id"]),
            whole_when: [names(or_dumped("/type"), &["ai"]), when("/type", &["ai"])]
                .into_iter()
                .flatten()
                .collect(),
            turn_when: [
                names(at(&states, "/type"), &["human"]),
                names(at(&states, "/kwargs/type"), &["human"]),
                names(at(&states, "/role"), &["user", "human"]),
            ]
            .into_iter()
            .flatten()
            .collect(),
            ..CallsConfig::default()
        },
        model: under(&["response_metadata/model_name", "response_metadata/model"]),
        merge: Merge::Sum,
        text: list(&[
            "/kwargs/content",
            "/content",
            "/output",
            "/output/content",
            "/message/kwargs/content",
            "/data/chunk/content",
            "/data/chunk/kwargs/content",
            "/0/content",
            "/0/kwargs/content",
        ]),
        request: langchain_request(),
        ..FormatConfig::default()
    }
}

/// LangGraph's runs (docs.langchain.com/langsmith/server-api-ref) have the graph's state in `input`, LangServe's
/// `invoke` and `stream` (github.com/langchain-ai/langserve) the chain's input, and its `batch` a list of `inputs`. A
/// message has a `role`, or LangChain's own `type`, and may be as `dumps()` writes it.
fn langchain_request() -> RequestConfig {
    let messages =
        ["/input/messages/*", "/input/messages/*/kwargs", "/input/*", "/input/*/*", "/inputs/*/messages/*"];
    RequestConfig {
        text: [
            places_first(&messages, &["content", "content/*/text"]),
            list(&["/input", "/input/input", "/input/question", "/input/query", "/input/text", "/inputs/*"]),
            list(&["/inputs/*/input", "/inputs/*/question"]),
        ]
        .concat(),
        roles: places_first(&["/input/messages/*", "/inputs/*/messages/*"], &["role", "type"]),
        ..RequestConfig::default()
    }
}
