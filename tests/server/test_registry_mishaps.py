"""What is served where files are damaged, others commit meanwhile, or the engine dies or refuses. On a fake engine."""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from registry_world import World, control, digest, run
from test_batching import until

from meet_bundle import Bundle, open_bundle
from meet_server.errors import EngineDied, RequestError, ServerError
from meet_server.registry.admission import ControlRefused
from meet_server.registry.state import added, changed, removed, updated
from meet_server.registry.store import Store


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


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

    def test_one_that_is_disabled_matters_once_it_is_enabled(
        self, opened: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "meet_server.registry")  # whatever a server in this process has set

        async def go() -> None:
            world = await self.damaged(opened, tmp_path, "polite", "one", "two")
            await world.registry.change("polite", {"enabled": False})
            await world.registry.close()
            world = World(opened, tmp_path)
            await world.registry.start()
            await world.registry.change("polite", {"description": "x"})
            assert world.registry.entry("polite")[0] == 2
            assert caplog.text == ""
            with pytest.raises(ServerError, match=r"preference\.json is damaged"):
                await world.registry.change("polite", {"enabled": True})
            await world.registry.change("polite", {"enabled": True, "revision": 1})
            assert world.served["polite"] == digest(control(opened, "polite", "one"))

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
            weights.symlink_to(opened.control_path("concise") / weights.name)
            with pytest.raises(ControlRefused, match="this is a link"):
                await world.registry.change("concise", {"enabled": True})
            shutil.rmtree(folder)
            with pytest.raises(ServerError, match=r"adapter_model\.safetensors is no safetensors file"):
                await world.registry.add(control(opened, "formal", "new"))

        run(go())

    def test_what_a_disk_does_not_read_is_refused(
        self, opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreadable(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        world = World(opened, tmp_path)
        monkeypatch.setattr(hashlib, "file_digest", unreadable)
        with pytest.raises(ControlRefused, match="controls/concise cannot be read: Input/output error"):
            run(world.registry.start())


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
        last = control(opened, "formal", "last")

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

    def test_what_was_served_stands_in_for_what_is_refused_though_it_is_not_the_newest(
        self, opened: Bundle, tmp_path: Path
    ) -> None:
        world, other = World(opened, tmp_path), Store(tmp_path)
        one, two, three = (control(opened, "polite", text) for text in ("one", "two", "three"))

        async def go() -> None:
            await world.registry.start()
            await world.registry.add(one)
            await world.registry.update("polite", two)
            await world.registry.change("polite", {"revision": 1})
            world.engine.refuses = {digest(three)}
            content = other.keep(three)
            other.update(lambda state: updated(state, opened.manifest, "polite", content))
            await world.registry.change("concise", {"description": "x"})
            assert world.served["polite"] == digest(one)
            assert world.registry.entry("polite")[0] == 1

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
