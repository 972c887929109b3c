"""LangChain: ChatOpenAI with the preference in `extra_body`, or bound to one call."""

import os

from langchain_openai import ChatOpenAI
from openai import OpenAI

settings = {"base_url": os.environ["MEET_URL"] + "/v1", "api_key": os.environ.get("MEET_API_KEY", "none")}
model = OpenAI(**settings).models.list().data[0].id

brief = ChatOpenAI(model=model, max_tokens=16, extra_body={"preference": "concise"}, **settings)
print("field:", brief.invoke("Why is the sky blue?").content)

plain = ChatOpenAI(model=model, max_tokens=16, **settings)
mixed = plain.bind(extra_body={"preference": {"concise": 0.5, "detailed": 0.5}})
print("bound:", mixed.invoke("Why is the sky blue?").content)
print("stream:", "".join(piece.content for piece in brief.stream("Why is the sky blue?")))
