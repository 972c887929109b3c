"""Generators of requests whose prompt is not read yet start anew; all others are left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from meet_server.engine.cpu_seeds import rewinding


def test_unread_rows_start_anew_and_are_hidden_meanwhile() -> None:
    def seeded(seed: int) -> torch.Generator:
        generator = torch.Generator()
        generator.manual_seed(seed)
        return generator

    first = {seed: torch.rand(1, generator=seeded(seed)).item() for seed in (1, 2)}
    generators = {0: seeded(1), 2: seeded(2)}
    for generator in generators.values():
        torch.rand(1, generator=generator)  # both have sampled once
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(generators=generators, num_reqs=3),
        discard_request_mask=SimpleNamespace(np=np.array([True, True, False, True])),
    )
    seen: list[Any] = []
    rewinding(lambda runner, *_: seen.append(dict(runner.input_batch.generators)))(runner, "scheduled")
    assert [sorted(each) for each in seen] == [[2]]
    assert sorted(generators) == [0, 2]
    assert torch.rand(1, generator=generators[0]).item() == first[1]
    assert torch.rand(1, generator=generators[2]).item() != first[2]
