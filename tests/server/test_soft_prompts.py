"""Soft prompts on the real engine, each placement: what is generated, what clients see of it, and what is refused."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

pytest.importorskip("vllm")

from running_server import Soft

from meet_server.engine.soft_prompts import SoftPromptEngine
from meet_server.registry.admission import ControlRefused
from meet_server.registry.live import LoadedControl

CONTROLS: tuple[tuple[Any, list[str]], ...] = (
    (None, []),
    ("concise", ["concise"]),
    ("formal", ["formal"]),
    (["formal", "concise"], ["concise", "formal"]),  # composed in the manifest's order
    (["detailed", "short", "formal"], ["concise", "detailed", "formal"]),
)
WORDS = ("rain", "snow", "wind", "fog", "hail", "dew")
NUM_TOKENS = 16
CONTEXT = 512


@pytest.fixture(scope="module")
def http(soft: Soft) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=soft.server.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def client(soft: Soft) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{soft.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat_ids(soft: Soft, word: str) -> list[int]:
    messages = [{"role": "user", "content": f"What is {word}?"}]
    ids: list[int] = soft.reference.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids


def chat(word: str, preference: Any, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"What is {word}?"}],
        "preference": preference,
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "return_token_ids": True,
        **fields,
    }


def post(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def complete(http: httpx.Client, prompt: Any, preference: Any = None, **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "preference": preference, "temperature": 0, "return_token_ids": True, **fields}
    return post(http, "/v1/completions", body)


def test_mixed_batches_equal_each_alone_equal_transformers(soft: Soft) -> None:
    asked = [(word, *control) for word in WORDS for control in CONTROLS]

    async def ask(client: httpx.AsyncClient, word: str, preference: Any) -> list[int]:
        reply = await client.post("/v1/chat/completions", json=chat(word, preference))
        reply.raise_for_status()
        token_ids: list[int] = reply.json()["choices"][0]["token_ids"]
        return token_ids

    async def run() -> tuple[list[list[int]], list[list[int]]]:
        async with httpx.AsyncClient(base_url=soft.server.url, timeout=300) as client:
            together = await asyncio.gather(*(ask(client, word, preference) for word, preference, _ in asked))
            alone = [await ask(client, word, preference) for word, preference, _ in asked]
        return list(together), alone

    together, alone = asyncio.run(run())
    expected = [soft.reference.reply(chat_ids(soft, word), names, NUM_TOKENS) for word, _, names in asked]
    assert len({tuple(reply) for reply in expected}) > 15  # the comparison can tell them apart
    assert together == expected
    assert alone == expected


def test_a_client_sees_its_own_prompt_and_no_more(soft: Soft, http: httpx.Client) -> None:
    prompt = soft.reference.tokenizer("rain and snow and wind " * 12)["input_ids"][:96]
    for names in ([], ["concise"], ["concise", "formal"]):
        for repeat in range(2):
            reply = complete(
                http, prompt, names or None, max_tokens=4, echo=True, logprobs=2, prompt_logprobs=1, ignore_eos=True
            )
            (choice,) = reply["choices"]
            assert choice["prompt_token_ids"] == prompt
            assert reply["usage"]["prompt_tokens"] == len(prompt)
            assert reply["usage"]["completion_tokens"] == 4
            assert len(choice["prompt_logprobs"]) == len(prompt)
            assert choice["prompt_logprobs"][0] is None
            shown = choice["logprobs"]["token_logprobs"]
            assert len(shown) == len(prompt) + 4
            tokens = [*prompt, *choice["token_ids"][-4:]]
            # What stands after the prompt moves the reply alone, what stands before it moves all.
            for start in (1, len(prompt)):
                wanted = (
                    soft.reference.log_probs(tokens[:start], names, tokens[start:])
                    if start == len(prompt) or soft.placement == "before_prompt"
                    else soft.reference.log_probs(tokens[:1], [], prompt[1:])
                )
                got = shown[start : start + len(wanted)]
                assert got == pytest.approx(wanted, abs=2e-3), (names, start, repeat)


def test_cached_tokens_are_those_of_the_clients_prompt(soft: Soft, http: httpx.Client) -> None:
    # 97 tokens: three whole blocks and one token, in an order that no other test asks for.
    prompt = random.Random(127).sample(range(3, 100), 97)
    first = complete(http, prompt, "concise", max_tokens=1)["usage"]["prompt_tokens_details"]
    again = complete(http, prompt, "concise", max_tokens=1)["usage"]["prompt_tokens_details"]
    other = complete(http, prompt, "formal", max_tokens=1)["usage"]["prompt_tokens_details"]
    uncontrolled = complete(http, prompt, None, max_tokens=1)["usage"]["prompt_tokens_details"]
    cached = [(details or {}).get("cached_tokens", 0) for details in (first, again, other, uncontrolled)]
    # After the prompt, all preferences share its blocks; before it, each has its own.
    assert cached == ([0, 96, 96, 96] if soft.placement == "after_prompt" else [0, 96, 0, 0])


def test_tokens_that_are_kept_for_others_are_those_of_the_clients_prompt(soft: Soft, http: httpx.Client) -> None:
    text = "dew and hail " * 20  # which no other test asks for, of controls that none asks for together
    body = chat("rain", ["detailed", "formal"], messages=[{"role": "user", "content": text}], max_tokens=1)
    usage = post(http, "/v1/chat/completions", body)["usage"]
    num, num_prompt = 2 * soft.num_virtual_tokens, usage["prompt_tokens"]
    kept = (num_prompt + num) // 32 * 32
    right = min(kept, num_prompt) if soft.placement == "after_prompt" else kept - num
    assert 0 < right <= num_prompt
    details = usage["prompt_tokens_details"]
    assert details["cached_tokens"] == 0
    if "created_cache_tokens" in details:  # not every release says so
        assert details["created_cache_tokens"] == right


def test_a_control_before_the_prompt_is_shared_by_all_prompts(soft: Soft) -> None:
    if soft.placement != "before_prompt":
        pytest.skip("of the other placement")
    engine, control = soft.server.engine, soft.server.app.state.served.live.get("concise")

    async def cached(prompt: list[int]) -> int:
        outputs = engine.plain.generate(*plain_request([*control.token_ids, *prompt], f"shared-{prompt[0]}"))
        return [output.num_cached_tokens async for output in outputs][-1]

    soft.server.call(cached([31] * 20))
    assert soft.server.call(cached([32] * 20)) == soft.num_virtual_tokens == 32


def plain_request(ids: list[int], request_id: str) -> tuple[Any, Any, str]:
    from vllm.sampling_params import SamplingParams

    from meet_server.engine import releases

    return releases.token_prompt(ids), SamplingParams(max_tokens=1, temperature=0), request_id


@pytest.mark.parametrize("preference", [None, "concise", ["concise", "formal"]])
def test_every_route_streaming_and_not(soft: Soft, http: httpx.Client, client: openai.OpenAI, preference: Any) -> None:
    names = [preference] if isinstance(preference, str) else preference or []
    (right,) = post(http, "/v1/chat/completions", chat("rain", preference))["choices"]
    assert right["token_ids"] == soft.reference.reply(chat_ids(soft, "rain"), names, NUM_TOKENS)
    expected = right["message"]["content"]
    options: Any = {"model": "soft", "temperature": 0, "extra_body": {"preference": preference}}
    messages: Any = [{"role": "user", "content": "What is rain?"}]
    whole = client.chat.completions.create(messages=messages, max_tokens=NUM_TOKENS, **options)
    assert whole.choices[0].message.content == expected
    stream = client.chat.completions.create(messages=messages, max_tokens=NUM_TOKENS, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected
    response = client.responses.create(input="What is rain?", max_output_tokens=NUM_TOKENS, **options)
    assert response.output_text == expected
    assert response.usage is not None
    assert response.usage.input_tokens == len(chat_ids(soft, "rain"))
    events = client.responses.create(input="What is rain?", max_output_tokens=NUM_TOKENS, stream=True, **options)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
    body = {**options.pop("extra_body"), **options, "messages": messages, "max_tokens": NUM_TOKENS}
    answer = httpx.post(f"{soft.server.url}/v1/messages", json=body, timeout=60).json()
    assert answer["content"][0]["text"] == expected
    usage = answer["usage"]  # which tells apart what was read from the cache
    assert usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0) == len(chat_ids(soft, "rain"))


def test_other_ways_to_ask(soft: Soft, http: httpx.Client) -> None:
    both = post(http, "/v1/chat/completions", chat("rain", ["concise", "formal"]))["choices"]
    for model, body in (
        ("soft:formal+concise", {"preference": ["short", "formal"]}),
        ("soft", {"preference": {"formal": 1, "concise": 1, "detailed": 0}}),
    ):
        reply = http.post("/v1/chat/completions", json=chat("rain", None, model=model) | body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["token_ids"] == both[0]["token_ids"]
        assert reply.headers["x-meet-preference"].startswith("concise=1,formal=1; version=")
        assert reply.json()["model"] == "soft"
    one = post(http, "/v1/chat/completions", chat("rain", "concise", model="soft:concise"))
    assert one["model"] == "soft:concise"
    assert one["choices"][0]["token_ids"] == soft.reference.reply(chat_ids(soft, "rain"), ["concise"], NUM_TOKENS)


@pytest.mark.parametrize("strength", [0.5, -1, 2])
def test_strengths_are_refused(http: httpx.Client, strength: float) -> None:
    assert http.get("/v1/preferences/concise").json()["strength_range"] == [1.0, 1.0]
    reply = http.post("/v1/chat/completions", json=chat("rain", {"concise": strength}))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unsupported_strength"
    body = chat("rain", None)
    del body["preference"]
    reply = http.post("/v1/chat/completions", json={**body, "preferences": [None, {"concise": strength}]})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "unsupported_strength", "preferences[1]")


def test_multi_turn(soft: Soft, http: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": "What is rain?"},
        {"role": "assistant", "content": "Water."},
        {"role": "user", "content": "And snow?"},
    ]
    ids = soft.reference.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    reply = post(http, "/v1/chat/completions", chat("", "formal", messages=messages))
    assert reply["choices"][0]["token_ids"] == soft.reference.reply(ids, ["formal"], NUM_TOKENS)


def test_several_choices_and_several_prompts(soft: Soft, http: httpx.Client) -> None:
    prompts = [soft.reference.tokenizer(word)["input_ids"] for word in WORDS[:3]]
    reply = complete(http, prompts, "formal", n=2, max_tokens=8, ignore_eos=True, temperature=1, top_k=1)
    assert reply["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert reply["usage"]["completion_tokens"] == 6 * 8
    expected = [soft.reference.reply(prompt, ["formal"], 8) for prompt in prompts for _ in range(2)]
    got = [choice["token_ids"] for choice in reply["choices"]]
    assert [tokens[: len(right)] for tokens, right in zip(got, expected, strict=True)] == expected


@pytest.mark.parametrize("names", [[], ["concise"], ["concise", "formal"]])
def test_beam_search(soft: Soft, http: httpx.Client, names: list[str]) -> None:
    """One beam is greedy, so that where the virtual tokens stand in each of its steps shows."""
    prompt = soft.reference.tokenizer("What is hail?")["input_ids"]
    reply = complete(http, prompt, names or None, use_beam_search=True, n=1, max_tokens=8, ignore_eos=True)
    right = soft.reference.reply(prompt, names, 8)
    assert reply["choices"][0]["token_ids"][: len(right)] == right
    assert reply["usage"]["prompt_tokens"] == len(prompt)
    several = complete(http, [prompt, prompt[:4]], names or None, use_beam_search=True, n=3, max_tokens=6)
    assert all(token < soft.reference.vocab_size for c in several["choices"] for token in c["token_ids"])


def test_structured_output_and_tools(soft: Soft, http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["rain", "snow"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    for preference, names in ((None, []), ("concise", ["concise"]), (["concise", "formal"], ["concise", "formal"])):
        body = chat("rain", preference, structured_outputs={"choice": ["rain", "snow"]})
        (chosen,) = post(http, "/v1/chat/completions", body)["choices"]
        assert chosen["message"]["content"] in ("rain", "snow")
        asked = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
        body = chat("rain", preference, response_format=asked, max_tokens=100)
        (made,) = post(http, "/v1/chat/completions", body)["choices"]
        assert json.loads(made["message"]["content"])["kind"] in ("rain", "snow")
        # The tiny template leaves tools out of the prompt.
        (free,) = post(http, "/v1/chat/completions", chat("rain", preference, tools=tools))["choices"]
        assert free["token_ids"] == soft.reference.reply(chat_ids(soft, "rain"), names, NUM_TOKENS)


def test_virtual_tokens_are_never_sampled_nor_shown(soft: Soft, http: httpx.Client) -> None:
    first = soft.reference.vocab_size
    with torch.no_grad():
        logits = soft.reference.model(torch.tensor([chat_ids(soft, "rain")])).logits[0, -1]
    assert float((logits / 2).softmax(-1)[first:].sum()) > 0.05  # without the ban this would fail by far
    for preference in (None, "concise"):
        reply = post(
            http,
            "/v1/chat/completions",
            chat("rain", preference, temperature=2, max_tokens=200, n=3, ignore_eos=True, logprobs=True,
                 top_logprobs=20, return_tokens_as_token_ids=True),
        )  # fmt: skip
        tokens = [token for choice in reply["choices"] for token in choice["token_ids"]]
        assert len(tokens) == 600
        assert max(tokens) < first
        shown = [
            int(top["token"].removeprefix("token_id:"))
            for choice in reply["choices"]
            for entry in choice["logprobs"]["content"]
            for top in (entry, *entry["top_logprobs"])
        ]
        assert len(shown) > 600 * 20
        assert max(shown) < first


@pytest.mark.parametrize("preference", [None, "concise"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [5, 390]}, "prompt"),
        ({"prompt": [[5], [5, 390]]}, "prompt"),
        ({"logit_bias": {"390": 5}}, "logit_bias"),
        ({"allowed_token_ids": [5, 390]}, "allowed_token_ids"),
    ],
)
def test_a_client_cannot_write_virtual_tokens(
    soft: Soft, http: httpx.Client, preference: Any, stream: bool, fields: dict[str, Any], param: str
) -> None:
    assert soft.reference.vocab_size <= 390
    body = {"prompt": "rain", "max_tokens": 2, "preference": preference, "stream": stream, **fields}
    reply = http.post("/v1/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert "390" in reply.json()["error"]["message"]


def test_texts_never_become_virtual_tokens(soft: Soft, http: httpx.Client) -> None:
    text = soft.reference.tokenizer.decode(list(range(soft.reference.vocab_size)))
    tokens = post(http, "/tokenize", {"prompt": text})["tokens"]
    assert max(tokens) < soft.reference.vocab_size
    assert post(http, "/detokenize", {"tokens": [5, 390]})["prompt"] == soft.reference.tokenizer.decode([5])


def test_an_empty_prompt_is_refused_as_ever(http: httpx.Client) -> None:
    for prompt in ("", []):
        for preference in (None, "concise"):
            body = {"prompt": prompt, "max_tokens": 2, "preference": preference}
            assert http.post("/v1/completions", json=body).status_code == 400


@pytest.mark.parametrize("names", [[], ["concise"], ["concise", "formal"]])
def test_the_context_is_right_to_the_token(soft: Soft, http: httpx.Client, names: list[str]) -> None:
    room = CONTEXT - soft.num_virtual_tokens * len(names)

    def ask(num_prompt: int, **fields: Any) -> httpx.Response:
        body = {"prompt": [7] * num_prompt, "preference": names or None, "temperature": 0, "ignore_eos": True, **fields}
        return http.post("/v1/completions", json=body)

    for num_prompt, wanted in ((room - 1, 1), (room - 3, 3)):
        for asked in (wanted, 5, room):
            reply = ask(num_prompt, max_tokens=asked)
            if asked > wanted and reply.status_code == 400:  # until 0.31 vLLM refuses what it now cuts short
                assert f"{room} tokens" in reply.json()["error"]["message"]
                continue
            assert reply.status_code == 200, reply.text
            assert reply.json()["usage"]["completion_tokens"] == wanted
            assert reply.json()["choices"][0]["finish_reason"] == "length"
    for num_prompt, asked in ((room, 1), (room + 1, 1), (CONTEXT, 1), (10, room + 1)):
        assert ask(num_prompt, max_tokens=asked).status_code == 400
    assert f"{room} tokens" in ask(room + 1, max_tokens=1).json()["error"]["message"]
    chat_body = chat("rain", names or None, ignore_eos=True)
    del chat_body["max_tokens"]
    usage = post(http, "/v1/chat/completions", chat_body)["usage"]
    assert usage["total_tokens"] == room
    assert usage == post(
        http, "/v1/chat/completions", {**chat_body, "max_completion_tokens": usage["completion_tokens"]}
    )["usage"] | {"prompt_tokens_details": usage["prompt_tokens_details"]}


def test_an_engine_that_would_produce_virtual_tokens_is_refused(soft: Soft) -> None:
    """Ids of the true vocabulary stand for virtual tokens that are not banned."""
    engine = SoftPromptEngine(soft.server.engine.plain, "after_prompt", 200)
    control = LoadedControl("concise", "0" * 64, 1, soft.reference.bundle.path, tuple(range(200, 204)))
    with pytest.raises(ControlRefused, match="control concise: the engine would produce its virtual tokens"):
        soft.server.call(engine.load(control))
    long = LoadedControl("concise", "0" * 64, 1, soft.reference.bundle.path, tuple(range(CONTEXT)))
    with pytest.raises(ControlRefused, match="leave no room in a context of 512"):
        soft.server.call(engine.load(long))
