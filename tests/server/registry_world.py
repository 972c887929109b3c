"""One process's registry on a fake engine, and controls for it that are told apart by a text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from controls import control_files, sealed

from meet_bundle import Bundle, Preference
from meet_server.errors import EngineDied
from meet_server.registry.admission import ControlRefused
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.changing import Registry
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.registry.loading import EngineDoor
from meet_server.registry.record import RECORD, ControlRecord, Files
from meet_server.registry.store import Store


class FakeEngine:
    """Holds what was loaded, and refuses to prove the contents that it is told to refuse."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.refuses: set[str] = set()
        self.dies_of = self.loads_not = ""  # a content's digest
        self.meanwhile: list[Callable[[], object]] = []  # what others do while a control is proved
        self.free = asyncio.Event()  # nothing leaves before it is set
        self.free.set()

    async def load(self, control: LoadedControl) -> None:
        if control.digest == self.loads_not:
            raise ControlRefused(control.name, "the engine does not load it")
        self.held[control.id] = control.digest

    async def unload(self, control: LoadedControl) -> None:
        await self.free.wait()
        del self.held[control.id]

    async def prove(self, controls: Sequence[tuple[LoadedControl, Preference]]) -> None:
        while controls and self.meanwhile:
            self.meanwhile.pop()()
        for control, _ in controls:
            if control.digest == self.dies_of:
                raise EngineDied("the engine died")
            if control.digest in self.refuses:
                raise ControlRefused(control.name, "it does not reproduce its probe")


class World:
    """One process's registry on an engine of its own."""

    def __init__(
        self,
        opened: Bundle,
        folder: Path,
        engine: FakeEngine | None = None,
        store: Store | None = None,
        max_controls: int | None = None,
    ) -> None:
        self.engine, self.store, self.live = engine or FakeEngine(), store or Store(folder), LiveControls()
        self.catalogue = Catalogue(opened.manifest)
        door = EngineDoor(
            load=self.engine.load,
            unload=self.engine.unload,
            prove=self.engine.prove,
            published=lambda: self.published.append(list(self.served)),
            max_controls=max_controls,
        )
        self.published: list[list[str]] = []
        self.registry = Registry(opened, self.store, self.catalogue, self.live, door)

    @property
    def served(self) -> dict[str, str]:
        return {control.name: control.digest for control in self.live}


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def control(opened: Bundle, name: str, text: str, source: str = "concise") -> Files:
    """A control of that name. Its description and its digest are told apart by the text."""
    files = {**control_files(opened, source), "README.md": text.encode()}
    fields = {"name": name, "aliases": (), "opposite": None, "description": text}
    preference = opened.manifest.preference(source).model_copy(update=fields)
    return sealed(preference, files, opened.manifest.model_digest)


def digest(files: Files) -> str:
    return ControlRecord.model_validate_json(files[RECORD]).preference.digest
