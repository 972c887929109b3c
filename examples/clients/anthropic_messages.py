"""Anthropic's SDK on /v1/messages: a preference as a field, in a model's name, and as `effort`."""

import os

from anthropic import Anthropic

client = Anthropic(base_url=os.environ["MEET_URL"], api_key=os.environ.get("MEET_API_KEY", "none"))
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Why is the sky blue?"}]

for name, way in {
    "field": {"model": model, "extra_body": {"preference": "concise"}},
    "model": {"model": f"{model}:detailed"},
    "effort": {"model": model, "extra_body": {"output_config": {"effort": "low"}}},
}.items():
    raw = client.messages.with_raw_response.create(messages=messages, max_tokens=16, **way)
    text = "".join(block.text for block in raw.parse().content if block.type == "text")
    print(f"{name}:", raw.headers["x-meet-preference"], "|", text)

with client.messages.stream(model=f"{model}:concise", messages=messages, max_tokens=16) as stream:
    print("stream:", "".join(stream.text_stream))
