"""Dense LoRA on CPUs against a reference that goes row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

RANK, IN, SLOTS = 8, 32, 3
SLICES = {"one": (48,), "qkv": (32, 16, 16)}
# Slot of each row; -1 is a row without an adapter.
ROWS = {
    "mixed": (0, -1, 2, 2, -1, 0, 1),
    "one slot, some rows without": (-1, 1, 1, -1),
    "one slot, every row": (2, 2, 2),
    "last slot": (2, -1),
    "nothing": (-1, -1, -1),
}


class Layer:
    """Stacked adapters of one layer as vLLM keeps them."""

    def __init__(self, slices: Sequence[int], dtype: torch.dtype, rank: int = RANK) -> None:
        generator = torch.Generator().manual_seed(0)
        self.slices = tuple(slices)
        self.a = tuple(torch.randn(SLOTS, 1, rank, IN, generator=generator).to(dtype) for _ in slices)
        self.b = tuple(torch.randn(SLOTS, 1, out, rank, generator=generator).to(dtype) for out in slices)

    def reference(self, y: torch.Tensor, x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """In float64, one row and one slice at a time."""
        y, offset = y.double().clone(), 0
        for a, b, out in zip(self.a, self.b, self.slices, strict=True):
            for row, slot in enumerate(rows):
                if slot >= 0:
                    y[row, offset : offset + out] += b[slot, 0].double() @ (a[slot, 0].double() @ x[row].double())
            offset += out
        return y


def wrapper_for(rows: Sequence[int], *, is_prefill: bool = True) -> Any:
    from vllm.lora.layers import LoRAMapping

    from meet_server.engine.cpu_lora import DenseLora

    wrapper = DenseLora(64, 64, torch.device("cpu"))
    step(wrapper, rows, is_prefill=is_prefill, mapping_class=LoRAMapping)
    return wrapper


def step(wrapper: Any, rows: Sequence[int], *, is_prefill: bool = True, mapping_class: Any = None) -> None:
    """One change of the batch: slot s holds the adapter with id s + 1."""
    if mapping_class is None:
        from vllm.lora.layers import LoRAMapping as mapping_class  # noqa: N813
    ids = tuple(slot + 1 for slot in rows)
    wrapper.update_metadata(mapping_class(ids, ids, is_prefill=is_prefill), [1, 2, 3], SLOTS + 1, 384)


def inputs(num_rows: int, out: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(num_rows, IN, generator=generator).to(dtype),
        torch.randn(num_rows, out, generator=generator).to(dtype),
    )


@pytest.mark.parametrize("is_prefill", [True, False], ids=["prefill", "decode"])
@pytest.mark.parametrize("slices", SLICES.values(), ids=SLICES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_linear(rows: tuple[int, ...], slices: tuple[int, ...], is_prefill: bool) -> None:
    layer, (x, y) = Layer(slices, torch.float32), inputs(len(rows), sum(slices), torch.float32)
    expected = layer.reference(y, x, rows)
    before = y.clone()
    wrapper_for(rows, is_prefill=is_prefill).add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.slices)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    for row, slot in enumerate(rows):
        if slot < 0:  # bit for bit, or the prefix cache would differ
            assert torch.equal(y[row], before[row])


def test_wide_adapters_go_slice_by_slice() -> None:
    rows = ROWS["mixed"]
    layer = Layer(SLICES["qkv"], torch.float32, rank=32)  # 3 slices x 3 slots x 32 is above the fused width
    x, y = inputs(len(rows), 64, torch.float32)
    expected = layer.reference(y, x, rows)
    wrapper_for(rows).add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.slices)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-4)


def test_bfloat16_is_as_accurate_as_the_stock_kernels() -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    rows = (0, 1, 2, 2, 1, 0, 1)  # the stock kernels are wrong for rows without an adapter
    layer = Layer(SLICES["qkv"], torch.bfloat16)
    x, y = inputs(len(rows), 64, torch.bfloat16)
    expected = layer.reference(y, x, rows)
    stock = PunicaWrapperCPU(64, 64, torch.device("cpu"))
    step(stock, rows)
    errors = []
    for wrapper in (wrapper_for(rows), stock):
        out = y.clone()
        wrapper.add_lora_linear(out, x, layer.a, layer.b, 1.0, layer.slices)
        errors.append((out.double() - expected).abs().mean())
    assert errors[0] <= errors[1] * 1.05


def test_adapter_replaced_in_its_slot_is_seen() -> None:
    """Also under the same slot and id, when vLLM does not tell the wrapper."""
    rows = (0, 1)
    layer, (x, y) = Layer(SLICES["qkv"], torch.float32), inputs(2, 64, torch.float32)
    wrapper = wrapper_for(rows)
    wrapper.add_lora_linear(y.clone(), x, layer.a, layer.b, 1.0, layer.slices)
    layer.a[1][0] = 0  # as `reset_lora` does
    layer.b[2][1, 0, :16, :RANK].copy_(torch.ones(16, RANK))  # as `set_lora` does
    expected = layer.reference(y, x, rows)
    wrapper.add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.slices)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)


def test_batch_that_changes_is_followed_and_little_is_kept() -> None:
    from meet_server.engine.cpu_lora import MAX_COMBINATIONS

    layer = Layer(SLICES["one"], torch.float32)
    wrapper = wrapper_for((0,))
    for rows in [(0,), (1,), (2, -1), (0, 1), (1, 2), (0, 2), (0, 1, 2), (-1,), (0,)]:
        step(wrapper, rows)
        x, y = inputs(len(rows), 48, torch.float32)
        expected = layer.reference(y, x, rows)
        wrapper.add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.slices)
        torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    assert all(len(kept) <= MAX_COMBINATIONS for kept in wrapper._packed.values())


def test_logits_with_rows_without_an_adapter() -> None:
    rows = (1, -1, 0)
    layer = Layer((40,), torch.float32)
    x, y = inputs(3, 48, torch.float32)  # logits are padded beyond the adapter's vocabulary
    expected = y.clone()
    expected[:, :40] = layer.reference(y[:, :40], x, rows).float()
    wrapper_for(rows).add_lora_logits(y, x, layer.a[0], layer.b[0], 1.0)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_logits_in_float32_over_a_bfloat16_model() -> None:
    rows = (1, -1)
    layer = Layer((48,), torch.bfloat16)
    x, _ = inputs(2, 48, torch.bfloat16)
    _, y = inputs(2, 48, torch.float32)
    expected = layer.reference(y, x, rows)
    wrapper_for(rows).add_lora_logits(y, x, layer.a[0], layer.b[0], 1.0)
    assert (y - expected).abs().max() < 1
    assert torch.equal(y[1], expected[1].float())


def test_embedding_with_rows_without_an_adapter() -> None:
    rows = (2, -1, 0)
    layer = Layer((48,), torch.float32)
    x = torch.randn(3, RANK, generator=torch.Generator().manual_seed(2))
    _, y = inputs(3, 48, torch.float32)
    expected = y.clone()
    for row, slot in enumerate(rows):
        if slot >= 0:
            expected[row] += layer.b[0][slot, 0] @ x[row]
    wrapper_for(rows).add_lora_embedding(y, x, layer.b[0])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_shrink_and_expand_apart_with_rows_without_an_adapter() -> None:
    """As fully sharded layers call them."""
    rows = (2, -1, 0)
    layer, (x, y) = Layer(SLICES["qkv"], torch.float32), inputs(3, 64, torch.float32)
    expected = layer.reference(y, x, rows)
    wrapper = wrapper_for(rows)
    buffers = torch.zeros(3, 3, RANK)
    wrapper.add_shrink(buffers, x, layer.a, 1.0)
    wrapper.add_expand(y, buffers, layer.b, layer.slices)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
