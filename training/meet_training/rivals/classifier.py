"""A judge of which of two replies people prefer: a linear head on the base's mean hidden states. An `Attribute`.

Small on purpose: it reads the reply alone, and its accuracy on pairs that it was not trained on is reported beside
everything that it judges.

N pairs, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from meet_bundle.bundle import write_atomically
from meet_training.evaluation.attributes import Summary
from meet_training.evaluation.figures import Share, share_of
from meet_training.rivals.compare_config import CLASSIFIER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 256
"""What is read of a reply."""


class PreferenceClassifier:
    """Scores a reply: the higher, the likelier it is the preferred one of a pair (Bradley & Terry 1952)."""

    name = CLASSIFIER
    unit = "log-odds of being preferred"
    summary: Summary = "median"

    def __init__(self, base: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """`base` is a causal language model, which is left as it is. `weight` is what is learned, (H,)."""
        self._base = base.eval()
        self._tokenizer = tokenizer
        self.weight = torch.zeros(base.config.hidden_size)

    def train(self, preferred: Sequence[str], rejected: Sequence[str], *, weight_decay: float) -> None:
        """Minimises mean -ln sigma(w (h(preferred) - h(rejected))) + weight_decay / 2 |w s|^2, s being each feature's
        spread. The problem is convex, so there is nothing to choose but the weight decay."""
        differences = self._features(preferred) - self._features(rejected)  # (N, H)
        spread = differences.square().mean(0).sqrt().clamp_min(1e-6)
        scaled = differences / spread
        weight = torch.zeros(scaled.shape[1], requires_grad=True)
        optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = softplus(-(scaled @ weight)).mean() + weight_decay / 2 * weight.square().sum()
            torch.autograd.backward(value)
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        self.weight = weight.detach() / spread

    def measure(self, text: str) -> float:
        """The score of one reply; 0 for an empty one."""
        return float(self._features([text])[0] @ self.weight) if text.strip() else 0.0

    def accuracy(self, preferred: Sequence[str], rejected: Sequence[str]) -> Share:
        """On how many pairs the preferred reply has the higher score."""
        scores = (self._features(texts) @ self.weight for texts in (preferred, rejected))
        num_right = int(torch.gt(*scores).sum())
        return share_of(num_right, len(preferred))

    @torch.no_grad()
    def _features(self, texts: Sequence[str]) -> Tensor:
        """Mean hidden state of the last layer over each text's tokens, (N, H) float32."""
        return torch.stack([self._hidden(text) for text in texts])

    def _hidden(self, text: str) -> Tensor:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"][:MAX_TOKENS]
        if not ids:
            return torch.zeros_like(self.weight)
        states = self._base(torch.tensor([ids], device=self._base.device), output_hidden_states=True).hidden_states
        mean: Tensor = states[-1][0].float().mean(0).cpu()
        return mean


@dataclass(frozen=True, slots=True)
class Judge:
    """The classifier, and how often it is right on the tested pairs."""

    classifier: PreferenceClassifier
    accuracy: Share


def kept_accuracy(file: Path, key: str) -> Share | None:
    """The accuracy that `keep_judge` wrote for the same key, or None."""
    kept = _kept(file, key)
    return Share(**kept["accuracy"]) if kept else None


def kept_judge(classifier: PreferenceClassifier, file: Path, key: str) -> Judge | None:
    """The judge that `keep_judge` wrote for the same key, or None. `classifier` becomes the one that was trained."""
    kept = _kept(file, key)
    if kept is None:
        return None
    classifier.weight = torch.tensor(kept["weight"])
    return Judge(classifier, Share(**kept["accuracy"]))


def keep_judge(judge: Judge, file: Path, key: str) -> None:
    """Writes a judge, so that the next piece of a comparison need not train it. `key` names all that decides it."""
    content = {"key": key, "accuracy": asdict(judge.accuracy), "weight": judge.classifier.weight.tolist()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(content).encode())


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    kept: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return kept if kept and kept["key"] == key else None
