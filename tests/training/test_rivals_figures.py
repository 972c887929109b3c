"""Figures of a comparison on results made by hand, against values derived by hand: who is ahead, and who is not."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meet_training.evaluation.bootstrap import Estimate
from meet_training.evaluation.log_odds import Score
from meet_training.evaluation.replies import Reply
from meet_training.rivals.figures import Quality, broken_share, by_prompt, ordered_pairs, quality
from meet_training.rivals.intervals import difference, over_prompts_and_seeds
from meet_training.rivals.measuring import Cost, Measured, together
from meet_training.rivals.rival import Point
from meet_training.rivals.standing import Outcome, Standing, beside, share, standing_of, standings

PAIR = [("short", "long")]


def measured(
    short: list[float],
    long: list[float],
    *,
    lift: float = 0.0,
    neutral: tuple[float, int] = (-10.0, 10),
    neutral_tuning: tuple[float, int] = (-10.0, 10),
    finished: bool = True,
) -> Measured:
    """Values under both preferences; each prefers its own given reply by `lift` nats a token, of 4 tokens each."""
    num = len(short)
    own, other = [Score(-4.0, 4)] * num, [Score(-4.0 - 4 * lift, 4)] * num
    replies = [Reply("word", finished, 1)] * num
    return Measured(
        replies={"short": replies, "long": replies},
        values={"short": short, "long": long},
        scores={"short": {"short": own, "long": other}, "long": {"short": other, "long": own}},
        neutral=[Score(*neutral)] * num,
        neutral_tuning=[Score(*neutral_tuning)] * num,
    )


def outcome(name: str, *by_seed: Measured, has_neutral: bool = True) -> Outcome:
    return Outcome(name, name, has_neutral, Point(), {Point(): by_seed[0]}, by_seed)


class TestFiguresOfAPrompt:
    def test_holds_where_the_second_of_the_order_has_more(self) -> None:
        found = by_prompt(measured([1, 5, 3], [2, 4, 3]), PAIR, slice(None))
        assert found.holds.tolist() == [1, 0, 0]  # a tie does not hold

    def test_silence_holds_nowhere(self) -> None:
        given = measured([0, 0, 1], [2, 2, 2])
        silent, words = Reply(" ", True, 1), Reply("word", True, 1)
        given = replace(given, replies={"short": [silent, words, words], "long": [words, words, silent]})
        assert by_prompt(given, PAIR, slice(None)).holds.tolist() == [0, 1, 0]

    def test_log_odds_are_the_mean_of_both_sides_in_nats_a_token(self) -> None:
        found = by_prompt(measured([1.0], [2.0], lift=0.25), PAIR, slice(None))
        assert found.log_odds.tolist() == [0.25]

    def test_log_odds_compare_a_reply_under_both_preferences(self) -> None:
        scores = {
            "short": {"short": [Score(-4.0, 4)], "long": [Score(-6.0, 3)]},
            "long": {"short": [Score(-5.0, 4)], "long": [Score(-3.0, 3)]},
        }
        found = by_prompt(replace(measured([1.0], [2.0]), scores=scores), PAIR, slice(None))
        # The short reply has 1 nat more under its own for 4 tokens, the long one 3 for 3: the mean of 0.25 and 1.
        assert found.log_odds.tolist() == [0.625]

    def test_rows_of_the_other_part_do_not_count(self) -> None:
        given = measured([9, 1, 1], [1, 2, 2])
        assert by_prompt(given, PAIR, slice(1, None)).holds.tolist() == [1, 1]
        cut = [Reply("word", False, 1), *given.replies["short"][1:]]
        given = replace(given, replies={"short": cut, "long": given.replies["long"]})
        assert [broken_share(given, rows) for rows in (slice(None), slice(1, None))] == [pytest.approx(1 / 6), 0]

    def test_of_four_levels_every_two_count(self) -> None:
        config: Any = SimpleNamespace(axes={"x": SimpleNamespace(order=tuple("abcd"))})
        pairs = ordered_pairs(config)
        same = {x: {y: [Score(-1.0, 1)] for y in "abcd"} for x in "abcd"}
        values = {"a": [1.0], "b": [2.0], "c": [4.0], "d": [3.0]}
        each = Measured({x: [Reply("x", True, 1)] for x in "abcd"}, values, same, [])
        assert by_prompt(each, pairs, slice(None)).holds.tolist() == [pytest.approx(5 / 6)]  # c and d are swapped

    def test_models_of_one_rival_are_put_together(self) -> None:
        both = measured([1.0], [2.0], neutral=(-3.0, 2))
        one = Measured(
            {"short": both.replies["short"]},
            {"short": [1.0]},
            {"short": both.scores["short"]},
            both.neutral,
            both.neutral_tuning,
            Cost(1, 2, 3.0, 4),
        )
        other = Measured(
            {"long": both.replies["long"]},
            {"long": [2.0]},
            {"long": both.scores["long"]},
            both.neutral,
            both.neutral_tuning,
            Cost(1, 2, 3.0, 4),
        )
        found = together([one, other])
        assert (found.values, found.scores) == (both.values, both.scores)
        assert found.neutral == [Score(-6.0, 4)]
        assert found.neutral_tuning == [Score(-20.0, 20)]
        assert found.cost == Cost(2, 4, 6.0, 8)


class TestWhatARateIsChosenBy:
    def quality(self, result: Measured) -> Quality:
        base = measured([1.0, 1.0], [1.0, 1.0])
        return quality(result, base, PAIR, slice(None), 1.03)

    def test_is_how_often_it_holds_and_of_equals_log_odds(self) -> None:
        half, all_hold = measured([1.0, 3.0], [2.0, 2.0], lift=0.9), measured([1.0, 1.0], [2.0, 2.0], lift=0.1)
        found = self.quality(half)
        assert (found.too_much, found.holds) == (0.0, 0.5)
        assert found.log_odds == pytest.approx(0.9)
        assert self.quality(all_hold).rank > found.rank
        assert self.quality(measured([1.0, 1.0], [2.0, 2.0], lift=0.2)).rank > self.quality(all_hold).rank

    def test_what_costs_too_much_perplexity_comes_behind_all_that_does_not(self) -> None:
        # 0.2, 0.4 and 0.9 nats more for ten tokens: 2.02%, 4.08% and 9.42% more perplexity.
        fair = self.quality(measured([1.0, 3.0], [2.0, 2.0], neutral_tuning=(-10.2, 10)))
        dear = self.quality(measured([1.0, 3.0], [2.0, 2.0], neutral_tuning=(-10.4, 10)))
        dearer = self.quality(measured([1.0, 1.0], [2.0, 2.0], lift=0.9, neutral_tuning=(-10.9, 10)))
        ratios = [each.perplexity_ratio for each in (fair, dear, dearer)]
        assert ratios == pytest.approx([1.0202, 1.0408, 1.0942], abs=5e-5)
        assert fair.rank > dear.rank > dearer.rank  # where all are, the least so

    def test_of_a_rival_without_a_neutral_state_perplexity_decides_nothing(self) -> None:
        dear = measured([1.0], [2.0], neutral_tuning=(-20.0, 10))
        found = quality(dear, measured([1.0], [2.0]), PAIR, slice(None), None)
        assert (found.too_much, found.perplexity_ratio, found.holds) == (0.0, None, 1.0)

    def test_where_the_base_says_nothing_perplexity_decides_nothing(self) -> None:
        silent = measured([], [])
        found = quality(replace(measured([1.0], [2.0]), neutral_tuning=[]), silent, PAIR, slice(None), 1.03)
        assert (found.too_much, found.perplexity_ratio) == (0.0, None)


class TestIntervals:
    def test_hold_the_truth_at_their_rate(self) -> None:
        generator = np.random.default_rng(5)
        num = 300
        # Seeds differ little, prompts much, as they do: the truth of each simulation is 0.
        samples = generator.normal(0, 1, (num, 1, 40)) + generator.normal(0, 0.02, (num, 3, 1))
        covered = np.mean([(e := over_prompts_and_seeds(each)).low <= 0 <= e.high for each in samples])
        assert 0.91 <= covered <= 0.98

    @pytest.mark.parametrize("seeds_differ_by", [0.05, 0.5, 5.0])
    def test_two_equals_of_three_seeds_are_told_apart_in_one_of_twenty_comparisons_at_most(
        self, seeds_differ_by: float
    ) -> None:
        """However much a seed matters."""
        generator = np.random.default_rng(6)
        num = 300
        prompts = generator.normal(0, 1, (num, 1, 1, 16))
        seeds = generator.normal(0, seeds_differ_by, (num, 2, 3, 1)) + generator.normal(0, 0.5, (num, 2, 3, 16))
        both = prompts + seeds
        told_apart = np.mean([beside(ours, theirs).standing != Standing.LEVEL for ours, theirs in both])
        assert told_apart <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / num)

    def test_of_three_seeds_that_differ_it_is_students_t(self) -> None:
        found = over_prompts_and_seeds([[0.0] * 10, [0.5] * 10, [1.0] * 10])
        # t of 2 degrees at 97.5% is 4.303; 0.5 / sqrt(3) is the standard error of the mean.
        half = 4.303 * 0.5 / math.sqrt(3)
        assert (found.low, found.high) == (pytest.approx(0.5 - half, rel=0.15), pytest.approx(0.5 + half, rel=0.15))

    def test_of_a_difference_it_is_welchs(self) -> None:
        differ, alike, one = [[0.0] * 10, [0.5] * 10, [1.0] * 10], [[0.0] * 10] * 3, [[0.0] * 10]
        error = 0.5 / math.sqrt(3)
        # What does not differ adds no variance and no degrees of freedom; of two alike there are 2 + 2: t is 2.776.
        for ours, theirs, half in (
            (differ, alike, 4.303 * error),
            (alike, differ, 4.303 * error),
            (differ, one, 4.303 * error),
            (differ, differ, 2.776 * math.sqrt(2) * error),
        ):
            by = difference(ours, theirs)
            assert (by.value - by.low, by.high - by.value) == (pytest.approx(half, rel=0.15),) * 2

    def test_are_of_prompts_not_of_prompts_and_seeds(self) -> None:
        assert over_prompts_and_seeds([[1.0] * 10] * 3).num_prompts == 10
        assert difference([[1.0] * 10] * 3, [[1.0] * 10] * 3).num_prompts == 10

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
    def test_without_seeds_and_prompts_there_are_none(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="at least one seed and one prompt"):
            over_prompts_and_seeds(np.ones(shape))

    def test_prompts_stay_paired(self) -> None:
        easy_and_hard = np.array([[0.0, 10.0, 20.0, 30.0]])
        by = difference(easy_and_hard + 1, easy_and_hard)
        assert (by.value, by.low, by.high) == (1, 1, 1)

    def test_seeds_that_disagree_widen_them(self) -> None:
        agree = over_prompts_and_seeds([[0.5] * 10] * 3)
        disagree = over_prompts_and_seeds([[0.0] * 10, [0.5] * 10, [1.0] * 10])
        assert (agree.low, agree.high) == (0.5, 0.5)
        assert disagree.low < 0.2
        assert disagree.high > 0.8

    def test_other_prompts_cannot_be_compared(self) -> None:
        with pytest.raises(ValueError, match="3 prompts on one side and 2 on the other"):
            difference([[1.0] * 3], [[1.0] * 2])

    def test_of_a_share_they_are_the_wider_of_both_and_end_at_0_and_1(self) -> None:
        differ = share(np.repeat([[0.0], [0.5], [1.0]], 20, axis=1))  # t of 2 degrees would lead beyond
        assert (differ.low, differ.high) == (0, 1)
        none = share(np.zeros((3, 20)))
        assert (none.low, none.high) == (0, pytest.approx(3.841459 / (20 + 3.841459), abs=1e-6))

    def test_of_a_share_that_is_all_they_are_wilsons(self) -> None:
        whole = share(np.ones((3, 20)))
        assert (whole.value, whole.high) == (1, 1)
        assert whole.low == pytest.approx(20 / (20 + 3.841459), abs=1e-6)  # as of 20 prompts, not of 60


class TestWhoIsAhead:
    @pytest.mark.parametrize(
        ("low", "high", "standing"),
        [
            (0.1, 0.3, Standing.AHEAD),
            (0.0, 0.3, Standing.LEVEL),
            (-0.3, 0.0, Standing.LEVEL),
            (-0.3, -0.1, Standing.BEHIND),
        ],
    )
    def test_an_interval_that_reaches_0_tells_nobody_apart(self, low: float, high: float, standing: Standing) -> None:
        assert standing_of(Estimate(0.0, low, high, 20)) is standing

    def test_beyond_the_interval_and_not(self) -> None:
        low, high = np.zeros((3, 20)), np.ones((3, 20))
        half = np.tile([0.0, 1.0], (3, 10))
        assert beside(high, low).standing == Standing.AHEAD
        assert beside(low, high).standing == Standing.BEHIND
        assert beside(half, 1 - half).standing == Standing.LEVEL
        one_more = half.copy()
        one_more[:, 0] = 1  # one prompt of twenty decides nothing
        assert beside(one_more, half).standing == Standing.LEVEL

    def test_a_table_of_three(self) -> None:
        n = 20
        good = outcome("good", *[measured([1.0] * n, [2.0] * n, lift=0.5) for _ in range(3)])
        bad = outcome("bad", *[measured([2.0] * n, [1.0] * n, lift=0.1, neutral=(-20.0, 10)) for _ in range(3)])
        alike = outcome("alike", measured([1.0] * n, [2.0] * n, lift=0.5, finished=False))
        base = measured([1.0] * n, [1.0] * n)
        rows = {row.name: row for row in standings([good, bad, alike], base, PAIR, slice(None))}
        assert {name: row.holds.value for name, row in rows.items()} == {"good": 1, "bad": 0, "alike": 1}
        assert rows["good"].log_odds.value == pytest.approx(0.5)
        assert rows["good"].beside["bad"]["holds"].standing == Standing.AHEAD
        assert rows["bad"].beside["good"]["log_odds"].standing == Standing.BEHIND
        assert rows["bad"].beside["good"]["log_odds"].difference.value == pytest.approx(-0.4)
        assert rows["good"].beside["alike"]["holds"].standing == Standing.LEVEL
        # A nat a token more than the base's: e times its perplexity.
        assert rows["bad"].perplexity_ratio is not None
        assert rows["bad"].perplexity_ratio.value == pytest.approx(math.e)
        assert (rows["good"].broken, rows["alike"].broken) == (0, 1)
        assert rows["good"].medians == {"short": 1, "long": 2}
        assert (rows["good"].num_seeds, rows["alike"].num_seeds) == (3, 1)

    def test_a_row_is_of_all_seeds_and_of_its_own_prompts(self) -> None:
        first = replace(measured([9.0, 1.0], [9.0, 2.0]), cost=Cost(10, 20, 2.0, 7))
        second = replace(measured([9.0, 3.0], [9.0, 4.0], finished=False), cost=Cost(10, 20, 6.0, 7))
        one = outcome("one", first, second)
        (row,) = standings([one], measured([1.0] * 2, [1.0] * 2), PAIR, slice(1, None))
        assert row.cost == Cost(10, 20, 4.0, 7)  # its seconds the mean
        assert row.medians == {"short": 2, "long": 3}
        assert row.broken == 0.5
        assert row.point == ""  # where nothing was searched there is nothing to tell
        searched = replace(one, searched={Point(): first, Point(3.0): second})
        (row,) = standings([searched], measured([1.0] * 2, [1.0] * 2), PAIR, slice(1, None))
        assert row.point == "x1"

    def test_where_the_base_says_nothing_there_is_no_perplexity(self) -> None:
        one = outcome("one", replace(measured([1.0], [2.0]), neutral=[]))
        (row,) = standings([one], replace(measured([1.0], [1.0]), neutral=[]), PAIR, slice(None))
        assert row.perplexity_ratio is None

    def test_without_a_neutral_state_there_is_no_perplexity(self) -> None:
        one = outcome("one", measured([1.0] * 5, [2.0] * 5), has_neutral=False)
        (row,) = standings([one], measured([1.0] * 5, [1.0] * 5), PAIR, slice(None))
        assert row.perplexity_ratio is None
