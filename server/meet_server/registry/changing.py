"""Changes preferences while they are served: what the store says becomes what the engine holds and requests may ask.

A new control is checked, written, loaded and proved in the engine before the store says that it is there, and only
then do requests get it; those that have begun end on the old one, which leaves the engine after the last of them.
Other processes' changes are followed. Belongs to one event loop; knows the engine as four functions, and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from meet_bundle import Bundle, Manifest, Preference
from meet_server.errors import EngineDied, RequestError, ServerError
from meet_server.registry.admission import ControlRefused
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.checking import check
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.registry.loading import EngineDoor, Loading, Source
from meet_server.registry.record import Files
from meet_server.registry.state import (
    State,
    added,
    as_bundled,
    changed,
    damaged,
    effective,
    former,
    removed,
    updated,
    without,
)
from meet_server.registry.store import Stamp, Store

_MAX_WAIT = 16  # times as long as usual, between tries to take up what could not be
_LOGGER = logging.getLogger(__name__)

Change = Callable[[State], State]


class Registry:
    """The preferences of one bundle as they are served by this process."""

    def __init__(
        self, bundle: Bundle, store: Store, catalogue: Catalogue, live: LiveControls, engine: EngineDoor
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._catalogue = catalogue
        self._live = live
        self._engine = engine
        self._lock = asyncio.Lock()
        self._stamp: Stamp = None
        self._committed = State()  # the store's, as far as it was taken up
        self._state = State()  # what is served: the same, but for what is damaged or was refused
        self._records: dict[str, Preference] = {}  # of the contents that are served
        self._loading = Loading(bundle, store, live, engine)

    async def start(self) -> None:
        """Loads, proves and publishes all there is. Raises ControlRefused for a control of the bundle's own."""
        async with self._lock:
            await self._catch_up(always=True)

    async def follow(self, every_s: float = 1) -> None:
        """Takes up what other processes change, until it is cancelled. What cannot be taken up is tried again."""
        wait_s = every_s
        while True:
            await asyncio.sleep(wait_s)
            try:
                async with self._lock:
                    await self._catch_up()
            except ServerError as error:
                _LOGGER.error("preferences are left as they were: %s", error)
            except Exception:  # whatever it is, later changes are still to be taken up
                _LOGGER.exception("preferences are left as they were")
            else:
                wait_s = every_s
                continue
            wait_s = min(2 * wait_s, _MAX_WAIT * every_s)

    async def close(self, timeout_s: float = 10) -> None:
        """Waits until what was let go of has left the engine, though no longer than so many seconds.

        Nothing must change preferences any more.
        """
        await self._loading.close(timeout_s)
        self._store.close()

    def entry(self, name: str) -> tuple[int, int]:
        """The number of the revision that is served, and the generation of the whole."""
        return self._state.entry(name).current, self._state.generation

    async def add(self, files: Files) -> str:
        """Adds the preference that the files are of, and returns its name. Raises RequestError and ServerError."""
        async with self._lock:
            await self._catch_up()
            preference = await asyncio.to_thread(check, files, self._bundle)
            manifest, name = self._bundle.manifest, preference.name
            return await self._take_in(preference, files, lambda content: lambda s: added(s, manifest, name, content))

    async def update(self, name: str, files: Files) -> None:
        """Gives a preference another control. Raises as `add` does."""
        async with self._lock:
            await self._catch_up()
            preference = await asyncio.to_thread(check, files, self._bundle)
            if preference.name != name:
                raise RequestError(
                    "invalid_upload", f"the control is of {preference.name!r}, and {name!r} is to be updated"
                )
            manifest = self._bundle.manifest
            await self._take_in(preference, files, lambda content: lambda s: updated(s, manifest, name, content))

    async def change(self, name: str, fields: Mapping[str, Any]) -> None:
        """Describes, names otherwise, disables, enables or rolls back. Raises RequestError."""
        await self._change(name, lambda state: changed(state, self._bundle.manifest, name, fields))

    async def remove(self, name: str) -> None:
        """Raises RequestError."""
        await self._change(name, lambda state: removed(state, self._bundle.manifest, name))

    async def _change(self, name: str, change: Change) -> None:
        async with self._lock:
            await self._catch_up()
            # What is enabled or rolled back to must be in the engine first; the change itself says whether it may be.
            await self._commit(change, await self._loading.proved(self._wanted(name, change)))

    async def _take_in(self, preference: Preference, files: Files, adding: Callable[[str], Change]) -> str:
        content = await asyncio.to_thread(self._store.keep, files)
        try:
            change = adding(content)
            missing = self._wanted(preference.name, change)
            self._check_room(len(list(self._live)) + len(missing))  # the former one's requests go on
            await self._commit(change, await self._loading.proved(missing))
        finally:
            self._store.release(content)  # what is loaded of it holds it
        return preference.name

    def _wanted(self, name: str, change: Change) -> list[Source]:
        """What the engine lacks to serve a preference as a change has it, beside what is served of the others."""
        state = self._state.as_if(name, change(self._committed).entries.get(name))
        manifest = self._effective(state)
        missing = self._missing(manifest, state)
        if missing:
            self._check_room(len(manifest.preferences))
        return missing

    def _check_room(self, num_controls: int) -> None:
        limit = self._engine.max_controls
        if limit is not None and num_controls > limit:
            raise RequestError("no_room", f"the engine has room for {limit} controls; raise --max-cpu-loras")

    async def _commit(self, change: Change, ready: dict[str, LoadedControl]) -> None:
        try:
            state = await asyncio.to_thread(commit, self._bundle, self._store, change)
        except BaseException:
            self._loading.let_go(ready.values())
            raise
        await self._serve(state, ready)
        self._stamp = self._store.written

    async def _catch_up(self, *, always: bool = False) -> None:
        stamp = self._store.stamp()
        if always or stamp != self._stamp:
            await self._serve(await asyncio.to_thread(self._store.read), {})
            self._stamp = stamp

    async def _serve(self, state: State, ready: dict[str, LoadedControl]) -> None:
        """Makes what the state says what is served. What is damaged or the engine refuses stays as it was, and is
        reported.

        Where that cannot be, lets go of what is ready.
        """
        ready = dict(ready)
        try:
            readable = await self._take_up_readable(state, ready)
            served = await self._take_up_missing(readable, ready)
            manifest = self._effective(served)
        except BaseException:
            self._loading.let_go(ready.values())
            raise
        self._committed = state
        self._put(manifest, served, ready)

    async def _take_up_readable(self, state: State, ready: dict[str, LoadedControl]) -> State:
        """The state with something else in place of what is damaged, whose controls are added to what is ready."""
        found = damaged(state, self._record)
        readable = state
        for name in found:
            readable = without(readable, name)
        # The default first: without it no state hangs together.
        for name in sorted(found, key=lambda name: name != self._bundle.manifest.default):
            _LOGGER.error("%s of the registry is not served as it should be: %s", name, found[name])
            readable = await self._instead(readable.as_if(name, state.entry(name)), name, ready)
        return readable

    async def _take_up_missing(self, state: State, ready: dict[str, LoadedControl]) -> State:
        """The state but for what is refused. The controls that it needs are added to what is ready."""
        digests = {preference.name: preference.digest for preference in self._effective(state).preferences}
        others = [control for control in ready.values() if digests.get(control.name) != control.digest]
        for control in others:  # what another process has changed since they were loaded
            del ready[control.name]
        self._loading.let_go(others)
        missing = [each for each in self._missing(self._effective(state), state) if each.preference.name not in ready]
        if not list(self._live):  # at the start: without its own controls a bundle is not served
            own = [each for each in missing if each.content is None]
            ready |= await self._loading.proved(own)
            missing = [each for each in missing if each.content is not None]
        for each in missing:
            try:
                ready |= await self._loading.proved([each])
            except ControlRefused as error:
                name = each.preference.name
                _LOGGER.error("%s of the registry is not served: %s", name, error)
                state = await self._instead(state, name, ready)
        return state

    async def _instead(self, state: State, name: str, ready: dict[str, LoadedControl]) -> State:
        """The state with what can be served in place of a revision that cannot, and is added to what is ready.

        It is what was served before; after a restart, the newest of the older revisions that the engine takes; or
        nothing. Raises ServerError where that would leave the bundle without its default.
        """
        before = [state.as_if(name, self._state.entries.get(name))] if self._live.get(name) is not None else []
        for older in (*before, *former(state, self._bundle.manifest, name)):
            number = older.entry(name).current
            try:
                missing = self._missing(self._effective(older), older)
                ready |= await self._loading.proved([each for each in missing if each.preference.name == name])
            except EngineDied:
                raise
            except ServerError as error:
                if number == 0 and name == self._bundle.manifest.default:
                    raise
                _LOGGER.error("revision %d of %s is not served in its place: %s", number, name, error)
            else:
                return older
        return without(state, name)

    def _put(self, manifest: Manifest, state: State, ready: dict[str, LoadedControl]) -> None:
        names = {preference.name for preference in manifest.preferences}
        old = [control for control in self._live if control.name not in names or control.name in ready]
        for control in old:
            self._live.withdraw(control.name)
        for control in ready.values():
            self._live.publish(control)
        self._live.arrange(preference.name for preference in manifest.preferences)
        self._state = state
        contents = [state.entry(name).content for name in names]
        self._records = {content: self._record(content) for content in contents if content is not None}
        self._catalogue.replace(manifest)
        self._engine.published()
        self._loading.let_go(old)

    def _effective(self, state: State) -> Manifest:
        return effective(self._bundle.manifest, state, self._record)

    def _record(self, content: str) -> Preference:
        """What is served is served on, whatever becomes of its files: a content never changes."""
        return self._records.get(content) or self._store.record(content)

    def _missing(self, manifest: Manifest, state: State) -> list[Source]:
        """What the engine does not hold yet, and where it lies."""
        found = []
        for preference in manifest.preferences:
            control = self._live.get(preference.name)
            if control is None or control.digest != preference.digest:
                content = state.entry(preference.name).content
                own = self._bundle.path / preference.path
                found.append(Source(preference, own if content is None else self._store.control(content), content))
        return found


def commit(bundle: Bundle, store: Store, change: Change) -> State:
    """Has the store make a change, unless what others have changed meanwhile forbids it.

    What is damaged holds up no change of another preference. Raises RequestError, and ServerError.
    """

    def checked(state: State) -> State:
        following = readable = change(state)
        for name, error in damaged(following, store.record).items():
            if following.entries[name] != state.entries.get(name):
                raise error
            _LOGGER.warning("%s of the registry is left as it is: %s", name, error)
            is_default = name == bundle.manifest.default
            readable = as_bundled(readable, name) if is_default else without(readable, name)
        effective(bundle.manifest, readable, store.record)
        return following

    return store.update(checked)
