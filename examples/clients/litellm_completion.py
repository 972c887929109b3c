"""LiteLLM: `openai/` before the model's name makes it ask any OpenAI-compatible server."""

import os

import litellm
from openai import OpenAI

url = os.environ["MEET_URL"] + "/v1"
key = os.environ.get("MEET_API_KEY", "none")
model = OpenAI(base_url=url, api_key=key).models.list().data[0].id
ask = {
    "api_base": url,
    "api_key": key,
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "max_tokens": 16,
}

reply = litellm.completion(model=f"openai/{model}", extra_body={"preference": {"concise": 0.7}}, **ask)
print("field:", reply.choices[0].message.content)
named = litellm.completion(model=f"openai/{model}:detailed", stream=True, **ask)
print("stream:", "".join(chunk.choices[0].delta.content or "" for chunk in named))
