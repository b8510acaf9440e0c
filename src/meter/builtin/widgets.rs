//! What chat widgets and channels ask; their answers are those of the services behind them.

use super::super::format::{FormatConfig, RequestConfig};
use super::lists::list;

/// Requests, by where they come from:
///
/// - deep-chat, `messages[].text` (deepchat.dev/docs/connect, "Request body")
/// - n8n's chat trigger, `chatInput` (docs.n8n.io, "Chat Trigger node")
/// - Flowise, `question` (docs.flowiseai.com, "Prediction API")
/// - RAGFlow and AnythingLLM, `question` and `message` (ragflow.io/docs, "HTTP API"; docs.anythingllm.com, "API")
/// - Coze, `additional_messages[].content` (coze.com/docs/developer_guides/chat_v3)
/// - Open WebUI, `messages` as OpenAI has them (docs.openwebui.com, "API endpoints")
/// - Rasa's REST channel, `message` (rasa.com/docs, "Your own website")
/// - Botpress, `payload.text` and `text` (botpress.com/docs, "Messaging API")
/// - Chatwoot's webhooks, `content` (chatwoot.com/docs, "Webhooks")
/// - Bot Framework, Copilot Studio and Teams, `text` of an activity, alone or under `activity` (github.com/microsoft/Agents,
///   "Activity")
/// - Amazon Lex, `text` and, towards a function, `inputTranscript` (docs.aws.amazon.com/lexv2, "RecognizeText", "Lambda
///   input event")
/// - Dialogflow, `queryInput.text.text` (cloud.google.com/dialogflow, "detectIntent"), and `text` to a webhook
/// - Gradio, `data` (gradio.app/guides/querying-gradio-apps-with-curl)
/// - A2A, `params.message.parts[].text` (a2a-protocol.org, "message/send")
/// - MCP, `params.arguments` (modelcontextprotocol.io, "tools/call")
/// - Hugging Face's inference API, `inputs` (huggingface.co/docs/api-inference)
/// - Replicate, `input.prompt` (replicate.com/docs/reference/http)
pub(super) fn widgets() -> FormatConfig {
    FormatConfig {
        request: RequestConfig {
            text: list(&[
                "/messages/*/text",
                "/chatInput",
                "/question",
                "/message",
                "/message/text",
                "/message/content",
                "/additional_messages/*/content",
                "/payload/text",
                "/content",
                "/text",
                "/activity/text",
                "/inputTranscript",
                "/queryInput/text/text",
                "/query_input/text/text",
                "/data/*",
                "/params/message/parts/*/text",
                "/params/message/content/*/text",
                "/params/arguments/*",
                "/inputs",
                "/input/prompt",
                "/input/system_prompt",
                "/input/messages/*/content",
            ]),
            roles: list(&["/messages/*/role", "/additional_messages/*/role"]),
            ..RequestConfig::default()
        },
        ..FormatConfig::default()
    }
}
