"""The kernel for LoRA on CPUs beside float64, and where its library is kept."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meet_server.engine import lora_kernel
from meet_server.engine.lora_kernel import MAX_COLUMNS, KernelBatch, KernelLayer, takes

# What rounding to each dtype once may cost, relative to the sum of what is added up.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
A_OF = ((0, 0, 0), (0, 1, 0), (1, 1, 0))
"""Which A each of three controls has, for up to three slices."""


def draw(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def batch_of(strengths: torch.Tensor) -> KernelBatch:
    return KernelBatch(strengths, torch.nonzero((strengths != 0).any(1)).flatten())


@settings(deadline=None, max_examples=150)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    tokens=st.integers(0, 70),
    in_=st.integers(1, 200),
    slices=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    rank=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_it_adds_what_float64_adds(
    dtype: torch.dtype, tokens: int, in_: int, slices: list[int], rank: int, seed: int
) -> None:
    a, b = draw(2, rank, in_, seed=seed, dtype=dtype), draw(3, rank, sum(slices), seed=seed + 1, dtype=dtype)
    x, y = draw(tokens, in_, seed=seed + 2, dtype=dtype), draw(tokens, sum(slices), seed=seed + 3, dtype=dtype)
    strengths = draw(tokens, 3, seed=seed + 4, dtype=torch.float32)
    strengths *= torch.rand(tokens, 3, generator=torch.Generator().manual_seed(seed)) > 0.5
    expected, size = y.double(), y.double().abs()
    for s, begin in enumerate([sum(slices[:index]) for index in range(len(slices))]):
        for u in range(3):
            h = x.double() @ a[A_OF[s][u]].double().t()
            part = slice(begin, begin + slices[s])
            expected[:, part] += strengths[:, u : u + 1].double() * (h @ b[u, :, part].double())
            magnitude = x.double().abs() @ a[A_OF[s][u]].double().abs().t() @ b[u, :, part].double().abs()
            size[:, part] += strengths[:, u : u + 1].double().abs() * magnitude
    KernelLayer(a, b, A_OF[: len(slices)], slices).add(y, x, batch_of(strengths))
    assert ((y.double() - expected).abs() <= TOLERANCE[dtype] * size).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_token_is_the_same_whoever_is_beside_it_and_however_many_threads_there_are(dtype: torch.dtype) -> None:
    tokens, in_, out = 23, 576, 300
    layer = KernelLayer(draw(1, 8, in_, seed=1, dtype=dtype), draw(3, 8, out, seed=2, dtype=dtype), [(0, 0, 0)], [out])
    x, before = draw(tokens, in_, seed=3, dtype=dtype), draw(tokens, out, seed=4, dtype=dtype)
    strengths = torch.eye(3).repeat(8, 1)[:tokens]
    together, alone = before.clone(), before.clone()
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(5))
    layer.add(together, x, KernelBatch(strengths, order))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for t in range(tokens):
            layer.add(alone[t : t + 1], x[t : t + 1], batch_of(strengths[t : t + 1]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, alone)


def test_tokens_that_are_not_in_order_are_left_alone_bit_for_bit() -> None:
    dtype = torch.bfloat16
    layer = KernelLayer(draw(1, 8, 64, seed=1, dtype=dtype), draw(1, 8, 70, seed=2, dtype=dtype), [(0,)], [70])
    y = torch.full((5, 70), -0.0, dtype=dtype)
    layer.add(y, draw(5, 64, seed=3, dtype=dtype), batch_of(torch.tensor([[0.0], [1], [0], [1], [1]])))
    untouched = torch.full((70,), -0.0, dtype=dtype)
    assert all(torch.equal(y[t].view(torch.int16), untouched.view(torch.int16)) for t in (0, 2))
    assert (y[[1, 3, 4]] != 0).any(1).all()


def test_rows_with_gaps_are_added_to_as_those_without() -> None:
    dtype = torch.bfloat16
    layer = KernelLayer(draw(1, 8, 64, seed=1, dtype=dtype), draw(1, 8, 70, seed=2, dtype=dtype), [(0,)], [70])
    x, y = draw(5, 64, seed=3, dtype=dtype), draw(5, 70, seed=4, dtype=dtype)
    wide_x, wide_y = torch.cat([x, x], 1), torch.cat([y, y], 1)
    layer.add(wide_y[:, :70], wide_x[:, :64], batch_of(torch.ones(5, 1)))
    before = y.clone()
    layer.add(y, x, batch_of(torch.ones(5, 1)))
    assert torch.equal(wide_y, torch.cat([y, before], 1))


def test_what_is_not_a_number_and_what_is_not_finite_stay_so() -> None:
    dtype = torch.bfloat16
    layer = KernelLayer(torch.zeros(1, 1, 32, dtype=dtype), torch.zeros(1, 1, 64, dtype=dtype), [(0,)], [64])
    y = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0e38, 1.0e-40, 0.0, -1.5, 2.0], dtype=dtype)
    y = y.repeat(1, 8).contiguous()
    before = y.clone()
    layer.add(y, torch.ones(1, 32, dtype=dtype), batch_of(torch.ones(1, 1)))
    torch.testing.assert_close(y, before, rtol=0, atol=0, equal_nan=True)


def test_what_it_does_not_take_is_refused() -> None:
    assert takes(torch.float32, 1, MAX_COLUMNS // 8, 8)
    assert not takes(torch.float32, 1, MAX_COLUMNS // 8 + 1, 8)
    assert not takes(torch.float16, 1, 1, 8)
    half = torch.zeros(1, 8, 8, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"A is torch\.float16 \(1, 8, 8\)"):
        KernelLayer(half, half, [(0,)], [8])


@pytest.fixture
def anew() -> Iterator[None]:
    """The kernel is looked for again, and afterwards once more."""
    lora_kernel._functions.cache_clear()
    yield
    lora_kernel._functions.cache_clear()


@pytest.mark.usefixtures("anew")
class TestLibrary:
    def test_it_is_compiled_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEET_CACHE", str(tmp_path))
        first = lora_kernel._compiled()
        made = first.stat().st_mtime_ns
        assert first.parent == tmp_path / "kernels"
        assert (lora_kernel._compiled(), first.stat().st_mtime_ns) == (first, made)
        assert list(first.parent.iterdir()) == [first]

    def test_another_compiler_makes_another(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEET_CACHE", str(tmp_path))
        first = lora_kernel._compiled()
        monkeypatch.setenv("CXX", "g++ -g0")
        assert lora_kernel._compiled() != first

    def test_a_cache_that_cannot_be_written_is_done_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("MEET_CACHE", str(tmp_path / "file"))
        monkeypatch.setattr(lora_kernel.tempfile, "tempdir", str(tmp_path))
        made = lora_kernel._compiled()
        assert made.parent.parent == tmp_path
        assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700
        assert takes(torch.float32, 1, 1, 8)

    def test_without_a_home_it_is_kept_in_a_new_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As of a user whom the system does not know."""

        def nowhere() -> Path:
            raise RuntimeError("Could not determine home directory.")

        for name in ("MEET_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(lora_kernel.Path, "home", nowhere)
        monkeypatch.setattr(lora_kernel.tempfile, "tempdir", str(tmp_path))
        assert lora_kernel._compiled().parent.parent == tmp_path

    def test_a_compiler_that_is_set_to_nothing_is_not_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEET_CACHE", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        unset = lora_kernel._compiled()
        monkeypatch.setenv("CXX", "")
        assert lora_kernel._compiled() == unset

    @pytest.mark.parametrize(
        "line",
        ["model name\t: AMD EPYC", "flags\t\t: fpu sse", "Features\t: fp asimd sve", "CPU part\t: 0xd0c"],
    )
    def test_another_processor_makes_another(self, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of either kind: those of Arm have no name and other words."""
        said = tmp_path / "cpuinfo"
        said.write_text("processor\t: 0\nBogoMIPS\t: 50.00\ncpu MHz\t: 2400.1\n")
        monkeypatch.setattr(lora_kernel, "CPUINFO", said)
        before = lora_kernel._processor()
        said.write_text(f"processor\t: 0\nBogoMIPS\t: 50.10\ncpu MHz\t: 2300.0\n{line}\n" * 2)
        assert lora_kernel._processor() != before
        assert b"MHz" not in lora_kernel._processor()

    @pytest.mark.parametrize("compiler", ["/none/such", "false", 'g++ "'])
    def test_without_a_compiler_there_is_none_and_that_is_said_once(
        self, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr(lora_kernel.logger, "warning", lambda text, *_: said.append(text))
        monkeypatch.setenv("MEET_CACHE", str(tmp_path))
        monkeypatch.setenv("CXX", compiler)
        assert [takes(torch.float32, 1, 1, 8) for _ in range(3)] == [False] * 3
        [text] = said
        assert "cannot be compiled" in text
