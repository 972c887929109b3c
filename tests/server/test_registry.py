"""What is served of a bundle and its registry, while both change. On a fake engine: `test_changing` has a real one."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controls import control_files, sealed
from test_batching import until

from meet_bundle import Bundle, Preference, open_bundle
from meet_server.errors import EngineDied, RequestError, ServerError
from meet_server.registry.admission import ControlRefused
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.changing import Registry
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.registry.loading import EngineDoor
from meet_server.registry.record import RECORD, ControlRecord, Files
from meet_server.registry.state import MAX_REVISIONS, State, added, changed, removed, updated
from meet_server.registry.store import Store


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


class FakeEngine:
    """Holds what was loaded, and refuses to prove the contents that it is told to refuse."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.refuses: set[str] = set()
        self.dies_of = ""  # a content's digest
        self.meanwhile: list[Callable[[], object]] = []  # what others do while a control is proved
        self.free = asyncio.Event()  # nothing leaves before it is set
        self.free.set()

    async def load(self, control: LoadedControl) -> None:
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
            load=self.engine.load, unload=self.engine.unload, prove=self.engine.prove, max_controls=max_controls
        )
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
        return time.monotonic() - start, len(world.engine.held)

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


class TestDamaged:
    """A content that is damaged on disk holds up neither a start nor changes of other preferences."""

    RECORD = "preference.json"

    async def damaged(self, opened: Bundle, folder: Path, name: str, *texts: str) -> World:
        """A server of a preference of several revisions, of which the record of the last is damaged since."""
        world = World(opened, folder)
        await world.registry.start()
        for text in texts:
            exists = name in world.served
            files = control(opened, name, text)
            await (world.registry.update(name, files) if exists else world.registry.add(files))
        self.file(folder, name).write_bytes(b"{")
        return world

    def file(self, folder: Path, name: str) -> Path:
        store = Store(folder)
        return store.folder(str(store.read().entry(name).content)) / self.RECORD

    def test_what_is_served_is_served_on_and_others_are_changed(self, opened: Bundle, tmp_path: Path) -> None:
        async def go() -> None:
            world = await self.damaged(opened, tmp_path, "polite", "one")
            await world.registry.change("concise", {"description": "x"})
            await world.registry.add(control(opened, "formal", "new"))
            assert list(world.served) == ["concise", "detailed", "polite", "formal"]
            assert world.catalogue.manifest.preference("concise").description == "x"
            assert world.catalogue.manifest.preference("polite").description == "one"

        run(go())

    def test_its_own_changes_name_the_file_and_what_to_do(self, opened: Bundle, tmp_path: Path) -> None:
        async def go() -> None:
            world = await self.damaged(opened, tmp_path, "polite", "one", "two")
            before = world.store.read()
            with pytest.raises(ServerError, match=r"preference\.json is damaged; update its preference with the same"):
                await world.registry.change("polite", {"description": "x"})
            assert world.store.read() == before
            await world.registry.change("polite", {"revision": 1})
            assert world.served["polite"] == digest(control(opened, "polite", "one"))
            with pytest.raises(ServerError, match=r"preference\.json is damaged"):
                await world.registry.change("polite", {"revision": 2})
            await world.registry.update("polite", control(opened, "polite", "two"))
            await world.registry.change("polite", {"revision": 2})
            await world.registry.remove("polite")
            assert list(world.served) == ["concise", "detailed"]

        run(go())

    def test_a_server_starts_without_it_and_takes_up_the_rest(
        self, opened: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def go() -> None:
            await self.damaged(opened, tmp_path, "polite", "one", "two")
            self.file(tmp_path, "polite").unlink()
            await self.damaged(opened, tmp_path, "formal", "one")
            world = World(opened, tmp_path)
            await world.registry.start()
            assert world.served["polite"] == digest(control(opened, "polite", "one"))
            assert list(world.served) == ["concise", "detailed", "polite"]
            assert "formal of the registry is not served as it should be" in caplog.text
            assert str(self.file(tmp_path, "formal")) in caplog.text
            await world.registry.change("concise", {"description": "x"})
            assert world.catalogue.manifest.preference("concise").description == "x"
            # The same control mends it.
            await world.registry.update("formal", control(opened, "formal", "one"))
            assert world.served["formal"] == digest(control(opened, "formal", "one"))
            await until(lambda: len(world.engine.held) == len(world.served))

        run(go())

    def test_the_default_is_served_by_its_own_control(self, opened: Bundle, tmp_path: Path) -> None:
        bundle = replace(opened, manifest=opened.manifest.model_copy(update={"default": "detailed"}))

        async def go() -> None:
            await self.damaged(bundle, tmp_path, "concise", "new")
            await self.damaged(bundle, tmp_path, "detailed", "new")
            world = World(bundle, tmp_path)
            await world.registry.start()
            assert world.served == {p.name: p.digest for p in bundle.manifest.preferences}
            await world.registry.add(control(bundle, "formal", "new"))
            assert list(world.served) == ["concise", "detailed", "formal"]

        run(go())

    def test_a_bundle_that_is_altered_while_it_is_served(self, opened: Bundle, tmp_path: Path) -> None:
        """As by training into the same folder: what the engine has not read yet is another control by now."""
        folder = tmp_path / "bundle"
        shutil.copytree(opened.path, folder)
        world = World(replace(opened, path=folder), tmp_path / "registry")
        weights = folder / opened.manifest.preference("concise").path / "adapter_model.safetensors"

        async def go() -> None:
            await world.registry.start()
            await world.registry.change("concise", {"enabled": False})
            weights.write_bytes((opened.control_path("detailed") / weights.name).read_bytes())
            with pytest.raises(ControlRefused, match="was altered or replaced; restart the server"):
                await world.registry.change("concise", {"enabled": True})
            # What others commit all the same holds up nothing.
            world.store.update(lambda state: changed(state, opened.manifest, "concise", {"enabled": True}))
            await world.registry.change("detailed", {"description": "x"})
            assert list(world.served) == ["detailed"]
            weights.unlink()
            with pytest.raises(ControlRefused, match="has the digest"):
                await world.registry.change("concise", {"enabled": True})
            shutil.rmtree(folder)
            with pytest.raises(ServerError, match=r"adapter_model\.safetensors is no safetensors file"):
                await world.registry.add(control(opened, "formal", "new"))

        run(go())


class TestMeanwhile:
    """What others commit while a control is proved, and what is refused and stands in the registry all the same."""

    def test_a_control_of_another_preference_is_no_update(self, opened: Bundle, tmp_path: Path) -> None:
        world = World(opened, tmp_path)

        async def go() -> None:
            await world.registry.start()
            with pytest.raises(RequestError, match="is of 'polite', and 'concise' is to be updated") as caught:
                await world.registry.update("concise", control(opened, "polite", "one"))
            assert caught.value.code == "invalid_upload"
            assert not (tmp_path / "contents").exists()

        run(go())

    def test_what_is_not_committed_leaves_the_engine(self, opened: Bundle, tmp_path: Path) -> None:
        world, other = World(opened, tmp_path), Store(tmp_path)

        async def go() -> None:
            await world.registry.start()
            await world.registry.add(control(opened, "polite", "one"))
            world.engine.meanwhile = [
                lambda: other.update(lambda state: removed(state, opened.manifest, "polite")),
            ]
            with pytest.raises(RequestError, match="'polite' is no preference"):
                await world.registry.update("polite", control(opened, "polite", "two"))
            assert list(world.served) == ["concise", "detailed", "polite"]  # until the next look
            await until(lambda: len(world.engine.held) == 3)
            await world.registry.change("concise", {"description": "x"})
            await until(lambda: len(world.engine.held) == 2)

        run(go())

    def test_what_was_loaded_before_the_engine_died_is_let_go_of(self, opened: Bundle, tmp_path: Path) -> None:
        world, other = World(opened, tmp_path), Store(tmp_path)
        last = control(opened, "formal", "one")

        async def go() -> None:
            await world.registry.start()
            world.engine.dies_of = digest(last)
            for name, files in (("polite", control(opened, "polite", "one")), ("formal", last)):
                content = other.keep(files)
                other.update(lambda s, name=name, content=content: added(s, opened.manifest, name, content))
            with pytest.raises(EngineDied):
                await world.registry.change("concise", {"description": "x"})
            await until(lambda: len(world.engine.held) == 2)
            assert list(world.served) == ["concise", "detailed"]

        run(go())

    def test_an_engine_that_dies_while_something_is_to_stand_in_is_no_refusal(
        self, opened: Bundle, tmp_path: Path
    ) -> None:
        one, two = control(opened, "polite", "one"), control(opened, "polite", "two")

        async def go() -> None:
            before = World(opened, tmp_path)
            await before.registry.start()
            await before.registry.add(one)
            await before.registry.update("polite", two)
            world = World(opened, tmp_path)
            world.engine.refuses, world.engine.dies_of = {digest(two)}, digest(one)
            with pytest.raises(EngineDied):
                await world.registry.start()

        run(go())

    def test_what_another_has_changed_meanwhile_is_served_as_that(self, opened: Bundle, tmp_path: Path) -> None:
        world, other = World(opened, tmp_path), Store(tmp_path)
        manifest = opened.manifest
        two = control(opened, "polite", "two")

        def update() -> None:
            content = other.keep(two)
            other.update(lambda state: updated(state, manifest, "polite", content))

        def disable() -> None:
            other.update(lambda state: changed(state, manifest, "polite", {"enabled": False}))

        async def go() -> None:
            await world.registry.start()
            await world.registry.add(control(opened, "polite", "one"))
            await world.registry.change("polite", {"enabled": False})
            world.engine.meanwhile = [update]
            await world.registry.change("polite", {"enabled": True})
            assert world.served["polite"] == digest(two)
            world.engine.meanwhile = [disable]
            await world.registry.change("polite", {"revision": 1})
            assert list(world.served) == ["concise", "detailed"]
            await until(lambda: len(world.engine.held) == 2)

        run(go())

    def test_what_stands_in_for_what_is_refused_does_not_let_another_in_unproved(
        self, opened: Bundle, tmp_path: Path
    ) -> None:
        """Where a server has nothing to serve of one it is as if disabled; its update is proved all the same."""
        one, two = control(opened, "polite", "one"), control(opened, "polite", "two")

        async def go() -> None:
            await World(opened, tmp_path).registry.start()
            before = World(opened, tmp_path)
            await before.registry.start()
            await before.registry.add(one)
            world = World(opened, tmp_path)
            world.engine.refuses = {digest(one), digest(two)}
            await world.registry.start()
            assert list(world.served) == ["concise", "detailed"]
            state = world.store.read()
            with pytest.raises(ControlRefused):
                await world.registry.update("polite", two)
            assert world.store.read() == state
            world.engine.refuses = {digest(one)}
            await world.registry.update("polite", two)
            assert world.served["polite"] == digest(two)

        run(go())

    def test_what_cannot_stand_in_for_what_is_refused_holds_up_nothing(self, opened: Bundle, tmp_path: Path) -> None:
        """What was served has an alias that another preference has by now."""
        world, other, manifest = World(opened, tmp_path), Store(tmp_path), opened.manifest
        two, formal = control(opened, "polite", "two"), control(opened, "formal", "new")

        async def go() -> None:
            await world.registry.start()
            await world.registry.add(control(opened, "polite", "one"))
            await world.registry.change("polite", {"aliases": ("kind",)})
            world.engine.refuses = {digest(two)}
            contents = other.keep(two), other.keep(formal)
            other.update(lambda state: updated(state, manifest, "polite", contents[0]))
            other.update(lambda state: changed(state, manifest, "polite", {"aliases": ()}))
            other.update(lambda state: added(state, manifest, "formal", contents[1]))
            other.update(lambda state: changed(state, manifest, "formal", {"aliases": ("kind",)}))
            await world.registry.change("concise", {"description": "x"})
            assert world.catalogue.manifest.preference("formal").aliases == ("kind",)
            assert world.served["polite"] == digest(control(opened, "polite", "one"))

        run(go())
