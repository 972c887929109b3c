"""The seam on a fake of vLLM's engine client: what a request holds, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_manifest import preference

pytest.importorskip("vllm")

from vllm.exceptions import VLLMValidationError

from meet_server.engine import releases
from meet_server.engine.controlled_client import ControlledEngine, applying
from meet_server.preferences.resolve import Mix
from meet_server.registry.live import LiveControls

PARAMS = SimpleNamespace(extra_args=None)


class FakeClient:
    """vLLM's engine client, whose requests run on until they are aborted, which takes it a moment."""

    errored = False

    def __init__(self) -> None:
        self.log: list[str] = []

    async def add_lora(self, request: Any) -> None:
        pass

    async def remove_lora(self, lora_id: int) -> None:
        self.log.append("removed")

    async def generate(self, *_: Any, lora_request: Any, **__: Any) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield lora_request.lora_int_id
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.log.append("aborted")


class World:
    def __init__(self) -> None:
        self.client, self.live = FakeClient(), LiveControls()
        self.engine = ControlledEngine(self.client)
        self.control = self.live.number(preference("concise"), Path("controls/concise"))
        self.live.publish(self.control)
        self.listed = releases.lora_request("tiny:concise", self.control.id, "controls/concise")

    def ask(self, lora_request: Any = None) -> AsyncGenerator[Any, None]:
        return self.engine.generate({}, PARAMS, "1", lora_request=lora_request)

    @contextmanager
    def asking(self, strength: float | None) -> Iterator[AsyncGenerator[Any, None]]:
        """A request's outputs. Without a strength its model's name says which control it gets."""
        if strength is None:
            yield self.ask(self.listed)
            return
        control = self.live.lookup(Mix((("concise", strength),))).control
        with self.engine.applying(control):
            yield self.ask()


@pytest.mark.parametrize("strength", [1.0, 0.5, None], ids=["control", "mix", "listed"])
def test_a_control_leaves_the_engine_after_it_was_told_that_the_last_request_of_it_is_over(
    strength: float | None,
) -> None:
    """A step that has a request of a control that left would load it again, from files that may be gone."""
    world = World()

    async def go() -> None:
        await world.engine.load(world.control)
        with world.asking(strength) as outputs:
            await anext(outputs)
        # The client has left, and the server's side of its request with it.
        leaving = asyncio.create_task(world.engine.unload(world.control))
        await asyncio.sleep(0.01)
        assert world.client.log == []
        await outputs.aclose()
        await asyncio.wait_for(leaving, 1)

    asyncio.run(go())
    assert world.client.log[0] == "aborted"
    assert set(world.client.log[1:]) == {"removed"}


def test_a_mix_is_evicted_after_the_engine_was_told_that_its_request_is_over() -> None:
    world = World()

    async def go() -> None:
        await world.engine.load(world.control)
        mixes = world.engine.adapters.mixes
        with world.asking(0.5) as first, world.asking(0.25) as second:
            await anext(first)
            await anext(second)
            await first.aclose()
            await asyncio.sleep(0.01)
            await mixes.settled()
            await second.aclose()

    asyncio.run(go())
    assert world.client.log == ["aborted", "removed", "aborted"]


def test_a_listed_control_that_left_is_the_clients_to_know() -> None:
    world = World()

    async def go() -> None:
        await world.engine.load(world.control)
        outputs = world.ask(world.listed)
        await world.engine.unload(world.control)
        with pytest.raises(VLLMValidationError, match="concise: it was changed or removed; ask again"):
            await anext(outputs)
        with pytest.raises(VLLMValidationError, match="tiny:concise was changed or removed; ask again"):
            await anext(world.ask(world.listed))

    asyncio.run(go())


def test_a_request_without_a_control_is_vllms_own() -> None:
    world = World()
    theirs = releases.lora_request("theirs", 1, "adapters/theirs")
    with applying(None):
        outputs = world.ask(theirs)
    assert outputs.ag_code is FakeClient.generate.__code__  # type: ignore[attr-defined]
