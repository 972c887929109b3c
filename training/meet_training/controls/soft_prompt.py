"""Soft prompts: one run of virtual tokens per preference, whose embeddings are what is learned.

Lester et al. 2021 (arXiv 2104.08691). While training, virtual tokens are ids beyond the model's vocabulary that a
wrapper of its embedding layer looks up in the controls; when the bundle is written they become rows of the embedding
matrix itself, so that serving one means adding ids to a prompt.

N virtual tokens, H hidden size, V vocabulary of the base, K controls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from meet_bundle import SoftPromptControls
from meet_training.controls_config import SoftPromptConfig
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS = "soft_prompt.safetensors"


class VirtualEmbedding(nn.Module):
    """The model's embedding layer, and the controls' rows for ids from V on: control k has V + k N to V + (k+1) N - 1.

    Rows of controls that no token of the batch is under take no part, so they get no gradient at all.
    """

    def __init__(self, base: nn.Embedding, prompts: Sequence[Tensor]) -> None:
        """`prompts` are the starts, (N, H) each."""
        super().__init__()
        self.base = base
        self.num_tokens = base.num_embeddings
        self.prompts = nn.ParameterList(nn.Parameter(start.float().to(base.weight.device)) for start in prompts)
        # Some models (Gemma) multiply embeddings by a constant inside this layer.
        self.scale = float(getattr(base, "embed_scale", 1.0))
        self.present: tuple[int, ...] = ()

    @property
    def weight(self) -> Tensor:
        """Of the base; libraries ask an embedding layer for it."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, H) in the base's dtype."""
        if not self.present:
            embedded: Tensor = self.base(ids)
            return embedded
        virtual = ids >= self.num_tokens
        embedded = self.base(ids.masked_fill(virtual, 0))
        length = self.prompts[0].shape[0]
        first_row = torch.zeros(len(self.prompts), dtype=ids.dtype, device=ids.device)
        first_row[list(self.present)] = torch.arange(len(self.present), device=ids.device) * length
        place = (ids - self.num_tokens).clamp_min(0)
        rows = torch.cat([self.prompts[k] for k in self.present]) * self.scale
        own = nn.functional.embedding(first_row[place // length] + place % length, rows)
        return torch.where(virtual[..., None], own.to(embedded.dtype), embedded)


class SoftPromptTuning:
    """The soft prompts of one run, attached to a model in place of its embedding layer. A `ControlSet`."""

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        config: SoftPromptConfig,
        seed: int,
        tokenizer: PreTrainedTokenizerBase,
        texts: Mapping[str, str],
    ) -> None:
        """`texts` are what each preference starts from where `config.start` is `text`."""
        self.names = tuple(names)
        self._config = config
        base: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
        starts = [_start(name, base, config, seed, tokenizer, texts) for name in names]
        self._embedding = VirtualEmbedding(base, starts)
        model.set_input_embeddings(self._embedding)  # type: ignore[operator]

    def parameters_of(self, control: int) -> list[nn.Parameter]:
        return [self._embedding.prompts[control]]

    def virtual_ids(self, control: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if control < 0:
            return (), ()
        first, length = self.first_token_id(control), self._config.num_virtual_tokens
        ids = tuple(range(first, first + length))
        return (ids, ()) if self._config.placement == "before_prompt" else ((), ids)

    def first_token_id(self, control: int) -> int:
        return self._embedding.num_tokens + control * self._config.num_virtual_tokens

    @contextmanager
    def applied(self, token_controls: Tensor) -> Iterator[None]:
        found = sorted(set(token_controls.flatten().tolist()))
        self._embedding.present = tuple(control for control in found if control >= 0)
        try:
            yield
        finally:
            self._embedding.present = ()

    def state(self) -> dict[str, Tensor]:
        prompts = zip(self.names, self._embedding.prompts, strict=True)
        return {f"{name}/soft_prompt": prompt.detach().cpu().clone() for name, prompt in prompts}

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, prompt in zip(self.names, self._embedding.prompts, strict=True):
                prompt.copy_(state[f"{name}/soft_prompt"])

    def centre(self, around: Sequence[int]) -> None:
        """Nothing: what soft prompts have in common is no part of the model."""

    def detach(self, model: Any) -> None:
        """Makes the soft prompts rows of the model's own embedding matrix, after its vocabulary.

        An output layer of its own gets as many rows, of zeros: no id of theirs is ever to be sampled, and generation
        with transformers is told so.
        """
        base, num = self._embedding.base, len(self.names) * self._config.num_virtual_tokens
        model.set_input_embeddings(base)
        tied = model.get_output_embeddings().weight is base.weight
        model.resize_token_embeddings(self._embedding.num_tokens + num, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[-num:] = torch.cat(list(self._embedding.prompts))
            if not tied:
                model.get_output_embeddings().weight[-num:] = 0.0
        first = self._embedding.num_tokens
        model.generation_config.suppress_tokens = list(range(first, first + num))

    def save(self, control: int, folder: Path) -> None:
        """Writes `soft_prompt.safetensors`: `soft_prompt` (N, H) float32."""
        folder.mkdir(parents=True)
        prompt = self._embedding.prompts[control].detach().cpu().contiguous().clone()
        save_file({"soft_prompt": prompt}, folder / WEIGHTS)

    def load(self, control: int, folder: Path) -> None:
        """Takes over a saved soft prompt. Raises TrainingError where it has another shape."""
        try:
            saved = load_file(folder / WEIGHTS)["soft_prompt"]
        except (OSError, SafetensorError, KeyError) as error:
            raise TrainingError(f"start_from: {folder / WEIGHTS} cannot be read: {error}") from None
        prompt = self._embedding.prompts[control]
        if saved.shape != prompt.shape:
            raise TrainingError(
                f"start_from: {folder / WEIGHTS} is {tuple(saved.shape)}; `controls` makes it {tuple(prompt.shape)}"
            )
        with torch.no_grad():
            prompt.copy_(saved)

    def describe(self) -> SoftPromptControls:
        return SoftPromptControls(num_virtual_tokens=self._config.num_virtual_tokens, placement=self._config.placement)


def _start(
    name: str,
    base: nn.Embedding,
    config: SoftPromptConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, str],
) -> Tensor:
    """Where a soft prompt starts from, (N, H) float32, drawn by seed and name."""
    weight = base.weight.detach().float().cpu()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7]))
    length = config.num_virtual_tokens
    if config.start == "random":
        return torch.randn(length, weight.shape[1], generator=generator) * weight.std()
    if config.start == "vocabulary":
        # The tokenizer's own: behind them some models have rows that nothing ever trained.
        ids = torch.randint(len(tokenizer), (length,), generator=generator)
        return weight[ids]
    ids = torch.tensor(tokenizer(texts[name], add_special_tokens=False)["input_ids"])
    if not len(ids):
        raise TrainingError(f"controls.start_text of {name!r}: {texts[name]!r} has no tokens")
    return weight[ids.repeat(-(-length // len(ids)))[:length]]
