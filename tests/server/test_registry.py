"""What is served of a bundle and its registry, while both change. On a fake engine: `test_changing` has a real one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from controls import sealed
from registry_world import FakeEngine, World, control, digest, run
from test_batching import until

from meet_bundle import Bundle, open_bundle
from meet_server.errors import RequestError, ServerError
from meet_server.registry.admission import ControlRefused
from meet_server.registry.record import RECORD, ControlRecord
from meet_server.registry.state import MAX_REVISIONS, State, added, changed
from meet_server.registry.store import Store


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


def test_closing_waits_for_what_leaves_and_not_for_ever(opened: Bundle, tmp_path: Path) -> None:
    async def closed(*, leaves: bool) -> tuple[float, int]:
        world = World(opened, tmp_path / str(leaves))
        await world.registry.start()
        await world.registry.add(control(opened, "polite", "one"))
        world.engine.free.clear()
        await world.registry.remove("polite")
        if leaves:
            asyncio.get_running_loop().call_later(0.05, world.engine.free.set)
        start = time.monotonic()
        await world.registry.close(timeout_s=30 if leaves else 0.1)
        took_s = time.monotonic() - start
        # No file is kept for the engine any more.
        Store(tmp_path / str(leaves)).update(lambda s: changed(s, opened.manifest, "concise", {"description": "x"}))
        assert list((tmp_path / str(leaves) / "contents").iterdir()) == []
        return took_s, len(world.engine.held)

    took_s, num_held = run(closed(leaves=True))
    assert (took_s < 10, num_held) == (True, 2)
    took_s, num_held = run(closed(leaves=False))
    assert (took_s < 10, num_held) == (True, 3)


def test_what_the_engine_has_no_room_for_is_refused(opened: Bundle, tmp_path: Path) -> None:
    world = World(opened, tmp_path, max_controls=3)

    async def go() -> None:
        await world.registry.start()
        await world.registry.add(control(opened, "polite", "one"))
        for change in (world.registry.add(control(opened, "formal", "one")), update()):
            with pytest.raises(RequestError, match="room for 3 controls") as caught:
                await change
            assert caught.value.code == "no_room"
        await world.registry.change("polite", {"enabled": False})
        await world.registry.add(control(opened, "formal", "one"))
        with pytest.raises(RequestError, match="room for 3 controls"):
            await world.registry.change("polite", {"enabled": True})
        await world.registry.remove("formal")
        await world.registry.change("polite", {"enabled": True})
        assert list(world.served) == ["concise", "detailed", "polite"]
        # Others may have added more; there are fewer by and by.
        for name in ("formal", "brief"):
            content = world.store.keep(control(opened, name, "one"))
            world.store.update(lambda s, name=name, content=content: added(s, opened.manifest, name, content))
        await world.registry.change("polite", {"description": "x"})
        await world.registry.remove("brief")
        assert list(world.served) == ["concise", "detailed", "polite", "formal"]

    async def update() -> None:
        await world.registry.update("polite", control(opened, "polite", "two"))  # both, for a while

    run(go())


def test_what_may_be_asked_for_is_told_once_it_is_so(opened: Bundle, tmp_path: Path) -> None:
    world = World(opened, tmp_path)

    async def go() -> None:
        await world.registry.start()
        await world.registry.add(control(opened, "polite", "one"))
        await world.registry.change("concise", {"enabled": False})

    run(go())
    assert world.published == [["concise", "detailed"], ["concise", "detailed", "polite"], ["detailed", "polite"]]


class TestContents:
    """A registry's folder holds what is served or may be, and no more, while the process lives."""

    def contents(self, folder: Path) -> set[str]:
        return {path.name for path in (folder / "contents").iterdir()}

    async def changed(self, world: World) -> None:
        """What nothing uses goes with the next change, once it has left the engine."""
        await until(lambda: len(world.engine.held) == len(world.served))
        await world.registry.change("detailed", {"description": "once more"})

    def test_of_what_was_refused_nothing_stays(self, opened: Bundle, tmp_path: Path) -> None:
        world = World(opened, tmp_path)
        refused = control(opened, "polite", "refused")

        async def go() -> None:
            await world.registry.start()
            await world.registry.add(control(opened, "formal", "kept"))
            kept = self.contents(tmp_path)
            world.engine.refuses = {digest(refused)}
            with pytest.raises(ControlRefused):
                await world.registry.add(refused)
            world.engine.loads_not, world.engine.refuses = digest(refused), set()
            with pytest.raises(ControlRefused):
                await world.registry.add(refused)
            with pytest.raises(RequestError, match="'formal' exists"):
                await world.registry.add(control(opened, "formal", "another"))
            assert len(self.contents(tmp_path)) == 3
            await self.changed(world)
            assert self.contents(tmp_path) == kept

        run(go())

    def test_of_many_revisions_those_that_are_kept_stay(self, opened: Bundle, tmp_path: Path) -> None:
        world = World(opened, tmp_path)

        async def go() -> None:
            await world.registry.start()
            await world.registry.add(control(opened, "polite", "0"))
            for number in range(1, MAX_REVISIONS + 3):
                await world.registry.update("polite", control(opened, "polite", str(number)))
            await self.changed(world)
            assert self.contents(tmp_path) == set(world.store.read().contents)
            assert len(self.contents(tmp_path)) == MAX_REVISIONS

        run(go())

    def test_what_a_request_uses_stays_until_it_ends(self, opened: Bundle, tmp_path: Path) -> None:
        world, other = World(opened, tmp_path), Store(tmp_path)

        async def go() -> None:
            await world.registry.start()
            await world.registry.add(control(opened, "polite", "one"))
            world.engine.free.clear()
            await world.registry.remove("polite")
            for text in ("x", "y"):
                other.update(lambda state, text=text: changed(state, opened.manifest, "concise", {"description": text}))
                assert len(self.contents(tmp_path)) == 1
            world.engine.free.set()
            await self.changed(world)
            assert self.contents(tmp_path) == set()

        run(go())


