//! The formats that come with the program. Where the providers' own pages are the source, they are named.

use super::format::{FormatConfig, RequestConfig};
use super::usage::Merge;

fn list(pointers: &[&str]) -> Vec<String> {
    pointers.iter().map(|pointer| (*pointer).to_owned()).collect()
}

fn when(pointer: &str, names: &[&str]) -> std::collections::BTreeMap<String, Vec<String>> {
    [(pointer.to_owned(), list(names))].into()
}

/// Every format with its name, the most specific first: where two fit equally well, the first one is taken.
pub(super) fn formats() -> Vec<(&'static str, FormatConfig)> {
    vec![
        ("chat-service", chat_service()),
        ("openai-chat", openai_chat()),
        ("openai-responses", openai_responses()),
        ("openai-completions", openai_completions()),
        ("openai-embeddings", openai_embeddings()),
        ("anthropic", anthropic()),
        ("gemini", gemini()),
        ("cohere", cohere()),
        ("bedrock-converse", bedrock_converse()),
        ("ollama", ollama()),
        ("vercel-ai", vercel_ai()),
        ("dify", dify()),
        ("langchain", langchain()),
    ]
}

/// The chat service that Tollgate was made for. Single answers report nothing; `partial` repeats all the text in
/// every event and is never looked at.
fn chat_service() -> FormatConfig {
    FormatConfig {
        total: list(&["/totalTokens", "/summary/totalTokens", "/tokens_used", "/batch/*/tokens_used"]),
        merge: Merge::Sum,
        messages: list(&["/reply", "/query", "/final", "/batch/*"]),
        error: list(&["/error"]),
        text: list(&["/reply", "/token", "/batch/*/reply"]),
        final_text: list(&["/final"]),
        request: RequestConfig {
            batches: list(&["/messages/*/query"]),
            embeddings: list(&["/texts"]),
            text: list(&["/message", "/messages/*/query", "/texts/*"]),
            session: list(&["/sessionId"]),
            model: list(&["/model"]),
        },
        ..FormatConfig::default()
    }
}

