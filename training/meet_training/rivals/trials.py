"""Trains and measures one model of a rival at a time, and keeps what came of it.

Every result is a line of one file as soon as it is there, and a training that is cut goes on from its checkpoint: a
comparison may be run in pieces, and by several processes at once.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from meet_bundle.leftovers import claimed
from meet_training.callbacks import Callback
from meet_training.controls.control import ControlSet
from meet_training.controls.target_layers import target_layers
from meet_training.data.records import RecordFile
from meet_training.evaluation.log_odds import Score
from meet_training.evaluation.replies import Reply
from meet_training.rivals.answered import Answered
from meet_training.rivals.measuring import Cost, Given, Measured, Neutral, Tuned, measure, replies_of, scores_of
from meet_training.rivals.no_controls import NoControls
from meet_training.rivals.rendering import AsItIs
from meet_training.rivals.rival import Job
from meet_training.rivals.rival_run import RivalRun, train_config
from meet_training.rivals.setting import Setting
from meet_training.stages.optimise import TrainProgress

Tell = Callable[[str, int, int, str], None]
"""What is being done, how much of it is done, how much there is, and what else there is to say."""

BASE = "base"

DECIDES_NOTHING = {"output", "data", "checkpoint_every_s", "trackers", "log_folder"}
"""Fields of a `TrainConfig` that no result depends on; of the data there is a digest."""


class MeasuredFile(RecordFile[Measured]):
    """What was measured by key, one line a model."""

    what = "result"

    def read(self, fields: dict[str, Any]) -> Measured:
        """The result of a line."""
        return Measured(
            {name: [Reply(**each) for each in given] for name, given in fields["replies"].items()},
            fields["values"],
            {
                name: {side: [Score(*each) for each in given] for side, given in by_side.items()}
                for name, by_side in fields["scores"].items()
            },
            [Score(*each) for each in fields["neutral"]],
            [Score(*each) for each in fields["neutral_tuning"]],
            Cost(**fields["cost"]),
        )

    def write(self, record: Measured) -> Mapping[str, Any]:
        """The fields of a line."""
        return {
            "cost": asdict(record.cost),
            "replies": {name: [asdict(each) for each in given] for name, given in record.replies.items()},
            "values": record.values,
            "scores": {
                name: {side: [_pair(each) for each in given] for side, given in by_side.items()}
                for name, by_side in record.scores.items()
            },
            "neutral": [_pair(each) for each in record.neutral],
            "neutral_tuning": [_pair(each) for each in record.neutral_tuning],
        }


@dataclass(frozen=True, slots=True)
class Trials:
    """Results of one setting, those that are kept and those that are still to be had."""

    setting: Setting
    kept: MeasuredFile
    tell: Tell

    def known(self, job: Job, seed: int) -> Measured | None:
        """What is kept of a model, whichever process measured it."""
        return self._kept(self.key(job, seed))

    def result(self, job: Job, seed: int, name: str) -> Measured | None:
        """What is kept of a model, or else it is trained and measured now; None where another process is at it.

        `name` is what messages call it.
        """
        if (known := self.known(job, seed)) is not None:
            return known
        with claimed(self._work(job, seed)) as mine:
            if not mine:
                return None
            return self.known(job, seed) or self._measured(job, seed, name)

    def _kept(self, key: str) -> Measured | None:
        self.kept.refresh()
        return self.kept.get(key)

    def _measured(self, job: Job, seed: int, name: str) -> Measured:
        tuned, cost = self._taken(job) if job.training is None else self._trained(job, seed, name)
        setting = self.setting
        found = measure(
            tuned.ready(),
            job.preferences,
            setting.sides,
            [*setting.split.tuning, *setting.split.test],
            self.neutral(),
            setting.attributes(),
            setting.decoding,
            lambda done, num: self.tell(f"{name}: replies", done, num, ""),
        )
        del tuned
        gc.collect()  # the next model needs the memory of this one
        found = replace(found, cost=cost)
        self.kept.add(self.key(job, seed), found, name=name, seed=seed)
        shutil.rmtree(self._work(job, seed), ignore_errors=True)
        return found

    def base(self) -> Measured:
        """How the base scores the neutral replies, and its own greedy replies to all prompts where those are they."""
        key = self.key(BASE, 0)
        if (known := self.kept.get(key)) is not None:
            return known
        with claimed(self.setting.config.output / "work" / BASE, wait=True):
            return self._kept(key) or self._measured_base(key)

    def _measured_base(self, key: str) -> Measured:
        tuned = self._plain(AsItIs()).ready()
        setting = self.setting
        prompts = [row.messages for row in (*setting.split.tuning, *setting.split.test)]

        def tell(done: int, num: int) -> None:
            self.tell("the base's own replies", done, num, "")

        replies = replies_of(tuned, prompts, [None], setting.decoding, tell)[0] if setting.neutral is None else []
        neutral = self._neutral(replies)
        found = Measured(
            {BASE: replies},
            {},
            {},
            scores_of(tuned, neutral.test, None, setting.decoding),
            scores_of(tuned, neutral.tuning, None, setting.decoding),
        )
        self.kept.add(key, found, name=BASE)
        return found

    def neutral(self) -> Neutral:
        """The replies that perplexity is measured on: those of the file, else the base's own."""
        return self._neutral(self.base().replies[BASE])

    def _neutral(self, replies: Sequence[Reply]) -> Neutral:
        setting = self.setting
        if setting.neutral is not None:
            return setting.neutral
        dealt = setting.split
        return Neutral(_said(dealt.test, replies[setting.test_rows]), _said(dealt.tuning, replies[setting.tuning_rows]))

    def key(self, job: Job | str, seed: int) -> str:
        """SHA-256 of everything that decides a result, hexadecimal."""
        what: list[Any] = [self.setting.identity, job if isinstance(job, str) else repr(job.rendering)]
        if isinstance(job, Job):
            what += [job.preferences, job.controls]
            if job.training is not None:
                made = train_config(self.setting.config, job, seed, self.setting.config.output).resolved()
                what += [self.setting.training_digest, made.model_dump(mode="json", exclude=DECIDES_NOTHING)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _taken(self, job: Job) -> tuple[Tuned, Cost]:
        return self._plain(job.rendering), Cost()

    def _plain(self, rendering: Any) -> Tuned:
        setting = self.setting
        return Tuned(setting.load_base(), NoControls(()), rendering, setting.tokenizer, setting.dtype)

    def _trained(self, job: Job, seed: int, name: str) -> tuple[Tuned, Cost]:
        setting = self.setting
        config = train_config(setting.config, job, seed, self._work(job, seed) / "model")
        run = RivalRun(job, config, setting.folder, setting.split.examples(), _Telling(name, self.tell))
        with run.checkpoints.alone():
            model, controls = run.tune()
        learned, everything = run.budget
        seconds = sum(run.record.seconds.values())
        cost = Cost(learned, everything, seconds, _num_learned(model, controls, run))
        return Tuned(model, controls, job.rendering, setting.tokenizer, setting.dtype), cost

    def _work(self, job: Job, seed: int) -> Path:
        """Where checkpoints of one training are kept until it is measured."""
        return self.setting.config.output / "work" / self.key(job, seed)[:16]


class _Telling(Callback):
    """Tells a training's progress under its name."""

    def __init__(self, name: str, tell: Tell) -> None:
        self._name, self._tell = name, tell

    def on_part(self, what: str, num_done: int, num_all: int) -> None:
        self._tell(f"{self._name}: {what}", num_done, num_all, "")

    def on_step(self, progress: TrainProgress) -> None:
        words = f"loss {progress.loss:.3f}, {progress.tokens_per_s:.0f} tokens/s"
        self._tell(f"{self._name}: {progress.stage}", progress.step, progress.num_steps, words)


def _num_learned(model: nn.Module, controls: ControlSet, run: RivalRun) -> int:
    """How many numbers were learned: of controls, of the model, or of a LoRA that is merged by now."""
    own = [parameter for k in range(len(controls.names)) for parameter in controls.parameters_of(k)]
    num_own = sum(parameter.numel() for parameter in own)
    stage = run.config.stage2
    if not stage.epochs:
        return num_own
    if stage.model == "lora":
        layers = target_layers(model, "all-linear").values()
        return num_own + stage.model_rank * sum(layer.in_features + layer.out_features for layer in layers)
    return num_own + sum(p.numel() for p in model.parameters() if not any(p is each for each in own))


def _said(rows: Sequence[Answered], replies: Sequence[Reply]) -> list[Given]:
    """The replies that say anything, each behind its conversation."""
    return [(row.messages, reply.text) for row, reply in zip(rows, replies, strict=True) if not reply.empty]


def _pair(score: Score) -> tuple[float, int]:
    return score.logprob, score.num_tokens
