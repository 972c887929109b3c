"""The layer between a model and its logits, on its own: which columns it bans. The engine's tests see what follows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from meet_server.engine import banned_ids

BANNED = float("-inf")


def layer(vocab_size: int, **options: Any) -> Any:
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    banned_ids.install()
    with set_current_vllm_config(VllmConfig()):
        return LogitsProcessor(vocab_size, **options)


def head(start: int = 0) -> Any:
    """An output layer whose logits are its input."""
    return SimpleNamespace(
        quant_method=SimpleNamespace(apply=lambda layer, hidden, bias: hidden),
        tp_size=1,
        shard_indices=SimpleNamespace(org_vocab_start_index=start),
    )


def banned_columns(logits: torch.Tensor) -> list[int]:
    assert bool((logits == logits[0]).all())
    return [column for column, value in enumerate(logits[0].tolist()) if value == BANNED]


def test_from_the_id_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(banned_ids.FIRST_ID, "12")
    logits = layer(16)(head(), torch.ones(3, 16))
    assert banned_columns(logits) == [12, 13, 14, 15]
    assert bool((logits[:, :12] == 1).all())


def test_a_cap_or_a_scale_does_not_lift_the_ban(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(banned_ids.FIRST_ID, "12")
    assert banned_columns(layer(16, soft_cap=30.0, scale=0.5)(head(), torch.ones(3, 16))) == [12, 13, 14, 15]


@pytest.mark.parametrize(("start", "columns"), [(0, []), (8, [4, 5, 6, 7]), (16, [0, 1, 2, 3, 4, 5, 6, 7])])
def test_each_tensor_parallel_rank_bans_its_own(
    monkeypatch: pytest.MonkeyPatch, start: int, columns: list[int]
) -> None:
    monkeypatch.setenv(banned_ids.FIRST_ID, "12")
    logits = layer(24)(head(start), torch.ones(3, 8), skip_gather=True)
    assert banned_columns(logits) == columns


def test_models_that_are_made_without_the_id_ban_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(banned_ids.FIRST_ID, raising=False)
    assert banned_columns(layer(16)(head(), torch.ones(3, 16))) == []


def test_vllms_wrapper_for_adapters_of_the_output_layer_bans_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands there as soon as a user's `--enable-lora` says no modules, and runs its base layer's `forward`."""
    from vllm.lora.layers import LogitsProcessorWithLoRA

    monkeypatch.setenv(banned_ids.FIRST_ID, "12")
    wrapper: Any = LogitsProcessorWithLoRA.__new__(LogitsProcessorWithLoRA)
    torch.nn.Module.__init__(wrapper)
    wrapper.base_layer = layer(16)
    monkeypatch.setattr(LogitsProcessorWithLoRA, "_get_logits", lambda _self, hidden, *_: hidden.clone())
    assert banned_columns(wrapper(head(), torch.ones(3, 16))) == [12, 13, 14, 15]
