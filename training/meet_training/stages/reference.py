"""How likely the base itself finds both replies of each pair, for the preference objective. Computed once: the base is
frozen, and needs no second copy in memory. Several processes share the passes, and a run that goes on finds it kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from meet_bundle.bundle import write_atomically
from meet_training.config import TrainConfig
from meet_training.data.batches import UNCONTROLLED, Item, passes, tokens_on_the_way
from meet_training.data.render import Rendered
from meet_training.stages.layout import lay_out
from meet_training.stages.machine import Machine, shares
from meet_training.stages.objective import Objective, Reference
from meet_training.stages.reply_nll import reply_nll
from meet_training.stages.without_dropout import without_dropout


def preference_objective(config: TrainConfig, reference: Reference) -> Objective:
    """The objective that the configuration asks for, with the base's log-probabilities of its pairs."""
    own = config.objective
    return Objective(beta=own.beta, likelihood_weight=own.likelihood_weight, reference=reference)


def kept_reference(file: Path, pairs: Sequence[Rendered], machine: Machine) -> Reference | None:
    """What `keep_reference` wrote of these pairs, where it did. Every process must call this; the main one reads."""
    kept = json.loads(file.read_text()) if machine.is_main and file.is_file() else None
    found: list[tuple[float, float]] | None = machine.of_main(kept)
    if found is None:
        return None
    return {pair: (preferred, rejected) for pair, (preferred, rejected) in zip(_unlike(pairs), found, strict=True)}


def keep_reference(file: Path, reference: Reference) -> None:
    """Writes it for a run that goes on later. Python's floats hold what float32 does."""
    write_atomically(file, json.dumps(list(reference.values())).encode())


@torch.no_grad()
def reference_logprobs(
    model: torch.nn.Module,
    pairs: Sequence[Rendered],
    tokens_per_pass: int,
    *,
    pad_id: int,
    machine: Machine,
    sharded: bool = False,
) -> Reference:
    """ln p0(reply) of both replies of each pair, summed over its tokens, in nats. `model` has no controls.

    Every process must call this with the same pairs; where the model is `sharded` each goes over it equally often.
    """
    items = [Item(UNCONTROLLED, pair) for pair in _unlike(pairs)]
    places = {item.rendered: place for place, item in enumerate(items)}
    found = torch.zeros(len(items), 2, device=machine.device)
    for group, counts in _own_passes(items, tokens_per_pass, machine, sharded=sharded):
        batch = lay_out(group, lambda _: ((), ()), pad_id, machine.device)
        with without_dropout(model):
            nll = reply_nll(model, batch)
        sums = torch.zeros(len(batch.row_controls), device=machine.device).index_add(0, batch.replies, -nll)
        if counts:
            found[[places[pair] for pair in batch.paired]] = sums[batch.pairs]
    machine.add(found)
    rows = found.tolist()
    return {item.rendered: (preferred, rejected) for item, (preferred, rejected) in zip(items, rows, strict=True)}


def _own_passes(
    items: Sequence[Item], tokens_per_pass: int, machine: Machine, *, sharded: bool
) -> list[tuple[list[Item], bool]]:
    """This process's passes, and whether each counts: of a sharded model whoever has fewer adds some that do not."""
    groups, cost = passes(items, tokens_per_pass), partial(tokens_on_the_way, packed=False)
    own = [(group, True) for group in machine.share(groups, cost)]
    num = max(map(len, shares(groups, machine.num_processes, cost))) if sharded else len(own)
    return own + [(min(groups, key=cost), False) for _ in range(num - len(own))]


def _unlike(pairs: Sequence[Rendered]) -> list[Rendered]:
    return list(dict.fromkeys(pairs))
