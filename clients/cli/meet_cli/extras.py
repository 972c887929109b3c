"""Says which extra a command needs where one is missing. Knows only what each extra is recognised by."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from meet_cli.errors import CommandError

Extra = Literal["training", "server", "ray"]

# The engine is not in `server`: it comes in one of two, `cpu` or `cuda`, and both import as vllm.
_MODULES: dict[Extra, tuple[str, ...]] = {
    "training": ("torch", "transformers", "peft", "accelerate"),
    "server": ("fastapi", "uvicorn", "transformers"),
    "ray": ("ray",),
}


def require(extra: Extra, command: str) -> None:
    """Raises CommandError where a library of `extra` is missing, with the command line that installs it."""
    missing = [module for module in _MODULES[extra] if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        raise CommandError(f"{command} needs the extra `{extra}` ({names} missing): pip install 'meet[{extra}]'")


def require_engine(command: str) -> None:
    """Raises CommandError where the server's libraries or vLLM are missing."""
    require("server", command)
    if find_spec("vllm") is None:
        raise CommandError(
            f"{command} needs the engine (vllm missing): pip install 'meet[server,cpu]', "
            "or 'meet[server,cuda]' on a machine with a CUDA device"
        )
