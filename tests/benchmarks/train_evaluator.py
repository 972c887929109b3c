"""Losses of saved adapters by plain transformers and PEFT: none of the training code of either side.

    python tests/benchmarks/train_evaluator.py < order.json

The order names the base's folder, the adapters' folder, and token ids by control; the answer is the mean negative
log-likelihood per supervised token, of each control, in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def losses(base: str, adapters: str, examples: dict[str, list[tuple[list[int], int]]]) -> dict[str, float]:
    """`examples` are ids and how many of them are prompt, by control."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found: dict[str, float] = {}
    for name, group in examples.items():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(plain, str(Path(adapters) / name)).eval()
        total, num = 0.0, 0
        with torch.no_grad():
            for ids, num_prompt in group:
                row = torch.tensor([ids])
                logprobs = model(input_ids=row[:, :-1], use_cache=False).logits[0, num_prompt - 1 :].log_softmax(-1)
                total -= float(logprobs.gather(1, row[0, num_prompt:, None]).sum())
                num += len(ids) - num_prompt
        found[name] = total / num
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(losses(**json.load(sys.stdin))) + "\n")