/// Chat completions of OpenAI (platform.openai.com/docs/api-reference/chat) and of those who speak it: Azure, Groq
/// (`x_groq.usage`), Mistral, xAI, DeepSeek (`prompt_cache_hit_tokens`), LiteLLM, OpenRouter, vLLM.
fn openai_chat() -> FormatConfig {
    FormatConfig {
        input: list(&["/usage/prompt_tokens", "/x_groq/usage/prompt_tokens"]),
        cached_input: list(&[
            "/usage/prompt_tokens_details/cached_tokens",
            "/x_groq/usage/prompt_tokens_details/cached_tokens",
            "/usage/prompt_cache_hit_tokens",
            "/usage/cache_read_input_tokens",
            "/usage/cached_tokens",
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
        error: list(&["/error"]),
        text: list(&[
            "/choices/*/delta/content",
            "/choices/*/message/content",
            "/choices/*/delta/content/*/text",
            "/choices/*/message/content/*/text",
            "/choices/*/delta/reasoning_content",
            "/choices/*/message/reasoning_content",
            "/choices/*/delta/refusal",
            "/choices/*/message/refusal",
            "/choices/*/delta/tool_calls/*/function/name",
            "/choices/*/delta/tool_calls/*/function/arguments",
            "/choices/*/message/tool_calls/*/function/name",
            "/choices/*/message/tool_calls/*/function/arguments",
        ]),
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
fn openai_responses() -> FormatConfig {
    FormatConfig {
        input: list(&["/response/usage/input_tokens", "/usage/input_tokens"]),
        cached_input: list(&[
            "/response/usage/input_tokens_details/cached_tokens",
            "/usage/input_tokens_details/cached_tokens",
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
fn openai_completions() -> FormatConfig {
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
fn openai_embeddings() -> FormatConfig {
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

/// docs.anthropic.com/en/api/messages. The input count leaves out what a cache gave or took. `message_start` has
/// the input; its `output_tokens` is a first guess that is left alone, so that an answer that breaks off is counted
/// by its text; the `output_tokens` of every `message_delta` is cumulative.
fn anthropic() -> FormatConfig {
    FormatConfig {
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
        text: list(&[
            "/content/*/text",
            "/content/*/thinking",
            "/delta/text",
            "/delta/thinking",
            "/delta/partial_json",
        ]),
        request: RequestConfig {
            text: list(&["/system", "/system/*/text", "/messages/*/content", "/messages/*/content/*/text"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// ai.google.dev/api/generate-content#UsageMetadata. The candidates' count leaves thoughts out; a tool's results are
/// input that the prompt's count leaves out. Without `alt=sse` a stream is one array of the same objects.
fn gemini() -> FormatConfig {
    let both = |name: &str| {
        ["", "/*", "/response"]
            .iter()
            .map(|place| format!("{place}/usageMetadata/{name}"))
            .collect::<Vec<_>>()
    };
    FormatConfig {
        input: both("promptTokenCount"),
        extra_input: both("toolUsePromptTokenCount"),
        cached_input: both("cachedContentTokenCount"),
        output: [both("candidatesTokenCount"), both("responseTokenCount")].concat(),
        reasoning: both("thoughtsTokenCount"),
        total: both("totalTokenCount"),
        output_includes_reasoning: false,
        model: list(&["/modelVersion", "/*/modelVersion", "/response/modelVersion"]),
        error: list(&["/error", "/0/error"]),
        text: list(&[
            "/candidates/*/content/parts/*/text",
            "/*/candidates/*/content/parts/*/text",
            "/response/candidates/*/content/parts/*/text",
        ]),
        request: RequestConfig {
            text: list(&[
                "/contents/*/parts/*/text",
                "/contents/parts/*/text",
                "/systemInstruction/parts/*/text",
                "/system_instruction/parts/*/text",
            ]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// docs.cohere.com/reference/chat, v1 and v2. What is billed (`billed_units`) is not what is counted (`tokens`);
/// embed and rerank report billed units alone.
fn cohere() -> FormatConfig {
    let places = ["/usage", "/meta", "/delta/usage", "/response/meta"];
    let under = |names: &[&str]| {
        let all = names.iter().flat_map(|name| places.iter().map(move |place| format!("{place}/{name}")));
        all.collect::<Vec<_>>()
    };
    FormatConfig {
        input: under(&["tokens/input_tokens", "billed_units/input_tokens"]),
        cached_input: under(&["cached_tokens"]),
        output: under(&["tokens/output_tokens", "billed_units/output_tokens"]),
        billed_input: under(&["billed_units/input_tokens"]),
        billed_output: under(&["billed_units/output_tokens"]),
        text: list(&["/text", "/message/content/*/text", "/delta/message/content/text"]),
        final_text: list(&["/response/text"]),
        error_when: when("/delta/finish_reason", &["ERROR", "ERROR_TOXIC", "ERROR_LIMIT"]),
        request: RequestConfig {
            text: list(&["/message", "/preamble", "/messages/*/content", "/texts/*"]),
            embeddings: list(&["/texts"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html: `inputTokens` leaves the cache out.
/// The invocation metrics are what the last event of a streamed InvokeModel has.
fn bedrock_converse() -> FormatConfig {
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
            "/contentBlockDelta/delta/text",
            "/output/message/content/*/reasoningContent/reasoningText/text",
        ]),
        request: RequestConfig {
            text: list(&["/messages/*/content/*/text", "/system/*/text"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// github.com/ollama/ollama/blob/main/docs/api.md. `prompt_eval_count` may be left out when the prompt was cached:
/// then the input is unknown.
fn ollama() -> FormatConfig {
    FormatConfig {
        input: list(&["/prompt_eval_count"]),
        output: list(&["/eval_count"]),
        model: list(&["/model"]),
        error: list(&["/error"]),
        text: list(&["/message/content", "/message/thinking", "/response", "/thinking"]),
        request: RequestConfig {
            embeddings: list(&["/input"]),
            text: list(&["/prompt", "/system", "/messages/*/content", "/input", "/input/*"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// The AI SDK (ai-sdk.dev): `generateText` as JSON, its data stream (version 4) and its UI message stream (5 to 7),
/// where the application decides what of the usage goes into `messageMetadata`. Its input includes the cached part.
fn vercel_ai() -> FormatConfig {
    let places = [
        "/totalUsage",
        "/messageMetadata/totalUsage",
        "/messageMetadata/usage",
        "/messageMetadata",
        "/metadata/usage",
        "/usage",
    ];
    let under = |names: &[&str]| {
        let all = places.iter().flat_map(|place| names.iter().map(move |name| format!("{place}/{name}")));
        all.collect::<Vec<_>>()
    };
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
            "/response/modelId",
            "/model",
            "/modelId",
        ]),
        error_when: when("/type", &["error"]),
        text: list(&["/text", "/delta", "/textDelta", "/inputTextDelta"]),
        request: RequestConfig {
            text: list(&["/prompt", "/system", "/messages/*/content", "/messages/*/parts/*/text"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// docs.dify.ai, chat and completion messages and workflows. Every `message` event has the next piece in `answer`.
fn dify() -> FormatConfig {
    FormatConfig {
        input: list(&["/metadata/usage/prompt_tokens"]),
        output: list(&["/metadata/usage/completion_tokens"]),
        total: list(&["/metadata/usage/total_tokens", "/data/total_tokens"]),
        error_when: when("/event", &["error"]),
        text: list(&["/answer"]),
        request: RequestConfig { text: list(&["/query"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// LangChain's messages: as `dumps()` writes them, and as LangServe and LangGraph send them. The numbers stand twice
/// (`usage_metadata`, and the provider's own in `response_metadata`) and count once.
fn langchain() -> FormatConfig {
    let places = ["/kwargs", "", "/output", "/message/kwargs", "/output/kwargs"];
    let under = |names: &[&str]| {
        let all = places.iter().flat_map(|place| names.iter().map(move |name| format!("{place}/{name}")));
        all.collect::<Vec<_>>()
    };
    FormatConfig {
        input: under(&["usage_metadata/input_tokens", "response_metadata/token_usage/prompt_tokens"]),
        cached_input: under(&["usage_metadata/input_token_details/cache_read"]),
        cache_write_input: under(&["usage_metadata/input_token_details/cache_creation"]),
        output: under(&["usage_metadata/output_tokens", "response_metadata/token_usage/completion_tokens"]),
        reasoning: under(&["usage_metadata/output_token_details/reasoning"]),
        total: under(&["usage_metadata/total_tokens", "response_metadata/token_usage/total_tokens"]),
        model: under(&["response_metadata/model_name", "response_metadata/model"]),
        text: list(&["/kwargs/content", "/output/content", "/message/kwargs/content"]),
        ..FormatConfig::default()
    }
}
