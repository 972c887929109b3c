"""A manifest of three preferences, for what needs no files."""

from __future__ import annotations

from typing import Any

from meet_bundle import BaseModelSource, Calibration, LoraControls, Manifest, Preference, Probe
from meet_server.preferences.resolve import Resolver

DIGEST = "0" * 64
PROBE = Probe(token_ids=(1, 2), start=1, controlled=(-1.0,), uncontrolled=(-2.0,), dtype="float32")


def preference(name: str, **fields: Any) -> Preference:
    return Preference(
        name=name, axis="length", path=f"controls/{name}", digest=DIGEST, trained_examples=1, probe=PROBE, **fields
    )


def manifest(default: str | None = None, **fields: Any) -> Manifest:
    return Manifest(
        name="m",
        base=BaseModelSource(source="random"),
        model_digest=DIGEST,
        model_dtype="float32",
        controls=LoraControls(rank=8, alpha=16, target_modules=("q_proj",), shared_a=True),
        preferences=(
            preference("concise", aliases=("short", "brief")),
            preference("formal", strength_range=(0.0, 1.5)),
            preference(
                "playful",
                calibration=Calibration(attribute="marks", strengths=(1, 2), medians=(1, 2), recommended=1.5),
            ),
        ),
        default=default,
        verbosity={"low": "concise"},
        effort={"low": "concise"},
        files={},
        **fields,
    )


def resolver(default: str | None = None, **fields: Any) -> Resolver:
    return Resolver(manifest(default, **fields))
