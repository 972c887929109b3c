"""Which of several processes this is, where a launcher (`torchrun`, `accelerate launch`) started them.

Reads what launchers put in the environment; imports nothing.
"""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this process says what is said once: results and progress."""
    return os.environ.get("RANK", "0") == "0"


def speaks_for_machine() -> bool:
    """Whether this process says what is said once a machine: what went wrong."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
