//! The formats that come with the program. Where the providers' own pages are the source, they are named.

mod frameworks;
mod hosted;
mod lists;
mod local;
mod openai;
mod providers;
mod services;
mod widgets;

use super::format::{FormatConfig, RequestConfig};
use super::usage::Merge;
use lists::list;

/// Every format with its name, the most specific first: where two fit equally well, the first one is taken.
pub(super) fn formats() -> Vec<(&'static str, FormatConfig)> {
    vec![
        ("chat-service", chat_service()),
        ("openai-chat", openai::openai_chat()),
        ("openai-responses", openai::openai_responses()),
        ("perplexity", openai::perplexity()),
        ("openai-completions", openai::openai_completions()),
        ("openai-embeddings", openai::openai_embeddings()),
        ("anthropic", providers::anthropic()),
        ("gemini", providers::gemini()),
        ("vertex-embeddings", providers::vertex_embeddings()),
        ("cohere", providers::cohere()),
        ("bedrock-converse", providers::bedrock_converse()),
        ("bedrock-invoke", providers::bedrock_invoke()),
        ("ollama", local::ollama()),
        ("llama-cpp", local::llama_cpp()),
        ("llama-cpp-timings", local::llama_cpp_timings()),
        ("text-generation-inference", local::text_generation_inference()),
        ("vercel-ai", frameworks::vercel_ai()),
        ("dify", frameworks::dify()),
        ("langchain", frameworks::langchain()),
        ("widgets", widgets::widgets()),
        ("sglang", local::sglang()),
        ("lm-studio", local::lm_studio()),
        ("dashscope", hosted::dashscope()),
        ("minimax", hosted::minimax()),
        ("workers-ai", hosted::workers_ai()),
        ("watsonx", hosted::watsonx()),
        ("replicate", hosted::replicate()),
        ("gemini-interactions", hosted::gemini_interactions()),
        ("gemini-snake-case", hosted::gemini_snake_case()),
        ("coze", services::coze()),
        ("anything-llm", services::anything_llm()),
        ("flowise", services::flowise()),
        ("ragflow", services::ragflow()),
        ("agno", services::agno()),
        ("langflow", services::langflow()),
        ("haystack", services::haystack()),
        ("a2a", services::a2a()),
        ("chat-ui", services::chat_ui()),
        ("bots", services::bots()),
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
        end: list(&["/done"]),
        text: list(&["/reply", "/token", "/batch/*/reply"]),
        final_text: list(&["/final"]),
        request: RequestConfig {
            batches: list(&["/messages/*/query"]),
            embeddings: list(&["/texts"]),
            text: list(&["/message", "/messages/*/query", "/texts/*"]),
            session: list(&["/sessionId"]),
            model: list(&["/model"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}
