"""`make setup` refuses what it cannot use with one line, and does nothing when it is up to date."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = ROOT / "requirements" / "setup.sh"


def run_setup(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SETUP)], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("make setup: ")
    for word in words:
        assert word in line


def test_an_unsupported_python_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo "Python 3.9.1"; else exit 1; fi\n')
    old.chmod(0o755)
    refused(run_setup(PYTHON=str(old)), "Python 3.9.1 is not supported", "3.11, 3.12 or 3.13")


def test_a_python_without_its_headers_is_refused(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\ncase "$*" in --version) echo "Python 3.12.1" ;; *Python.h*) exit 1 ;; esac\n')
    bare.chmod(0o755)
    refused(run_setup(PYTHON=str(bare), MEET_ENGINE="cpu"), "Python.h of Python 3.12.1", "python3-dev")


def test_no_python_and_a_wrong_engine_are_refused(tmp_path: Path) -> None:
    refused(run_setup(PYTHON=str(tmp_path / "none")), "no", "none")
    refused(run_setup(PYTHON=sys.executable, MEET_ENGINE="tpu"), "MEET_ENGINE is 'tpu'", "cpu or cuda")


def test_an_environment_that_is_up_to_date_is_left_alone() -> None:
    stamp = ROOT / ".venv" / ".meet-setup"
    if not stamp.is_file() or Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("the tests do not run in the environment that make setup made")
    before = stamp.stat().st_mtime_ns
    done = run_setup(PYTHON=os.environ.get("PYTHON", "python3"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("lock", "at_least"),
    [("cpu", 100), ("cuda", 100), ("clients", 100), ("chat_page", 50), ("docs", 10), ("ray", 20), ("sbom", 20)],
)
def test_the_locks_pin_and_hash_everything_and_name_no_host(lock: str, at_least: int) -> None:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    assert "://" not in text
    entries = text.replace("\\\n", " ").splitlines()
    assert len(entries) > at_least
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)


def test_every_lock_is_tested() -> None:
    locks = {path.stem for path in (ROOT / "requirements").glob("*.lock")}
    assert locks == {"cpu", "cuda", "clients", "chat_page", "docs", "ray", "sbom"}
