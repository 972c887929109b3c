"""The products of resident LoRA against a reference that goes token by token, and what a worker's keeper does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from meet_server.engine import resident_weights
from meet_server.engine.cpu_product import tiled
from meet_server.engine.memory_adapters import check_finite, factors, mixed
from meet_server.engine.resident_lora import Mixture, ResidentLayer, ResidentManager, Step, _is_plain
from meet_server.engine.resident_weights import MAX_FUSED_WIDTH, Fused, Strengths, check_fits, pack

RANK, IN = 8, 32
BY = ("kernel", "products")
SLICES = {"one": (48,), "qkv": (32, 16, 16)}
# Strengths of three controls on each token; no strength is an uncontrolled token.
WEIGHTS = torch.tensor([[1, 0, 0], [0, 0, 0], [0.7, 0.5, 0], [0, -1, 2.01], [0.3, -0.2, 0.1]])


@pytest.fixture
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How layers are computed: as they are here, by the kernel; or as where that cannot be compiled."""
    if request.param == "products":
        monkeypatch.setattr(resident_weights, "takes", lambda *_: False)
    return str(request.param)


def layer(slices: Sequence[int]) -> Any:
    return SimpleNamespace(output_slices=tuple(slices), tp_size=1, input_size=IN)


def control(slices: Sequence[int], seed: int, a: Sequence[int], rank: int = RANK, dtype: Any = torch.float32) -> Any:
    """Weights as vLLM keeps them; `a` says, by seed, which A each slice has, -1 that it is left alone."""
    made = torch.Generator().manual_seed(seed)
    all_a = [None if s < 0 else torch.randn(rank, IN, generator=torch.Generator().manual_seed(s)).to(dtype) for s in a]
    all_b = [torch.randn(out, rank, generator=made).to(dtype) for out in slices]
    b = [None if each is None else all_b[index] for index, each in enumerate(all_a)]
    packed = len(slices) > 1
    return SimpleNamespace(lora_a=all_a if packed else all_a[0], lora_b=b if packed else b[0], is_packed=packed,
                           rank=rank)  # fmt: skip


def reference(y: torch.Tensor, x: torch.Tensor, slices: Sequence[int], controls: Any, weights: Any) -> torch.Tensor:
    y = y.double().clone()
    for token in range(len(x)):
        for each, strength in zip(controls, weights[token].tolist(), strict=True):
            offset = 0
            all_a = each.lora_a if each.is_packed else [each.lora_a]
            all_b = each.lora_b if each.is_packed else [each.lora_b]
            for a, b, out in zip(all_a, all_b, slices, strict=True):
                if a is not None:
                    y[token, offset : offset + out] += strength * (b.double() @ (a.double() @ x[token].double()))
                offset += out
    return y


