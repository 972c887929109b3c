"""Runs what a page shows as a user's shell would, in a folder: blocks that end, and servers until they are stopped.

Knows nothing of what the commands do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCES = ("training", "server", "clients/cli", "clients/python")
READY = "http://127.0.0.1:8000/health/ready"


def python_path(root: Path) -> str:
    """PYTHONPATH of the sources in a checkout, which are then run whoever installed the environment."""
    return os.pathsep.join(str(root / source) for source in SOURCES)


class Step(NamedTuple):
    """One block of commands that was run."""

    commands: str
    seconds: float
    output: str


def run(block: str, folder: Path, environment: Mapping[str, str]) -> Step:
    """One block that ends. Fails with what it printed where a command of it fails."""
    begun = time.monotonic()
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return Step(block, time.monotonic() - begun, done.stdout)


@contextmanager
def serving(block: str, folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The server that the block starts, once it is ready; stopped as Ctrl-C does."""
    assert not is_ready(), "something serves on port 8000, which the page's server wants"
    log = folder / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {block}"], cwd=folder, env=environment, stdout=file, stderr=file, process_group=0
        )
    try:
        while not is_ready():
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)


def is_ready() -> bool:
    try:
        with urllib.request.urlopen(READY, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
