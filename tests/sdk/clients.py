"""Chats through the gateway with the real openai and anthropic packages; says in JSON, a line each, what they saw.

    python clients.py URL
"""

import json
import sys

import anthropic
import openai

URL = sys.argv[1]
MESSAGES = [{"role": "user", "content": "How many tokens is this?"}]


def headers(name):
    return {"x-tenant-id": "tn_sdk", "x-request-id": f"python.{name}"}


def say(name, text, usage, **more):
    print(json.dumps({"name": f"python.{name}", "text": text, "usage": usage.model_dump(), **more}))


def openai_chat(client):
    answer = client.chat.completions.create(
        model="gpt-4o", messages=MESSAGES, extra_headers=headers("openai_chat")
    )
    say("openai_chat", answer.choices[0].message.content, answer.usage)


def openai_chat_stream(client, name):
    stream = client.chat.completions.create(
        model="gpt-4o",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=headers(name),
    )
    text, usage, chunks = "", None, 0
    for chunk in stream:
        chunks += 1
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    say(name, text, usage, chunks=chunks)


def openai_responses_stream(client):
    text, usage = "", None
    for event in client.responses.create(
        model="gpt-5", input="Hi", stream=True, extra_headers=headers("openai_responses_stream")
    ):
        if event.type == "response.output_text.delta":
            text += event.delta
        elif event.type == "response.completed":
            usage = event.response.usage
    say("openai_responses_stream", text, usage)


def openai_quota(client):
    """A refusal, as the package tells it to its caller."""
    try:
        client.chat.completions.create(
            model="gpt-4o",
            messages=MESSAGES,
            extra_headers={"x-tenant-id": "tn_sdk_spent", "x-request-id": "python.openai_quota"},
        )
    except openai.RateLimitError as error:
        print(json.dumps({"name": "python.openai_quota", "status": error.status_code, "body": error.response.json()}))


def anthropic_stream(client):
    with client.messages.stream(
        model="claude-sonnet-4-20250514",
        max_tokens=100,
        messages=MESSAGES,
        extra_headers=headers("anthropic_stream"),
    ) as stream:
        text = "".join(stream.text_stream)
        say("anthropic_stream", text, stream.get_final_message().usage)


with openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:
    openai_chat(client)
    openai_chat_stream(client, "openai_chat_stream")
    openai_chat_stream(client, "openai_chat_stream_gzip")
    openai_responses_stream(client)
    openai_quota(client)
with anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0) as client:
    anthropic_stream(client)
