"""Sources of stage 1's speed, each of which `bench_train.py` switches off in turn.

Where the product has an option it is a setting of the job; where it has none, a function is replaced here, in the
benchmark's process alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

ONE_PASS = "one_pass"

# What is switched off -> overrides of the configuration, and names of replacements below.
SWITCHES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all controls in one pass (K runs instead)": ((), (ONE_PASS,)),
    "packed rows and our attention (padded rows of like length, PyTorch's attention)": (("speed.packing=never",), ()),
    "the same, and batches by length (4 rows as they come)": (("speed.packing=never",), ("by_length",)),
    "our attention (PyTorch's, example by example)": ((), ("own_attention",)),
    "logits only where supervised (all positions)": ((), ("supervised_only",)),
    "gradient of the frozen output layer along with the loss (worked out again)": ((), ("frozen_head",)),
    "logits in tiles that fit the cache (256 rows)": ((), ("tiles",)),
    "one frozen A for all controls (own, trained A's)": (("controls.share_a=false",), ()),
    "A x once for q, k, v and for gate, up (once a layer)": ((), ("same_input",)),
}


@contextmanager
def switched_off(names: Sequence[str]) -> Iterator[bool]:
    """Within the block these sources are off. Gives whether controls are to be trained one after the other."""
    with ExitStack() as stack:
        for name in names:
            if name != ONE_PASS:
                stack.enter_context(REPLACEMENTS[name]())
        yield ONE_PASS in names


def by_length() -> Any:
    def as_they_come(items: Sequence[Any], max_tokens: int, *, packed: bool = False) -> list[list[Any]]:
        return [list(items[i : i + 4]) for i in range(0, len(items), 4)]

    return patch("meet_training.stages.optimise.passes", as_they_come)


def own_attention() -> Any:
    return patch("meet_training.stages.packed_attention.LONGEST", 0)


def supervised_only() -> Any:
    from torch.nn.functional import cross_entropy

    from meet_training.stages import packed_attention

    def all_logits(model: Any, batch: Any, *, chunk: int) -> Any:
        given = {} if batch.positions is None else packed_attention.arguments(model, batch.positions)
        logits = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **given).logits
        return cross_entropy(logits[batch.predicts].float(), batch.targets, reduction="none")

    return patch("meet_training.stages.optimise.reply_nll", all_logits)


def frozen_head() -> Any:
    from torch.utils.checkpoint import checkpoint

    from meet_training.stages import reply_nll

    class Again:
        """The loss of a chunk, whose logits are computed again in the backward pass."""

        @staticmethod
        def apply(hidden: Any, weight: Any, targets: Any) -> Any:
            return checkpoint(reply_nll._nll, hidden, weight, targets, use_reentrant=False)

    return patch.object(reply_nll, "_FrozenHeadNll", Again)


def tiles() -> Any:
    return patch("meet_training.stages.reply_nll._TILE", 1 << 40)


def same_input() -> Any:
    from meet_training.controls.lora import LoraTuning

    start = LoraTuning.__init__

    def apart(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        for layer in self._layers.values():
            layer.group = ""

    return patch.object(LoraTuning, "__init__", apart)


REPLACEMENTS: dict[str, Callable[[], Any]] = {
    each.__name__: each for each in (by_length, own_attention, supervised_only, frozen_head, tiles, same_input)
}
