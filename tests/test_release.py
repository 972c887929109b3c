"""What a release is made of: one version everywhere, types, the page in the wheel, and extras that install.

`make test-release` installs from a package registry; the other tests need no network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# Extras that are installed for real, and what must work then. The others hold gigabytes: they are resolved alone.
WORKS = {
    "": "import meet_bundle, meet_client, meet_cli.main, sys; assert 'torch' not in sys.modules",
    "server": "import meet_server.settings, meet_server.http.preference_field, meet_server.registry.store",
    "trackers": "import tensorboard",
}


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
    assert "meet_server/engine/lora_kernel.cpp" in names
    assert not [name for name in names if "node_modules" in name or name.startswith("tests/")]


def test_the_sdist_has_examples_and_no_leftovers(built: Path) -> None:
    (sdist,) = built.glob("meet-[0-9]*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "README.md", "docs/TUTORIAL.md"} <= names
    examples = {path.relative_to(ROOT).as_posix() for path in committed("examples")}
    assert len(examples) > 60
    assert examples <= names
    assert not [name for name in names if "node_modules" in name or ".venv" in name or name.startswith("bundles")]


def committed(folder: str) -> list[Path]:
    """The files of a folder that are part of the repository; all of them where it is no checkout."""
    listing = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        return [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_only_the_projects_own_files_say_its_version() -> None:
    released = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = [path for path in committed("training") + committed("server") + committed("clients/cli")
            if path.suffix == ".py" and f'"{released}"' in path.read_text()]  # fmt: skip
    assert said == []


def test_what_is_installed_here_satisfies_every_extra() -> None:
    """Those of which anything is installed: of the two engines one, and Ray and trackers where they were wanted."""
    for name, wanted in EXTRAS.items():
        requirements = [Requirement(each) for each in wanted]
        versions = {each.name: installed(each.name) for each in requirements}
        if name in ("cpu", "cuda", "ray", "trackers") and None in versions.values():
            continue
        unmet = [str(each) for each in requirements if not each.specifier.contains(versions[each.name] or "0")]
        assert unmet == [], name


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pip(python: Path, built: Path, extra: str, *more: str) -> str:
    """Installs the wheel with an extra, and what else it wants from the registry that pip is set to."""
    [wheel] = built.glob("meet-[0-9]*.whl")
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--find-links", str(built), wanted]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", WORKS)
def test_an_extra_installs_clean_into_a_fresh_environment(extra: str, built: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    bin_folder = tmp_path / "venv" / "bin"
    pip(bin_folder / "python", built, extra, "--quiet")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for command in (
        [bin_folder / "python", "-W", "error", "-c", WORKS[extra]],
        [bin_folder / "python", "-m", "pip", "check"],
        [bin_folder / "meet", "--version"],
        [bin_folder / "meet", "bundle", "--help"],
    ):
        done = subprocess.run(
            command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    if not extra:
        refused = subprocess.run(
            [bin_folder / "meet", "train", "x.yaml"],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 2
        assert "meet[training]" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - WORKS.keys()))
def test_an_extra_resolves(extra: str, built: Path, tmp_path: Path) -> None:
    """All that it wants is there, in versions that go together. Nothing is installed."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    report = json.loads(
        pip(tmp_path / "venv" / "bin" / "python", built, extra, "--quiet", "--dry-run", "--report", "-")
    )
    found = {one["metadata"]["name"].lower() for one in report["install"]}
    assert {Requirement(each).name.lower() for each in EXTRAS[extra]} <= found
