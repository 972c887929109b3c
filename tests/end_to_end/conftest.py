"""One small bundle of the real 135M model, trained on the demo's data, and one server of it, for the session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from meet_bundle import Bundle, open_bundle

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "documentation")]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "demo"
# Enough for the controls to be told apart with certainty, not for the demo's bounds: `make demo ONCE=1` is for those.
SMALL = {
    "examples_per_preference": 16,
    "stage1": {"epochs": 3, "learning_rate": 2.0e-3, "batch_size": 2},
    "stage2": {"epochs": 0.5, "learning_rate": 3.0e-5, "control_learning_rate": 1.0e-3, "batch_size": 4},
}

SOFT = {
    "controls": {"kind": "soft_prompt", "num_virtual_tokens": 16},
    "examples_per_preference": 8,
    "stage1": {"epochs": 3, "batch_size": 2},
    "stage2": {"epochs": 0},
}


OF_THE_TESTS = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "MEET_CACHE", "MEET_API_KEY", "PYTHONPATH")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What is committed, and nothing else."""
    folder = tmp_path / "meet"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture
def new_user(tmp_path: Path) -> dict[str, str]:
    """The environment of one: nothing in the cache, and nothing that the tests have set."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_THE_TESTS}
    return kept | {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture(scope="session")
def all_threads() -> Iterator[None]:
    """Commands run as a user's would: without what the server's tests set to start their small engine fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
        yield


@pytest.fixture(scope="session")
def real_bundle(all_threads: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`meet train` on the demo's configuration, cut to one axis and few examples."""
    return train(tmp_path_factory.mktemp("real"), SMALL)


@pytest.fixture(scope="session")
def real_soft_bundle(all_threads: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with soft prompts after the prompt, stage 1 alone."""
    return train(tmp_path_factory.mktemp("real-soft"), SOFT)


def train(folder: Path, more: dict[str, Any]) -> Bundle:
    config = yaml.safe_load((EXAMPLES / "train.yaml").read_text())
    kept = ("concise", "detailed")
    config |= more | {
        "output": str(folder / "bundle"),
        "data": [{"path": str(EXAMPLES / "data.train.jsonl"), "labels": {name: name for name in kept}}],
        "preferences": {name: config["preferences"][name] for name in kept},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "meet_cli.main", "train", str(folder / "train.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="session")
def real_server(real_bundle: Bundle) -> Iterator[str]:
    """Address of a server of that bundle, in float32, where equal tokens can be asked for."""
    with serving(real_bundle) as url:
        yield url


@pytest.fixture(scope="session")
def real_soft_server(real_soft_bundle: Bundle) -> Iterator[str]:
    """The same of the soft prompts."""
    with serving(real_soft_bundle) as url:
        yield url


@contextmanager
def serving(bundle: Bundle) -> Iterator[str]:
    from meet_cli.local_server import free_port, meet_server_command, running_server

    port = free_port()
    command = meet_server_command(bundle.path, port, ("--dtype=float32", "--max-model-len=1024"))
    with running_server(command, port, what="the server") as server:
        yield server.url
