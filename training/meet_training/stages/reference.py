"""How likely the base itself finds both replies of each pair, for the preference objective. Computed once: the base is
frozen, and needs no second copy in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from meet_training.config import TrainConfig
from meet_training.data.batches import UNCONTROLLED, Item, passes
from meet_training.data.render import Rendered
from meet_training.stages.layout import lay_out
from meet_training.stages.objective import Objective, Reference
from meet_training.stages.reply_nll import reply_nll
from meet_training.stages.without_dropout import without_dropout


def preference_objective(
    config: TrainConfig, model: torch.nn.Module, pairs: Sequence[Rendered], *, pad_id: int, device: torch.device
) -> Objective:
    """The objective that the configuration asks for, with the base's log-probabilities of these pairs."""
    return Objective(
        beta=config.objective.beta,
        likelihood_weight=config.objective.likelihood_weight,
        reference=reference_logprobs(model, pairs, config.tokens_per_pass, pad_id=pad_id, device=device),
    )


@torch.no_grad()
def reference_logprobs(
    model: torch.nn.Module, pairs: Sequence[Rendered], tokens_per_pass: int, *, pad_id: int, device: torch.device
) -> Reference:
    """ln p0(reply) of both replies of each pair, summed over its tokens, in nats. `model` has no controls."""
    items = [Item(UNCONTROLLED, pair) for pair in dict.fromkeys(pairs)]
    reference: Reference = {}
    for group in passes(items, tokens_per_pass):
        batch = lay_out(group, lambda _: ((), ()), pad_id, device)
        with without_dropout(model):
            nll = reply_nll(model, batch)
        sums = torch.zeros(len(batch.row_controls), device=device).index_add(0, batch.replies, -nll)
        for pair, (preferred, rejected) in zip(batch.paired, sums[batch.pairs].tolist(), strict=True):
            reference[pair] = (preferred, rejected)
    return reference
