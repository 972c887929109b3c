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


def install(prefix: str) -> None:
    """For this process and those that it forks from now on, where their name begins so. Once."""
    global _installed
    if _installed:
        return
    _installed = True
    _watch(prefix)
    util.register_after_fork(_watch, lambda watch: watch(prefix))


def _watch(prefix: str) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and multiprocessing.current_process().name.startswith(prefix):
        threading.Thread(target=_end_after, args=(parent,), name="end-with-parent", daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
