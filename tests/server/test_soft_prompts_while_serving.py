"""Soft prompts that come and go on the real engine: what can be added equals what was there from the start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

pytest.importorskip("vllm")

from controls import control_files, renamed, sealed
from running_server import Soft
from safetensors.torch import load, save
from test_changing import CHAT, Client, upload
from tiny_bundle import chat_ids

from meet_bundle import Bundle
from meet_server.registry.store import Store, beside

WORDS = ("rain", "snow", "fog")
NUM_TOKENS = 12
POLITE = "/v1/preferences/polite"


@pytest.fixture(scope="module")
def client(soft: Soft) -> Client:
    return Client(soft.server, soft.reference.bundle.path)


@pytest.fixture(autouse=True)
def as_before(client: Client) -> Iterator[None]:
    yield
    client("DELETE", POLITE)
    for name in ("detailed", "formal"):
        assert switched(client, name, enabled=True) == 200
    assert client.listed() == ["concise", "detailed", "formal"]


def switched(client: Client, name: str, *, enabled: bool) -> int:
    return client("PATCH", f"/v1/preferences/{name}", json={"enabled": enabled}).status_code


def replies(client: Client, preference: Any) -> list[list[int]]:
    asked = {"preference": preference, "temperature": 0, "max_tokens": NUM_TOKENS, "return_token_ids": True}
    answers = [
        client("POST", CHAT, json={"messages": [{"role": "user", "content": f"What is {word}?"}], **asked})
        for word in WORDS
    ]
    assert [answer.status_code for answer in answers] == [200] * len(WORDS), answers[0].text
    return [answer.json()["choices"][0]["token_ids"] for answer in answers]


def expected(soft: Soft, names: list[str]) -> list[list[int]]:
    """What transformers says of the bundle, which had them from the start."""
    prompts = [chat_ids(soft.reference.tokenizer, f"What is {word}?") for word in WORDS]
    return [soft.reference.reply(prompt, names, NUM_TOKENS) for prompt in prompts]


def test_added_updated_rolled_back_disabled_and_removed(soft: Soft, client: Client) -> None:
    """`polite`, which no bundle has, of the rows of one and then of another that are not served meanwhile."""
    bundle = soft.reference.bundle
    formal, detailed = expected(soft, ["formal"]), expected(soft, ["detailed"])
    before = {name: replies(client, name) for name in (None, "concise", "detailed", "formal")}
    assert (before["formal"], before["detailed"]) == (formal, detailed)
    assert formal != detailed
    assert [switched(client, name, enabled=False) for name in ("detailed", "formal")] == [200, 200]

    added = upload(client, renamed(bundle, "formal", "polite", description="For letters."))
    assert added.status_code == 201, added.text
    card = added.json()
    assert (card["id"], card["revision"], card["description"]) == ("polite", 1, "For letters.")
    assert client.listed() == ["concise", "polite"]
    assert replies(client, "polite") == formal
    assert replies(client, ["polite", "concise"]) == expected(soft, ["concise", "formal"])
    assert client.reply("polite")[1] == f"polite=1; version={card['version']}"
    assert "soft:polite" in client("GET", "/v1/models").text
    by_suffix = {"model": "soft:polite", "messages": [{"role": "user", "content": "What is rain?"}], "temperature": 0}
    by_suffix |= {"max_tokens": NUM_TOKENS, "return_token_ids": True}
    reply = httpx.post(f"{soft.server.url}{CHAT}", json=by_suffix, timeout=60)  # the app whose list of models it is
    assert (reply.json()["model"], reply.json()["choices"][0]["token_ids"]) == ("soft:polite", formal[0])
    assert Store(beside(bundle.path)).read().entry("polite").current == 1

    updated = upload(client, renamed(bundle, "detailed", "polite"), "PATCH", POLITE)
    assert (updated.status_code, updated.json()["revision"]) == (200, 2), updated.text
    assert replies(client, "polite") == detailed
    assert client("PATCH", POLITE, json={"revision": 1}).json()["version"] == card["version"]
    assert replies(client, "polite") == formal

    assert client("PATCH", POLITE, json={"aliases": ["kind"]}).status_code == 200
    assert client.reply("kind") == client.reply("polite")
    assert switched(client, "polite", enabled=False) == 200
    gone = {"messages": [], "preference": "polite"}
    assert client("POST", CHAT, json=gone).json()["error"]["code"] == "unknown_preference"
    assert switched(client, "polite", enabled=True) == 200
    assert replies(client, "polite") == formal
    assert client("DELETE", POLITE).status_code == 200
    assert client("POST", CHAT, json=gone).json()["error"]["code"] == "unknown_preference"
    assert [switched(client, name, enabled=True) for name in ("detailed", "formal")] == [200, 200]
    assert {name: replies(client, name) for name in before} == before


def test_what_cannot_be_added_says_what_can(soft: Soft, client: Client) -> None:
    bundle = soft.reference.bundle
    first, num = bundle.manifest.first_virtual_id, soft.num_virtual_tokens
    assert first is not None
    last = first + 3 * num - 1

    def refused(files: dict[str, bytes]) -> str:
        response = upload(client, files)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "control_refused"), response.text
        message: str = response.json()["error"]["message"]
        return message

    # The bundle's rows are taken; beyond them the model has none; before them are the tokens of users.
    assert "formal and polite would have rows of the model in common" in refused(renamed(bundle, "formal", "polite"))
    assert switched(client, "formal", enabled=False) == 200
    for begin in (last + 1, last + 2 - num, first - 1, 0):
        message = refused(renamed(bundle, "formal", "polite", first_token_id=begin))
        assert f"the model has rows for virtual tokens {first} to {last} alone" in message
        assert "train it into a bundle, and serve that" in message
    assert f"differs from rows {first + 2 * num} to {last}" in refused(altered(bundle))
    wrong = bundle.manifest.preference("concise").probe.model_copy(
        update={"controlled": bundle.manifest.preference("detailed").probe.controlled}
    )
    assert "probe" in refused(renamed(bundle, "formal", "polite", probe=wrong))
    assert client.listed() == ["concise", "detailed"]
    # One that came in keeps the other out, until it goes.
    assert upload(client, renamed(bundle, "formal", "polite")).status_code == 201
    back = client("PATCH", "/v1/preferences/formal", json={"enabled": True})
    assert (back.status_code, back.json()["error"]["code"]) == (400, "control_refused")
    assert replies(client, "polite") == expected(soft, ["formal"])


def altered(bundle: Bundle) -> dict[str, bytes]:
    """`polite`, whose file says other rows than the model has: newly trained, as it were."""
    tensors = load(control_files(bundle, "formal")["soft_prompt.safetensors"])
    tensors["soft_prompt"] += torch.tensor(0.01)
    preference = bundle.manifest.preference("formal").model_copy(update={"name": "polite", "aliases": ()})
    return sealed(preference, {"soft_prompt.safetensors": save(tensors)}, bundle.manifest.model_digest)
