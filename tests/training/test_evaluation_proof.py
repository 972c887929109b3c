"""Every figure of an evaluation on replies that were made by hand, against values derived by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meet_training.errors import TrainingError
from meet_training.evaluation.bootstrap import Array, Estimate, bootstrap, mean_of, median_of
from meet_training.evaluation.figures import Holds, holds, mean_difference, same_share, share_of
from meet_training.evaluation.leakage import leakage
from meet_training.evaluation.length_limits import length_violations
from meet_training.evaluation.log_odds import Score, Scored, log_odds
from meet_training.evaluation.mixes import Side, mixed
from meet_training.evaluation.odds_by_strength import odds_curve
from meet_training.evaluation.replies import Reply
from meet_training.evaluation.side_effects import broken, parity, repeated_share, side_effects
from meet_training.evaluation.similarity import EmbeddingSimilarity, LexicalOverlap, similarity_of
from meet_training.evaluation.strength import Curve, Point, curve, rank_correlations, recommended, rises
from meet_training.evaluation.verdict import Verdict, judge, sentence

NUM_SIMULATIONS = 400


class TestIntervals:
    """95% of the intervals hold the truth; with 400 of them, 92% to 98% is within 2.75 standard errors."""

    @pytest.mark.parametrize("num_prompts", [40, 100])
    def test_of_a_mean_cover_the_truth(self, num_prompts: int) -> None:
        generator = np.random.default_rng(1)
        samples = generator.normal(3.0, 2.0, size=(NUM_SIMULATIONS, num_prompts))
        estimates = [mean_of(sample) for sample in samples]
        assert 0.92 <= np.mean([each.low <= 3.0 <= each.high for each in estimates]) <= 0.98

    def test_of_a_median_cover_the_truth(self) -> None:
        generator = np.random.default_rng(2)
        samples = generator.exponential(1.0, size=(NUM_SIMULATIONS, 80))
        estimates = [median_of(sample) for sample in samples]
        assert 0.92 <= np.mean([each.low <= math.log(2) <= each.high for each in estimates]) <= 0.98

    @pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.98])
    def test_of_a_share_cover_the_truth(self, share: float) -> None:
        covered = 0.0  # exactly, from the probability of each count
        for count in range(101):
            each = share_of(count, 100)
            likely = math.comb(100, count) * share**count * (1 - share) ** (100 - count)
            covered += likely * (each.low <= share <= each.high)
        assert 0.93 <= covered <= 0.98

    @pytest.mark.parametrize("num_prompts", [*range(1, 21), 60, 100])
    def test_two_equals_are_told_apart_in_one_of_twenty_comparisons_at_most(self, num_prompts: int) -> None:
        told_apart = 0.0  # exactly, from the probability of each count
        for count in range(num_prompts + 1):
            each = holds([1] * count + [0] * (num_prompts - count), [0.5] * num_prompts, higher=True)
            told_apart += math.comb(num_prompts, count) / 2**num_prompts * (each.better or each.worse)
        assert told_apart <= 0.05
        assert (told_apart > 0) == (num_prompts >= 6)  # 6 of 6, either way: 2 in 64
        assert num_prompts < 60 or told_apart > 0.02

    def test_of_a_share_by_the_bootstrap_are_a_binomials(self) -> None:
        # Of 4 prompts 2 hold: a resample has 0 or 4 of them in 1/16 of cases each, more than the 2.5% cut off.
        half = share_of(2, 4)
        assert (half.bootstrap_low, half.bootstrap_high) == (0.0, 1.0)
        whole = share_of(4, 4)
        assert (whole.bootstrap_low, whole.bootstrap_high) == (1.0, 1.0)
        assert whole.low == pytest.approx(4 / (4 + 3.841459), abs=1e-6)  # Wilson's: n / (n + z^2)

    def test_are_the_same_for_the_same_values_and_keep_pairs_together(self) -> None:
        uneven = [math.sqrt(n) for n in range(9)]  # of three values any seed would have the same interval
        assert mean_of(uneven) == mean_of(uneven)
        always_one = bootstrap(
            [[1.0, 2.0], [5.0, 6.0], [8.0, 9.0]], lambda drawn: (drawn[..., 1] - drawn[..., 0]).mean(1)
        )
        assert (always_one.value, always_one.low, always_one.high, always_one.num_prompts) == (1.0, 1.0, 1.0, 3)

    def test_cut_off_a_fortieth_at_each_end(self) -> None:
        # All three draws are the 1 in 1 of 27 resamples, 3.7%; they are the 0s in 8 of 27.
        found = mean_of([0.0, 0.0, 1.0])
        assert (found.low, found.high) == (0.0, 1.0)
        # Of four draws all are the 1 in 1 of 256, three in 12 of 256: 5.1% have three or more.
        assert mean_of([0.0, 0.0, 0.0, 1.0]).high == 0.75

    def test_are_the_same_however_many_resamples_are_held_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = np.arange(14.0).reshape(7, 2) ** 2
        held: list[int] = []

        def statistic(drawn: Array) -> Array:
            held.append(drawn.size)
            mean: Array = drawn.mean(axis=(1, 2))
            return mean

        at_once = bootstrap(rows, statistic)
        for batch, most in ((100, 98), (1, 14)):  # seven resamples of 14 numbers, and one that is more than a batch
            held.clear()
            monkeypatch.setattr("meet_training.evaluation.bootstrap._BATCH", batch)
            assert bootstrap(rows, statistic) == at_once
            assert max(held) == most

    def test_are_shown_from_low_to_high(self) -> None:
        assert Estimate(0.2142, 0.1518, 0.2761, 9).shown(3) == "0.214 [0.152, 0.276]"

    def test_of_no_prompts_there_are_none(self) -> None:
        with pytest.raises(ValueError, match="at least one prompt"):
            mean_of([])


CLEAR = holds([2.0] * 20, [1.0] * 20, higher=True)
CHANCE = holds([2.0, 0.0] * 10, [1.0] * 20, higher=True)
"""Beside no control: on the asked side everywhere, and on half of the prompts."""


class TestHolds:
    def test_advantage_counts_both_sides_and_ties_for_neither(self) -> None:
        # 5 > 4 and 3 > 1 on the asked side, 1 < 2 on the other, 7 = 7 on none: 2 of 4, 2 of 3 decided, (2 - 1) / 4.
        more = holds([5, 3, 1, 7], [4, 1, 2, 7], higher=True)
        assert (more.share, more.advantage.value) == (0.5, 0.25)
        assert more.decided is not None
        assert (more.decided.share, more.decided.num_prompts) == (pytest.approx(2 / 3), 3)
        assert holds([5, 3, 1, 7], [4, 1, 2, 7], higher=False).advantage.value == -0.25
        assert mean_difference([5, 3, 1, 7], [4, 1, 2, 7]).value == 0.5  # (1 + 2 - 1 + 0) / 4

    def test_two_identical_controls_are_not_distinguishable(self) -> None:
        words = [3.0, 8.0, 2.0, 5.0, 9.0, 1.0] * 5
        none = holds(words, words, higher=False)
        assert (none.share, none.advantage.value, none.decided) == (0, 0, None)
        assert judge(none, CLEAR, share_of(0, 30), None) is Verdict.NOT_DISTINGUISHABLE

    def test_two_controls_that_differ_by_chance_are_not_distinguishable(self) -> None:
        ours, theirs = np.random.default_rng(5).normal(100, 20, size=(2, 50)).tolist()
        assert judge(holds(ours, theirs, higher=False), CLEAR, share_of(0, 50), 0.9) is Verdict.NOT_DISTINGUISHABLE

    def test_a_control_with_b_of_0_does_nothing(self) -> None:
        """Its replies are the uncontrolled ones. Against a real opposite it holds all the same: it is said first."""
        uncontrolled = [f"reply {n} of some length" for n in range(20)]
        same = same_share(list(uncontrolled), uncontrolled)
        assert same.share == 1.0
        assert judge(holds([5.0] * 20, [1.0] * 20, higher=True), CHANCE, same, None) is Verdict.DOES_NOTHING

    def test_near_ties_of_bfloat16_do_not_hide_that_it_does_nothing(self) -> None:
        longer = holds([5.0] * 20, [1.0] * 20, higher=True)
        assert judge(longer, CHANCE, share_of(10, 20), None) is Verdict.DOES_NOTHING
        assert judge(longer, CHANCE, share_of(9, 20), None) is Verdict.HOLDS
        assert judge(longer, CLEAR, share_of(17, 20), None) is Verdict.HOLDS  # what differs lies on one side
        for num_more in (2, 18):  # or nearly all of it
            mostly = holds([2.0] * num_more + [0.0] * (20 - num_more), [1.0] * 20, higher=True)
            assert judge(longer, mostly, share_of(12, 20), None) is Verdict.HOLDS

    def test_few_that_differ_say_nothing_of_what_is_the_same(self) -> None:
        """All replies that differ are on the asked side, or none is on any: neither looks like chance."""
        for value in (0.0, 2.0):
            few = holds([value] * 3 + [1.0] * 4, [1.0] * 7, higher=False)
            assert judge(few, few, share_of(4, 7), None) is Verdict.NOT_DISTINGUISHABLE
        level = holds([0.0] * 20, [0.0] * 20, higher=True)
        assert judge(CLEAR, level, share_of(12, 20), None) is Verdict.HOLDS
        assert judge(CLEAR, level, share_of(18, 20), None) is Verdict.DOES_NOTHING

    @pytest.mark.parametrize(
        ("num_asked", "num_other", "num_ties", "bound", "verdict"),
        [
            (20, 0, 0, 0.95, Verdict.HOLDS),
            (18, 2, 0, 0.95, Verdict.TOO_SELDOM),
            (18, 2, 0, None, Verdict.HOLDS),
            (10, 0, 10, None, Verdict.HOLDS),
            (8, 0, 12, None, Verdict.TOO_SELDOM),  # never on the wrong side, but seldom on the right one
            (0, 20, 0, 0.95, Verdict.REVERSED),
            (11, 9, 0, 0.95, Verdict.NOT_DISTINGUISHABLE),
            (3, 0, 0, None, Verdict.NOT_DISTINGUISHABLE),  # too few prompts to say
            (5, 0, 0, None, Verdict.NOT_DISTINGUISHABLE),  # of two equals, 1 time in 16
            (6, 0, 0, None, Verdict.HOLDS),
            (31, 16, 0, None, Verdict.HOLDS),  # of two equals, 1 time in 25; 30 would be 1 in 13
            (0, 4, 56, None, Verdict.NOT_DISTINGUISHABLE),  # four prompts decide, however many are ties
        ],
    )
    def test_verdicts(
        self, num_asked: int, num_other: int, num_ties: int, bound: float | None, verdict: Verdict
    ) -> None:
        values = [2.0] * num_asked + [0.0] * num_other + [1.0] * num_ties
        assert judge(holds(values, [1.0] * len(values), higher=True), CLEAR, share_of(0, 20), bound) is verdict

    def test_sentences(self) -> None:
        def said(verdict: Verdict, beside_none: Holds = CLEAR) -> str:
            share = holds([0.0] * 19 + [1.0], [1.0] * 20, higher=False)
            same = share_of(20, 20)
            return sentence("concise", "words", "detailed", share, beside_none, same, verdict, 0.98)

        holding = (
            "concise holds: measured by words it is on the asked side of detailed on 95% of 20 prompts [76%, 99%]."
        )
        assert said(Verdict.HOLDS) == holding
        assert said(Verdict.HOLDS, CHANCE) == (
            f"{holding} Beside no control it is not distinguishable: 50% of 20 prompts [30%, 70%]."
        )
        other_way = holds([1.0] * 20, [2.0] * 20, higher=True)
        assert said(Verdict.HOLDS, other_way).endswith(
            "Beside no control it moves the other way: 0% of 20 prompts [0%, 16%]."
        )
        assert said(Verdict.TOO_SELDOM).endswith("[76%, 99%], on neither side on 1, below the bound of 98%.")
        assert said(Verdict.NOT_DISTINGUISHABLE).startswith("concise is not distinguishable from detailed: measured")
        assert said(Verdict.REVERSED).startswith("concise does not hold, it does the reverse: ")
        assert said(Verdict.DOES_NOTHING) == (
            "concise does nothing: its replies are those without a control, word for word, "
            "on 100% of 20 prompts [84%, 100%]."
        )


class TestLeakage:
    def test_matrix(self) -> None:
        moved, still = [10.0] * 20, [50.0] * 20
        controlled = {
            "concise": {"words": moved, "list_share": [0.5] * 20},
            "bulleted": {"words": moved, "list_share": [1.0] * 20},
        }
        asked = {"concise": "words", "bulleted": "list_share"}
        cells = leakage(controlled, {"words": still, "list_share": [0.0] * 20}, asked)
        assert [(cell.preference, cell.attribute, cell.asked, cell.leaks) for cell in cells] == [
            ("concise", "words", True, False),
            ("concise", "list_share", False, True),
            ("bulleted", "words", False, True),
            ("bulleted", "list_share", True, False),
        ]
        assert [(cell.more.advantage.value, cell.difference.value) for cell in cells] == [
            (-1, -40),
            (1, 0.5),
            (-1, -40),
            (1, 1),
        ]


STRENGTHS = (-1.0, 0.0, 1.0, 1.5)


def words_at(*medians: float) -> dict[float, list[float]]:
    """Values at each of STRENGTHS whose medians, one below their means, are those given."""
    return {strength: [median - 1, median, median + 4] for strength, median in zip(STRENGTHS, medians, strict=True)}


def concise(values: dict[float, list[float]], broken_at: dict[float, int] | None = None) -> Curve:
    """The curve of a control that is to be below 100 at every strength."""
    counts = broken_at or {}
    flags = {strength: [n < counts.get(strength, 0) for n in range(3)] for strength in values}
    others = dict.fromkeys(values, [100.0] * 3)
    return curve("concise", "words", values, flags, others, higher=False, against="detailed")


class TestStrength:
    def test_a_control_that_follows_its_strength(self) -> None:
        falling = concise(dict(reversed(words_at(200, 120, 40, 20).items())))
        assert [point.median.value for point in falling.points] == [200, 120, 40, 20]
        assert [point.holds.share for point in falling.points] == [0, 0, 1, 1]
        assert falling.monotone
        assert falling.rank_correlation.value == 1.0
        assert falling.recommended == 1.0  # 1 and 1.5 hold alike: the one nearer 1
        calibration = falling.calibration
        assert (calibration.attribute, calibration.recommended) == ("words", 1.0)
        assert (calibration.strengths, calibration.medians) == (STRENGTHS, (200, 120, 40, 20))

    def test_one_that_turns_back(self) -> None:
        # Ranks of the words 4, 3, 1, 2 beside those of the strengths 1, 2, 3, 4: rho = 1 - 6 * (9 + 1 + 4 + 4) / 60,
        # which is -0.8, and fewer words were asked for.
        turning = concise(words_at(200, 120, 20, 40))
        assert not turning.monotone
        assert turning.rank_correlation.value == pytest.approx(0.8)

    def test_one_that_does_nothing_is_neither_monotone_nor_correlated(self) -> None:
        flat = concise(words_at(120, 120, 120, 120))
        assert not flat.monotone
        assert flat.rank_correlation.value == 0
        assert flat.recommended == 1.0

    def test_the_strength_that_holds_most_often_is_recommended(self) -> None:
        assert concise(words_at(200, 120, 100, 20)).recommended == 1.5  # at 1: 99 < 100 alone

    def test_a_strength_that_breaks_replies_is_not(self) -> None:
        assert concise(words_at(200, 120, 100, 20), {1.5: 1}).recommended == 1.0
        assert concise(words_at(200, 120, 100, 20), {1.0: 3, 1.5: 3}).recommended == 1.0

    def test_ties_have_their_mean_rank(self) -> None:
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
        medians = np.array([[1.0, 2.0, 2.0, 3.0]])
        assert rank_correlations([0, 1, 2, 3], medians)[0] == pytest.approx(4.5 / math.sqrt(22.5))

    def test_what_mostly_takes_two_values_is_followed_by_its_mean(self) -> None:
        # 0, 1, 2 and 4 of four replies: means 0, 0.25, 0.5, 1, medians 0, 0, 0.5, 1 with ranks 1.5, 1.5, 3, 4.
        values = {s: [float(n < num) for n in range(4)] for s, num in zip(STRENGTHS, (0, 1, 2, 4), strict=True)}
        flags, others = {s: [False] * 4 for s in STRENGTHS}, {s: [0.0] * 4 for s in STRENGTHS}
        given = ("bulleted", "list_share", values, flags, others)
        by_mean = curve(*given, higher=True, against="prose", summary="mean")
        by_median = curve(*given, higher=True, against="prose")
        assert [point.typical("mean").value for point in by_mean.points] == [0, 0.25, 0.5, 1]
        assert (by_mean.summary, by_mean.rank_correlation.value, by_mean.monotone) == ("mean", 1.0, True)
        assert [point.typical("median").value for point in by_median.points] == [0, 0, 0.5, 1]
        assert by_median.rank_correlation.value == pytest.approx(4.5 / math.sqrt(22.5))
        assert by_mean.calibration == by_median.calibration  # a manifest has medians

    @pytest.mark.parametrize("strengths", [[1.0], [-1.0, 0.0]])
    def test_a_curve_needs_strengths(self, strengths: list[float]) -> None:
        with pytest.raises(ValueError, match="two strengths, one of them above 0"):
            concise({strength: [1.0] * 3 for strength in strengths})

    def test_it_rises_where_it_never_falls_and_ends_higher(self) -> None:
        assert rises([0, 0, 1, 1])
        assert not rises([0, 2, 1])
        assert not rises([1, 1, 1])


class TestRecommended:
    @staticmethod
    def point(strength: float, held: int, num_broken: int = 0) -> Point:
        """Of 200 prompts, so many of which hold and are broken."""
        no_matter = Estimate(0.0, 0.0, 0.0, 200)
        return Point(strength, no_matter, no_matter, share_of(held, 200), share_of(num_broken, 200))

    @pytest.mark.parametrize(
        ("held", "strength"),
        [
            ({0.0: 200, 0.5: 20, 1.0: 10}, 0.5),  # none is no strength
            ({0.5: 180, 1.0: 179}, 1.0),  # half of a hundredth less is the same, and nearer
            ({0.5: 180, 1.0: 177}, 0.5),
            ({0.5: 180, 1.0: 100, 1.5: 180}, 0.5),  # as near: the lower
            ({1.0: 180, 1.5: 180, 0.5: 180}, 1.0),
        ],
    )
    def test_what_holds_most_often_and_of_equals_what_is_nearest_to_1(
        self, held: dict[float, int], strength: float
    ) -> None:
        assert recommended([self.point(*each) for each in held.items()]) == strength

    def test_replies_may_be_broken_on_a_twentieth_more_prompts_than_without_a_control(self) -> None:
        calm, trained = self.point(0.0, 0, 4), self.point(1.0, 100, 4)
        assert recommended([calm, trained, self.point(1.5, 180, 12)]) == 1.5  # 4% more
        assert recommended([calm, trained, self.point(1.5, 180, 16)]) == 1.0  # 6% more

    def test_without_0_the_strength_nearest_to_it_says_how_many_are_broken_anyway(self) -> None:
        assert recommended([self.point(-1.0, 0, 0), self.point(0.5, 180, 20), self.point(1.0, 100, 24)]) == 0.5


class TestMixes:
    def test_both_properties_at_once(self) -> None:
        short = Side("concise", "detailed", [1, 1, 5, 1], [5, 5, 5, 5], higher=False)  # holds on 1, 2 and 4
        listed = Side("bulleted", "prose", [1.0, 0.0, 0.0, 1.0], [0.0] * 4, higher=True)  # on 1 and 4
        both = mixed(short, listed, (0.5, 2))
        assert (both.preferences, both.against) == (("concise", "bulleted"), ("detailed", "prose"))
        assert both.strengths == (0.5, 2)
        assert (both.both.share, both.first.share, both.second.share) == (0.5, 0.75, 0.5)
        assert both.prompted_both is None
        never = replace(short, values=[9, 9, 9, 9])
        prompted = mixed(short, listed, (0.5, 2), (never, listed)).prompted_both
        assert prompted is not None
        assert prompted.share == 0


class TestLogOdds:
    def test_in_nats_a_token(self) -> None:
        # Own reply of 10 tokens: -20 to -10 is +1 a token. The other of 20: -30 to -40 is -0.5. 1 - (-0.5) = 1.5.
        own = Scored(Score(-10.0, 10), Score(-20.0, 10))
        other = Scored(Score(-40.0, 20), Score(-30.0, 20))
        against = Scored(Score(-30.0, 10), Score(-20.0, 10))  # -1 a token: -1 - (-0.5) = -0.5
        found = log_odds("concise", "detailed", [own, own, against], [other] * 3)
        assert found.mean.value == pytest.approx((1.5 + 1.5 - 0.5) / 3)
        assert found.prefers_own.share == pytest.approx(2 / 3)

    def test_a_control_with_b_of_0_prefers_nothing(self) -> None:
        same = [Scored(Score(-float(n), n), Score(-float(n), n)) for n in range(3, 9)]
        found = log_odds("concise", "detailed", same, same)
        assert (found.mean.value, found.mean.low, found.mean.high, found.prefers_own.share) == (0, 0, 0, 0)


class TestLogOddsByStrength:
    @staticmethod
    def scored(lifts: Sequence[float]) -> list[Scored]:
        """Replies of 10 tokens that a control makes likelier by so many nats a token."""
        return [Scored(Score(-20.0 + 10 * lift, 10), Score(-20.0, 10)) for lift in lifts]

    def test_means_and_their_order(self) -> None:
        own = {1.0: [0.3, 0.1], -1.0: [-0.2, -0.4], 0.0: [0.0, 0.0], 1.5: [0.2, 0.0]}
        other = {1.0: [-0.1, -0.1], -1.0: [0.0, 0.0], 0.0: [0.0, 0.0], 1.5: [0.0, 0.0]}
        found = odds_curve(
            "concise",
            "detailed",
            {strength: self.scored(lifts) for strength, lifts in own.items()},
            {strength: self.scored(lifts) for strength, lifts in other.items()},
        )
        assert [point.strength for point in found.points] == [-1, 0, 1, 1.5]
        # At 1: (0.3 + 0.1) / 2 + 0.1; at 1.5 it falls back.
        assert [point.mean.value for point in found.points] == pytest.approx([-0.3, 0.0, 0.3, 0.1])
        # Ranks 1, 2, 4, 3 beside 1, 2, 3, 4: rho = 1 - 6 * 2 / 60.
        assert found.rank_correlation.value == pytest.approx(0.8)
        assert not found.monotone

    def test_a_control_with_b_of_0_follows_nothing(self) -> None:
        still = {strength: self.scored([0.0, 0.0, 0.0]) for strength in STRENGTHS}
        found = odds_curve("concise", "detailed", still, still)
        assert (found.rank_correlation.value, found.monotone) == (0, False)

    def test_a_curve_needs_two_strengths(self) -> None:
        with pytest.raises(ValueError, match=r"two strengths, found \[1.0\]"):
            odds_curve("concise", "detailed", {1.0: self.scored([0.1])}, {1.0: self.scored([0.1])})


class TestSideEffects:
    def test_runs_that_stood_before(self) -> None:
        assert repeated_share("a b c d e f g") == 0
        assert repeated_share("one two three") == 0
        # 12 words have 9 runs of four, of "a b c d" said three times: abcd bcda cdab dabc, each again.
        assert repeated_share("a b c d A b c d a b c d") == pytest.approx(5 / 9)

    def test_rates(self) -> None:
        fine, cut, loop = Reply("a b c d e", True, 5), Reply("a b", False, 2), Reply("x y z w " * 5, True, 20)
        silent = Reply(" \n", True, 1)
        assert [broken(reply) for reply in (fine, cut, loop, silent)] == [False, True, True, True]
        # One run of nine stood before, then two, which are more than a fifth.
        twice = [Reply(text, True, 12) for text in ("a b c d a b c d e f g h", "a b c d e a b c d e f g")]
        assert [broken(reply) for reply in twice] == [False, True]
        found = side_effects("concise", [fine, cut, loop, fine], [fine, fine, fine, fine], LexicalOverlap())
        assert (found.empty.share, found.repeats.share, found.truncated.share) == (0, 0.25, 0.25)
        assert side_effects("concise", [silent, fine], None, LexicalOverlap()).empty.share == 0.5
        # 1, then 2 * 2 / (2 + 5), then 0, then 1.
        assert found.similarity is not None
        assert found.similarity.value == pytest.approx((1 + 4 / 7 + 0 + 1) / 4)

    def test_uncontrolled_replies_are_compared_with_none(self) -> None:
        assert side_effects("uncontrolled", [Reply("a", True, 1)], None, LexicalOverlap()).similarity is None

    def test_parity_with_the_base(self) -> None:
        base = [Reply("a b", True, 2), Reply("c d", True, 2)]
        scores = ([Score(-4.0, 2), Score(-2.0, 4)], [Score(-2.0, 2), Score(-2.0, 4)])
        found = parity([Reply("a b", True, 2), Reply("c e", True, 2)], base, LexicalOverlap(), scores)
        assert found.same.share == 0.5
        assert found.similarity.value == pytest.approx((1 + 0.5) / 2)
        assert found.meet_perplexity is not None
        assert found.base_perplexity is not None
        assert found.ratio is not None
        assert found.meet_perplexity.value == pytest.approx(math.exp(6 / 6))
        assert found.base_perplexity.value == pytest.approx(math.exp(4 / 6))
        assert found.ratio.value == pytest.approx(math.exp(2 / 6))
        # Prompts are drawn in pairs: all of the first is e^(4/2 - 2/2), all of the second is 1.
        assert (found.ratio.low, found.ratio.high) == pytest.approx((1.0, math.e))

    def test_parity_without_scores(self) -> None:
        reply = [Reply("a", True, 1)]
        assert parity(reply, reply, LexicalOverlap(), None).ratio is None


class TestSimilarity:
    def test_overlap_of_words(self) -> None:
        measured = LexicalOverlap().of(["The cat sat.", "", "a a b"], ["the CAT ran", "", "a c"])
        assert measured == pytest.approx([2 * 2 / 6, 1.0, 2 * 1 / 5])
        assert "not meaning" in similarity_of(None).name

    def test_an_embedding_model_of_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2, "dog": 3, "runs": 4}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        folder = tmp_path / "tiny-embedding"
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        BertModel(BertConfig(vocab_size=5, **size)).save_pretrained(folder)
        similarity = similarity_of(folder)
        assert similarity.name == "cosine of embeddings by tiny-embedding"
        # Padding in a batch changes nothing: the short text is the same beside a long one.
        same, longer = similarity.of(["cat", "cat runs runs"], ["cat", "cat"])
        assert same == pytest.approx(1.0, abs=1e-5)
        assert longer < 0.999
        monkeypatch.setattr(EmbeddingSimilarity, "BATCH", 1)
        assert similarity.of(["cat", "cat runs runs"], ["cat", "cat"]) == pytest.approx([same, longer], abs=1e-5)

    def test_a_folder_that_holds_none(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="holds no embedding model"):
            EmbeddingSimilarity(tmp_path)


def test_length_violations() -> None:
    found = length_violations("concise", 3, ["one two three", "one two three four", "one", "a b c d e"])
    assert (found.violated.share, found.words.value) == (0.5, 3.5)  # 3 is not more than 3
