// Chats through the gateway with the real `ai` package and its providers; says in JSON, a line each, what they saw.
//
//   node --input-type=module - URL < clients.mjs
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { DefaultChatTransport, readUIMessageStream, streamText } from "ai";

const url = process.argv[2];
const headers = (name) => ({ "x-tenant-id": "tn_sdk", "x-request-id": `node.${name}` });

async function stream(name, model) {
  let failure;
  const answer = streamText({
    model,
    prompt: "How many tokens is this?",
    headers: headers(name),
    maxRetries: 0,
    onError: ({ error }) => (failure = error),
  });
  const pieces = [];
  for await (const piece of answer.textStream) pieces.push(piece);
  if (failure) throw failure;
  console.log(JSON.stringify({ name: `node.${name}`, text: pieces.join(""), usage: await answer.totalUsage }));
}

async function widget(name) {
  const transport = new DefaultChatTransport({ api: `${url}/api/chat`, headers: headers(name) });
  const messages = [{ id: "1", role: "user", parts: [{ type: "text", text: "How many tokens is this?" }] }];
  const chunks = await transport.sendMessages({ chatId: "c", messages, trigger: "submit-message" });
  let last;
  for await (const message of readUIMessageStream({ stream: chunks })) last = message;
  const text = last.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
  console.log(JSON.stringify({ name: `node.${name}`, text, usage: last.metadata.usage }));
}

await stream("ai_openai", createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" }).chat("gpt-4o"));
await stream("ai_anthropic", createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" })("claude-sonnet-4-20250514"));
await widget("ai_ui");
