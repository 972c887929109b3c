"""Work on an event loop, ended by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from textwrap import dedent

import pytest

from meet_cli.ending import EXIT_TERMINATED, run_async


def test_what_work_gives_is_given_and_the_handler_is_as_before() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 3

    before = signal.getsignal(signal.SIGTERM)
    assert run_async(work()) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_cancels_it_once_and_lets_it_clean_up() -> None:
    cleaned = []

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        run_async(work())
    assert ended.value.code == EXIT_TERMINATED == 143
    assert cleaned == [True]


def test_work_that_is_cancelled_otherwise_stays_cancelled() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_async(work())


def test_nothing_but_the_exit_status_tells_of_it() -> None:
    """Also while other tasks run, in one of which an exception of a handler would be lost, with a traceback."""
    code = """
        import asyncio, os, signal
        from meet_cli.ending import run_async, sigterm_raises

        async def busy():
            while True:
                await asyncio.sleep(0)

        async def work():
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
            await asyncio.gather(*(busy() for _ in range(8)))

        with sigterm_raises():
            run_async(work())
    """
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (143, "")
