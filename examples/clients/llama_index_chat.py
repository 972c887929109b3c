"""LlamaIndex: OpenAILike, with the preference in `additional_kwargs` or in the model's name."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI

url, key = os.environ["MEET_URL"] + "/v1", os.environ.get("MEET_API_KEY", "none")
model = OpenAI(base_url=url, api_key=key).models.list().data[0].id
settings = {"api_base": url, "api_key": key, "is_chat_model": True, "max_tokens": 16, "context_window": 2048}
messages = [ChatMessage(role="user", content="Why is the sky blue?")]

brief = OpenAILike(model=model, additional_kwargs={"extra_body": {"preference": "concise"}}, **settings)
print("field:", brief.chat(messages).message.content)
long = OpenAILike(model=f"{model}:detailed", **settings)
print("stream:", "".join(piece.delta or "" for piece in long.stream_chat(messages)))
