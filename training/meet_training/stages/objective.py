"""What a stage minimises, from log-probabilities of replies. Knows no model and no layout.

Likelihood: the mean negative log-likelihood of a control's reply tokens (arXiv 2310.00819, section 3). Preference:
for a pair of replies to one prompt, of which the control prefers one, the loss of DPO (Rafailov et al. 2023,
arXiv 2305.18290, equation 7), -ln sigma(beta ((ln p(w) - ln p0(w)) - (ln p(l) - ln p0(l)))), p0 being the base
without control; the control decides which reply is w. Departure: the winner's likelihood may be added.

M supervised tokens, R replies, P pairs of a batch; K controls, index K standing for "uncontrolled".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from meet_training.data.batches import Item
from meet_training.data.render import Rendered
from meet_training.stages.layout import Batch

Reference = dict[Rendered, tuple[float, float]]
"""Pair -> ln p0 of its preferred and of its rejected reply, each summed over its tokens, in nats."""


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How much of each control a whole step has, by which its sums become means. (K + 1,) float32 each."""

    num_tokens: Tensor
    num_pairs: Tensor

    @classmethod
    def of(cls, items: Sequence[Item], num_controls: int, device: torch.device) -> StepSizes:
        tokens, pairs = torch.zeros(num_controls + 1), torch.zeros(num_controls + 1)
        for item in items:
            tokens[item.control] += item.rendered.num_supervised  # -1, uncontrolled, is the last place
            pairs[item.control] += item.rendered.rejected_ids is not None
        return cls(tokens.clamp_min(1).to(device), pairs.clamp_min(1).to(device))


@dataclass(frozen=True, slots=True)
class Objective:
    """Losses of each control over a batch, as its share of the step's mean: those of a step's batches add up.

    Replies in a pair count by the preference loss and, times `likelihood_weight`, by the winner's likelihood; all
    others by likelihood.
    """

    beta: float = 0.1
    likelihood_weight: float = 1.0
    reference: Reference = field(default_factory=dict)

    def losses(self, nll: Tensor, batch: Batch, sizes: StepSizes) -> Tensor:
        """nll (M,) float32 of every supervised token, in nats -> (K + 1,) float32."""
        per_token = nll / sizes.num_tokens[batch.controls]
        if len(batch.pairs):
            weight = torch.ones(len(batch.row_controls), device=nll.device)
            weight[batch.pairs[:, 0]] = self.likelihood_weight
            weight[batch.pairs[:, 1]] = 0.0
            per_token = per_token * weight[batch.replies]
        losses = torch.zeros_like(sizes.num_tokens).index_add(0, batch.controls % len(sizes.num_tokens), per_token)
        if not len(batch.pairs):
            return losses
        controls = batch.row_controls[batch.pairs[:, 0]]
        return losses.index_add(0, controls, self._preference(nll, batch) / sizes.num_pairs[controls])

    def _preference(self, nll: Tensor, batch: Batch) -> Tensor:
        """The preference loss of every pair, (P,) float32."""
        logprobs = torch.zeros(len(batch.row_controls), device=nll.device).index_add(0, batch.replies, -nll)
        reference = torch.tensor([self.reference[pair] for pair in batch.paired], device=nll.device)  # (P, 2)
        moved = logprobs[batch.pairs] - reference
        return -logsigmoid(self.beta * (moved[:, 0] - moved[:, 1]))
