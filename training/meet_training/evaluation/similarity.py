"""How alike two replies are, behind one small protocol. By words alone, or by a sentence-embedding model from a folder.

Knows nothing of what the replies are for. torch and transformers are imported only where a model is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from meet_training.data.attributes import words_of
from meet_training.errors import TrainingError


class Similarity(Protocol):
    """A named measure of how alike two texts are."""

    @property
    def name(self) -> str:
        """What it is called in reports, which say by it whether meaning was measured."""

    def of(self, texts: Sequence[str], others: Sequence[str]) -> list[float]:
        """One number a pair, 1 where both are the same. Raises ValueError where they differ in number."""


class LexicalOverlap:
    """F1 of the words of the two texts, counted, case and punctuation aside. It is not meaning, and is named so."""

    name = "lexical overlap (F1 of words; not meaning)"

    def of(self, texts: Sequence[str], others: Sequence[str]) -> list[float]:
        """2 x shared words / words of both; two empty texts are the same."""
        return [_f1(_bag(text), _bag(other)) for text, other in zip(texts, others, strict=True)]


class EmbeddingSimilarity:
    """Cosine of mean-pooled token states of a sentence-embedding model, as all-MiniLM-L6-v2 is used."""

    BATCH = 32

    def __init__(self, folder: Path) -> None:
        """Reads the model and its tokenizer. Raises TrainingError where the folder holds none."""
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"similarity: {folder} holds no embedding model: {reason}") from None
        self.name = f"cosine of embeddings by {folder.name}"

    def of(self, texts: Sequence[str], others: Sequence[str]) -> list[float]:
        """Cosine of the embeddings of each pair, -1 to 1."""
        pairs = list(zip(texts, others, strict=True))
        ours, theirs = self._embed([text for text, _ in pairs]), self._embed([other for _, other in pairs])
        return [float(value) for value in (ours * theirs).sum(dim=1)]

    def _embed(self, texts: Sequence[str]) -> Any:
        import torch

        rows = []
        for start in range(0, len(texts), self.BATCH):
            batch = self._tokenizer(
                list(texts[start : start + self.BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            with torch.no_grad():
                states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            rows.append((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        return torch.nn.functional.normalize(torch.cat(rows), dim=1)


def similarity_of(folder: Path | None) -> Similarity:
    """The embedding model of a folder, or overlap of words where none is given. Raises TrainingError."""
    return LexicalOverlap() if folder is None else EmbeddingSimilarity(folder)


def _bag(text: str) -> Counter[str]:
    return Counter("".join(filter(str.isalnum, word)).lower() for word in words_of(text))


def _f1(bag: Counter[str], other: Counter[str]) -> float:
    total = bag.total() + other.total()
    return 2 * (bag & other).total() / total if total else 1.0
