"""Replies of the base itself, for uncontrolled examples: what the model does when nothing is asked of it.

Sampled with transformers from the frozen base. Knows no control.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from meet_bundle.bundle import write_atomically
from meet_training.data.render import Rendered
from meet_training.errors import TrainingError
from meet_training.stages.left_padding import left_padded
from meet_training.stages.without_dropout import without_dropout
from meet_training.stages.without_generation_config import without_generation_config
from meet_training.stages_config import UncontrolledConfig

BATCH_SIZE = 16


def base_replies(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    config: UncontrolledConfig,
    *,
    end_ids: Collection[int],
    pad_id: int,
    seed: int,
    file: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Rendered]:
    """One sampled reply to each prompt, those left out that did not end within `max_new_tokens`.

    What is done is kept in `file`, so that a killed run goes on there. Raises TrainingError where no reply ended.
    """
    done: list[list[list[int]]] = json.loads(file.read_text()) if file.is_file() else []
    # Of what it is not told `generate` takes the own of the model: a penalty on repetition, as many bases have, would
    # make other replies than those of the base.
    with without_dropout(model), without_generation_config(model):
        for start in range(len(done) * BATCH_SIZE, len(prompts), BATCH_SIZE):
            torch.manual_seed(seed * 1_000_003 + start)  # each batch by itself, so that a resumed run draws the same
            batch = prompts[start : start + BATCH_SIZE]
            done.append(_sample(model, batch, config, end_ids=end_ids, pad_id=pad_id))
            write_atomically(file, json.dumps(done).encode())
            if on_progress:
                on_progress(min(start + BATCH_SIZE, len(prompts)), len(prompts))
    replies = [reply for batch in done for reply in batch]
    ended = [
        Rendered(prompt, tuple(reply))
        for prompt, reply in zip(prompts, replies, strict=True)
        if reply and reply[-1] in end_ids
    ]
    if not ended:
        raise TrainingError(
            f"uncontrolled.max_new_tokens: none of {len(prompts)} replies of the base ended within "
            f"{config.max_new_tokens} tokens; allow more"
        )
    return ended


@torch.no_grad()
def _sample(
    model: Any, prompts: Sequence[tuple[int, ...]], config: UncontrolledConfig, *, end_ids: Collection[int], pad_id: int
) -> list[list[int]]:
    """Ids of each reply, up to the first of `end_ids` or the limit."""
    ids, mask = left_padded(prompts, pad_id, model.device)
    generated = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=config.max_new_tokens,
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
    )
    replies = generated[:, ids.shape[1] :].tolist()
    return [reply[: _end(reply, end_ids)] for reply in replies]


def _end(reply: Sequence[int], end_ids: Collection[int]) -> int:
    """Where a reply is over: behind the first of `end_ids`, what comes after it being padding."""
    return next((place for place, token in enumerate(reply, 1) if token in end_ids), len(reply))
