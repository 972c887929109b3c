"""The registry on disk: durable, shared between processes, and whole whenever a process is killed."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from example_manifest import manifest
from registry_writers import control

from meet_server.errors import MeetError, ServerError
from meet_server.registry.state import State, added, changed, removed, updated
from meet_server.registry.store import Store, beside

BUNDLE = manifest()


def test_nothing_is_written_before_something_changes(tmp_path: Path) -> None:
    store = Store(tmp_path / "registry")
    assert (store.read(), store.stamp()) == (State(), None)
    assert not (tmp_path / "registry").exists()
    assert beside(tmp_path / "demo") == tmp_path / "demo.registry"
    (tmp_path / "demo" / "controls").mkdir(parents=True)
    assert beside(tmp_path / "demo" / "controls" / "..") == tmp_path / "demo.registry"


def test_kept_committed_and_read_by_another(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    content = store.keep(control("polite", "a"))
    before = other.stamp()
    state = store.update(lambda s: added(s, BUNDLE, "polite", content))
    assert other.stamp() != before
    assert other.read() == state
    assert other.record(content).description == "a"
    other.verify(content)
    assert sorted(path.name for path in store.control(content).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_change_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    state = store.update(lambda s: changed(s, BUNDLE, "concise", {"description": "x"}))
    with pytest.raises(MeetError):
        store.update(lambda s: updated(s, BUNDLE, "none", "0" * 64))
    assert store.read() == state


def test_contents_stay_while_they_are_named_or_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By locks of files: on NFS one of a folder is not seen by other machines, and is here by nobody."""
    flock = fcntl.flock

    def of_files(handle: int, operation: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", of_files)
    writer, server = Store(tmp_path), Store(tmp_path)
    content = writer.keep(control("polite", "a"))
    writer.update(lambda s: added(s, BUNDLE, "polite", content))
    writer.close()
    server.hold(content)  # an engine reads its files again when it likes
    writer.update(lambda s: removed(s, BUNDLE, "polite"))
    writer.verify(content)
    server.close()
    writer.update(lambda s: changed(s, BUNDLE, "concise", {"description": "x"}))
    assert not writer.folder(content).exists()
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_content_that_goes_while_it_is_waited_for_is_not_held(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    content = store.keep(control("polite", "a"))
    store.close()
    other.update(lambda s: changed(s, BUNDLE, "concise", {"description": "x"}))  # nobody names or holds it: it goes
    with pytest.raises(ServerError, match="cannot be held: No such file or directory"):
        store.hold(content)
    other.update(lambda s: changed(s, BUNDLE, "concise", {"description": "z"}))
    assert list((tmp_path / "locks").iterdir()) == []
    again = other.keep(control("polite", "a"))
    store.hold(again)
    other.close()
    other.update(lambda s: changed(s, BUNDLE, "concise", {"description": "y"}))
    assert store.folder(again).exists()


def test_what_a_killed_writer_left_of_a_state_goes_with_the_next_change(tmp_path: Path) -> None:
    (tmp_path / ".state.json.x1y2").write_text("{")
    Store(tmp_path).update(lambda s: changed(s, BUNDLE, "concise", {"description": "x"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "state.json"]


@pytest.mark.parametrize("left", ["preference.json", "control/adapter_config.json", "control"])
def test_a_content_of_which_a_part_is_missing_is_written_anew(tmp_path: Path, left: str) -> None:
    """A process that removes one may be killed meanwhile, and then the same control is added again."""
    store = Store(tmp_path)
    content = store.keep(control("polite", "a"))
    part = store.folder(content) / left
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    assert store.keep(control("polite", "a")) == content
    store.verify(content)
    assert [path.name for path in (tmp_path / "contents").iterdir()] == [content]


def test_a_content_that_was_altered_is_written_anew_and_one_that_is_whole_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    content = store.keep(control("polite", "a"))
    before = store.folder(content).stat().st_ino
    store.keep(control("polite", "a"))
    assert store.folder(content).stat().st_ino == before
    (store.control(content) / "adapter_model.safetensors").write_bytes(b"!")
    store.keep(control("polite", "a"))
    store.verify(content)


def test_a_change_that_is_on_disk_is_not_said_to_have_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What nothing needs may not go, as on a full disk or where it is another user's."""
    caplog.set_level(logging.WARNING, "meet_server.registry.store")  # whatever a server in this process has set
    store = Store(tmp_path)
    (tmp_path / "locks" / "in-the-way").mkdir(parents=True)
    state = store.update(lambda s: changed(s, BUNDLE, "concise", {"description": "x"}))
    assert store.read() == state
    assert "keeps what nothing needs" in caplog.text


def test_the_folders_name_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    Store(tmp_path / "of" / "registry").update(lambda s: changed(s, BUNDLE, "concise", {"description": "x"}))
    assert {str(tmp_path), str(tmp_path / "of"), str(tmp_path / "of" / "registry")} <= set(synced)


def test_a_state_of_a_newer_release_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"format_version": 2, "more": 1}')
    with pytest.raises(ServerError, match="format_version is 2; this reads 1"):
        Store(tmp_path).read()


def test_a_lock_that_is_removed_while_it_is_waited_for_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    content = other.keep(control("polite", "a"))
    flock, waited = fcntl.flock, []

    def removed_first(handle: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not waited:
            waited.append(handle)
            (tmp_path / "locks" / content).unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    store.hold(content)
    assert waited
    other.close()
    other.update(lambda s: changed(s, BUNDLE, "concise", {"description": "x"}))
    store.verify(content)


def test_a_stamp_tells_states_of_one_moment_apart(tmp_path: Path) -> None:
    """Clocks of file systems are coarse, and states of one length."""
    store, stamps = Store(tmp_path), set()
    for text in ("x", "y"):
        store.update(lambda s, text=text: changed(s, BUNDLE, "concise", {"description": text}))
        assert store.written == store.stamp()
        os.utime(tmp_path / "state.json", ns=(0, 0))
        stamps.add(store.stamp())
    assert len(stamps) == 2


def test_all_of_a_content_is_on_disk_before_it_has_its_name_and_others_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def noted(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(tmp_path).parts
        synced.append("/".join("PARTIAL" if part.startswith(".partial-") else part for part in path))

    monkeypatch.setattr(os, "fsync", noted)
    store = Store(tmp_path)
    content = store.keep(control("polite", "a"))
    partial = "contents/PARTIAL"
    files = {f"{partial}/{name}" for name in ("preference.json", "control/adapter_config.json")}
    files |= {f"{partial}/control/adapter_model.safetensors"}
    assert set(synced[:3]) == files
    assert synced[3:] == [f"{partial}/control", partial, "contents"]
    assert stat.S_IMODE(store.folder(content).stat().st_mode) == 0o755


@pytest.mark.parametrize("damage", ["{", '{"format_version": 2}', '{"entries": {"a": 1}}'])
def test_a_state_that_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "state.json").write_text(damage)
    with pytest.raises(ServerError) as caught:
        Store(tmp_path).read()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_file_system_does_not_do_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "registry")
    content = store.keep(control("polite", "a"))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: store.keep(control("polite", "b")),
        lambda: store.update(lambda s: added(s, BUNDLE, "polite", content)),
    ):
        with pytest.raises(ServerError, match=r"registry .*registry cannot be written: No space left on device"):
            write()
    assert store.read() == State()
    # Of what was not written nothing stays: the disk would be full for ever.
    assert [path.name for path in (tmp_path / "registry" / "contents").iterdir()] == [content]
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="cannot be written"):
        Store(tmp_path / "file").keep(control("polite", "a"))
    with pytest.raises(ServerError, match="cannot be held"):
        Store(tmp_path / "registry").hold("0" * 64)


def test_altered_contents_are_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    content = store.keep(control("polite", "a"))
    weights = store.control(content) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(MeetError, match="digest"):
        store.verify(content)
    (store.folder(content) / "preference.json").write_bytes(control("polite", "b")["preference.json"])
    with pytest.raises(ServerError, match="was altered"):
        store.record(content)


WRITERS = Path(__file__).with_name("registry_writers.py")


def run_writers(job: str, folder: Path) -> dict[str, int]:
    """Processes are forked, and killed, by one that has no threads."""
    done = subprocess.run(
        [sys.executable, str(WRITERS), job, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def test_processes_take_turns(tmp_path: Path) -> None:
    assert run_writers("turns", tmp_path) == {"processes": 4, "changes": 60}


def test_200_kills_lose_nothing_and_leave_nothing_half_written(tmp_path: Path) -> None:
    figures = run_writers("kills", tmp_path)
    assert (figures["kills"], figures["lost"], figures["half_written"]) == (200, 0, 0)
    assert figures["acknowledged"] > 200
