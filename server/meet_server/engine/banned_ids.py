"""Keeps virtual tokens from ever being produced, inside the engine's worker processes. Knows nothing of MEET.

Their rows stand in the output layer too, and where it is the embedding matrix itself they would be sampled. So
their logits are -inf as they leave the model, before anything looks at them: sampling, greedy or not, beam search,
structured output, and every kind of log-probability, which thereby are those of the true vocabulary.

vLLM's logits processors would be too late: log-probabilities are taken before them, and its two model runners want
different ones. Cutting the columns off would have penalties count prompt tokens beyond the end.
"""

from __future__ import annotations

import os
from typing import Any

FIRST_ID = "MEET_FIRST_BANNED_ID"
"""Environment of the worker processes: in models that are made while it is set, this id and all above are banned."""


def install() -> None:
    """Puts the ban into vLLM's layer between a model and its logits. Once per process."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    if LogitsProcessor.__name__ in op_registry_oot:
        return

    @LogitsProcessor.register_oot
    class TrueVocabulary(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.first_banned = int(os.environ[FIRST_ID]) if FIRST_ID in os.environ else None

        def forward(self, lm_head: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            # vLLM's wrapper for LoRA, which is none of these, calls this with itself.
            logits = LogitsProcessor.forward(self, lm_head, hidden_states, *args, **kwargs)
            own: Any = getattr(self, "base_layer", self)
            first_banned = own.first_banned
            if logits is None or first_banned is None:  # of several tensor-parallel ranks one has them
                return logits
            # Each rank's own columns, or all of them.
            start = lm_head.shard_indices.org_vocab_start_index if kwargs.get("skip_gather") else 0
            logits[..., max(0, first_banned - start) :] = float("-inf")
            return logits
