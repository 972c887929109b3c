"""Kept records: several that write one file at once, and lines that were cut off. With caches it is tested too."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from meet_bundle.leftovers import claimed
from meet_training.data.records import RecordFile
from meet_training.errors import TrainingError


class Texts(RecordFile[str]):
    what = "text"

    def read(self, fields: dict[str, Any]) -> str:
        return str(fields["text"])

    def write(self, record: str) -> Mapping[str, Any]:
        return {"text": record}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "texts.jsonl"


def test_what_another_added_is_seen_once_it_is_looked_for(path: Path) -> None:
    one, two = Texts(path), Texts(path)
    one.add("a", "of one")
    two.add("b", "of two")
    assert "b" not in one
    one.refresh()
    assert (one.get("b"), two.get("a"), len(one), len(two)) == ("of two", "of one", 2, 2)
    one.add("c", "of one")
    two.refresh()
    assert two["c"] == "of one"
    assert path.read_text().count("\n") == 3


def test_a_line_that_was_cut_off_is_dropped_by_who_adds_the_next_one(path: Path) -> None:
    one = Texts(path)
    one.add("a", "whole")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-5])
    other = Texts(path)
    assert path.read_bytes() != whole  # who reads changes nothing
    other.refresh()
    one.add("b", "after it")
    assert Texts(path).get("b") == "after it"
    assert path.read_bytes().startswith(whole + b'{"key": "b"')


def test_a_line_of_another_that_is_no_record_is_named(path: Path) -> None:
    one = Texts(path)
    one.add("a", "good")
    with path.open("a") as file:
        file.write('{"key": "b"}\n')
    with pytest.raises(TrainingError, match=r"texts\.jsonl:2: not a kept text"):
        one.refresh()


def test_a_file_that_was_removed_meanwhile_begins_anew(path: Path) -> None:
    one = Texts(path)
    one.add("a", "a longer one")
    path.unlink()
    one.refresh()
    Texts(path).add("b", "b")
    one.add("c", "c")
    assert (one["a"], one["b"], sorted(Texts(path)._records)) == ("a longer one", "b", ["b", "c"])


def test_lines_of_several_processes_stay_whole(path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_add, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    kept = Texts(path)
    assert len(kept) == path.read_bytes().count(b"\n") == 300
    assert all(kept[f"{name}{i}"] == name * 20_000 for name in "abc" for i in range(100))


def _add(path: Path, name: str) -> None:
    kept = Texts(path)
    for i in range(100):
        kept.refresh()
        kept.add(f"{name}{i}", name * 20_000)


def test_a_folder_is_claimed_by_one_alone_and_goes_with_its_claim(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "work"
    with claimed(folder) as first, claimed(folder) as second:
        assert (first, second) == (True, False)
    assert not folder.exists()
    with claimed(folder) as mine:
        assert mine
        (folder / "a checkpoint").touch()
    assert folder.exists()


def test_a_claim_of_a_folder_that_was_removed_meanwhile_is_none_of_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with claimed(folder) as one:
        folder.rmdir()
        with claimed(folder) as two:  # another folder of that name, and its claim is whole
            assert (one, two) == (True, True)
            with claimed(folder) as three:
                assert not three
        folder.mkdir()
    assert folder.exists()  # not the one that was claimed


def test_who_waits_for_a_claim_gets_it_in_a_folder_that_is_there(tmp_path: Path) -> None:
    folder, order = tmp_path / "work", tmp_path / "order"
    code = (
        "import sys, pathlib\n"
        "from meet_bundle.leftovers import claimed\n"
        "folder, order = map(pathlib.Path, sys.argv[1:])\n"
        "with claimed(folder, wait=True) as mine, order.open('a') as file:\n"
        "    file.write(f'then {mine and folder.exists()}')\n"
    )
    with claimed(folder):  # not by a fork, which would share the claim
        waiting = subprocess.Popen([sys.executable, "-c", code, str(folder), str(order)])
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1.0)
        order.write_text("first, ")
    assert waiting.wait(30) == 0
    assert order.read_text() == "first, then True"
