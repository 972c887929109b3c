"""How a mix is named to the engine's workers: its controls by their ids, and a strength each. Nothing but a few
numbers travels; the workers hold the controls themselves (`memory_adapters`). Knows no vLLM.

It stands where vLLM expects the path of an adapter, so that whatever makes a worker load it again finds all it needs.
"""

from __future__ import annotations

from collections.abc import Iterable

SCHEME = "meet-mix:"


def mix_path(parts: Iterable[tuple[int, float]]) -> str:
    """`meet-mix:1048576=0.7,1048577=-0.5` for ids and strengths."""
    return SCHEME + ",".join(f"{control_id}={strength!r}" for control_id, strength in parts)


def parse_mix_path(path: str) -> tuple[tuple[int, float], ...] | None:
    """The ids and strengths, or None for the path of a folder. Raises ValueError where it is malformed."""
    if not path.startswith(SCHEME):
        return None
    pairs = (part.split("=") for part in path.removeprefix(SCHEME).split(","))
    return tuple((int(control_id), float(strength)) for control_id, strength in pairs)
