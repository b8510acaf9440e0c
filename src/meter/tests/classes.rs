//! Whatever the shape in which a provider reports, its classes overlap nowhere and sum to the total that it reports.

use proptest::prelude::*;
use serde_json::json;

use super::splits::cases_of;
use super::*;

/// What an answer really used, apart.
#[derive(Clone, Copy, Debug)]
struct Used {
    fresh: u64,
    cached: u64,
    written: u64,
    tool: u64,
    said: u64,
    thought: u64,
}

impl Used {
    fn input(self) -> u64 {
        self.fresh + self.cached + self.written + self.tool
    }

    fn output(self) -> u64 {
        self.said + self.thought
    }

    fn total(self) -> u64 {
        self.input() + self.output()
    }

    /// What a provider that knows of no cache writes, or of no tools, would count as input.
    fn without(mut self, parts: &[Part]) -> Self {
        for part in parts {
            match part {
                Part::Cached => self.cached = 0,
                Part::Written => self.written = 0,
                Part::Tool => self.tool = 0,
                Part::Thought => self.thought = 0,
            }
        }
        self
    }
}

/// What not every provider tells apart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Cached,
    Written,
    Tool,
    Thought,
}
use Part::{Cached, Thought, Tool, Written};

fn used() -> impl Strategy<Value = Used> {
    // Zeros and equal numbers are where readings can be taken for one another.
    let count = || prop_oneof![Just(0), Just(1), 0..20u64, 0..1_000_000u64];
    // A side of zero is not a count, though: it is not believed (`doubts`).
    prop::array::uniform6(count()).prop_map(|[fresh, cached, written, tool, said, thought]| Used {
        fresh: fresh + 1,
        cached,
        written,
        tool,
        said: said + 1,
        thought,
    })
}

fn sse(events: &[Value]) -> (&'static str, String) {
    (SSE, events.iter().map(|event| format!("data: {event}\n\n")).collect())
}

fn whole(body: Value) -> (&'static str, String) {
    (JSON, body.to_string())
}

fn openai(used: Used) -> Value {
    json!({"prompt_tokens": used.input(), "completion_tokens": used.output(), "total_tokens": used.total(),
        "prompt_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": used.written, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": used.thought, "audio_tokens": 0,
            "accepted_prediction_tokens": 3, "rejected_prediction_tokens": 2}})
}

fn anthropic(used: Used) -> Value {
    json!({"input_tokens": used.fresh, "cache_read_input_tokens": used.cached,
        "cache_creation_input_tokens": used.written, "output_tokens": used.output(),
        "cache_creation": {"ephemeral_5m_input_tokens": used.written / 2,
            "ephemeral_1h_input_tokens": used.written - used.written / 2},
        "server_tool_use": {"web_search_requests": 1}, "service_tier": "standard"})
}

fn responses(used: Used) -> Value {
    json!({"input_tokens": used.input(), "output_tokens": used.output(), "total_tokens": used.total(),
        "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": used.written},
        "output_tokens_details": {"reasoning_tokens": used.thought}})
}

