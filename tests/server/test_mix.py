"""The arithmetic and the names of mixes, by values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from meet_server.preferences.mix import content_key, quantised, weighted_sum


@pytest.mark.parametrize(
    ("strength", "applied"), [(0.7, 0.7), (0.7000001, 0.7), (-0.126, -0.13), (0.004, 0.0), (-0.004, 0.0), (1, 1.0)]
)
def test_strengths_are_multiples_of_a_hundredth(strength: float, applied: float) -> None:
    assert repr(quantised(strength)) == repr(applied)  # -0.0 would be another key


def test_a_mix_is_named_by_content() -> None:
    a, b = "a" * 64, "b" * 64
    key = content_key([(a, 0.7), (b, -0.5)])
    assert key == content_key([(b, -0.5), (a, 0.7)])
    others = [[(a, 0.7)], [(a, 0.7), (b, 0.5)], [(b, 0.7), (a, -0.5)], [(a, 0.71), (b, -0.5)]]
    assert key not in map(content_key, others)


def test_weighted_sum() -> None:
    total = weighted_sum([0.5, -2.0], [np.array([[2.0, 4.0]]), np.array([[1.0, 0.25]])])
    assert total.tolist() == [[-1.0, 1.5]]
