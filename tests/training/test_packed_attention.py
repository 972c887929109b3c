"""Our attention over packed rows, against transformers' own over each example alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from meet_training.controls.lora import LoraTuning
from meet_training.controls_config import LoraConfig
from meet_training.data.batches import Item
from meet_training.data.render import Rendered
from meet_training.errors import TrainingError
from meet_training.stages import packed_attention
from meet_training.stages.machine import Machine
from meet_training.stages.optimise import LoopConfig, backward
from meet_training.stages_config import SpeedConfig

CPU = torch.device("cpu")
ITEMS = [
    Item(0, Rendered((5, 6, 7), (8, 9))),
    Item(1, Rendered((5,), (6, 7, 8, 9, 10))),
    Item(1, Rendered((5, 6), (6, 7))),
]


@pytest.fixture
def load(tiny_base: Path) -> Callable[[], Any]:
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def by_example(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float) -> torch.Tensor:
    """PyTorch's attention, keys repeated for the heads that share them, over one example after the other."""
    parts = []
    for a, b, c in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True):
        keys, values = (tensor.repeat_interleave(a.shape[1] // b.shape[1], 1) for tensor in (b, c))
        parts.append(scaled_dot_product_attention(a, keys, values, is_causal=True, scale=scale).transpose(1, 2))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("longest", [1024, 3])
@pytest.mark.parametrize("value_size", [8, 5])
@pytest.mark.parametrize(("num_heads", "num_groups"), [(4, 4), (6, 2), (3, 1)])
def test_each_example_is_attended_as_if_it_were_alone(
    num_heads: int, num_groups: int, value_size: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an example is too long for its weights to be kept, and where values have a size of their own, as in
    DeepSeek's latent attention."""
    monkeypatch.setattr(packed_attention, "LONGEST", longest)
    torch.manual_seed(0)
    lengths = [4, 1, 7]
    q, k = (torch.randn(1, heads, 12, 8, requires_grad=True) for heads in (num_heads, num_groups))
    v = torch.randn(1, num_groups, 12, value_size, requires_grad=True)
    expected = by_example(q, k, v, lengths, 0.3)
    ours, weights = packed_attention.attend(
        torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=torch.tensor([0, 4, 5, 12]), scaling=0.3
    )
    assert weights is None
    torch.testing.assert_close(ours, expected)
    gradient = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(ours, (q, k, v), gradient), torch.autograd.grad(expected, (q, k, v), gradient), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_under_autocast_it_works_in_bfloat16() -> None:
    q, k, v = (torch.randn(1, 2, 6, 4, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = packed_attention.attend(torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=torch.tensor([0, 2, 6]))
        ours.float().sum().backward()
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), by_example(q, k, v, [2, 4], 0.5), atol=0.03, rtol=0.03)
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in (q, k, v))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_are_those_of_padded_rows(load: Callable[[], Any], checkpointing: bool) -> None:
    found = []
    for packed in (False, True):
        model = load()
        model.train()
        model.requires_grad_(False)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        controls = LoraTuning(model, ("a", "b"), LoraConfig(), seed=0)
        torch.manual_seed(3)
        with torch.no_grad():
            for k in (0, 1):
                for parameter in controls.parameters_of(k):
                    parameter.normal_(0, 0.2)
        if packed:
            assert packed_attention.take(model, CPU)
        config = LoopConfig("s", Machine(CPU), tokens_per_pass=10, pad_id=0, autocast=False, seed=0, packed=packed)
        losses = backward(model, controls, ITEMS, config)
        found.append((losses, [p.grad.clone() for k in (0, 1) for p in controls.parameters_of(k)]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "more", [{"sliding_window": 4}, {"attn_logit_softcapping": 30.0}, {"attention_dropout": 0.1}], ids=str
)
def test_a_model_whose_attention_is_more_than_that_keeps_its_own(load: Callable[[], Any], more: dict[str, Any]) -> None:
    model = load()
    before = model.config._attn_implementation
    for field, value in more.items():
        setattr(model.config, field, value)
    assert not packed_attention.take(model, CPU)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize(
    "layer_types",
    [["full_attention", "linear_attention"], ["conv", "full_attention"], ["chunked_attention"] * 2],
    ids=str,
)
def test_a_model_that_would_mix_the_examples_of_a_row_has_none_packed(
    load: Callable[[], Any], layer_types: list[str], attention: str
) -> None:
    """FlashAttention keeps its own layers' apart, and no others'."""
    model = load()
    model.config._attn_implementation_internal = attention
    always = SpeedConfig(packing="always", attention=attention)
    assert packed_attention.packs(model, always, CPU)
    assert packed_attention.packs(model, SpeedConfig(attention=attention), CPU) is (attention != "sdpa")
    model.config.layer_types = layer_types
    assert not packed_attention.packs(model, SpeedConfig(attention=attention), CPU)
    with pytest.raises(TrainingError, match="'always': examples of one row would run into one another in LlamaFor"):
        packed_attention.packs(model, always, CPU)


def test_other_devices_keep_theirs(load: Callable[[], Any]) -> None:
    assert not packed_attention.take(load(), torch.device("cuda"))
