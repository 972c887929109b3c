"""Which mixes are kept: each built once, few kept, none taken from under a request. On a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_manifest import preference

from meet_server.preferences.resolve import Mix
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.registry.mixes import Residents, Uses


class FakeEngine:
    """Says what was loaded and removed, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails = self.keeps = False
        self.gate = asyncio.Event()  # nothing is loaded before it is set
        self.gate.set()
        self.as_it_fails: Callable[[], Coroutine[Any, Any, Any]] | None = None

    async def load(self, mix: LoadedControl) -> None:
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.fails:
            if self.as_it_fails is not None:
                self.between = asyncio.create_task(self.as_it_fails())  # begins before anybody is told
            raise ValueError("no room")
        self.log.append(f"+{name(mix)}")

    async def remove(self, mix: LoadedControl) -> None:
        if self.keeps:
            raise ValueError("not now")
        self.log.append(f"-{name(mix)}")


def name(mix: LoadedControl) -> str:
    return f"{mix.parts[0][1]:g}"


class World:
    def __init__(self, limit: int = 2) -> None:
        self.live, self.engine, self.uses = LiveControls(), FakeEngine(), Uses()
        self.control = self.live.number(preference("concise"), Path("controls/concise"))
        self.live.publish(self.control)
        self.residents = Residents(self.engine.load, self.engine.remove, self.uses, limit)

    def mix(self, strength: float) -> LoadedControl:
        control = self.live.lookup(Mix((("concise", strength),))).control
        assert control is not None
        return control

    async def use(self, strength: float) -> int:
        """Returns the id of the resident mix."""
        async with self.residents.using(self.mix(strength)) as resident:
            await asyncio.sleep(0)
            return resident.id

    async def retired(self) -> None:
        """Returns once the control is in no use, as it must be before it leaves the engine."""
        with self.residents.retiring(self.control.id):
            await self.uses.none(self.control.id)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_fifty_at_once_load_it_once() -> None:
    world = World()

    async def go() -> set[int]:
        return set(await asyncio.gather(*(world.use(0.5) for _ in range(50))))

    assert len(run(go())) == 1
    assert world.engine.log == ["+0.5"]
    assert (world.residents.num_asked, world.residents.num_loaded) == (50, 1)


def test_the_least_recently_used_leaves_and_comes_back_under_another_id() -> None:
    world = World(limit=2)

    async def go() -> tuple[int, int]:
        first = await world.use(0.1)
        await world.use(0.2)
        await world.use(0.1)
        await world.use(0.3)  # 0.2 leaves
        await world.residents.settled()
        await world.use(0.2)  # 0.1 leaves
        await world.residents.settled()
        return first, await world.use(0.1)

    first, again = run(go())
    assert world.engine.log[:7] == ["+0.1", "+0.2", "+0.3", "-0.2", "+0.2", "-0.1", "+0.1"]
    assert first != again


def test_what_is_in_use_stays_and_none_is_refused_for_want_of_room() -> None:
    world = World(limit=1)

    async def go() -> None:
        async with world.residents.using(world.mix(0.1)), world.residents.using(world.mix(0.2)):
            await world.use(0.3)
            await world.residents.settled()
            assert world.engine.log == ["+0.1", "+0.2", "+0.3", "-0.3"]
        await world.residents.settled()
        assert len(world.residents) == 1

    run(go())


def test_a_failure_reaches_all_who_wait_and_the_next_tries_again() -> None:
    world = World()

    async def go() -> None:
        world.engine.fails = True
        outcomes = await asyncio.gather(*(world.use(0.5) for _ in range(3)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["no room"] * 3
        world.engine.fails = False
        await world.use(0.5)

    run(go())
    assert world.engine.log == ["+0.5"]


def test_who_asks_as_it_fails_has_it_loaded_anew() -> None:
    world = World()

    async def once_more() -> int:
        world.engine.fails = False
        return await world.use(0.5)

    async def go() -> None:
        world.engine.fails, world.engine.as_it_fails = True, once_more
        with pytest.raises(ValueError, match="no room"):
            await world.use(0.5)
        again = await world.engine.between
        assert (world.engine.log, len(world.residents)) == (["+0.5"], 1)
        assert await world.use(0.5) == again

    run(go())


def test_what_fails_while_its_control_is_retired_is_not_removed() -> None:
    world = World()

    async def go() -> None:
        world.engine.fails, world.engine.as_it_fails = True, world.retired
        await leaving(world, 0.5)
        await asyncio.sleep(0.01)
        await asyncio.wait_for(world.engine.between, 1)
        assert world.engine.log == []

    run(go())


async def leaving(world: World, strength: float) -> None:
    """A client that leaves while its mix is loaded."""
    left = asyncio.create_task(world.use(strength))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])


