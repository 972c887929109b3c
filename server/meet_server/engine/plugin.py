"""What vLLM loads in each of its processes (`vllm.general_plugins`). Does nothing unless the server asked.

Only its workers run models and its engine process makes steps, so only there does it matter; but plugins cannot tell
where they are.
"""

from __future__ import annotations

import os

from meet_server.engine import banned_ids, end_with_parent, together

NAME = "meet"
SWITCH = "MEET_WORKERS"
# Leaves adapters on CPUs to vLLM's own kernels. For comparison alone: they are slow, and up to 0.32 wrong.
STOCK_KERNELS = "MEET_STOCK_LORA_KERNELS"
# How vLLM's name of the process begins that starts workers. Those have an end along with it from vLLM.
ENGINE_PROCESS = "EngineCore"


def register() -> None:
    """Where MEET_WORKERS=1 says so: mixes by `memory_adapters`, an end along with the server by `end_with_parent`,
    one step for requests that belong together by `together`, and on CPUs adapters by `resident_lora` or, where that
    cannot be, `cpu_lora`, seeds by `cpu_seeds`, and norms by `cpu_kernels`.

    Where MEET_FIRST_BANNED_ID names an id, has models ban it and all above it by `banned_ids`.
    """
    if banned_ids.FIRST_ID in os.environ:
        banned_ids.install()
    if os.environ.get(SWITCH) != "1":
        return
    end_with_parent.install(ENGINE_PROCESS)
    together.install()
    from meet_server.engine import memory_adapters

    memory_adapters.install()
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from meet_server.engine import cpu_kernels, cpu_seeds

    cpu_kernels.install()
    cpu_seeds.install()
    if os.environ.get(STOCK_KERNELS) == "1":
        return
    from meet_server.engine import resident_lora

    resident_lora.install()
    # vLLM asks its platform for the class by name, so this is the one place to set another.
    wrapper = "meet_server.engine.cpu_lora.DenseLora"
    type(current_platform).get_punica_wrapper = classmethod(lambda _: wrapper)
