"""Work on an event loop, ended by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent

import pytest

from meet_cli.ending import run_async, signals_raise


def test_what_work_gives_is_given_and_the_handler_is_as_before() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 3

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert run_async(work()) == 3
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.fixture
def hangs_up() -> Iterator[None]:
    """SIGHUP is not ignored, as it is where the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cancels_it_once_and_lets_it_clean_up(number: signal.Signals, status: int) -> None:
    cleaned = []

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), number)
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        run_async(work())
    assert ended.value.code == status
    assert cleaned == [True]


@pytest.mark.usefixtures("hangs_up")
def test_a_second_hangup_does_not_cut_the_cleaning_short() -> None:
    """The terminal and the shell send one each."""
    cleaned = []

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGHUP)
        try:
            await asyncio.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)
            cleaned.append("asynchronously")

    def both() -> None:
        with signals_raise():
            try:
                run_async(work())
            finally:
                cleaned.append("at the end")

    def at_once() -> None:
        with signals_raise():
            try:
                os.kill(os.getpid(), signal.SIGHUP)
            finally:
                os.kill(os.getpid(), signal.SIGHUP)
                cleaned.append("at once")

    for each in (both, at_once):
        with pytest.raises(SystemExit) as ended:
            each()
        assert ended.value.code == 129
    assert cleaned == ["asynchronously", "at the end", "at once"]


@pytest.mark.usefixtures("hangs_up")
def test_under_nohup_a_hangup_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def work() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.01)
        return 3

    with signals_raise():
        os.kill(os.getpid(), signal.SIGHUP)
        assert run_async(work()) == 3


def test_work_that_is_cancelled_otherwise_stays_cancelled() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_async(work())


def test_nothing_but_the_exit_status_tells_of_it() -> None:
    """Also while other tasks run, in one of which an exception of a handler would be lost, with a traceback."""
    code = """
        import asyncio, os, signal
        from meet_cli.ending import run_async, signals_raise

        async def busy():
            while True:
                await asyncio.sleep(0)

        async def work():
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
            await asyncio.gather(*(busy() for _ in range(8)))

        with signals_raise():
            run_async(work())
    """
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (143, "")
