"""What vLLM loads in each of its processes (`vllm.general_plugins`). Does nothing unless the server asked.

Only its workers run models, so only there does it matter; but plugins cannot tell where they are.
"""

from __future__ import annotations

import os

from meet_server.engine import banned_ids

NAME = "meet"
SWITCH = "MEET_CPU_FIXES"


def register() -> None:
    """Where MEET_CPU_FIXES=1 says so, has vLLM on a CPU apply adapters by `cpu_lora` and keep seeds by `cpu_seeds`.

    Where MEET_FIRST_BANNED_ID names an id, has models ban it and all above it by `banned_ids`.
    """
    if banned_ids.FIRST_ID in os.environ:
        banned_ids.install()
    if os.environ.get(SWITCH) != "1":
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    # vLLM asks its platform for the class by name, so this is the one place to set another.
    wrapper = "meet_server.engine.cpu_lora.DenseLora"
    type(current_platform).get_punica_wrapper = classmethod(lambda _: wrapper)
    from meet_server.engine import cpu_seeds

    cpu_seeds.install()
