"""The figures of an evaluation against values that were derived by hand."""

from __future__ import annotations

import pytest

from meet_training.evaluation.bootstrap import median_of
from meet_training.evaluation.figures import holds, median_index, share_of


def test_holds_counts_the_prompts_on_the_asked_side() -> None:
    values, others = [1.0, 5.0, 3.0, 2.0], [2.0, 4.0, 3.0, 9.0]
    lower = holds(values, others, higher=False)
    assert (lower.share, lower.num_prompts) == (0.5, 4)  # 1 < 2 and 2 < 9; 3 = 3 is a tie
    assert holds(values, others, higher=True).share == 0.25  # 5 > 4 alone


def test_ties_hold_on_neither_side() -> None:
    assert holds([0.0, 0.0], [0.0, 0.0], higher=True).share == 0
    assert holds([0.0, 0.0], [0.0, 0.0], higher=False).share == 0


def test_holds_needs_one_value_a_prompt_on_both_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        holds([1.0, 2.0], [1.0], higher=True)


@pytest.mark.parametrize(
    ("num_held", "num_prompts", "low", "high"),
    [
        # z = 1.959964, z^2 = 3.841459. All held: n / (n + z^2) to 1.
        (5, 5, 5 / 8.841459, 1.0),
        # None held: 0 to z^2 / (n + z^2).
        (0, 5, 0.0, 3.841459 / 8.841459),
        # One of two: 0.5 +- 1.959964 * sqrt(0.125 + 0.2400912) / 2.9207294 = 0.5 +- 0.40547.
        (1, 2, 0.09453, 0.90547),
        # 76 of 80: (0.95 + 0.0240091 -+ 1.959964 * sqrt(0.00059375 + 0.00015006)) / 1.0480182.
        (76, 80, 0.87838, 0.98039),
    ],
)
def test_wilsons_interval(num_held: int, num_prompts: int, low: float, high: float) -> None:
    share = share_of(num_held, num_prompts)
    assert share.share == num_held / num_prompts
    assert share.low == pytest.approx(low, abs=1e-5)
    assert share.high == pytest.approx(high, abs=1e-5)


def test_wilsons_interval_never_leaves_0_to_1() -> None:
    for num_prompts in range(1, 101):
        none, every = share_of(0, num_prompts), share_of(num_prompts, num_prompts)
        assert none.low == pytest.approx(0, abs=1e-12)
        assert every.high == pytest.approx(1, abs=1e-12)
        assert none.low >= 0
        assert every.high <= 1


def test_no_prompts_have_no_share_and_no_median() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        share_of(0, 0)
    with pytest.raises(ValueError, match="at least one prompt"):
        median_of([])


def test_median_and_where_it_stands() -> None:
    assert median_of([3.0, 1.0, 2.0]).value == 2
    assert median_of([4.0, 1.0, 2.0, 3.0]).value == 2.5
    assert median_index([3.0, 1.0, 2.0]) == 2
    assert median_index([4.0, 1.0, 2.0, 3.0]) == 2  # the lower of 2 and 3
    assert median_index([7.0, 7.0, 7.0]) == 1
