"""How many tokens of one text a base can read, and whether a run stays within them.

Of bases that look each position up in a table (GPT-2, OPT) a longer text ends in an error of the table's. Those that
turn by the position (rotary) compute on, on turns that nothing ever trained. Knows no tokenizer and reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meet_training.config import MIN_LENGTH, TrainConfig
from meet_training.controls_config import SoftPromptConfig
from meet_training.data.render import Ids, Rendered
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OF_POSITIONS = re.compile(r"(^|[._])(wpe|pos|positions?)([._]|$)")
"""What bases call a table of positions: `wpe`, `embed_positions`, `positions_embed`, `pos_encoding`."""


@dataclass(frozen=True, slots=True)
class Positions:
    """How many a base was made for. `is_table`: it looks them up one by one, and has no more of them."""

    num: int
    is_table: bool


def positions_of(model: PreTrainedModel) -> Positions | None:
    """Those of a causal language model, with weights or without; None where its configuration names no number."""
    num = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if num is None:
        return None
    decoder = model.get_decoder()
    tables = (
        tensor
        for name, tensor in [*decoder.named_parameters(), *decoder.named_buffers()]
        if _OF_POSITIONS.search(name) and tensor.dim() == 2
    )
    return Positions(int(num), any(len(table) >= num for table in tables))


def num_virtual_tokens(config: TrainConfig) -> int:
    """Positions that a control takes beside the tokens of prompt and reply."""
    return config.controls.num_virtual_tokens if isinstance(config.controls, SoftPromptConfig) else 0


def check_max_length(config: TrainConfig, positions: Positions | None) -> None:
    """Raises TrainingError where an example may have more tokens than the base has a table for."""
    if positions is None or not positions.is_table:
        return
    virtual = num_virtual_tokens(config)
    allowed = positions.num - virtual
    has = f"the base has {positions.num} positions (max_position_embeddings)"
    if allowed < MIN_LENGTH:
        most = positions.num - MIN_LENGTH
        raise TrainingError(f"controls.num_virtual_tokens: {virtual} leave no room for text, {has}; at most {most}")
    if config.max_length > allowed:
        taken = f", of which the control's virtual tokens take {virtual}" if virtual else ""
        raise TrainingError(f"max_length: {config.max_length} is too long, {has}{taken}; at most {allowed}")


def check_room_for_replies(config: TrainConfig, prompts: Iterable[Ids], positions: Positions | None) -> None:
    """Raises TrainingError where a reply of the base itself to a prompt may go beyond the base's table."""
    if positions is None or not positions.is_table:
        return
    longest = max(map(len, prompts), default=0)
    allowed = positions.num - longest
    if config.uncontrolled.max_new_tokens > allowed:
        raise TrainingError(
            f"uncontrolled.max_new_tokens: {config.uncontrolled.max_new_tokens} is too long behind the longest prompt "
            f"of {longest} tokens, the base has {positions.num} positions (max_position_embeddings); at most "
            f"{allowed}, or a smaller max_length"
        )


def beyond_positions(config: TrainConfig, examples: Sequence[Rendered], positions: Positions | None) -> str | None:
    """What is to be said of examples that have more tokens than the base was made for; None where there are none."""
    if positions is None:
        return None
    virtual = num_virtual_tokens(config)
    lengths = [len(r.prompt_ids) + max(len(r.reply_ids), len(r.rejected_ids or ())) + virtual for r in examples]
    if not (num := sum(length > positions.num for length in lengths)):
        return None
    return (
        f"max_length: {num} of {len(lengths)} examples have more tokens (up to {max(lengths)}"
        f"{', virtual ones among them' if virtual else ''}) than the base was made for ({positions.num}, "
        f"max_position_embeddings): it may know nothing of places so far behind, and engines refuse such texts where "
        f"they are not told otherwise; max_length={positions.num - virtual} leaves them out"
    )
