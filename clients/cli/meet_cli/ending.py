"""How commands end when they are told to, by SIGTERM or by SIGHUP, which a terminal that is closed sends: what they
started is ended, and what they had kept is whole. A command under `nohup`, which ignores SIGHUP, goes on.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


@contextmanager
def signals_raise() -> Iterator[None]:
    """While the block runs, these signals end it as an exception does, so that what it started is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:  # terminal and shell send one each: the second must not cut the cleaning short
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _not_ignored()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, ended by these signals as it is by Ctrl-C: the task is cancelled and may clean up.

    An exception that a handler raised would come up in whatever callback runs at that moment, and be lost there.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    before = {number: signal.getsignal(number) for number in _not_ignored()}
    ended_by = None

    async def cancelled_by_signals() -> Result:
        task = asyncio.ensure_future(work)

        def end(number: signal.Signals) -> None:
            nonlocal ended_by
            if not ended_by == number == signal.SIGHUP:
                ended_by = number
                task.cancel()

        for number in before:
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        return await task

    try:
        return asyncio.run(cancelled_by_signals())
    except asyncio.CancelledError:
        if ended_by is not None:
            raise SystemExit(128 + ended_by) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_ignored() -> list[signal.Signals]:
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGHUP] if hangs_up else [signal.SIGTERM]
