"""A server of our own for as long as a command needs one: a subprocess on a free loopback port.

It is started in a process group of its own and the whole group is ended on every way out: the end of the
block, an error, Ctrl-C, SIGTERM and a closed terminal. Where this process is killed outright, the kernel sends the
server SIGTERM. Knows nothing of what is served.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from meet_cli.ending import signals_raise
from meet_cli.errors import CommandError

HOST = "127.0.0.1"
LOG_LINES = 20
_OWN = "meet: error: "
_ERROR = re.compile(r"\b\w*(Error|Exception)\b.*: ")
_POLL_S = 0.1
# Becomes the command behind it, after it has asked for SIGTERM at its parent's death (1 is PR_SET_PDEATHSIG). Not by
# preexec_fn, which is unsafe where this process has threads.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_SERVERS_KEYS = frozenset({"MEET_USER_KEYS", "MEET_ADMIN_KEYS"})  # of the user's own server, not of this one
_LOG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that answers: its address without `/v1`, and the subprocess that is behind it."""

    url: str
    process: subprocess.Popen[bytes]

    def wait(self) -> None:
        """Returns when the server has stopped by itself."""
        while not _has_exited(self.process):
            time.sleep(_POLL_S)


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def meet_server_command(bundle: Path, port: int, engine_args: Sequence[str] = ()) -> list[str]:
    """Command line of the MEET server for a bundle."""
    command = [
        sys.executable,
        "-m",
        "meet_cli.commands.serve",
        str(bundle),
        "--host",
        HOST,
        "--port",
        str(port),
    ]
    return [*command, "--", *engine_args]


def plain_server_command(model: Path, name: str, port: int, engine_args: Sequence[str] = ()) -> list[str]:
    """Command line of vLLM's own server for a model folder, which answers to the model name `name`."""
    command = [sys.executable, "-m", "meet_server.plain", str(model), "--port", str(port), "--name", name]
    return [*command, "--", *engine_args]


@contextmanager
def running_server(
    command: Sequence[str],
    port: int,
    *,
    what: str,
    ready_timeout_s: float = 900.0,
    stop_timeout_s: float = 30.0,
) -> Iterator[LocalServer]:
    """Starts `command`, which must serve on `port`, yields once GET /health answers 200, ends it afterwards.

    `command` begins with a program's path; `what` names it in errors. Raises CommandError where the port is taken,
    where it stops before it is ready, or is not ready in `ready_timeout_s`; the end of its log is a note of
    the error, and the whole log is kept. A server that does not stop on SIGTERM in `stop_timeout_s` is killed.
    """
    _check_free(port, what)
    with _log_file() as log, signals_raise():
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _WITH_PARENT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in _SERVERS_KEYS},
        )
        try:
            url = f"http://{HOST}:{port}"
            _wait_until_ready(process, url, what, log, ready_timeout_s)
            yield LocalServer(url, process)
        except BaseException as error:
            # Whatever went wrong, a server that stopped by itself is the likely reason.
            if _has_exited(process):
                _add_log(error, log)
            raise
        finally:
            _end_group(process, stop_timeout_s)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, what: str, log: IO[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _answers(f"{url}/health"):
        if _has_exited(process):
            raise CommandError(f"{what} stopped before it was ready: {_reason(log)}")
        if time.monotonic() > deadline:
            error = CommandError(f"{what} was not ready within {timeout_s:.0f} s: {_reason(log)}")
            _add_log(error, log)
            raise error
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        # No proxy: the address is our own, and http_proxy may be set.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # URLError is an OSError
        return False


def _check_free(port: int, what: str) -> None:
    # Another server's answer would pass for ours, which has not got so far as to find the port taken.
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise CommandError(f"{what} cannot listen on {HOST} port {port}: another server does; choose another port")


def _tail(log: IO[bytes]) -> list[str]:
    """The last lines of the log that hold text."""
    # pread, because the server writes through the same file offset.
    size = os.fstat(log.fileno()).st_size
    start = max(0, size - _LOG_BYTES)
    lines = os.pread(log.fileno(), _LOG_BYTES, start).decode(errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-LOG_LINES:]


def _reason(log: IO[bytes]) -> str:
    """The line of the log's end that says most: an error in our own words, any error, the last line."""
    lines = _tail(log) or ["its log is empty"]
    own = [line.removeprefix(_OWN) for line in lines if line.startswith(_OWN)]
    errors = [line.strip() for line in lines if _ERROR.search(line)]
    return (own or errors or lines)[-1]


def _add_log(error: BaseException, log: IO[bytes]) -> None:
    lines = _tail(log)
    # One line is a mistake that the server told in our own words; the error repeats it.
    if len(lines) > 1:
        kept = f"the end of the server's log, which is kept as {_keep(log)}:"
        error.add_note("\n".join([kept, *(f"  {line}" for line in lines)]))


@contextmanager
def _log_file() -> Iterator[IO[bytes]]:
    """A file that is gone after the block, unless it was kept."""
    with tempfile.NamedTemporaryFile(prefix="meet-server-", suffix=".log") as log:
        yield log


def _keep(log: IO[bytes]) -> Path:
    """Copies the log to where it stays."""
    return Path(shutil.copyfile(log.name, Path(log.name).with_suffix(".kept.log")))


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Has it ended? Leaves it to be reaped, so that its process group's id stays its own until then."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end_group(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Asks the group to stop, waits for its leader, and kills whatever of it is left."""
    deadline = time.monotonic() + timeout_s
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        while not _has_exited(process) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    finally:  # a second Ctrl-C does not wait for an orderly end
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
