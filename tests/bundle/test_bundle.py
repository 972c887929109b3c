"""A bundle appears whole or not at all, and one altered byte is seen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from meet_bundle import (
    BaseModelSource,
    BundleAltered,
    BundleError,
    Calibration,
    LoraControls,
    Manifest,
    Preference,
    Probe,
    SoftPromptControls,
    clean_up,
    open_bundle,
    recalibrated,
    seal,
    writing_bundle,
)
from meet_bundle.bundle import write_atomically
from meet_bundle.leftovers import held

NONE_YET = "0" * 64


def preference(name: str, **more: Any) -> Preference:
    probe = Probe(token_ids=(1, 2, 3), start=2, controlled=(-0.5,), uncontrolled=(-1.5,), dtype="float32")
    fields = {
        "axis": "length",
        "path": f"controls/{name}",
        "digest": NONE_YET,
        "trained_examples": 1,
        "probe": probe,
    }
    return Preference(name=name, **(fields | more))


def manifest(*preferences: Preference, **more: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "test",
        "base": BaseModelSource(source="none"),
        "model_digest": NONE_YET,
        "model_dtype": "float32",
        "controls": LoraControls(rank=8, alpha=16, target_modules=("q_proj",), shared_a=True),
        "preferences": preferences or (preference("concise", opposite="detailed"), preference("detailed")),
        "files": {},
    }
    return Manifest(**(fields | more))


def fill(folder: Path) -> None:
    for name in ("model", "controls/concise", "controls/detailed"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights.safetensors").write_bytes(name.encode() * 50)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    with writing_bundle(target) as folder:
        fill(folder)
        seal(folder, manifest())
    return target


def test_what_is_written_is_read_back(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    assert [p.name for p in bundle.manifest.preferences] == ["concise", "detailed"]
    assert bundle.control_path("concise") == bundle_folder / "controls/concise"
    assert bundle.manifest.preference("concise").digest != bundle.manifest.preference("detailed").digest
    assert sorted(bundle.manifest.files) == [
        "controls/concise/weights.safetensors",
        "controls/detailed/weights.safetensors",
        "model/weights.safetensors",
    ]
    assert list(bundle_folder.parent.iterdir()) == [bundle_folder]


@pytest.mark.parametrize("name", ["model", "controls/concise", "controls/detailed"])
def test_one_altered_byte_of_a_file_is_refused_by_name(bundle_folder: Path, name: str) -> None:
    file = bundle_folder / name / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleAltered, match=f"{name}/weights.safetensors was altered"):
        open_bundle(bundle_folder)


def test_one_altered_byte_anywhere_in_the_manifest_is_refused(bundle_folder: Path) -> None:
    file = bundle_folder / "meet.json"
    content = file.read_bytes()
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1
        file.write_bytes(altered)
        with pytest.raises(BundleError):
            open_bundle(bundle_folder, verify=False)
    file.write_bytes(content)
    open_bundle(bundle_folder)


def test_missing_and_added_files_are_named(bundle_folder: Path) -> None:
    (bundle_folder / "model/weights.safetensors").unlink()
    (bundle_folder / "controls/concise/evil.bin").write_text("x")
    with pytest.raises(BundleAltered) as caught:
        open_bundle(bundle_folder)
    assert "model/weights.safetensors is missing" in str(caught.value)
    assert "controls/concise/evil.bin is not in the manifest" in str(caught.value)


def test_links_are_refused(bundle_folder: Path) -> None:
    (bundle_folder / "model/more").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="link"):
        open_bundle(bundle_folder)


def test_a_manifest_that_is_a_link_or_no_file_is_refused(bundle_folder: Path) -> None:
    """What lies elsewhere changes without the bundle; a pipe would be waited for until somebody writes."""
    file, elsewhere = bundle_folder / "meet.json", bundle_folder.parent / "elsewhere.json"
    file.rename(elsewhere)
    with pytest.raises(BundleError, match=r"is no bundle: it has no meet\.json"):
        open_bundle(bundle_folder)
    file.symlink_to(elsewhere)
    with pytest.raises(BundleError, match=r"meet\.json: a bundle holds plain files and folders, this is a link"):
        open_bundle(bundle_folder, verify=False)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BundleError, match=r"meet\.json: a bundle holds plain files and folders, this is a link"):
        open_bundle(bundle_folder, verify=False)


@pytest.mark.parametrize("name", ["model", "controls", "controls/concise"])
def test_a_folder_that_is_a_link_is_refused(bundle_folder: Path, name: str) -> None:
    elsewhere = bundle_folder.parent / "elsewhere"
    (bundle_folder / name).rename(elsewhere)
    (bundle_folder / name).symlink_to(elsewhere)
    with pytest.raises(BundleError, match=f"bundle/{name}: a bundle holds plain files and folders, this is a link"):
        open_bundle(bundle_folder)


def test_a_link_to_a_bundle_opens_it(bundle_folder: Path) -> None:
    link = bundle_folder.with_name("latest")
    link.symlink_to(bundle_folder)
    assert open_bundle(link).manifest == open_bundle(bundle_folder).manifest


def test_the_report_may_be_written_anew(bundle_folder: Path) -> None:
    (bundle_folder / "report").mkdir()
    (bundle_folder / "report/evaluation.json").write_text("{}")
    open_bundle(bundle_folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle: it has no meet\.json"):
        open_bundle(tmp_path)


def test_another_format_version_is_refused_before_anything_else_is_read(bundle_folder: Path) -> None:
    file = bundle_folder / "meet.json"
    file.write_text(json.dumps({"format_version": 2, "new": "fields"}))
    with pytest.raises(BundleError, match="format_version is 2; this release reads 1"):
        open_bundle(bundle_folder)


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing_bundle(tmp_path / "bundle") as folder:  # noqa: PT012
        fill(folder)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_unsealed_block_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="nothing was sealed"),
        writing_bundle(tmp_path / "bundle") as folder,
    ):
        fill(folder)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_it_may_be_replaced(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="exists"), writing_bundle(bundle_folder):
        pass
    with writing_bundle(bundle_folder, replace=True) as folder:
        fill(folder)
        (folder / "model/weights.safetensors").write_text("new")
        seal(folder, manifest())
    assert open_bundle(bundle_folder).manifest.files["model/weights.safetensors"].size == 3
    assert list(bundle_folder.parent.iterdir()) == [bundle_folder]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "meet.json"
    file.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("label", ["", "a b", "a+b", "a=1", "a,b", "a:b", "a/b", "none", "None", "-a", "a" * 65])
def test_a_label_has_no_separator_of_the_wire(label: str) -> None:
    with pytest.raises(ValidationError, match="no label"):
        preference(label, path="controls/x")


@pytest.mark.parametrize("path", ["controls/../model", "/etc", "model", "controls/a/b", "controls/.."])
def test_a_control_lies_in_the_bundle(path: str) -> None:
    with pytest.raises(ValidationError):
        preference("concise", path=path)


MISTAKES: dict[str, Callable[[], object]] = {
    "default names verbose": lambda: manifest(default="verbose"),
    "verbosity names verbose": lambda: manifest(verbosity={"high": "verbose"}),
    "opposite names verbose": lambda: manifest(preference("concise", opposite="verbose")),
    "more than one preference: short": lambda: manifest(
        preference("concise", aliases=("short",)), preference("detailed", aliases=("short",))
    ),
    r"controlled \(2\)": lambda: Probe(
        token_ids=(1, 2), start=1, controlled=(0.0, 0.0), uncontrolled=(0.0,), dtype="float32"
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_manifest_that_contradicts_itself_is_refused(message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MISTAKES[message]()


def soft_prompts(*firsts: int | None) -> Manifest:
    names = ("concise", "detailed")
    return Manifest(
        name="soft",
        base=BaseModelSource(source="here"),
        model_digest=NONE_YET,
        model_dtype="float32",
        controls=SoftPromptControls(num_virtual_tokens=4, placement="after_prompt"),
        preferences=tuple(preference(name, first_token_id=first) for name, first in zip(names, firsts, strict=True)),
        files={},
    )


def test_virtual_tokens_are_runs_that_do_not_overlap() -> None:
    assert soft_prompts(100, 104).virtual_token_ids("detailed") == (104, 105, 106, 107)
    with pytest.raises(ValidationError, match="virtual tokens of concise and detailed overlap"):
        soft_prompts(100, 103)
    with pytest.raises(ValidationError, match="first_token_id of detailed is missing"):
        soft_prompts(100, None)


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with writing_bundle(target) as folder:
        (tmp_path / ".bundle.partial-killed").mkdir()
        (tmp_path / ".bundle.partial-killed/meet.json").write_text("{}")
        clean_up(target)
        assert [path for path in tmp_path.iterdir() if path != folder] == []
        fill(folder)
        seal(folder, manifest())
    clean_up(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_bundle_that_a_killed_writer_had_moved_away_comes_back(bundle_folder: Path) -> None:
    aside = bundle_folder.parent / ".bundle.replaced-killed"
    aside.mkdir()
    bundle_folder.rename(aside / "bundle")
    clean_up(bundle_folder)
    open_bundle(bundle_folder)
    assert list(bundle_folder.parent.iterdir()) == [bundle_folder]
    aside.mkdir()
    (aside / "bundle").mkdir()  # killed after the second rename: the new one is in place
    clean_up(bundle_folder)
    open_bundle(bundle_folder)
    assert not aside.exists()


def test_a_calibration_changes_the_manifest_alone(tmp_path: Path) -> None:
    with writing_bundle(tmp_path / "bundle") as folder:
        fill(folder)
        seal(folder, manifest())
    bundle = open_bundle(tmp_path / "bundle")
    calibration = Calibration(attribute="words", strengths=(0, 1), medians=(90, 30), recommended=0.8)
    returned = recalibrated(bundle, {"concise": calibration})
    opened = open_bundle(tmp_path / "bundle")  # whole, by every digest
    assert opened.manifest == returned.manifest
    assert opened.manifest.preference("concise").calibration == calibration
    assert opened.manifest.preference("detailed").calibration is None
    assert opened.manifest.files == bundle.manifest.files
    assert opened.manifest.digest != bundle.manifest.digest
    before = (tmp_path / "bundle" / "meet.json").read_bytes()
    with pytest.raises(KeyError, match="none"):
        recalibrated(opened, {"concise": calibration, "none": calibration})
    assert (tmp_path / "bundle" / "meet.json").read_bytes() == before


def curve(recommended: float) -> Calibration:
    return Calibration(attribute="words", strengths=(0, 1), medians=(90, 30), recommended=recommended)


def test_a_bundle_that_took_the_place_of_the_measured_one_is_not_calibrated(bundle_folder: Path) -> None:
    measured = open_bundle(bundle_folder)
    with writing_bundle(bundle_folder, replace=True) as folder:
        fill(folder)
        seal(folder, manifest(name="newer"))
    with pytest.raises(BundleError, match="was replaced or calibrated meanwhile"):
        recalibrated(measured, {"concise": curve(0.8)})
    assert open_bundle(bundle_folder).manifest.name == "newer"


def test_of_two_calibrations_at_once_the_second_is_told(bundle_folder: Path) -> None:
    measured = open_bundle(bundle_folder)
    first = recalibrated(measured, {"concise": curve(0.8)})
    with pytest.raises(BundleError, match="was replaced or calibrated meanwhile"):
        recalibrated(measured, {"detailed": curve(0.7)})
    recalibrated(first, {"detailed": curve(0.7)})
    found = [p.calibration for p in open_bundle(bundle_folder).manifest.preferences]
    assert found == [curve(0.8), curve(0.7)]


def test_who_replaces_a_bundle_and_who_calibrates_it_take_turns(bundle_folder: Path) -> None:
    code = (
        "import sys; from meet_bundle import BundleError, Calibration, open_bundle, recalibrated\n"
        "bundle = open_bundle(sys.argv[1]); print('read', flush=True)\n"
        "curve = Calibration(attribute='words', strengths=(0,), medians=(9,), recommended=1)\n"
        "try:\n    recalibrated(bundle, {'concise': curve})\n"
        "except BundleError as error:\n    print(error)"
    )
    # Not a thread: what another process holds is waited for, too.
    with held(bundle_folder):
        other = subprocess.Popen([sys.executable, "-c", code, bundle_folder], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "read\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        bundle_folder.rename(bundle_folder.with_name("old"))
        with writing_bundle(bundle_folder) as folder:
            fill(folder)
            seal(folder, manifest(name="newer"))
    said, _ = other.communicate(timeout=60)
    assert "was replaced or calibrated meanwhile" in said
    assert open_bundle(bundle_folder).manifest.name == "newer"


def test_a_bundle_is_not_replaced_while_somebody_holds_it(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Path] = []

    @contextmanager
    def noted(folder: Path) -> Iterator[None]:
        taken.append(folder)
        with held(folder):
            yield

    monkeypatch.setattr("meet_bundle.bundle.held", noted)
    with writing_bundle(bundle_folder, replace=True) as folder:
        fill(folder)
        seal(folder, manifest())
    assert taken[-1] == bundle_folder


def test_a_calibration_that_cannot_be_written_is_a_mistake(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    measured = open_bundle(bundle_folder)
    monkeypatch.setattr("tempfile.mkstemp", fail)
    with pytest.raises(BundleError, match=r"meet\.json cannot be written: Read-only file system"):
        recalibrated(measured, {"concise": curve(0.8)})
    assert open_bundle(bundle_folder).manifest == measured.manifest


FROZEN = Path(__file__).with_name("frozen")
"""Manifests as they were written in format 1: never to be written anew."""


def sealed_text(data: dict[str, Any]) -> str:
    """The canonical form with its digest, by hand: not by what is tested."""

    def form(digest: str) -> str:
        return json.dumps(data | {"digest": digest}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    return form(hashlib.sha256(form("").encode()).hexdigest())


@pytest.mark.parametrize(("name", "effort"), [("every_field", {"high": "detailed"}), ("without_effort", {})])
def test_a_manifest_of_an_earlier_release_opens(bundle_folder: Path, name: str, effort: dict[str, str]) -> None:
    (bundle_folder / "meet.json").write_bytes((FROZEN / f"{name}.json").read_bytes())
    opened = open_bundle(bundle_folder).manifest
    assert opened.effort == effort
    assert opened.preference("concise").description == "Brève – kurz"
    assert opened.digest == json.loads((FROZEN / f"{name}.json").read_bytes())["digest"]
    assert recalibrated(open_bundle(bundle_folder), {"detailed": curve(0.7)}).manifest.effort == effort
    open_bundle(bundle_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tone": {}}, "it has the field tone, which this version does not know"),
        (
            {"controls": {"kind": "lora", "rank": 0}},
            r"controls\.lora\.rank: Input should be greater than or equal to 1",
        ),
    ],
)
def test_a_sealed_manifest_that_is_not_understood_was_not_altered(
    bundle_folder: Path, change: dict[str, Any], message: str
) -> None:
    file = bundle_folder / "meet.json"
    file.write_text(sealed_text(json.loads(file.read_bytes()) | change))
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle_folder)
    assert not isinstance(caught.value, BundleAltered)


def test_a_manifest_in_another_form_was_altered(bundle_folder: Path) -> None:
    file = bundle_folder / "meet.json"
    data, text = json.loads(file.read_bytes()), file.read_text()
    assert sealed_text(data) == text
    for other in (
        json.dumps(data),
        text + "\n",
        text.replace('"name": "test"', '"name": "te\\u0073t"'),
        '{"a": 1,' + text[1:],
    ):
        file.write_text(other)
        with pytest.raises(BundleAltered, match="does not match its own digest"):
            open_bundle(bundle_folder)
    file.write_text(text.replace('"source": "none"', '"source": "\\ud800"'))
    with pytest.raises(BundleAltered, match="does not match its own digest"):
        open_bundle(bundle_folder)
