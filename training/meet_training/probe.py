"""Records in a bundle what its controls do, so that a server can prove that it serves what was trained.

Computed from the exported files with plain transformers and PEFT, in float32: not from the objects that were
trained, and with none of the training code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from meet_bundle import Probe
from meet_training.controls.trained import Control
from meet_training.data.render import Rendered

# A probe is one reply; a short one costs a server's start next to nothing.
MAX_PROBE_TOKENS = 192
NUM_CANDIDATES = 8


def make_probe(model: nn.Module, control: Control, examples: list[Rendered], num_tokens: int | None = None) -> Probe:
    """The probe of one control: of some short training replies, the one on which the control matters most.

    `model` is the exported model without controls; it is as before when this returns. `num_tokens`: ids from there
    on are virtual tokens, which are never sampled and have no share of the probabilities.
    """
    candidates = sorted(examples, key=lambda r: (len(r) > MAX_PROBE_TOKENS, len(r)))
    candidates = [r for r in candidates[: 4 * NUM_CANDIDATES : 4] if len(r) <= MAX_PROBE_TOKENS] or candidates[:1]
    uncontrolled = [reply_logprobs(model, r.prompt_ids, r.reply_ids, num_tokens) for r in candidates]
    with control.applied(model) as controlled_model:
        controlled = [
            reply_logprobs(controlled_model, control.prompt(r.prompt_ids), r.reply_ids, num_tokens) for r in candidates
        ]
    gaps = [float((c - u).abs().mean()) for c, u in zip(controlled, uncontrolled, strict=True)]
    best = gaps.index(max(gaps))
    return Probe(
        token_ids=candidates[best].ids,
        start=len(candidates[best].prompt_ids),
        controlled=tuple(controlled[best].tolist()),
        uncontrolled=tuple(uncontrolled[best].tolist()),
        dtype="float32",
    )


@torch.no_grad()
def reply_logprobs(
    model: nn.Module, prompt_ids: Sequence[int], reply_ids: Sequence[int], num_tokens: int | None = None
) -> torch.Tensor:
    """Log-probability of each reply token given all before it, (M,) float32, in nats, among the first `num_tokens`
    ids of the vocabulary."""
    logits: torch.Tensor = model(input_ids=torch.tensor([[*prompt_ids, *reply_ids]])).logits[0].float()  # (T, V)
    logprobs = logits[len(prompt_ids) - 1 : -1, :num_tokens].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(reply_ids)[:, None])[:, 0]
