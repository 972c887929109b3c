"""What a registry has the engine hold: controls are loaded and proved, and let go of once nobody uses them.

What lies on disk is checked each time. A content of the store's stays where it is for as long as a control of it is
loaded. Belongs to one event loop; knows the engine as three functions, and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meet_bundle import Bundle, Preference
from meet_server.registry.checking import check_kept, check_own
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.registry.store import Store

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineDoor:
    """What is asked of the engine. `published` is called once requests may ask for what is live now."""

    load: Callable[[LoadedControl], Awaitable[None]]
    unload: Callable[[LoadedControl], Awaitable[None]]
    prove: Callable[[Sequence[tuple[LoadedControl, Preference]]], Awaitable[None]]
    published: Callable[[], None] = lambda: None
    max_controls: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a preference's control lies. `content` is its name in the store, None for the bundle's own."""

    preference: Preference
    folder: Path
    content: str | None


class Loading:
    """The controls that were loaded for one registry."""

    def __init__(self, bundle: Bundle, store: Store, live: LiveControls, engine: EngineDoor) -> None:
        self._bundle = bundle
        self._store = store
        self._live = live
        self._engine = engine
        self._contents: dict[int, str] = {}  # of what is loaded, by its id
        self._leaving: set[asyncio.Task[None]] = set()

    async def proved(self, sources: Sequence[Source]) -> dict[str, LoadedControl]:
        """Loads and proves, all or none. Raises ControlRefused, and ServerError."""
        loaded: list[tuple[LoadedControl, Preference]] = []
        try:
            for source in sources:
                control = await self._load(source)
                loaded.append((control, source.preference))
            await self._engine.prove(loaded)
        except BaseException:
            self.let_go(control for control, _ in loaded)
            raise
        return {control.name: control for control, _ in loaded}

    def let_go(self, controls: Iterable[LoadedControl]) -> None:
        """Has controls leave the engine, each once no request uses it. New ones must not ask for it any more."""
        for control in controls:
            task = asyncio.create_task(self._unload(control))
            self._leaving.add(task)
            task.add_done_callback(self._left)

    async def close(self, timeout_s: float) -> None:
        """Waits until what was let go of has left the engine, though no longer than so many seconds."""
        if not self._leaving:
            return
        _, left = await asyncio.wait(self._leaving, timeout=timeout_s)
        for task in left:
            task.cancel()
        if left:
            _LOGGER.warning("%d controls have not left the engine in %g s; they end with it", len(left), timeout_s)
            await asyncio.gather(*left, return_exceptions=True)

    async def _load(self, source: Source) -> LoadedControl:
        control = self._live.number(source.preference, source.folder)
        if source.content is None:
            await asyncio.to_thread(check_own, source.preference, self._bundle)
            await self._engine.load(control)
            return control
        self._store.hold(source.content)
        try:
            await asyncio.to_thread(check_kept, control.name, source.content, self._store, self._bundle)
            await self._engine.load(control)
        except BaseException:
            self._store.release(source.content)
            raise
        self._contents[control.id] = source.content
        return control

    async def _unload(self, control: LoadedControl) -> None:
        await self._engine.unload(control)
        if (content := self._contents.pop(control.id, None)) is not None:
            self._store.release(content)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOGGER.error("a control could not be taken out of the engine", exc_info=error)
