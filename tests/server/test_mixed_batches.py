"""Mixes, strengths, single controls and none, together in batches that change, give what each gives alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_requests import Asker
from exact_mix import exact_replies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import Server
from safetensors.torch import load_file, save_file
from tiny_bundle import chat_ids
from transformers import PreTrainedTokenizerFast

from meet_bundle import Manifest
from meet_server.registry.admission import ControlRefused

PROMPTS = [f"What is {word}?" for word in ("rain", "snow", "wind", "fog")]
MIXES: tuple[dict[str, float], ...] = (
    {},
    {"concise": 1.0},
    {"detailed": 1.0},
    {"concise": 0.5},
    {"concise": -1.0},
    {"detailed": -0.35},
    {"concise": 0.7, "detailed": 0.5},
    {"concise": 0.7, "detailed": -0.5},
    {"concise": -0.25, "detailed": 1.75},
    {"concise": 2.0, "detailed": 2.0},
)
NUM_TOKENS = 16
# Few enough that mixes come and go all the time.
LIMIT = 3


@pytest.fixture(scope="module")
def ids(bundle: Path) -> list[list[int]]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle / "model")
    return [chat_ids(tokenizer, prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def asker(server: Server) -> Iterator[Asker]:
    mixes, limit = server.engine.adapters.mixes, server.engine.adapters.mixes.limit
    mixes.limit = LIMIT
    yield Asker(server)
    mixes.limit = limit


def folders(bundle: Path, mix: Mapping[str, float]) -> dict[Path, float]:
    return {bundle / "controls" / name: strength for name, strength in mix.items()}


@pytest.fixture(scope="module")
def exact(bundle: Path) -> list[list[list[int]]]:
    """By mix and prompt."""
    return [exact_replies(bundle, folders(bundle, mix), PROMPTS, NUM_TOKENS) for mix in MIXES]


def test_together_equals_alone_equals_transformers_and_peft(
    server: Server, asker: Asker, ids: list[list[int]], exact: list[list[list[int]]]
) -> None:
    async def together() -> list[list[int]]:
        return list(await asyncio.gather(*(asker.reply(prompt, mix, NUM_TOKENS) for mix in MIXES for prompt in ids)))

    async def alone() -> list[list[int]]:
        return [await asker.reply(prompt, mix, NUM_TOKENS) for mix in MIXES for prompt in ids]

    expected = [reply for replies in exact for reply in replies]
    assert len({tuple(reply) for reply in expected}) > len(MIXES) * len(PROMPTS) // 2  # it can tell them apart
    assert server.call(together()) == expected
    assert server.call(alone()) == expected


REQUEST = st.tuples(
    st.integers(0, len(MIXES) - 1),
    st.integers(0, len(PROMPTS) - 1),
    st.integers(1, NUM_TOKENS),  # tokens asked for
    st.none() | st.integers(1, 4),  # tokens after which the client leaves
    st.integers(0, 4),  # turns of the event loop, or steps of the engine, before it comes
)


def test_random_arrival_abort_and_eviction(
    server: Server, asker: Asker, ids: list[list[int]], exact: list[list[list[int]]]
) -> None:
    evicted_before = asker.control({"concise": 0.01}).id

    async def one(request: tuple[int, int, int, int | None, int]) -> None:
        mix, prompt, num_tokens, leave_after, delay = request
        for _ in range(delay):
            await asyncio.sleep(0.001)
        reply = await asker.reply(ids[prompt], MIXES[mix], num_tokens, leave_after)
        assert reply == exact[mix][prompt][: len(reply)]
        assert len(reply) == num_tokens or leave_after is not None

    async def all_of(requests: list[tuple[int, int, int, int | None, int]]) -> None:
        await asyncio.gather(*map(one, requests))
        await asker.engine.adapters.mixes.settled()
        assert len(asker.engine.adapters.mixes) <= LIMIT

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(REQUEST, min_size=1, max_size=8))
    def program(requests: list[tuple[int, int, int, int | None, int]]) -> None:
        server.call(all_of(requests))

    program()
    assert asker.control({"concise": 0.01}).id - evicted_before > 1000  # mixes were asked for all the time


def test_an_evicted_mix_comes_back_right(
    server: Server, asker: Asker, ids: list[list[int]], exact: list[list[list[int]]]
) -> None:
    async def go() -> None:
        for _ in range(2):
            for number in range(3, 8):  # more than fit
                assert await asker.reply(ids[0], MIXES[number], NUM_TOKENS) == exact[number][0]

    server.call(go())


def test_fifty_requests_for_a_new_mix_build_it_once(
    server: Server, asker: Asker, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, loaded = server.engine.plain, []
    add_lora = raw.add_lora

    async def counted(request: Any) -> Any:
        loaded.append(request.lora_name)
        return await add_lora(request)

    monkeypatch.setattr(raw, "add_lora", counted)

    async def go() -> list[list[int]]:
        mix = {"concise": 0.33, "detailed": 0.11}
        return list(await asyncio.gather(*(asker.reply(ids[0], mix, 4) for _ in range(50))))

    replies = server.call(go())
    assert len(loaded) == 1
    assert replies == [replies[0]] * 50


def test_a_thousand_mixes_leave_memory_flat(server: Server, asker: Asker, ids: list[list[int]]) -> None:
    """Within 24 MB over all processes, and not one file more in /dev/shm."""

    async def ask(numbers: range) -> None:
        for start in range(numbers.start, numbers.stop, 20):
            mixes = [
                {"concise": 0.01 + n % 40 / 100, "detailed": 0.01 + n // 40 / 100} for n in range(start, start + 20)
            ]
            await asyncio.gather(*(asker.reply(ids[0], mix, 1) for mix in mixes))
        await asker.engine.adapters.mixes.settled()

    server.call(ask(range(400)))
    memory, files = resident_bytes(), set(os.listdir("/dev/shm"))
    server.call(ask(range(400, 1400)))
    assert resident_bytes() - memory < 24 << 20
    assert set(os.listdir("/dev/shm")) <= files


def resident_bytes() -> int:
    """Of this process and all that came from it."""
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        found += pages.get(pid, 0)
        pids += children.get(pid, [])
    return found * os.sysconf("SC_PAGE_SIZE")


def altered(bundle: Path, folder: Path, name: str, alter: Any) -> Path:
    """A copy of a control with its B's altered."""
    shutil.copytree(bundle / "controls" / name, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: alter(value) if "lora_B" in key else value for key, value in tensors.items()}, file)
    return folder


