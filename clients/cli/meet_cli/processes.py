"""Which of several processes this is, where a launcher (`torchrun`, `accelerate launch`) started them.

Reads what launchers put in the environment; imports nothing.
"""

from __future__ import annotations

import os
import time

# How far the process that tells a mistake may be behind the others on its way to it, in seconds.
PATIENCE_S = 20.0


def is_main_process() -> bool:
    """Whether this process says what is said once: results and progress."""
    return os.environ.get("RANK", "0") == "0"


def tells_mistakes() -> bool:
    """Whether this process says what is said once a machine: what went wrong. It may not return at all.

    torchrun, which `accelerate launch` starts too, ends all processes as soon as one has failed. The one that found a
    mistake first must not be that one where another tells it, or nobody does: it waits to be ended. A mistake of its
    own, by which nobody ends it, it tells itself.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    time.sleep(PATIENCE_S)
    return True
