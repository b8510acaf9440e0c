//! The formats of servers that run a model themselves. (vLLM, LM Studio and others speak OpenAI's.)

use super::super::format::{FormatConfig, HeadersConfig, RequestConfig};
use super::lists::{list, openai_prompt, when};

/// github.com/ollama/ollama/blob/main/docs/api.md. `prompt_eval_count` may be left out when the prompt was cached:
/// then the input is unknown.
pub(super) fn ollama() -> FormatConfig {
    FormatConfig {
        input: list(&["/prompt_eval_count"]),
        output: list(&["/eval_count"]),
        model: list(&["/model"]),
        error: list(&["/error"]),
        end: list(&["/done"]),
        text: list(&["/message/content", "/message/thinking", "/response", "/thinking"]),
        request: RequestConfig {
            embeddings: list(&["/input"]),
            text: list(&["/prompt", "/system", "/messages/*/content", "/input", "/input/*"]),
            model: list(&["/model"]),
            images: list(&["/images/*", "/messages/*/images/*"]),
            ..openai_prompt("/messages/*")
        },
        ..FormatConfig::default()
    }
}

/// github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md, `/completion`: both counts in every chunk, up to it.
pub(super) fn llama_cpp() -> FormatConfig {
    FormatConfig {
        input: list(&["/tokens_evaluated"]),
        output: list(&["/tokens_predicted"]),
        cached_input: list(&["/timings/cache_n"]),
        model: list(&["/model"]),
        error: list(&["/error"]),
        end: list(&["/stop"]),
        text: list(&["/content"]),
        request: RequestConfig { text: list(&["/prompt"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// The same server's `timings`, which end its OpenAI streams whether usage was asked for or not. `prompt_n` leaves the
/// cache out.
pub(super) fn llama_cpp_timings() -> FormatConfig {
    FormatConfig {
        input: list(&["/timings/prompt_n"]),
        cached_input: list(&["/timings/cache_n"]),
        output: list(&["/timings/predicted_n"]),
        input_includes_cached: false,
        ..FormatConfig::default()
    }
}

/// huggingface.github.io/text-generation-inference, `/generate` and `/generate_stream`. Without a stream the input is not
/// told in the body, but in a header; so it is by text-embeddings-inference (`x-compute-tokens`), which reports nothing
/// else for its own embeddings and rerankings.
pub(super) fn text_generation_inference() -> FormatConfig {
    FormatConfig {
        headers: HeadersConfig {
            input: list(&["x-prompt-tokens", "x-compute-tokens"]),
            output: list(&["x-generated-tokens"]),
            ..HeadersConfig::default()
        },
        input: list(&["/details/input_length", "/*/details/input_length"]),
        output: list(&["/details/generated_tokens", "/*/details/generated_tokens"]),
        error: list(&["/error"]),
        text: list(&["/token/text", "/*/generated_text"]),
        final_text: list(&["/generated_text"]),
        request: RequestConfig { text: list(&["/inputs"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// docs.sglang.io, `/generate`: both counts in every event, up to it, and all the text so far.
pub(super) fn sglang() -> FormatConfig {
    FormatConfig {
        input: list(&["/meta_info/prompt_tokens"]),
        cached_input: list(&["/meta_info/cached_tokens"]),
        output: list(&["/meta_info/completion_tokens"]),
        error: list(&["/error"]),
        text: list(&["/text"]),
        request: RequestConfig { text: list(&["/text", "/prompt"]), ..RequestConfig::default() },
        ..FormatConfig::default()
    }
}

/// LM Studio's own API (lmstudio.ai/docs/developer/rest/chat), `/api/v1/chat`: whole, and in the event `chat.end`. Its
/// `/api/v0` speaks OpenAI's.
pub(super) fn lm_studio() -> FormatConfig {
    let under = |name: &str| vec![format!("/stats/{name}"), format!("/result/stats/{name}")];
    FormatConfig {
        input: under("input_tokens"),
        output: under("total_output_tokens"),
        reasoning: under("reasoning_output_tokens"),
        model: list(&["/model_instance_id", "/result/model_instance_id"]),
        error: list(&["/error"]),
        error_when: when("/type", &["error"]),
        end_when: when("/type", &["chat.end"]),
        text: list(&["/output/*/content", "/content", "/result/output/*/content"]),
        request: RequestConfig {
            text: list(&["/input", "/input/*/content", "/system_prompt"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}
