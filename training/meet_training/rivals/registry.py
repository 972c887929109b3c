"""Everybody who may take part, by name."""

from __future__ import annotations

from collections.abc import Sequence

from meet_training.errors import TrainingError
from meet_training.rivals.chain_of_hindsight import CHAIN_OF_HINDSIGHT
from meet_training.rivals.dpo import DPO
from meet_training.rivals.meet import MEET, PARTS_OF_MEET
from meet_training.rivals.one_lora import ONE_LORA
from meet_training.rivals.prompting import PROMPTING
from meet_training.rivals.rival import Rival, by_name
from meet_training.rivals.sft import SFT
from meet_training.rivals.text_token import TEXT_TOKEN

RIVALS = by_name((PROMPTING, SFT, TEXT_TOKEN, CHAIN_OF_HINDSIGHT, *PARTS_OF_MEET, ONE_LORA, DPO, *MEET))


def chosen(names: Sequence[str]) -> list[Rival]:
    """The rivals of these names, all where none is named. Raises TrainingError."""
    if unknown := [name for name in names if name not in RIVALS]:
        raise TrainingError(f"rivals: {unknown[0]!r} is none; they are {', '.join(RIVALS)}")
    return [RIVALS[name] for name in names or RIVALS]