def test_a_control_of_other_content_under_the_same_name(
    server: Server, asker: Asker, ids: list[list[int]], bundle: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """Requests get the new weights alone and in mixes, the prefix cache gives nothing old, and what ran on the old
    version ends on it."""
    folder = altered(bundle, tmp_path / "concise", "concise", lambda b: b.roll(1, 0) * 1.5)
    mix = {"concise": 0.5, "detailed": 0.5}
    preference = manifest.preference("concise")
    new = preference.model_copy(update={"digest": "f" * 64})
    paths = {name: bundle / "controls" / name for name in mix}

    def replies(control: Path, strengths: Mapping[str, float]) -> list[int]:
        where = paths | {"concise": control}
        return exact_replies(bundle, {where[name]: w for name, w in strengths.items()}, PROMPTS[:1], NUM_TOKENS)[0]

    asked: tuple[dict[str, float], ...] = ({"concise": 1.0}, mix)
    expected_old = [replies(paths["concise"], each) for each in asked]
    expected_new = [replies(folder, each) for each in asked]
    assert all(old != other for old, other in zip(expected_old, expected_new, strict=True))

    async def publish(control: Any) -> Any:
        """Publishes it, and takes out what it replaces once that is not in use."""
        before = asker.live.get("concise")
        await asker.engine.load(control)
        running = [asyncio.create_task(asker.reply(ids[0], each, NUM_TOKENS)) for each in asked]
        await asyncio.sleep(0)
        asker.live.publish(control)
        after = [await asker.reply(ids[0], each, NUM_TOKENS) for each in asked]
        with asker.engine.adapters.holding(before):
            unloading = asyncio.create_task(asker.engine.adapters.unload(before))
            await asyncio.sleep(0.05)
            assert not unloading.done()
        await unloading
        loaded = await asker.engine.list_loras()
        assert before.id not in loaded
        return await asyncio.gather(*running), after

    async def go() -> None:
        for each in asked:
            await asker.reply(ids[0], each, NUM_TOKENS)  # into the prefix cache
        assert await publish(asker.live.number(new, folder)) == (expected_old, expected_new)
        assert await publish(asker.live.number(preference, paths["concise"])) == (expected_new, expected_old)

    server.call(go())


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda b: torch.cat([b, b]), "layer .* are needed"),
        (lambda b: b / 0, "weights that are not finite"),
    ],
)
def test_what_the_workers_refuse_is_refused_by_name_and_the_engine_lives_on(
    server: Server, asker: Asker, ids: list[list[int]], bundle: Path, manifest: Manifest, tmp_path: Path, alter: Any,
    message: str, exact: list[list[list[int]]],
) -> None:  # fmt: skip
    """What admission would have refused already, were it not for this test."""
    folder = altered(bundle, tmp_path / "other", "concise", alter)
    control = asker.live.number(manifest.preference("concise"), folder)
    with pytest.raises(ControlRefused, match=rf"control concise: the engine does not load it.*{message}"):
        server.call(asker.engine.load(control))
    assert server.call(asker.reply(ids[0], MIXES[6], NUM_TOKENS)) == exact[6][0]


def test_an_adapter_of_another_model_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    from meet_bundle import LoraControls, open_bundle
    from meet_server.registry.admission import check_lora, model_shapes

    folder = altered(bundle, tmp_path / "other", "concise", lambda b: torch.cat([b, b]))
    controls = open_bundle(bundle).manifest.controls
    assert isinstance(controls, LoraControls)
    with pytest.raises(ControlRefused, match=r"control concise: tensor .* has shape .*; the model needs"):
        check_lora("concise", folder, controls, model_shapes(bundle / "model"))
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == controls.rank