class Interrupted(Store):
    """One whose reading fails now and then, and after which another process commits."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.failures: list[Exception] = []
        self.num_read = 0
        self.following: list[Callable[[State], State]] = []
        self._other = Store(folder)

    def read(self) -> State:
        self.num_read += 1
        if self.failures:
            raise self.failures.pop()
        return super().read()

    def update(self, change: Callable[[State], State]) -> State:
        state = super().update(change)
        while self.following:
            self._other.update(self.following.pop())
        return state


class TestFollowing:
    """What other processes commit is taken up, whatever went wrong meanwhile."""

    async def until_described(self, world: World, name: str, text: str) -> None:
        following = asyncio.create_task(world.registry.follow(every_s=0.001))
        try:
            await until(lambda: world.catalogue.manifest.preference(name).description == text)
        finally:
            following.cancel()

    @pytest.mark.parametrize("error", [ServerError("not now"), OSError("not now"), KeyError("not now")])
    def test_what_could_not_be_taken_up_is_tried_again(
        self, opened: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
    ) -> None:
        store, other = Interrupted(tmp_path), Store(tmp_path)
        world = World(opened, tmp_path, store=store)

        async def go() -> None:
            await world.registry.start()
            store.failures = [error] * 2
            other.update(lambda state: changed(state, opened.manifest, "concise", {"description": "x"}))
            await self.until_described(world, "concise", "x")

        run(go())
        assert caplog.text.count("preferences are left as they were") == 2
        assert ("Traceback" in caplog.text) == (not isinstance(error, ServerError))

    def test_what_is_committed_right_after_a_change_is_not_counted_as_seen(
        self, opened: Bundle, tmp_path: Path
    ) -> None:
        store = Interrupted(tmp_path)
        world = World(opened, tmp_path, store=store)

        async def go() -> None:
            await world.registry.start()
            store.following = [lambda state: changed(state, opened.manifest, "detailed", {"description": "y"})]
            await world.registry.change("concise", {"description": "x"})
            await self.until_described(world, "detailed", "y")
            assert world.catalogue.manifest.preference("concise").description == "x"

        run(go())

    def test_tries_are_further_and_further_apart_up_to_a_bound_and_then_as_before(
        self, opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Interrupted(tmp_path)
        world, other = World(opened, tmp_path, store=store), Store(tmp_path)
        sleep, waits = asyncio.sleep, list[float]()

        async def noted(wait_s: float) -> None:
            waits.append(wait_s)
            if len(waits) == 9:
                raise asyncio.CancelledError
            await sleep(0)

        async def go() -> None:
            await world.registry.start()
            other.update(lambda state: changed(state, opened.manifest, "concise", {"description": "x"}))
            store.failures = [ServerError("not now")] * 6
            monkeypatch.setattr(asyncio, "sleep", noted)
            with pytest.raises(asyncio.CancelledError):
                await world.registry.follow(every_s=1)

        run(go())
        assert waits == [1, 2, 4, 8, 16, 16, 16, 1, 1]

    def test_what_nobody_changed_is_not_read_again(self, opened: Bundle, tmp_path: Path) -> None:
        store = Interrupted(tmp_path)
        world = World(opened, tmp_path, store=store)

        async def go() -> None:
            await world.registry.start()
            await world.registry.change("concise", {"description": "x"})
            following = asyncio.create_task(world.registry.follow(every_s=0.001))
            read = store.num_read
            await asyncio.sleep(0.1)
            following.cancel()
            assert store.num_read == read

        run(go())


class TestAfterARestart:
    """A fresh process that refuses some of what the registry has."""

    def restarted(self, opened: Bundle, folder: Path, *refused: str) -> World:
        engine = FakeEngine()
        engine.refuses = set(refused)
        world = World(opened, folder, engine)

        async def start() -> None:
            await world.registry.start()
            await world.registry.close()  # what was refused has left

        run(start())
        return world

    def test_the_bundles_own_control_is_served_in_place_of_its_revision(self, opened: Bundle, tmp_path: Path) -> None:
        own = opened.manifest.preference("concise").digest
        new = control(opened, "concise", "new")

        async def before() -> None:
            world = World(opened, tmp_path)
            await world.registry.start()
            await world.registry.update("concise", new)
            assert world.served["concise"] == digest(new)

        run(before())
        world = self.restarted(opened, tmp_path, digest(new))
        assert world.served["concise"] == own
        assert list(world.served) == ["concise", "detailed"]
        assert world.registry.entry("concise") == (0, 1)
        assert sorted(world.engine.held.values()) == sorted(world.served.values())

    def test_without_a_control_of_its_own_a_bundle_is_not_served_and_without_its_revision_too_it_is(
        self, opened: Bundle, tmp_path: Path
    ) -> None:
        own, new = opened.manifest.preference("concise").digest, control(opened, "concise", "new")
        with pytest.raises(ControlRefused, match="control concise: it does not reproduce its probe"):
            self.restarted(opened, tmp_path, own)

        async def before() -> None:
            world = World(opened, tmp_path)
            await world.registry.start()
            await world.registry.update("concise", new)

        run(before())
        assert list(self.restarted(opened, tmp_path, own, digest(new)).served) == ["detailed"]

    def test_the_default_can_be_served_by_its_own_control(self, opened: Bundle, tmp_path: Path) -> None:
        manifest = opened.manifest.model_copy(update={"default": "concise"})
        bundle = replace(opened, manifest=manifest)
        self.test_the_bundles_own_control_is_served_in_place_of_its_revision(bundle, tmp_path)
        new, newer = digest(control(opened, "concise", "new")), control(opened, "concise", "newer")

        async def once_more() -> None:
            world = World(bundle, tmp_path)
            await world.registry.start()
            await world.registry.update("concise", newer)

        run(once_more())
        own = manifest.preference("concise").digest
        assert self.restarted(bundle, tmp_path, digest(newer), new).served["concise"] == own
        assert self.restarted(bundle, tmp_path, digest(newer)).served["concise"] == new
        Store(tmp_path).update(lambda state: changed(state, manifest, "concise", {"revision": 1}))
        with pytest.raises(ControlRefused, match="control concise: it does not reproduce its probe"):
            self.restarted(bundle, tmp_path, new, manifest.preference("concise").digest)

    def test_the_newest_of_the_older_revisions_that_is_not_refused(self, opened: Bundle, tmp_path: Path) -> None:
        revisions = [control(opened, "polite", text) for text in ("one", "two", "three", "four")]

        async def before() -> None:
            world = World(opened, tmp_path)
            await world.registry.start()
            await world.registry.add(revisions[0])
            for files in revisions[1:]:
                await world.registry.update("polite", files)
            await world.registry.change("polite", {"revision": 3})

        run(before())
        one, two, three, _ = map(digest, revisions)
        assert self.restarted(opened, tmp_path, three).served["polite"] == two
        assert self.restarted(opened, tmp_path, two, three).served["polite"] == one
        none = self.restarted(opened, tmp_path, one, two, three)
        assert list(none.served) == ["concise", "detailed"]
        assert len(none.engine.held) == 2

    def test_what_was_altered_on_disk_is_not_loaded(self, opened: Bundle, tmp_path: Path) -> None:
        one, two = control(opened, "polite", "one"), control(opened, "polite", "two")

        async def before() -> str:
            world = World(opened, tmp_path)
            await world.registry.start()
            await world.registry.add(one)
            await world.registry.update("polite", two)
            return str(world.store.read().entry("polite").content)

        weights = Store(tmp_path).control(run(before())) / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert self.restarted(opened, tmp_path).served["polite"] == digest(one)
        weights.unlink()
        assert self.restarted(opened, tmp_path).served["polite"] == digest(one)
        weights.write_bytes(whole)
        assert self.restarted(opened, tmp_path).served["polite"] == digest(two)

    def test_what_does_not_fit_the_model_is_not_loaded(
        self, opened: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A registry of another bundle, or one that was written by hand."""
        fitting = control(opened, "polite", "one")
        kept = [name for name in fitting if name != RECORD]
        preference = ControlRecord.model_validate_json(fitting[RECORD]).preference
        of_another = sealed(preference, {name: fitting[name] for name in kept}, "0" * 64)
        config = json.dumps({**json.loads(fitting["adapter_config.json"]), "use_dora": True}).encode()
        of_a_kind = {**{name: fitting[name] for name in kept}, "adapter_config.json": config}
        store = Store(tmp_path)
        for name, files in (
            ("polite", of_another),
            ("formal", sealed(preference, of_a_kind, opened.manifest.model_digest)),
        ):
            content = store.keep(files)
            store.update(lambda state, name=name, content=content: added(state, opened.manifest, name, content))
        world = self.restarted(opened, tmp_path)
        assert list(world.served) == ["concise", "detailed"]
        assert "control polite: the control cannot come in: it was trained for the model 0000" in caplog.text
        assert "use_dora is True" in caplog.text
