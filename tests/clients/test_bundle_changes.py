"""`meet bundle pack`, `add` and so on: what they commit, and how they refuse."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meet_bundle import Bundle, open_bundle
from meet_server.registry.state import effective
from meet_server.registry.store import Store, beside

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from tiny_bundle import make_bundle

    return open_bundle(make_bundle(tmp_path_factory.mktemp("changes") / "tiny"))


def served(bundle: Bundle) -> dict[str, Any]:
    store = Store(beside(bundle.path))
    manifest = effective(bundle.manifest, store.read(), store.record)
    return {preference.name: preference for preference in manifest.preferences}


def test_each_command(meet: Callable[..., Any], tiny: Bundle, tmp_path: Path) -> None:
    from controls import renamed

    from meet_server.registry.record import pack

    folder, archive, source = str(tiny.path), tmp_path / "polite.zip", tmp_path / "polite"
    packed = tmp_path / "concise.zip"
    assert meet("bundle", "pack", folder, "concise", "-o", str(packed)).exit_code == 0
    archive.write_bytes(pack(renamed(tiny, "concise", "polite", description="first")))
    source.mkdir()
    for name, content in renamed(tiny, "detailed", "polite", description="second").items():
        (source / name).write_bytes(content)

    outcome = meet("bundle", "add", folder, str(archive))
    assert outcome.exit_code == 0, outcome.err
    assert outcome.out.startswith("polite: revision 1; generation 1")
    assert meet("bundle", "update", folder, "polite", str(source)).out.startswith("polite: revision 2;")
    assert served(tiny)["polite"].description == "second"
    assert meet("bundle", "rollback", folder, "polite", "1").exit_code == 0
    assert served(tiny)["polite"].description == "first"
    assert meet("bundle", "describe", folder, "polite", "--description", "Kind.", "--alias", "kind").exit_code == 0
    assert (served(tiny)["polite"].description, served(tiny)["polite"].aliases) == ("Kind.", ("kind",))
    assert "disabled" in meet("bundle", "disable", folder, "polite").out
    assert set(served(tiny)) == {"concise", "detailed"}
    assert meet("bundle", "enable", folder, "polite").exit_code == 0
    assert meet("bundle", "remove", folder, "polite").out.startswith("polite: removed")
    assert set(served(tiny)) == {"concise", "detailed"}
    assert meet("bundle", "update", folder, "concise", str(packed)).exit_code == 0
    assert open_bundle(tiny.path).manifest == tiny.manifest  # whole, and as it was


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("add", "BUNDLE", "BUNDLE", "-p", "concise"), "'concise' exists"),
        (("add", "BUNDLE", "BUNDLE"), "say which with --preference"),
        (("add", "BUNDLE", "BUNDLE", "-p", "angry"), "has no preference 'angry'"),
        (("update", "BUNDLE", "angry", "BUNDLE"), "has no preference 'angry'"),
        (("describe", "BUNDLE", "concise"), "nothing to change"),
        (("describe", "BUNDLE", "concise", "--alias", "detailed"), "detailed"),
        (("rollback", "BUNDLE", "detailed", "4"), "no revision 4"),
        (("remove", "BUNDLE", "angry"), "'angry' is no preference"),
    ],
)
def test_mistakes(meet: Callable[..., Any], tiny: Bundle, args: tuple[str, ...], words: str) -> None:
    outcome = meet("bundle", *(str(tiny.path) if arg == "BUNDLE" else arg for arg in args))
    assert outcome.exit_code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_archive_into_a_folder_that_is_not_there_is_a_mistake(
    meet: Callable[..., Any], tiny: Bundle, tmp_path: Path
) -> None:
    outcome = meet("bundle", "pack", str(tiny.path), "concise", "-o", str(tmp_path / "no/x.zip"))
    assert outcome.exit_code == 2
    assert outcome.err == f"meet: error: --output: there is no folder {tmp_path / 'no'}\n"


def test_an_archive_that_cannot_be_written_leaves_the_old_one(
    meet: Callable[..., Any], tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "archives"
    folder.mkdir()
    archive = folder / "concise.zip"
    archive.write_text("old")
    monkeypatch.setattr("os.fsync", fail)
    outcome = meet("bundle", "pack", str(tiny.path), "concise", "-o", str(archive))
    assert outcome.exit_code == 2
    assert outcome.err == f"meet: error: {archive} cannot be written: No space left on device\n"
    assert archive.read_text() == "old"
    assert list(folder.iterdir()) == [archive]


def test_an_archive_over_a_folder_is_a_mistake(meet: Callable[..., Any], tiny: Bundle, tmp_path: Path) -> None:
    outcome = meet("bundle", "pack", str(tiny.path), "concise", "-o", str(tmp_path))
    assert outcome.exit_code == 2
    assert outcome.err == f"meet: error: {tmp_path} cannot be written: Is a directory\n"