def inputs(num_tokens: int, out: int, dtype: Any = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(num_tokens, IN, generator=made).to(dtype), torch.randn(num_tokens, out, generator=made).to(dtype)


A = {
    "one A for all": [(5, 5, 5)] * 3,
    "an A for each control": [(5, 5, 5), (6, 6, 6), (7, 7, 7)],
    "an A for each slice": [(1, 2, 3), (4, 5, 6), (7, 8, 9)],
    "a slice left alone": [(5, -1, 5), (5, 5, 5), (5, 5, -1)],
}


@pytest.mark.parametrize("slices", SLICES.values(), ids=SLICES)
@pytest.mark.parametrize("a", A.values(), ids=A)
@pytest.mark.parametrize("rank", [RANK, 48])
@pytest.mark.parametrize(("by", "tile"), [("kernel", 1), ("products", 1), ("products", 32)], indirect=["by"])
def test_sums(
    monkeypatch: pytest.MonkeyPatch, by: str, slices: tuple[int, ...], a: list[tuple[int, ...]], rank: int, tile: int
) -> None:
    monkeypatch.setattr(resident_weights, "tiled", lambda num, _: -(-num // tile) * tile)
    controls = [control(slices, 10 + i, each[: len(slices)], rank) for i, each in enumerate(a)]
    x, y = inputs(len(WEIGHTS), sum(slices))
    expected, before = reference(y, x, slices, controls, WEIGHTS), y.clone()
    packed = pack(layer(slices), controls)
    assert isinstance(packed, Fused) == (by == "kernel")
    packed.add(y, x, Strengths(WEIGHTS))
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-3)
    assert torch.equal(y[1], before[1])  # bit for bit, or the prefix cache would differ


@pytest.mark.parametrize("by", ["products"], indirect=True)
def test_one_a_is_applied_once_for_all_slices_and_where_controls_are_many_for_all_of_them(by: str) -> None:
    shared = [control(SLICES["qkv"], i, (5, 5, 5)) for i in range(MAX_FUSED_WIDTH // RANK + 1)]
    assert pack(layer(SLICES["qkv"]), shared[:4]).a.shape == (4 * RANK, IN)
    assert pack(layer(SLICES["qkv"]), shared).a.shape == (RANK, IN)
    apart = [control(SLICES["qkv"], i, (i, i, i)) for i in range(4)]
    assert pack(layer(SLICES["qkv"]), apart).a.shape == (4 * RANK, IN)


@pytest.mark.parametrize("by", ["products"], indirect=True)
def test_narrow_matrices_have_whole_tiles_where_the_processor_multiplies_by_them(by: str) -> None:
    one = [control(SLICES["qkv"], 1, (5, 5, 5), dtype=torch.bfloat16)]
    for has_tiles, rows in ((True, 32), (False, RANK)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has_tiles: has)
            assert tiled(RANK, torch.bfloat16) == rows
            assert tiled(RANK, torch.float32) == RANK
    packed = pack(layer(SLICES["qkv"]), one)
    assert packed.a.shape == (tiled(RANK, torch.bfloat16), IN)


def test_strengths_that_bfloat16_holds_are_multiplied_in_it_and_others_in_float32() -> None:
    def dtype(*strengths: float) -> torch.dtype:
        return Strengths(torch.tensor([strengths])).wide(RANK, 1, 3 * RANK, torch.bfloat16).dtype

    assert dtype(0, 1, -0.5) == torch.bfloat16
    assert dtype(0, 1, 0.7) == torch.float32


@pytest.mark.parametrize("by", BY, indirect=True)
def test_controls_of_different_ranks(by: str) -> None:
    controls = [control((48,), 1, (5,), rank=4), control((48,), 2, (6,), rank=8)]
    x, y = inputs(5, 48)
    expected = reference(y, x, (48,), controls, WEIGHTS[:, :2])
    pack(layer((48,)), controls).add(y, x, Strengths(WEIGHTS[:, :2].contiguous()))
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("by", BY, indirect=True)
def test_bfloat16_tells_strengths_apart_that_it_cannot_hold(by: str) -> None:
    one = [control((48,), 1, (5,), dtype=torch.bfloat16)]
    x, _ = inputs(1, 48, torch.bfloat16)
    outs = []
    for strength in (2.00, 2.01):
        y = torch.zeros(1, 48, dtype=torch.bfloat16)
        pack(layer((48,)), one).add(y, x, Strengths(torch.tensor([[strength]])))
        outs.append(y)
    assert not torch.equal(*outs)


@pytest.mark.parametrize(
    ("tokens", "dtype", "words"),
    [
        (3, torch.float32, r"\(3, 48\), inputs .* \(3, 32\), 5 tokens with 3 controls"),
        (5, torch.bfloat16, "bfloat16 .* the layer is torch.float32 32 to 48 of 3"),
    ],
)
def test_what_the_kernel_would_read_wrongly_is_refused(tokens: int, dtype: torch.dtype, words: str) -> None:
    packed = pack(layer((48,)), [control((48,), seed, (5,)) for seed in range(3)])
    x, y = inputs(tokens, 48, dtype)
    with pytest.raises(ValueError, match=words):
        packed.add(y, x, Strengths(WEIGHTS))


def test_tokens_of_the_same_controls_are_side_by_side_and_those_of_none_left_out() -> None:
    table = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0.5, 0], [0, -1]])
    assert Strengths(table).batch.order.tolist() == [0, 3, 1, 4]
    assert Strengths(torch.zeros(2, 1)).batch.order.tolist() == []


@pytest.mark.parametrize("by", BY, indirect=True)
@pytest.mark.parametrize("tp_rank", [None, 0, 1])
def test_one_matrix_for_all_slices_of_a_layer_is_cut_into_them(by: str, tp_rank: int | None) -> None:
    """As the convolutions of LFM2 have it: three slices, which checkpoints hold as one."""
    from vllm.lora.layers import MergedColumnParallelLinearVariableSliceWithLoRA

    whole = control((sum(SLICES["qkv"]),), 1, (5,))
    split = MergedColumnParallelLinearVariableSliceWithLoRA.__new__(MergedColumnParallelLinearVariableSliceWithLoRA)
    torch.nn.Module.__init__(split)
    share = 1 if tp_rank is None else 2
    split.base_layer = SimpleNamespace(output_sizes=SLICES["qkv"])
    split.input_size, split.tp_size, split.tp_rank = IN, share, tp_rank or 0
    split.output_slices, split.n_slices = tuple(size // share for size in SLICES["qkv"]), 3
    split.output_sizes, split.output_ids = SLICES["qkv"], (tp_rank or 0,) * 3
    check_fits(split, "conv.in_proj", whole)
    if tp_rank != 0:  # whose share fits
        with pytest.raises(ValueError, match=r"layer conv\.in_proj: A is"):
            check_fits(split, "conv.in_proj", control((60,), 1, (5,)))
    rows = torch.cat([
        part[size // share * (tp_rank or 0) :][: size // share]
        for part, size in zip(torch.arange(64).split(SLICES["qkv"]), SLICES["qkv"], strict=True)
    ])  # fmt: skip
    x, y = inputs(1, 64)
    expected = reference(y, x, (64,), [whole], torch.ones(1, 1))[:, rows].float()
    y = y[:, rows].contiguous()
    pack(split, [whole]).add(y, x, Strengths(torch.ones(1, 1)))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)


def test_weights_that_do_not_fit_are_refused_by_the_layers_name() -> None:
    with pytest.raises(ValueError, match=r"layer mlp\.up: A is \(8, 32\) and B \(16, 8\); \(r, 32\) and \(48, r\)"):
        check_fits(layer((48,)), "mlp.up", control((16,), 1, (5,)))


class CountingBase:
    """A base layer, and how often anything else was asked of it."""

    def __init__(self) -> None:
        self.quant_method = self
        self.calls = 0

    def apply(self, base: Any, x: torch.Tensor, bias: Any) -> torch.Tensor:
        self.calls += 1
        return torch.zeros(x.shape[0], 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply(self, x, None)


def test_without_an_adapter_in_the_batch_only_the_base_layer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    added = []
    monkeypatch.setattr(ResidentLayer, "add", lambda self, y, x: added.append(len(x)))
    base, step = CountingBase(), Step()
    resident = ResidentLayer("mlp.up", SimpleNamespace(base_layer=base), step)
    resident(torch.zeros(3, IN))
    assert (base.calls, added) == (1, [])
    step.controls = (SimpleNamespace(),)
    resident(torch.zeros(3, IN))
    assert (base.calls, added) == (2, [3])


class Wrapped(torch.nn.Module):
    """A layer of vLLM's with LoRA, as far as it matters: its own `forward` adds 100 to what its base layer makes."""

    def __init__(self, base: Any, tp_size: int) -> None:
        super().__init__()
        self.base_layer, self.tp_size = base, tp_size

    def forward(self, x: torch.Tensor) -> Any:
        return x + 100


class WithBias(torch.nn.Identity):
    """A base layer that hands its bias on, as some do."""

    def forward(self, x: torch.Tensor) -> Any:
        return x.clone(), "bias"


@pytest.mark.parametrize(("tp_size", "added"), [(1, 1), (2, 100)])
def test_layers_are_their_base_layers_while_no_token_has_an_adapter(
    tp_size: int, added: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResidentLayer, "add", lambda self, y, x: y.add_(1))
    wrapped, manager = Wrapped(WithBias(), tp_size), ResidentManager.__new__(ResidentManager)
    manager._step, manager._aside, manager._last_tokens = Step(), None, None
    manager._combinations, manager._registered_adapters = OrderedDict(), {1: SimpleNamespace(id=1)}
    manager._resident_layers = [ResidentLayer("mlp.up", wrapped, manager._step)]
    x = torch.zeros(2, IN)
    for tokens in ((0, 1), (0, 0), (0, 1), (1, 1), (0, 0), (0, 0, 0), (0, 1)):
        manager.set_adapter_mapping(SimpleNamespace(index_mapping=tokens))
        output = wrapped(x)
        if any(tokens) and tp_size > 1:
            assert torch.equal(output, x + added)
        else:
            assert torch.equal(output[0], x + added * any(tokens))
            assert output[1] == "bias"


@pytest.mark.parametrize("by", BY, indirect=True)
def test_a_layer_that_no_adapter_of_the_batch_has_weights_for_is_left_alone(by: str) -> None:
    """As adapters of `--lora-modules` do, which may be of other layers than the bundle's controls."""
    own, step = layer((48,)), Step()
    own.base_layer = CountingBase()
    resident = ResidentLayer("up", own, step)
    apart, here = SimpleNamespace(loras={}), SimpleNamespace(loras={"up": control((48,), 1, (5,))})
    x, y = inputs(1, 48)
    before = y.clone()
    for _ in range(2):
        step.combination, step.controls, step.strengths = (1,), (apart,), Strengths(torch.ones(1, 1))
        resident.add(y, x)
        assert torch.equal(y, before)
    step.combination, step.controls, step.strengths = (1, 2), (apart, here), Strengths(torch.ones(1, 2))
    resident.add(y, x)
    assert not torch.equal(y, before)


def test_layers_that_are_nothing_but_a_product_need_no_slots() -> None:
    """Replicated ones among them, which vLLM makes of what a model of transformers' own says no plan for."""
    from vllm.lora import layers
    from vllm.model_executor.layers import linear

    class Gate(linear.ReplicatedLinear):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> Any:
            return torch.sigmoid(x)

    def made(kind: Any, base: Any) -> Any:
        module = kind.__new__(kind)
        torch.nn.Module.__init__(module)
        module.base_layer = base.__new__(base)
        return module

    for kind, base, plain in (
        (layers.QKVParallelLinearWithLoRA, linear.QKVParallelLinear, True),
        (layers.MergedQKVParallelLinearWithLoRA, linear.QKVParallelLinear, True),
        (layers.RowParallelLinearWithLoRA, linear.RowParallelLinear, True),
        (layers.ReplicatedLinearWithLoRA, linear.ReplicatedLinear, True),
        (layers.ReplicatedLinearWithLoRA, Gate, False),
        (layers.RowParallelLinearWithShardedLoRA, linear.RowParallelLinear, False),
    ):
        assert _is_plain(made(kind, base)) == plain, kind


def test_a_part_of_no_strength_is_as_none() -> None:
    manager = ResidentManager.__new__(ResidentManager)
    manager._step, manager._aside, manager._last_tokens = Step(), None, None
    manager._combinations, manager._resident_layers = OrderedDict(), []
    first, second = adapter(1, 1, True), adapter(2, 2, True)
    manager._registered_adapters = {3: Mixture(3, [(first, 0.0), (second, 0.5)]), 4: Mixture(4, [(first, 0.0)])}
    manager._plan(np.array([3, 0, 4]))
    assert manager._step.controls == (second,)
    assert manager._step.strengths.table.tolist() == [[0.5], [0], [0]]


def test_factors_with_one_a_keep_the_rank_and_with_several_stack() -> None:
    a, b = torch.randn(3, RANK, IN), torch.randn(3, 16, RANK)
    strengths = (0.7, -0.5, 2.0)
    expected = sum(w * y.double() @ a[0].double() for w, y in zip(strengths, b, strict=True))
    joint_a, joint_b = factors([(a[0], each, w) for each, w in zip(b, strengths, strict=True)])
    assert joint_a.shape == (RANK, IN)
    torch.testing.assert_close((joint_b @ joint_a).double(), expected, rtol=1e-4, atol=1e-4)
    expected = sum(w * y.double() @ x.double() for w, x, y in zip(strengths, a, b, strict=True))
    joint_a, joint_b = factors(list(zip(a, b, strengths, strict=True)))
    assert joint_a.shape == (3 * RANK, IN)
    torch.testing.assert_close((joint_b @ joint_a).double(), expected, rtol=1e-4, atol=1e-4)


def adapter(lora_id: int, seed: int, shared: bool) -> Any:
    """An adapter as vLLM has packed it: one fused layer, one plain."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights

    own = 5 if shared else seed
    fused, plain = control(SLICES["qkv"], seed, (own, own, -1)), control((48,), seed, (own,))
    return LoRAModel(
        lora_id,
        RANK,
        {
            "qkv": PackedLoRALayerWeights("qkv", RANK, [RANK] * 3, fused.lora_a, fused.lora_b, scaling=[1] * 3),
            "up": LoRALayerWeights("up", RANK, RANK, plain.lora_a, plain.lora_b, scaling=1),
        },
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("by", BY, indirect=True)
def test_an_adapter_made_of_others_is_what_they_are_together(by: str, shared: bool) -> None:
    parts = [(adapter(1, 1, shared), 0.7), (adapter(2, 2, shared), -0.5)]
    made = mixed(3, parts, max_rank=16)
    assert made.rank == (RANK if shared else 2 * RANK)
    x, y = inputs(4, 64)
    weights = torch.tensor([[0.7, -0.5]] * 4)
    expected = reference(y, x, SLICES["qkv"], [model.loras["qkv"] for model, _ in parts], weights)
    pack(layer(SLICES["qkv"]), [made.loras["qkv"]]).add(y, x, Strengths(torch.ones(4, 1)))
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-3)


def test_ranks_that_add_up_beyond_the_engines_room_are_refused() -> None:
    with pytest.raises(ValueError, match="a mix of 2 controls without a shared A has rank 16; 8 is allowed"):
        mixed(3, [(adapter(1, 1, False), 1.0), (adapter(2, 2, False), 1.0)], max_rank=8)


def test_weights_that_are_not_finite_are_refused() -> None:
    broken = adapter(1, 1, True)
    broken.loras["up"].lora_b[3, 2] = float("nan")
    with pytest.raises(ValueError, match="layer up has weights that are not finite"):
        check_finite(broken)
