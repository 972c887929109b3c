"""A process ends when the one that started it is gone, be it by `kill -9`: no engine is left holding the memory that
the next one needs. vLLM sees to that for its workers, whose parent is the engine's process, and not for the engine's.

For processes of `multiprocessing`, spawned or forked. Knows nothing of MEET or vLLM.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import util
from multiprocessing.process import BaseProcess

GRACE_S = 10
"""From SIGTERM, which lets the process clean up, to SIGKILL."""

_installed = False


def install() -> None:
    """For this process and those that it forks from now on, once. A process that `multiprocessing` did not start has
    no parent here, and stays."""
    global _installed
    if _installed:
        return
    _installed = True
    _watch()
    util.register_after_fork(_watch, lambda _: _watch())


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), name="end-with-parent", daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
