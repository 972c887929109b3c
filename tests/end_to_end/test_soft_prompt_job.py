"""The same path with soft prompts: trained by `meet train`, served by the real engine, asked by the OpenAI client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from meet_bundle import Bundle
from meet_training import load_controls

NAME = "smollm2-meet"
PROMPTS = ("Why is the sky blue?", "How do I boil an egg?", "What is a noun?")
PREFERENCES = (None, "concise", "detailed")


@pytest.fixture
def client(real_soft_server: str) -> OpenAI:
    return OpenAI(base_url=f"{real_soft_server}/v1", api_key="none")


def ask(client: OpenAI, prompt: str, preference: str | None) -> tuple[str, int]:
    """The greedy reply, and how many tokens the prompt is said to have."""
    messages: Any = [{"role": "user", "content": prompt}]
    reply = client.chat.completions.create(
        model=NAME, messages=messages, temperature=0, max_tokens=16, extra_body={"preference": preference}
    )
    assert reply.usage is not None
    return reply.choices[0].message.content or "", reply.usage.prompt_tokens


def test_replies_are_those_of_transformers_with_the_ids_in_the_prompt(client: OpenAI, real_soft_bundle: Bundle) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_soft_bundle.model_path, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(real_soft_bundle.model_path)
    controls = load_controls(real_soft_bundle)
    kinds = [(prompt, preference) for prompt in PROMPTS for preference in PREFERENCES]
    with ThreadPoolExecutor(len(kinds)) as pool:
        replies = list(pool.map(lambda kind: ask(client, *kind), kinds))
    for (prompt, preference), (text, num_tokens) in zip(kinds, replies, strict=True):
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert num_tokens == len(ids)
        given = controls[preference].prompt(ids) if preference else ids
        with torch.no_grad():
            # The generation configuration of the bundle keeps virtual tokens from being produced.
            out = model.generate(input_ids=torch.tensor([given]), max_new_tokens=16, do_sample=False)
        assert tokenizer.decode(out[0, len(given) :], skip_special_tokens=True) == text, (prompt, preference)
    assert len({text for (prompt, _), (text, _) in zip(kinds, replies, strict=True) if prompt == PROMPTS[0]}) == 3


def test_one_request_gets_a_choice_per_preference(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": PROMPTS[0]}]
    reply = client.chat.completions.create(
        model=NAME, messages=messages, temperature=0, max_tokens=16, extra_body={"preferences": list(PREFERENCES)}
    )
    assert [choice.message.content for choice in reply.choices] == [ask(client, PROMPTS[0], p)[0] for p in PREFERENCES]
