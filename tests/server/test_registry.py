"""What is served of a bundle and its registry, while both change. On a fake engine: `test_changing` has a real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from controls import renamed

from meet_bundle import Bundle, Preference, open_bundle
from meet_server.registry.admission import ControlRefused
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.changing import EngineDoor, Registry
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.registry.record import Files
from meet_server.registry.store import Store


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


class FakeEngine:
    """Holds what was loaded, and refuses to prove the contents that it is told to refuse."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.refuses: set[str] = set()
        self.free = asyncio.Event()  # nothing leaves before it is set
        self.free.set()

    async def load(self, control: LoadedControl) -> None:
        self.held[control.id] = control.digest

    async def unload(self, control: LoadedControl) -> None:
        await self.free.wait()
        del self.held[control.id]

    async def prove(self, controls: Sequence[tuple[LoadedControl, Preference]]) -> None:
        for control, _ in controls:
            if control.digest in self.refuses:
                raise ControlRefused(control.name, "it does not reproduce its probe")


class World:
    """One process's registry on an engine of its own."""

    def __init__(self, opened: Bundle, folder: Path, engine: FakeEngine | None = None) -> None:
        self.engine, self.store, self.live = engine or FakeEngine(), Store(folder), LiveControls()
        self.catalogue = Catalogue(opened.manifest)
        door = EngineDoor(load=self.engine.load, unload=self.engine.unload, prove=self.engine.prove)
        self.registry = Registry(opened, self.store, self.catalogue, self.live, door)

    @property
    def served(self) -> dict[str, str]:
        return {control.name: control.digest for control in self.live}


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def described(opened: Bundle, name: str, text: str, source: str = "concise") -> Files:
    """A control of a name, told apart by its description."""
    return renamed(opened, source, name, description=text)


def test_closing_waits_for_what_leaves_and_not_for_ever(opened: Bundle, tmp_path: Path) -> None:
    async def closed(*, leaves: bool) -> tuple[float, int]:
        world = World(opened, tmp_path / str(leaves))
        await world.registry.start()
        await world.registry.add(described(opened, "polite", "one"))
        world.engine.free.clear()
        await world.registry.remove("polite")
        if leaves:
            asyncio.get_running_loop().call_later(0.05, world.engine.free.set)
        start = time.monotonic()
        await world.registry.close(timeout_s=30 if leaves else 0.1)
        return time.monotonic() - start, len(world.engine.held)

    took_s, num_held = run(closed(leaves=True))
    assert (took_s < 10, num_held) == (True, 2)
    took_s, num_held = run(closed(leaves=False))
    assert (took_s < 10, num_held) == (True, 3)
