"""Which mixes are resident in the engine: each built once, a bounded number kept, none taken from under a request.

Knows the engine as two functions, and neither HTTP nor tensors. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from meet_server.registry.live import LoadedControl

_LOGGER = logging.getLogger(__name__)

Move = Callable[[LoadedControl], Coroutine[Any, Any, None]]


class Uses:
    """How often each control is in use, by its id: by requests, and by mixes that are made of it."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._ended: dict[int, asyncio.Event] = {}

    def begin(self, control_id: int) -> None:
        self._counts[control_id] += 1

    def end(self, control_id: int) -> None:
        self._counts[control_id] -= 1
        if not self._counts[control_id]:
            del self._counts[control_id]
            if (event := self._ended.pop(control_id, None)) is not None:
                event.set()

    async def none(self, control_id: int) -> None:
        """Waits until the control is not in use."""
        while self._counts[control_id]:
            await self._ended.setdefault(control_id, asyncio.Event()).wait()


@dataclass(slots=True)
class _Residence:
    """One mix in the engine, or on its way there."""

    mix: LoadedControl
    loading: asyncio.Task[None]
    num_users: int = 0

    @property
    def failed(self) -> bool:
        return self.loading.done() and (self.loading.cancelled() or self.loading.exception() is not None)


class Residents:
    """The mixes that the engine holds, least recently used first.

    More than `limit` are held only while all of them are in use: no request is refused for want of room.
    """

    def __init__(self, load: Move, remove: Move, uses: Uses, limit: int) -> None:
        self._load = load
        self._remove = remove
        self._uses = uses
        self.limit = limit
        self._by_content: OrderedDict[str, _Residence] = OrderedDict()
        self._retired: set[int] = set()  # ids of controls that are about to leave
        self._moving: set[asyncio.Task[None]] = set()
        self.num_asked = self.num_loaded = 0
        """How often a mix was asked for, and how often it had to be loaded for that."""

    def __len__(self) -> int:
        return len(self._by_content)

    @asynccontextmanager
    async def using(self, mix: LoadedControl) -> AsyncIterator[LoadedControl]:
        """The resident mix of the same content, loaded if there is none. It stays until the block ends.

        Raises whatever loading raised, for every request that waited for it.
        """
        residence = self._by_content.get(mix.digest)
        self.num_asked += 1
        if residence is None or residence.failed:
            self.num_loaded += 1
            residence = self._by_content[mix.digest] = self._begin(mix)
        self._by_content.move_to_end(mix.digest)
        residence.num_users += 1
        try:
            # Shielded: a client that leaves takes only itself away.
            await asyncio.shield(residence.loading)
            yield residence.mix
        finally:
            residence.num_users -= 1
            self._tidy()

    @contextmanager
    def retiring(self, control_id: int) -> Iterator[None]:
        """Lets go of every mix of a control that is no longer published, as soon as its requests have ended.

        While the block runs, that is also true of mixes made in it: a request may hold the control and still wait.
        """
        self._retired.add(control_id)
        try:
            self._tidy()
            yield
        finally:
            self._retired.discard(control_id)

    async def settled(self) -> None:
        """Waits until what was let go of has left the engine."""
        while self._moving:
            await asyncio.wait(self._moving)

    def _begin(self, mix: LoadedControl) -> _Residence:
        for control, _ in mix.parts:
            self._uses.begin(control.id)
        residence = _Residence(mix, asyncio.create_task(self._load(mix)))
        residence.loading.add_done_callback(lambda _: self._loaded(residence))
        return residence

    def _loaded(self, residence: _Residence) -> None:
        if residence.failed:
            if self._by_content.get(residence.mix.digest) is residence:
                del self._by_content[residence.mix.digest]
            self._end_uses(residence)
        self._tidy()

    def _tidy(self) -> None:
        """Lets go of what was retired, and of the least recently used beyond the limit."""
        if len(self._by_content) <= self.limit and not self._retired:
            return
        for content, residence in list(self._by_content.items()):
            over = len(self._by_content) > self.limit
            if not (over or self._retired):
                break
            unused = residence.loading.done() and not residence.failed and not residence.num_users
            if unused and (over or not self._retired.isdisjoint(control.id for control, _ in residence.mix.parts)):
                del self._by_content[content]
                task = asyncio.create_task(self._leave(residence))
                self._moving.add(task)
                task.add_done_callback(self._left)

    async def _leave(self, residence: _Residence) -> None:
        try:
            await self._remove(residence.mix)
        finally:
            self._end_uses(residence)

    def _end_uses(self, residence: _Residence) -> None:
        for control, _ in residence.mix.parts:
            self._uses.end(control.id)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._moving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOGGER.error("a mix could not be taken out of the engine", exc_info=error)