fn gemini(used: Used) -> Value {
    json!({"promptTokenCount": used.fresh + used.cached, "cachedContentTokenCount": used.cached,
        "toolUsePromptTokenCount": used.tool, "candidatesTokenCount": used.said,
        "thoughtsTokenCount": used.thought, "totalTokenCount": used.total(),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": used.fresh}]})
}

fn converse(used: Used) -> Value {
    json!({"inputTokens": used.fresh, "cacheReadInputTokens": used.cached, "cacheWriteInputTokens": used.written,
        "outputTokens": used.output(), "totalTokens": used.total()})
}

fn plain(used: Used) -> Value {
    json!({"prompt_tokens": used.input(), "completion_tokens": used.output(), "total_tokens": used.total()})
}

type Shape = (&'static str, &'static [Part], fn(Used) -> (&'static str, String));

/// Every provider's shape: what it does not tell apart, and how it writes the rest.
const SHAPES: &[Shape] = &[
    ("openai chat", &[Tool], |used| whole(json!({"model": "m", "choices": [], "usage": openai(used)}))),
    ("openai chat stream", &[Tool], |used| {
        sse(&[
            json!({"choices": [{"delta": {"content": "x"}}], "usage": null}),
            json!({"choices": [], "usage": openai(used)}),
        ])
    }),
    ("openai responses", &[Tool], |used| whole(json!({"object": "response", "usage": responses(used)}))),
    ("openai responses stream", &[Tool], |used| {
        sse(&[
            json!({"type": "response.created", "response": {"usage": null}}),
            json!({"type": "response.incomplete", "response": {"usage": responses(used)}}),
        ])
    }),
    ("azure stream", &[Tool], |used| {
        sse(&[
            json!({"choices": [], "model": "", "prompt_filter_results": [{"prompt_index": 0}]}),
            json!({"choices": [{"delta": {"content": "x"}, "content_filter_results": {}}], "usage": null}),
            json!({"choices": [], "usage": openai(used)}),
        ])
    }),
    ("groq stream", &[Cached, Written, Tool, Thought], |used| {
        sse(&[
            json!({"x_groq": {"id": "req"}, "choices": [{"delta": {"content": "x"}}]}),
            json!({"x_groq": {"id": "req", "usage": plain(used)}, "choices": [{"delta": {}}]}),
        ])
    }),
    ("anthropic", &[Tool, Thought], |used| whole(json!({"type": "message", "usage": anthropic(used)}))),
    ("anthropic stream", &[Tool, Thought], |used| {
        let guess = Used { said: 1, thought: 0, ..used };
        sse(&[
            json!({"type": "message_start", "message": {"usage": anthropic(guess)}}),
            json!({"type": "ping"}),
            json!({"type": "message_delta", "delta": {"stop_reason": null}, "usage": {"output_tokens": used.said / 2}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": used.output()}}),
        ])
    }),
    ("anthropic stream, restated", &[Tool, Thought], |used| {
        let guess = Used { fresh: used.fresh / 2, cached: used.cached / 2, written: 0, ..used };
        sse(&[
            json!({"type": "message_start", "message": {"usage": anthropic(guess)}}),
            json!({"type": "message_delta", "delta": {}, "usage": anthropic(used)}),
        ])
    }),
    ("gemini", &[Written], |used| whole(json!({"candidates": [], "usageMetadata": gemini(used)}))),
    ("gemini stream", &[Written], |used| {
        let early = Used { said: used.said / 2, ..used };
        sse(&[json!({"usageMetadata": gemini(early)}), json!({"usageMetadata": gemini(used)})])
    }),
    ("gemini array", &[Written], |used| {
        let early = Used { said: used.said / 2, thought: 0, ..used };
        whole(json!([{"usageMetadata": gemini(early)}, {"usageMetadata": gemini(used)}]))
    }),
    ("gemini as openai", &[Cached, Written, Tool], |used| {
        // It leaves thoughts out of `completion_tokens`, tells them nowhere, and has them in the sum.
        whole(json!({"usage": {"prompt_tokens": used.input(), "completion_tokens": used.said,
            "total_tokens": used.total()}}))
    }),
    ("xai", &[Written, Tool], |used| {
        whole(json!({"usage": {"prompt_tokens": used.input(), "completion_tokens": used.said,
            "total_tokens": used.total(), "prompt_tokens_details": {"cached_tokens": used.cached},
            "completion_tokens_details": {"reasoning_tokens": used.thought}}}))
    }),
    ("mistral", &[Cached, Written, Tool, Thought], |used| whole(json!({"usage": plain(used)}))),
    ("mistral conversations", &[Cached, Written, Thought], |used| {
        whole(json!({"object": "conversation.response", "usage": {"prompt_tokens": used.fresh,
            "connector_tokens": used.tool, "completion_tokens": used.output(), "total_tokens": used.total()}}))
    }),
    ("cohere v1", &[Cached, Written, Tool, Thought], |used| {
        whole(json!({"meta": {"tokens": {"input_tokens": used.input(), "output_tokens": used.output()},
            "billed_units": {"input_tokens": used.fresh / 2, "output_tokens": used.output()}}}))
    }),
    ("cohere v1 stream", &[Cached, Written, Tool, Thought], |used| {
        let event = json!({"event_type": "stream-end", "response": {"meta": {"tokens":
            {"input_tokens": used.input(), "output_tokens": used.output()}}}});
        ("application/stream+json", format!("{{\"event_type\":\"stream-start\"}}\n{event}\n"))
    }),
    ("cohere v2 stream", &[Cached, Written, Tool, Thought], |used| {
        sse(&[json!({"type": "message-end", "delta": {"usage": {"tokens":
            {"input_tokens": used.input(), "output_tokens": used.output()}}}})])
    }),
    ("bedrock converse", &[Tool, Thought], |used| {
        whole(json!({"output": {"message": {}}, "usage": converse(used)}))
    }),
    ("bedrock converse, a sum without the cache", &[Tool, Thought], |used| {
        let mut usage = converse(used);
        usage["totalTokens"] = json!(used.fresh + used.output());
        whole(json!({"output": {"message": {}}, "usage": usage}))
    }),
    ("ollama", &[Cached, Written, Tool, Thought], |used| {
        whole(json!({"done": true, "prompt_eval_count": used.input(), "eval_count": used.output()}))
    }),
    ("ai sdk 4 data stream", &[Cached, Written, Tool, Thought], |used| {
        let usage = json!({"promptTokens": used.input(), "completionTokens": used.output()});
        let step = json!({"promptTokens": used.fresh / 2, "completionTokens": used.said / 2});
        let body = format!(
            "f:{{\"messageId\":\"m\"}}\n0:\"x\"\ne:{}\nd:{}\n",
            json!({"finishReason": "tool-calls", "usage": step}),
            json!({"finishReason": "stop", "usage": usage}),
        );
        ("text/plain", body)
    }),
    ("ai sdk 5", &[Written, Tool], |used| {
        sse(&[json!({"type": "finish", "messageMetadata": {"usage": {"inputTokens": used.input(),
            "outputTokens": used.output(), "totalTokens": used.total(), "reasoningTokens": used.thought,
            "cachedInputTokens": used.cached}}})])
    }),
    ("ai sdk 6 and 7", &[Tool], |used| {
        sse(&[json!({"type": "finish", "messageMetadata": {"totalUsage": {"inputTokens": used.input(),
            "inputTokenDetails": {"noCacheTokens": used.fresh, "cacheReadTokens": used.cached,
                "cacheWriteTokens": used.written},
            "outputTokens": used.output(), "outputTokenDetails": {"textTokens": used.said,
                "reasoningTokens": used.thought}, "totalTokens": used.total()}}})])
    }),
    ("ai sdk, as its providers report", &[Tool], |used| {
        sse(&[json!({"type": "finish", "usage": {
            "inputTokens": {"total": used.input(), "noCache": used.fresh, "cacheRead": used.cached, "cacheWrite": used.written},
            "outputTokens": {"total": used.output(), "text": used.said, "reasoning": used.thought}}})])
    }),
    ("dify", &[Cached, Written, Tool, Thought], |used| {
        sse(&[json!({"event": "message_end", "metadata": {"usage": plain(used)}})])
    }),
    ("deepseek", &[Written, Tool], |used| {
        whole(json!({"usage": {"prompt_tokens": used.input(), "completion_tokens": used.output(),
            "total_tokens": used.total(), "prompt_cache_hit_tokens": used.cached,
            "prompt_cache_miss_tokens": used.fresh,
            "completion_tokens_details": {"reasoning_tokens": used.thought}}}))
    }),
    ("langchain", &[Tool], |used| {
        whole(json!({"kwargs": {"response_metadata": {"token_usage": plain(used)}, "usage_metadata": {
            "input_tokens": used.input(), "output_tokens": used.output(), "total_tokens": used.total(),
            "input_token_details": {"cache_read": used.cached, "cache_creation": used.written},
            "output_token_details": {"reasoning": used.thought}}}}))
    }),
    ("llama.cpp", &[Written, Tool, Thought], |used| {
        sse(&[json!({"content": "x", "stop": true, "tokens_evaluated": used.input(),
            "tokens_predicted": used.output(), "timings": {"cache_n": used.cached, "prompt_n": used.fresh,
                "predicted_n": used.output()}})])
    }),
    ("bedrock titan", &[Cached, Written, Tool, Thought], |used| {
        whole(json!({"inputTextTokenCount": used.input(),
            "results": [{"tokenCount": used.output(), "outputText": "x", "completionReason": "FINISH"}]}))
    }),
    ("bedrock llama", &[Cached, Written, Tool, Thought], |used| {
        whole(json!({"generation": "x", "prompt_token_count": used.input(),
            "generation_token_count": used.output(), "stop_reason": "stop"}))
    }),
];

proptest! {
    #![proptest_config(cases_of(128))]

    #[test]
    fn every_providers_classes_are_what_was_used_and_sum_to_its_total(used in used()) {
        for (name, untold, render) in SHAPES {
            let used = used.without(untold);
            let (content_type, body) = render(used);
            let reading = read(content_type, &body);
            let usage = reading.usage;
            prop_assert_eq!(usage.input, Some(used.input()), "{}: input of {}", name, body);
            prop_assert_eq!(usage.output, Some(used.output()), "{}: output of {}", name, body);
            prop_assert_eq!(usage.total(), Some(used.total()), "{}: total of {}", name, body);
            prop_assert_eq!(usage.cached_input.unwrap_or(0), used.cached, "{}: cached of {}", name, body);
            prop_assert_eq!(usage.cache_write_input.unwrap_or(0), used.written, "{}: written of {}", name, body);
            let thought = usage.reasoning.unwrap_or(0);
            prop_assert!(thought == used.thought || *name == "gemini as openai", "{}: thought of {}", name, body);
            prop_assert_eq!(reading.flag, None, "{}: flag of {}", name, body);
        }
    }
}
