"""`meet bundle inspect` and `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meet_bundle import Bundle


def test_inspect_shows_preferences_controls_and_files(meet: Callable[..., Any], bundle: Bundle) -> None:
    outcome = meet("bundle", "inspect", str(bundle.path))
    assert outcome.exit_code == 0
    for shown in ("toy", "toy-base", "LoRA, rank 8", "concise", "detailed", "length", "controls/concise/weights.txt"):
        assert shown in outcome.out


def test_inspect_writes_the_same_as_json(meet: Callable[..., Any], bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert meet("bundle", "inspect", str(bundle.path), "--json", str(file)).exit_code == 0
    figures = json.loads(file.read_text())
    assert [p["name"] for p in figures["preferences"]] == ["concise", "detailed"]
    assert figures["digest"] == bundle.manifest.digest
    assert [each.name for each in tmp_path.glob("*figures*")] == ["figures.json"]


def test_verify_accepts_a_whole_bundle(meet: Callable[..., Any], bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    outcome = meet("bundle", "verify", str(bundle.path), "--json", str(file))
    assert outcome.exit_code == 0
    assert f"{bundle.path}: whole; 3 files" in outcome.out
    assert json.loads(file.read_text())["files"] == 3


def test_verify_refuses_a_bundle_altered_by_one_byte(meet: Callable[..., Any], bundle: Bundle) -> None:
    (bundle.path / "model/weights.txt").write_text("mode1")
    outcome = meet("bundle", "verify", str(bundle.path))
    assert outcome.exit_code == 2
    assert outcome.err == f"meet: error: {bundle.path}: model/weights.txt was altered\n"


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_no_bundle_is_a_mistake(meet: Callable[..., Any], tmp_path: Path, command: str) -> None:
    outcome = meet("bundle", command, str(tmp_path))
    assert outcome.exit_code == 2
    assert outcome.err == f"meet: error: {tmp_path} is no bundle: it has no meet.json\n"


def test_json_into_a_folder_that_is_not_there_is_a_mistake(meet: Callable[..., Any], bundle: Bundle) -> None:
    outcome = meet("bundle", "verify", str(bundle.path), "--json", "/no/such/folder/file.json")
    assert outcome.exit_code == 2
    assert "there is no folder /no/such/folder" in outcome.err
    assert outcome.out == ""


def test_json_into_a_folder_that_cannot_be_written_is_a_mistake_told_first(
    meet: Callable[..., Any], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    outcome = meet("bundle", "verify", str(bundle.path), "--json", str(tmp_path / "figures.json"))
    assert outcome.exit_code == 2
    assert f"the folder {tmp_path} is not writable" in outcome.err
    assert outcome.out == ""


def test_json_to_a_link_writes_what_it_leads_to(meet: Callable[..., Any], bundle: Bundle, tmp_path: Path) -> None:
    file, link = tmp_path / "figures.json", tmp_path / "link.json"
    file.write_text("old")
    link.symlink_to(file)
    assert meet("bundle", "verify", str(bundle.path), "--json", str(link)).exit_code == 0
    assert link.is_symlink()
    assert json.loads(file.read_text())["files"] == 3
