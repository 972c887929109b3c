"""Starting, stopping and failing, in processes of their own round an app that has no engine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from meet_bundle import BundleError
from meet_server import plain, run
from meet_server.errors import ServerError
from meet_server.settings import Settings

# An app whose lifespan ends with a line on standard output, as the engine's shutdown would.
PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from fastapi import FastAPI
from meet_server.errors import ServerError
from meet_server.http.health import health_router
from meet_server.lifecycle import Lifecycle
from meet_server.run import bound_socket, run_again, to_stdout
from meet_server.settings import Settings

@asynccontextmanager
async def lifespan(app):
    app.state.engine, app.state.example, app.state.needs_key = SimpleNamespace(errored=False), {}, False
    try:
        yield
    finally:
        to_stdout("shut down")

def create():
    app = FastAPI(lifespan=lifespan)
    app.state.lifecycle = Lifecycle()
    app.include_router(health_router(lambda: app.state.engine.errored, app.state.lifecycle))

    @app.post("/die")
    async def die():
        app.state.engine.errored = True

    @app.get("/slow")
    async def slow():
        await asyncio.sleep(60)

    return app

delay, failure = sys.argv[1:]
settings = Settings(
    bundle=Path("x"), port=0, shutdown_grace_s=1, drain_delay_s=float(delay), engine_failure=failure
)
try:
    with bound_socket(settings.host, settings.port) as sock:
        run_again(create, sock, settings, to_stdout)
except ServerError as error:
    to_stdout(f"error: {error}")
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
"""


class Process:
    def __init__(self, drain_delay_s: float = 0, engine_failure: str = "exit") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(drain_delay_s), engine_failure],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:"), line
        assert "curl" in line
        assert "no key is set" in line
        self.url = line.split()[1]

    def until_ready(self) -> list[str]:
        """The lines before the next one that says so."""
        assert self.process.stdout is not None
        lines = []
        while not (line := self.process.stdout.readline()).startswith("ready: "):
            assert line, lines
            lines.append(line)
        return lines

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=30)
        return self.process.returncode, out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_it_cleanly(number: signal.Signals, status: int) -> None:
    server = Process()
    assert httpx.get(f"{server.url}/none").status_code == 404
    server.process.send_signal(number)
    assert server.end() == (status, "shut down\n")


def test_a_request_that_does_not_end_is_cut_off_after_the_grace() -> None:
    server = Process()
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{server.url}/slow", timeout=1)
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (0, "shut down\n")


def test_a_head_without_an_end_is_cut_off() -> None:
    """No key was asked for yet, so that anybody could fill the memory with headers."""
    server = Process()
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        with suppress(OSError):  # it may have gone before all is sent
            for _ in range(64):
                connection.sendall(b"a" * (1 << 16))
        with suppress(ConnectionResetError):
            assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
            assert b"HTTP/1.1" not in connection.recv(1000)
    assert httpx.get(f"{server.url}/none").status_code == 404
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (0, "shut down\n")


def test_readiness_ends_before_connections_do() -> None:
    server = Process(drain_delay_s=1.5)
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    while (ready := httpx.get(f"{server.url}/health/ready")).status_code == 200:
        assert time.monotonic() - start < 1
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
    assert httpx.get(f"{server.url}/none").status_code == 404  # still answered
    assert server.end() == (0, "shut down\n")
    assert 1.4 < time.monotonic() - start < 6


def test_a_second_signal_does_not_wait() -> None:
    server = Process(drain_delay_s=60)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (0, "shut down\n")
    assert time.monotonic() - start < 6


def test_a_dead_engine_ends_it_with_an_error() -> None:
    server = Process()
    httpx.post(f"{server.url}/die")
    status, out = server.end()
    assert status == 2
    assert out == "shut down\nerror: the engine has died, and the server with it; its own messages stand above\n"


def test_a_dead_engine_is_replaced_where_that_is_wanted_and_not_for_ever() -> None:
    server = Process(engine_failure="restart")
    for _ in range(3):
        httpx.post(f"{server.url}/die")
        assert server.until_ready() == ["shut down\n"]
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    httpx.post(f"{server.url}/die")
    message = "the engine has died, and the server with it; its own messages stand above"
    assert server.end() == (2, f"shut down\nerror: {message}\n")


def test_a_server_that_was_started_anew_still_stops() -> None:
    server = Process(engine_failure="restart")
    httpx.post(f"{server.url}/die")
    server.until_ready()
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (0, "shut down\n")


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port") as caught:
            run.serve(Settings(bundle=tmp_path, port=port))
    assert "\n" not in str(caught.value)


def test_host_that_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"cannot listen on no\.such\.host\.invalid"):
        run.serve(Settings(bundle=tmp_path, host="no.such.host.invalid"))


def test_no_bundle_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        run.serve(Settings(bundle=tmp_path, port=0))


def test_plain_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vllm")
    assert plain.main([str(tmp_path), "--name=base", "--port=0", "--", "--max-num-seqs=2"]) == 2
    assert capsys.readouterr().err == f"{tmp_path} is no model folder: it has no config.json\n"
