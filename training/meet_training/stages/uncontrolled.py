"""How many uncontrolled examples a run needs, and where they come from: data, or the base that is asked its prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from meet_training.config import TrainConfig
from meet_training.data import forms
from meet_training.data.batches import num_uncontrolled
from meet_training.data.render import Ids, Rendered
from meet_training.stages.base_replies import base_replies
from meet_training.stages.optimise import UNCONTROLLED_NAME
from meet_training.stages_config import Stage1Config, Stage2Config


def num_needed(config: TrainConfig, rendered: Mapping[str, Sequence[Rendered]]) -> int:
    """How many uncontrolled examples the stages need beside those of the preferences."""
    stages: list[Stage1Config | Stage2Config] = [config.stage1, config.stage2]
    shares = [stage.uncontrolled_share for stage in stages if stage.epochs]
    return num_uncontrolled(sum(map(len, rendered.values())), max(shares))


def from_data(config: TrainConfig, num: int) -> dict[str, list[forms.Example]]:
    """At most so many examples of the uncontrolled data, if the configuration names some."""
    data = config.uncontrolled.data
    if not data or not num:
        return {}
    return {UNCONTROLLED_NAME: forms.load_uncontrolled(data, limit=num, seed=config.seed)}


def prompts_asked(rendered: Mapping[str, Sequence[Rendered]], num: int) -> list[Ids]:
    """At most so many of the prompts, each once."""
    return list(dict.fromkeys(r.prompt_ids for group in rendered.values() for r in group))[:num]


def from_base(
    config: TrainConfig,
    model: Any,
    rendered: Mapping[str, Sequence[Rendered]],
    num: int,
    *,
    end_ids: Collection[int],
    pad_id: int,
    file: Path,
) -> list[Rendered]:
    """The base's own replies to at most so many of the prompts; `file` keeps what is done."""
    return base_replies(
        model,
        prompts_asked(rendered, num),
        config.uncontrolled,
        end_ids=end_ids,
        pad_id=pad_id,
        seed=config.seed,
        file=file,
    )
