"""The adapters that the engine holds for MEET: its controls, and mixes of them. Knows no HTTP and no words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from meet_server.engine import releases
from meet_server.engine.mix_path import mix_path
from meet_server.errors import EngineDied
from meet_server.registry.admission import ControlRefused
from meet_server.registry.live import LoadedControl
from meet_server.registry.mixes import Residents, Uses

_LOOK_S = 1.0


class Adapters:
    """Loads controls and mixes into the engine, and gives requests their adapter.

    The name of an adapter is part of the prefix cache's key, so it holds the digest of the content: what was computed
    under one content is never found under another. vLLM also takes two requests of one name for one adapter, and a
    batch may have both where a content came back before requests to its first instance had ended: so it holds the id
    too. `engine` is vLLM's engine client.
    """

    def __init__(self, engine: Any, max_mixes: int) -> None:
        self._engine = engine
        self._requests: dict[int, Any] = {}
        self._controls: dict[int, LoadedControl] = {}
        self._uses = Uses()
        self.mixes = Residents(self.load, self._remove, self._uses, max_mixes)

    def __getitem__(self, control_id: int) -> Any:
        """The LoRARequest of what is loaded under that id. Raises KeyError."""
        return self._requests[control_id]

    def control(self, control_id: int) -> LoadedControl | None:
        """What is loaded under that id."""
        return self._controls.get(control_id)

    async def load(self, control: LoadedControl) -> None:
        """Loads a control or a mix. Until then it cannot be generated with.

        An adapter that fails here is harmless; one that first failed while the engine steps would kill it.
        Raises ControlRefused, and EngineDied.
        """
        path = mix_path((part.id, strength) for part, strength in control.parts) if control.parts else control.path
        request = releases.lora_request(f"{control.name}@{control.digest}#{control.id}", control.id, path)
        try:
            await self._answer(self._engine.add_lora(request))
        except EngineDied:
            raise
        except Exception as error:  # vLLM passes on what its workers raised as bare Exceptions
            if self._engine.errored:
                raise _died() from error
            raise ControlRefused(control.name, f"the engine does not load it: {error}") from error
        self._requests[control.id] = request
        self._controls[control.id] = control

    async def unload(self, control: LoadedControl) -> None:
        """Takes a control out of the engine once no request uses it, alone or in a mix.

        New ones must not ask for it any more.
        """
        with self.mixes.retiring(control.id):
            await self._uses.none(control.id)
        await self._remove(control)

    @contextmanager
    def holding(self, control: LoadedControl | None) -> Iterator[None]:
        """Keeps a control, or the controls of a mix, in the engine while the block runs."""
        held = [] if control is None else [part for part, _ in control.parts] or [control]
        for each in held:
            self._uses.begin(each.id)
        try:
            yield
        finally:
            for each in held:
                self._uses.end(each.id)

    @asynccontextmanager
    async def using(self, control: LoadedControl) -> AsyncIterator[Any]:
        """The LoRARequest of a control, or of a mix, which is loaded if it is not there. It stays until the block ends.

        Raises ControlRefused, and EngineDied.
        """
        if control.parts:
            async with self.mixes.using(control) as mix:
                yield self[mix.id]
            return
        if control.id not in self._requests:
            raise ControlRefused(control.name, "it was changed or removed; ask again")
        with self.holding(control):
            yield self[control.id]

    async def released(self, control_id: int) -> None:
        """Waits until no request uses a control."""
        await self._uses.none(control_id)

    async def _remove(self, control: LoadedControl) -> None:
        del self._requests[control.id], self._controls[control.id]
        if not self._engine.errored:
            with suppress(EngineDied):  # which holds nothing any more
                await self._answer(self._engine.remove_lora(control.id))

    async def _answer(self, call: Coroutine[Any, Any, Any]) -> None:
        """Waits for the engine to do what it was asked. Raises what it raised, and EngineDied.

        vLLM (0.30 to 0.33) never ends such a call where the engine dies meanwhile; only requests are told of it.
        """
        asked = asyncio.create_task(call)
        try:
            while not asked.done():
                await asyncio.wait([asked], timeout=_LOOK_S)
                if self._engine.errored and not asked.done():
                    raise _died()
            asked.result()
        finally:
            asked.cancel()


def _died() -> EngineDied:
    return EngineDied("the engine died while loading controls; its own messages stand above")
