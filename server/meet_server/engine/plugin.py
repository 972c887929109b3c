"""What vLLM loads in each of its processes (`vllm.general_plugins`). Does nothing unless the server asked.

Only its workers run adapters, so only there does it matter; but plugins cannot tell where they are.
"""

from __future__ import annotations

import os

NAME = "meet"
SWITCH = "MEET_CPU_LORA"


def register() -> None:
    """Has vLLM on a CPU apply adapters by `cpu_lora.DenseLora`, where MEET_CPU_LORA=1 says so."""
    if os.environ.get(SWITCH) != "1":
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    # vLLM asks its platform for the class by name, so this is the one place to set another.
    wrapper = "meet_server.engine.cpu_lora.DenseLora"
    type(current_platform).get_punica_wrapper = classmethod(lambda _: wrapper)
