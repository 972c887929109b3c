"""The whole comparison on one screen: every rival searches its learning rate, is trained with every seed, and is
measured; what is complete is compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meet_training.errors import TrainingError
from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.figures import Quality, quality
from meet_training.rivals.measuring import Measured, together
from meet_training.rivals.registry import chosen
from meet_training.rivals.rival import Point, Rival
from meet_training.rivals.rival_run import check_trainings
from meet_training.rivals.setting import Setting
from meet_training.rivals.standing import Outcome
from meet_training.rivals.trials import MeasuredFile, Tell, Trials

RESULTS_FILE = "trials.jsonl"

WAIT_S = 5.0
"""How often it is looked whether another process has ended, where nothing else is left to do, in seconds."""


@dataclass(frozen=True, slots=True)
class Spent:
    """How many results there are more than before a run, those of other processes too, and how many seconds it took."""

    num_new: int
    seconds: float


class Comparison:
    """One comparison: `run` gets what is missing, `outcomes` says what is complete."""

    def __init__(self, config: CompareConfig, tell: Tell, on_step: Callable[[str], None] | None = None) -> None:
        """Raises TrainingError where a rival, the base or the data cannot be used."""
        self.rivals = chosen(config.rivals)
        check_trainings(config, self.rivals)
        if config.beside not in [rival.name for rival in self.rivals]:
            names = ", ".join(rival.name for rival in self.rivals)
            raise TrainingError(f"beside: {config.beside!r} does not take part; {names} do")
        self.config = config
        self.setting = Setting(config, on_step)
        self._on_step = on_step
        self.trials = Trials(self.setting, MeasuredFile(config.output / RESULTS_FILE), tell)

    def run(self, only: Sequence[str] = ()) -> Spent:
        """Trains and measures what is not there yet, of these rivals or of all; ends when all of it is there.

        What another process is at is left to it, and taken over where it ends without a result. Raises TrainingError
        where one of these cannot be trained.
        """
        left, told = chosen(only or self.config.rivals), ""
        check_trainings(self.config, left)
        begun, num_before = time.monotonic(), len(self.trials.kept)
        self.trials.base()
        while left := [rival for rival in left if not self._complete(rival)]:
            if told != (told := ", ".join(rival.name for rival in left)) and self._on_step:
                self._on_step(f"waiting for other processes, which train {told}")
            time.sleep(WAIT_S)
        return Spent(len(self.trials.kept) - num_before, time.monotonic() - begun)

    def _complete(self, rival: Rival) -> bool:
        """Gets what is missing of a rival; False where another process is at some of it."""
        points, (first, *others) = rival.points(self.config), self._seeds(rival)
        searched = [self._result(rival, point, first) for point in points]
        if None in searched:
            return False
        best = self._best(rival, points, [each for each in searched if each is not None])
        return None not in [self._result(rival, best, seed) for seed in others]

    def outcomes(self) -> list[Outcome]:
        """Every rival of which nothing is missing."""
        return [outcome for rival in self.rivals if (outcome := self._outcome(rival)) is not None]

    def _outcome(self, rival: Rival) -> Outcome | None:
        points = rival.points(self.config)
        searched = [self._known(rival, point, self.config.seeds[0]) for point in points]
        if None in searched:
            return None
        best = self._best(rival, points, [each for each in searched if each is not None])
        by_seed = [self._known(rival, best, seed) for seed in self._seeds(rival)]
        if None in by_seed:
            return None
        return Outcome(
            rival.name,
            rival.what,
            rival.has_neutral,
            best,
            dict(zip(points, [each for each in searched if each is not None], strict=True)),
            [each for each in by_seed if each is not None],
        )

    def _best(self, rival: Rival, points: Sequence[Point], results: Sequence[Measured]) -> Point:
        """The point of the best result on the prompts that are kept for it; of equals the first."""
        ranks = [self.quality(rival, result).rank for result in results]
        return points[ranks.index(max(ranks))]

    def quality(self, rival: Rival, result: Measured) -> Quality:
        """What a point of the search is chosen by."""
        setting, most = self.setting, self.config.tuning.max_perplexity if rival.has_neutral else None
        return quality(result, self.trials.base(), setting.pairs, setting.tuning_rows, most)

    def _seeds(self, rival: Rival) -> tuple[int, ...]:
        """One for a rival that nothing is drawn for."""
        trained = any(job.training is not None for job in rival.jobs(self.config, rival.points(self.config)[0]))
        return self.config.seeds if trained else self.config.seeds[:1]

    def _result(self, rival: Rival, point: Point, seed: int) -> Measured | None:
        jobs = rival.jobs(self.config, point)
        parts = []
        for job in jobs:
            own = f" {job.preferences[0]}" if len(jobs) > 1 else ""
            parts.append(self.trials.result(job, seed, f"{rival.name}{own} {point}, seed {seed}"))
        return _joined(parts)

    def _known(self, rival: Rival, point: Point, seed: int) -> Measured | None:
        return _joined([self.trials.known(job, seed) for job in rival.jobs(self.config, point)])


def _joined(parts: Sequence[Measured | None]) -> Measured | None:
    """What the models of a rival make together, if none is missing."""
    return None if None in parts else together([part for part in parts if part is not None])
