"""Records in a bundle what its controls do, so that a server can prove that it serves what was trained.

Computed from the exported files with plain transformers and PEFT, in float32: not from the objects that were
trained, and with none of the training code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from meet_bundle import Probe
from meet_training.controls.exported import with_control
from meet_training.data.render import Rendered

# A probe is one reply; a short one costs a server's start next to nothing.
MAX_PROBE_TOKENS = 192
NUM_CANDIDATES = 8


def make_probe(model: nn.Module, control_folder: Path, examples: list[Rendered]) -> Probe:
    """The probe of one control: of some short training replies, the one on which the control matters most.

    `model` is the exported model without controls; it is as before when this returns.
    """
    candidates = sorted(examples, key=lambda r: (len(r) > MAX_PROBE_TOKENS, len(r)))
    candidates = [r for r in candidates[: 4 * NUM_CANDIDATES : 4] if len(r) <= MAX_PROBE_TOKENS] or candidates[:1]
    uncontrolled = [reply_logprobs(model, rendered) for rendered in candidates]
    with with_control(model, control_folder) as controlled_model:
        controlled = [reply_logprobs(controlled_model, rendered) for rendered in candidates]
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
def reply_logprobs(model: nn.Module, rendered: Rendered) -> torch.Tensor:
    """Log-probability of each reply token given all before it, (M,) float32, in nats."""
    logits: torch.Tensor = model(input_ids=torch.tensor([rendered.ids])).logits[0].float()  # (T, V)
    start = len(rendered.prompt_ids)
    logprobs = logits[start - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(rendered.reply_ids)[:, None])[:, 0]
