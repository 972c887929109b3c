"""openai-python: a preference as a field, in a model's name, and as `verbosity`; sync, async, streaming, responses."""

import asyncio
import os

from openai import AsyncOpenAI, OpenAI

settings = {"base_url": os.environ["MEET_URL"] + "/v1", "api_key": os.environ.get("MEET_API_KEY", "none")}
client = OpenAI(**settings)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Why is the sky blue?"}]

# The field goes through extra_body; the reply's header says what was applied.
raw = client.chat.completions.with_raw_response.create(
    model=model, messages=messages, max_tokens=16, extra_body={"preference": {"concise": 0.7, "detailed": -0.5}}
)
print("sync:", raw.headers["x-meet-preference"], "|", raw.parse().choices[0].message.content)

# Where no field can be added, the model's name says it.
stream = client.chat.completions.create(model=f"{model}:concise", messages=messages, max_tokens=16, stream=True)
print("stream:", "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

# One reply per preference, of one request.
each = client.chat.completions.create(
    model=model, messages=messages, max_tokens=16, extra_body={"preferences": ["concise", "detailed", None]}
)
for choice in each.choices:
    print("each:", choice.preference, "|", choice.message.content)

# OpenAI's own field, where the bundle maps it.
response = client.responses.create(
    model=model, input="Why is the sky blue?", max_output_tokens=16, text={"verbosity": "low"}
)
print("responses:", response.output_text)


async def main() -> None:
    async with AsyncOpenAI(**settings) as client:
        reply = await client.chat.completions.create(
            model=model, messages=messages, max_tokens=16, extra_body={"preference": "detailed"}
        )
        print("async:", reply.choices[0].message.content)


asyncio.run(main())
