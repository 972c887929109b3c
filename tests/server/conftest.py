"""The engines of all tests of the server, one per kind of bundle: vLLM on a tiny bundle, its app on a real port.

Fast start: forked workers, which need one OpenMP thread and a torch that knew so when it was imported;
a small KV cache; no binding to a core, which other work may hold.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_TORCH_CAN_FORK = "torch" not in sys.modules or os.environ.get("OMP_NUM_THREADS") == "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "documentation")]

import pytest  # noqa: E402
from client_absent import absent  # noqa: E402
from running_server import Server, Soft  # noqa: E402

from meet_bundle import Manifest, open_bundle  # noqa: E402
from meet_server.settings import Settings  # noqa: E402

MORE_ARGS = (
    "--enable-prompt-tokens-details",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    # A random model would write white space for ever.
    '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
)
ENGINE_ARGS = ("--kv-cache-memory-bytes=67108864", "--max-num-seqs=64")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle: `concise` (alias `short`) and `detailed`, no default."""
    from tiny_bundle import make_bundle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_bundle(tmp_path_factory.mktemp("server") / "tiny-bundle")


@pytest.fixture(scope="session")
def manifest(bundle: Path) -> Manifest:
    return open_bundle(bundle).manifest


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Server]:
    """The one running server. Warnings of vLLM's start are its own affair."""
    yield from running(bundle, ENGINE_ARGS)


@pytest.fixture(scope="session", params=[("after_prompt", 16), ("before_prompt", 32)], ids=["after", "before"])
def soft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soft]:
    """One running server for each placement, of `concise` (alias `short`), `detailed` and `formal`."""
    from tiny_bundle import SoftPromptReference, make_soft_prompt_bundle

    placement, num = request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = make_soft_prompt_bundle(tmp_path_factory.mktemp(placement) / "bundle", placement, num)
        reference = SoftPromptReference(folder)
    for server in running(folder, (*ENGINE_ARGS, *MORE_ARGS)):
        yield Soft(server, reference, placement, num)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium. Not for the session: Playwright holds this thread's event loop as long as it lives."""
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        absent("needs a chromium on the path: `apt-get install chromium`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def run_server() -> Callable[..., Iterator[Server]]:
    """Runs another server of a bundle, with more engine arguments, until its iterator goes on."""
    return lambda folder, *engine_args: running(folder, (*ENGINE_ARGS, *engine_args))


def running(folder: Path, engine_args: tuple[str, ...]) -> Iterator[Server]:
    server = Server(
        Settings(bundle=folder, engine_args=engine_args, worker_start="fork" if _TORCH_CAN_FORK else "spawn")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.start()
    yield server
    server.stop()
