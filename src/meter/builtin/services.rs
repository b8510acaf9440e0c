//! The formats of services that stand behind widgets: bot builders, agent frameworks, and what they speak.

use super::super::format::{FormatConfig, RequestConfig};
use super::lists::{list, places_first, unless, when};

/// Coze v3 (github.com/coze-dev/coze-py, `cozepy/chat/__init__.py`): events of a stream, and a chat retrieved. Each
/// message is told in pieces (`conversation.message.delta`) and then whole.
pub(super) fn coze() -> FormatConfig {
    let under = |name: &str| places_first(&["/usage", "/data/usage"], &[name]);
    FormatConfig {
        input: under("input_count"),
        output: under("output_count"),
        total: under("token_count"),
        text: list(&["/content", "/reasoning_content"]),
        error_unless: [unless("/last_error/code", &["0"]), unless("/data/last_error/code", &["0"])]
            .into_iter()
            .flatten()
            .collect(),
        request: RequestConfig {
            text: list(&["/additional_messages/*/content"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}

/// github.com/Mintplex-Labs/anything-llm: `metrics` of a whole answer, and of the event that ends a stream.
pub(super) fn anything_llm() -> FormatConfig {
    FormatConfig {
        input: list(&["/metrics/prompt_tokens"]),
        output: list(&["/metrics/completion_tokens"]),
        total: list(&["/metrics/total_tokens"]),
        model: list(&["/metrics/model"]),
        error: list(&["/error"]),
        error_when: when("/type", &["abort"]),
        end: list(&["/close"]),
        text: list(&["/textResponse"]),
        request: RequestConfig { text: list(&["/message"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// docs.flowiseai.com/using-flowise/streaming: `{event, data}`, with the usage in an event `usageMetadata`.
pub(super) fn flowise() -> FormatConfig {
    FormatConfig {
        input: list(&["/data/input_tokens"]),
        output: list(&["/data/output_tokens"]),
        total: list(&["/data/total_tokens"]),
        error_when: when("/event", &["error"]),
        end_when: when("/event", &["end"]),
        text: list(&["/data", "/text"]),
        request: RequestConfig { text: list(&["/question"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// ragflow.io/docs/http_api_reference, "Converse with chat assistant": every event has all the text so far, and none
/// has usage.
pub(super) fn ragflow() -> FormatConfig {
    FormatConfig {
        text: list(&["/data/answer"]),
        request: RequestConfig { text: list(&["/question"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// agno (docs.agno.com/reference/agents/metrics): a run whole, and its events; the last one has the text once more.
pub(super) fn agno() -> FormatConfig {
    FormatConfig {
        input: list(&["/metrics/input_tokens"]),
        cached_input: list(&["/metrics/cache_read_tokens"]),
        cache_write_input: list(&["/metrics/cache_write_tokens"]),
        output: list(&["/metrics/output_tokens"]),
        reasoning: list(&["/metrics/reasoning_tokens"]),
        total: list(&["/metrics/total_tokens"]),
        model: list(&["/model"]),
        error_when: when("/event", &["RunError"]),
        end_when: when("/event", &["RunCompleted", "RunError"]),
        text: list(&["/content", "/reasoning_content"]),
        request: RequestConfig { text: list(&["/message"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// docs.langflow.org/api-flows-run: a run whole, and a stream of `{event, data}`. No usage.
pub(super) fn langflow() -> FormatConfig {
    FormatConfig {
        error_when: when("/event", &["error"]),
        end_when: when("/event", &["end"]),
        text: list(&["/outputs/*/outputs/*/results/message/text", "/data/chunk"]),
        request: RequestConfig { text: list(&["/input_value"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// docs.haystack.deepset.ai, a pipeline's result: replies and their metadata under the name of the component.
pub(super) fn haystack() -> FormatConfig {
    let under = |name: &str| places_first(&["/llm/meta/*/usage", "/generator/meta/*/usage"], &[name]);
    FormatConfig {
        input: under("prompt_tokens"),
        output: under("completion_tokens"),
        total: under("total_tokens"),
        model: list(&["/llm/meta/*/model", "/generator/meta/*/model"]),
        text: list(&["/llm/replies/*", "/generator/replies/*"]),
        ..FormatConfig::default()
    }
}

/// The A2A protocol (a2a-protocol.org/latest/specification): messages, tasks and their artifacts under JSON-RPC's
/// `result`. What was sent in pieces may come whole in the task at the end.
pub(super) fn a2a() -> FormatConfig {
    FormatConfig {
        error: list(&["/error"]),
        end: list(&["/result/final"]),
        text: list(&[
            "/result/parts/*/text",
            "/result/artifact/parts/*/text",
            "/result/artifacts/*/parts/*/text",
            "/result/status/message/parts/*/text",
        ]),
        request: RequestConfig { text: list(&["/params/message/parts/*/text"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// github.com/huggingface/chat-ui, `MessageUpdate`: tokens, and then the whole as `finalAnswer`.
pub(super) fn chat_ui() -> FormatConfig {
    FormatConfig {
        error_when: when("/status", &["error"]),
        text: list(&["/token", "/text"]),
        request: RequestConfig { text: list(&["/inputs"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// Webhooks of workflow tools and bots that answer with little more than the text: n8n
/// (docs.n8n.io/integrations/builtin/core-nodes/n8n-nodes-langchain.chattrigger) in `output` or streamed in `content`,
/// Rasa (rasa.com/docs/reference/channels/your-own-website) and Botpress (botpress.com/docs) a list of messages, others
/// in `result`. `success` is false where they failed.
pub(super) fn bots() -> FormatConfig {
    FormatConfig {
        error: list(&["/error"]),
        error_when: when("/status", &["error", "failed"]),
        error_unless: unless("/success", &["true", "1"]),
        text: list(&[
            "/output",
            "/0/output",
            "/result",
            "/0/text",
            "/1/text",
            "/2/text",
            "/3/text",
            "/4/text",
            "/5/text",
            "/6/text",
            "/7/text",
            "/responses/*/text",
            "/responses/*/payload/text",
        ]),
        request: RequestConfig { text: list(&["/chatInput"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}
