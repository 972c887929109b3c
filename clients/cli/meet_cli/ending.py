"""How commands end when they are told to: what they started is ended, and what they had kept is whole."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")
EXIT_TERMINATED = 128 + signal.SIGTERM


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """While the block runs, SIGTERM ends it as an exception does, so that what it started is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_: int, __: FrameType | None) -> None:
        raise SystemExit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, ended by SIGTERM as it is by Ctrl-C: the task is cancelled and may clean up.

    An exception that a handler raised would come up in whatever callback runs at that moment, and be lost there.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    terminated = False

    async def cancelled_by_sigterm() -> Result:
        task = asyncio.ensure_future(work)

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await task

    before = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(cancelled_by_sigterm())
    except asyncio.CancelledError:
        if terminated:
            raise SystemExit(EXIT_TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
