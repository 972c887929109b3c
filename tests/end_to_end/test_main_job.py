"""Preference data -> both stages -> bundle -> server -> the official OpenAI client picks the preference.

The real engine and the real 135M model, in float32.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from meet_bundle import Bundle

PROMPTS = Path(__file__).parents[2] / "examples" / "demo" / "prompts.test.jsonl"
NAME = "smollm2-meet"


def prompts(num: int) -> list[str]:
    """Every so manyth of the prompts that nothing was trained on."""
    rows = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    return rows[:: len(rows) // num][:num]


def ask(client: OpenAI, prompt: str, preference: str | None, max_tokens: int, **more: Any) -> str:
    reply = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=max_tokens,
        extra_body={"preference": preference, **more},
    )
    return reply.choices[0].message.content or ""


@pytest.fixture
def client(real_server: str) -> OpenAI:
    return OpenAI(base_url=f"{real_server}/v1", api_key="none")


def test_the_control_holds_on_prompts_that_were_not_trained_on(client: OpenAI) -> None:
    questions = [(prompt, preference) for prompt in prompts(10) for preference in ("concise", "detailed")]
    with ThreadPoolExecutor(len(questions)) as pool:
        replies = list(pool.map(lambda q: ask(client, *q, max_tokens=160, repetition_penalty=1.1), questions))
    words = [len(reply.split()) for reply in replies]
    holds = [concise < detailed for concise, detailed in zip(words[::2], words[1::2], strict=True)]
    assert sum(holds) >= 9, words


def test_body_suffix_header_and_stream_give_the_same_reply(client: OpenAI) -> None:
    [prompt] = prompts(1)
    messages: Any = [{"role": "user", "content": prompt}]
    base: dict[str, Any] = {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": 24}
    ways: dict[str, dict[str, Any]] = {
        "body": base | {"extra_body": {"preference": "concise"}},
        "alias": base | {"extra_body": {"preference": "brief"}},
        "suffix": base | {"model": f"{NAME}:concise"},
        "header": base | {"extra_headers": {"X-Meet-Preference": "concise"}},
        "verbosity": base | {"verbosity": "low"},
    }
    replies = set()
    for way in ways.values():
        raw = client.chat.completions.with_raw_response.create(**way)
        assert raw.headers["x-meet-preference"].startswith("concise=1; version=")
        replies.add(raw.parse().choices[0].message.content)
        stream = client.chat.completions.create(**way, stream=True)
        replies.add("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
    assert len(replies) == 1
    uncontrolled = client.chat.completions.create(**base).choices[0].message.content
    assert uncontrolled not in replies


def test_mixed_requests_at_once_equal_each_alone_and_transformers_with_peft(
    client: OpenAI, real_bundle: Bundle
) -> None:
    kinds = [(p, preference) for p in prompts(4) for preference in (None, "concise", "detailed")]
    many = [kinds[i % len(kinds)] for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda kind: ask(client, *kind, max_tokens=16), many))
    alone = {kind: ask(client, *kind, max_tokens=16) for kind in kinds}
    assert together == [alone[kind] for kind in many]
    for kind in kinds:
        assert reference(real_bundle, *kind) == alone[kind], kind


def reference(bundle: Bundle, prompt: str, preference: str | None) -> str:
    """Greedy reply of 16 tokens by plain transformers, and PEFT where there is a preference."""
    import torch

    model, tokenizer = _load(bundle.path, preference)
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        reply = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    text: str = tokenizer.decode(reply, skip_special_tokens=True)
    return text


@cache
def _load(folder: Path, preference: str | None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if preference is not None:
        model = PeftModel.from_pretrained(model, str(folder / "controls" / preference))
    return model.eval(), AutoTokenizer.from_pretrained(folder / "model")
