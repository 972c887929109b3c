"""An engine that hangs, and one whose server is killed, each of a server of its own.

Of the first, requests under way get an error, and another takes its place; the second ends too.
What was asked of an engine that dies meanwhile is tried on a fake one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from controls import renamed
from example_manifest import preference

from meet_bundle import open_bundle
from meet_server.app import watch
from meet_server.errors import EngineDied
from meet_server.registry.changing import commit
from meet_server.registry.live import LiveControls
from meet_server.registry.state import added
from meet_server.registry.store import Store
from meet_server.settings import Settings

PROGRAM = """
import sys
from pathlib import Path
from meet_server.run import serve
from meet_server.settings import Settings
bundle, registry, worker_start, *engine_args = sys.argv[1:]
serve(Settings(bundle=bundle, registry=registry, port=0, engine_args=engine_args, worker_start=worker_start,
               engine_timeout_s=3, engine_failure="restart"))
"""


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def start_server(bundle: Path, registry: Path, worker_start: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(bundle), str(registry), worker_start]
    return subprocess.Popen([*command, "--kv-cache-memory-bytes=67108864"], stdout=subprocess.PIPE, text=True)


class Dying:
    """An engine that loads `num_loads` adapters and dies of what it is asked next, which it never answers."""

    def __init__(self, num_loads: int) -> None:
        self.num_loads = num_loads
        self.errored = False

    async def add_lora(self, request: Any) -> None:
        if not self.num_loads:
            await self._die()
        self.num_loads -= 1

    async def remove_lora(self, lora_id: int) -> None:
        await self._die()

    async def _die(self) -> None:
        self.errored = True
        await asyncio.Event().wait()


def test_what_is_asked_of_an_engine_that_dies_meanwhile_ends() -> None:
    pytest.importorskip("vllm")
    from meet_server.engine.adapters import Adapters

    control = LiveControls().number(preference("concise"), Path("controls/concise"))

    async def go() -> None:
        with pytest.raises(EngineDied, match="the engine died while loading controls"):
            await asyncio.wait_for(Adapters(Dying(num_loads=0), 1).load(control), 30)
        adapters = Adapters(Dying(num_loads=1), 1)
        await adapters.load(control)
        await asyncio.wait_for(adapters.unload(control), 30)

    asyncio.run(go())


class Hanging:
    """An engine that answers with an error twice, and then no more."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.is_dead = False

    async def answers(self, timeout_s: float) -> bool:
        self.num_asked += 1
        if self.num_asked < 3:
            raise RuntimeError("what is sleeping?")
        return False

    def kill(self) -> None:
        self.is_dead = True


def test_an_answer_that_is_an_error_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    engine: Any = Hanging()
    settings = Settings(bundle=Path("x"), engine_timeout_s=0.01)
    asyncio.run(asyncio.wait_for(watch(engine, settings), 30))
    assert (engine.num_asked, engine.is_dead) == (3, True)
    assert caplog.text.count("RuntimeError: what is sleeping?") == 2


@pytest.mark.parametrize("worker_start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_server_that_is_killed(bundle: Path, tmp_path: Path, worker_start: str) -> None:
    process = start_server(bundle, tmp_path / "registry", worker_start)
    assert process.stdout is not None
    with process.stdout as said:
        url = said.readline().split()[1]
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 200
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2  # the engine's own and its worker
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while (left := [each for each in started if is_alive(each)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for each in left:
        each.kill()
    assert not left


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced(bundle: Path, tmp_path: Path) -> None:
    opened, store = open_bundle(bundle), Store(tmp_path / "registry")
    content = store.keep(renamed(opened, "concise", "polite"))
    commit(opened, store, lambda state: added(state, opened.manifest, "polite", content))
    process = start_server(bundle, tmp_path / "registry", "fork")
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        body = {"prompt": "rain", "max_tokens": 6, "temperature": 0, "preference": "polite"}
        before = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        for child in children(process.pid):
            os.kill(child, signal.SIGSTOP)
        under_way = httpx.post(f"{url}/v1/completions", json={**body, "stream": True, "max_tokens": 400}, timeout=60)
        assert under_way.status_code >= 500 or "error" in under_way.text
        line: list[str] = []
        said = process.stdout  # vLLM tells there of the engine's end before the new one is ready
        reading = threading.Thread(target=lambda: line.extend(each for each in said if each.startswith("ready: ")))
        reading.start()
        deadline = time.monotonic() + 120
        while not line and time.monotonic() < deadline:
            time.sleep(0.1)
        assert line
        reply = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert reply.json()["choices"][0]["text"] == before
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        reading.join(timeout=10)
        assert time.monotonic() - start < 20
    finally:
        for each in (*children(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.wait()
        process.stdout.close()