def test_a_mix_that_nobody_waits_for_leaves_once_it_is_loaded_where_it_must() -> None:
    world = World(limit=1)

    async def go() -> None:
        await world.use(0.1)
        world.engine.gate.clear()
        await leaving(world, 0.2)
        retired = asyncio.create_task(world.retired())
        await asyncio.sleep(0.01)
        assert world.engine.log == ["+0.1", "-0.1"]
        world.engine.gate.set()
        await asyncio.wait_for(retired, 1)
        assert world.engine.log == ["+0.1", "-0.1", "+0.2", "-0.2"]

    run(go())


def test_a_control_that_is_used_again_at_once_is_in_use() -> None:
    async def go() -> None:
        uses = Uses()
        uses.begin(1)
        unused = asyncio.create_task(uses.none(1))
        await asyncio.sleep(0)
        uses.end(1)
        uses.begin(1)
        await asyncio.sleep(0.01)
        assert not unused.done()
        uses.end(1)
        await asyncio.wait_for(unused, 1)

    run(go())


def test_mixes_that_fail_to_load_free_their_controls() -> None:
    world = World()

    async def go() -> None:
        world.engine.fails = True
        for _ in range(3):
            await asyncio.gather(*(world.use(0.5) for _ in range(2)), return_exceptions=True)
        left = asyncio.create_task(world.use(0.6))
        await asyncio.sleep(0)
        left.cancel()  # nobody waits for it any more when it fails
        await asyncio.wait([left])
        await asyncio.sleep(0.01)
        assert len(world.residents) == 0
        await asyncio.wait_for(world.retired(), 1)

    run(go())


class Unloading:
    """vLLM's engine client, with workers that load nothing."""

    errored = False

    async def add_lora(self, request: Any) -> None:
        raise Exception("no room for rank 16")


def test_a_mix_that_the_engine_does_not_load_is_the_clients_to_know() -> None:
    pytest.importorskip("vllm")
    from vllm.exceptions import VLLMValidationError

    from meet_server.engine.controlled_client import ControlledEngine

    engine, mix = ControlledEngine(Unloading()), World().mix(0.5)

    async def go() -> None:
        with engine.applying(mix):
            outputs = engine.generate({}, SimpleNamespace(extra_args=None), "1")
        await anext(outputs)

    with pytest.raises(VLLMValidationError, match="the engine does not load it: no room for rank 16") as caught:
        run(go())
    assert caught.value.parameter == "preference"


def test_one_who_leaves_while_it_loads_takes_only_itself_away() -> None:
    world = World()

    async def go() -> None:
        leaver, stayer = asyncio.create_task(world.use(0.5)), asyncio.create_task(world.use(0.5))
        await asyncio.sleep(0)
        leaver.cancel()
        await stayer
        with pytest.raises(asyncio.CancelledError):
            await leaver

    run(go())
    assert world.engine.log == ["+0.5"]


def test_mixes_of_a_retired_control_leave_once_their_requests_end_and_free_it() -> None:
    world = World()

    async def go() -> None:
        await world.use(0.1)
        async with world.residents.using(world.mix(0.2)):
            unused = asyncio.create_task(world.retired())
            await asyncio.sleep(0)
            await world.residents.settled()
            assert world.engine.log == ["+0.1", "+0.2", "-0.1"]
            await asyncio.sleep(0.01)
            assert not unused.done()
        await asyncio.wait_for(unused, 1)
        assert world.engine.log[-1] == "-0.2"

    run(go())


def test_a_mix_that_is_made_after_its_control_was_retired_leaves_too() -> None:
    world = World()

    async def go() -> None:
        world.uses.begin(world.control.id)  # of a request that waits for its turn
        mix = world.mix(0.5)
        unused = asyncio.create_task(world.retired())
        await asyncio.sleep(0)
        async with world.residents.using(mix):
            world.uses.end(world.control.id)
        await asyncio.wait_for(unused, 1)
        assert (world.engine.log, len(world.residents)) == (["+0.5", "-0.5"], 0)
        # The control may be published again, and its mixes stay then.
        await world.use(0.5)
        await world.residents.settled()
        assert len(world.residents) == 1

    run(go())


def test_a_mix_that_cannot_be_removed_frees_its_controls(caplog: pytest.LogCaptureFixture) -> None:
    world = World(limit=1)

    async def go() -> None:
        await world.use(0.1)
        world.engine.keeps = True
        await world.use(0.2)  # 0.1 is to leave
        await world.residents.settled()
        assert "ValueError: not now" in caplog.text
        world.engine.keeps = False
        await asyncio.wait_for(world.retired(), 1)

    run(go())


def test_mixes_of_a_new_version_are_other_mixes() -> None:
    world = World()
    old = world.mix(0.5)
    other = preference("concise").model_copy(update={"digest": "1" * 64})
    world.live.publish(world.live.number(other, Path("controls/concise-2")))
    new = world.mix(0.5)
    assert old.digest != new.digest
    assert (old.version, new.version) == ("0" * 12, "1" * 12)
