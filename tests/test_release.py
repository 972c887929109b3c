"""What a release is made of: one version everywhere, types, and the page in the wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_one_version() -> None:
    versions = {
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
        tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())["project"]["version"],
        json.loads((ROOT / "clients" / "typescript" / "package.json").read_text())["version"],
        json.loads((ROOT / "clients" / "typescript" / "package-lock.json").read_text())["version"],
    }
    assert len(versions) == 1
    assert versions.pop() in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist of both distributions."""
    folder = tmp_path_factory.mktemp("dist")
    for source in (ROOT, ROOT / "clients" / "python"):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheels_hold_everything_and_types(built: Path) -> None:
    names = {name for wheel in built.glob("*.whl") for name in zipfile.ZipFile(wheel).namelist()}
    for package in ("meet_bundle", "meet_training", "meet_server", "meet_cli", "meet_client"):
        assert f"{package}/py.typed" in names
    assert {f"meet_server/page/{name}" for name in ("index.html", "playground/page.js", "playground/page.css")} <= names
    assert not [name for name in names if "node_modules" in name or name.startswith("tests/")]


def test_the_sdist_has_examples_and_no_leftovers(built: Path) -> None:
    (sdist,) = built.glob("meet-[0-9]*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"examples/demo/train.yaml", "examples/clients/openai_python.py", "LICENSE", "CHANGELOG.md"} <= names
    assert not [name for name in names if "node_modules" in name or ".venv" in name or name.startswith("bundles")]
