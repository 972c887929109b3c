"""Which LoRA settings suit which bundle and machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from meet_bundle import LoraControls, open_bundle
from meet_server.engine import lora_settings, releases, start
from meet_server.errors import ServerError

SHARED = LoraControls(rank=8, alpha=16, target_modules=("q_proj",), shared_a=True)
APART = SHARED.model_copy(update={"shared_a": False})


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_rank(rank: int, allowed: int) -> None:
    assert lora_settings.lora_rank(rank) == allowed


def test_rank_too_large() -> None:
    with pytest.raises(ServerError, match="rank 513; vLLM serves up to 512"):
        lora_settings.lora_rank(513)


def test_on_cuda_slots_are_few_ranks_tight_and_kernels_for_the_adapters_in_a_batch() -> None:
    defaults = lora_settings.lora_defaults(SHARED, cpu=False)
    assert defaults["max-loras"] == [16]
    assert defaults["max-lora-rank"] == [8]
    assert "specialize-active-lora" in defaults


def test_without_a_shared_a_there_is_room_for_two_where_an_adapter_takes_a_slot() -> None:
    assert lora_settings.lora_defaults(APART, cpu=False)["max-lora-rank"] == [16]
    assert lora_settings.lora_defaults(APART, cpu=True)["max-lora-rank"] == [8]
    large = APART.model_copy(update={"rank": 320})
    assert lora_settings.lora_defaults(large, cpu=False)["max-lora-rank"] == [320]


@pytest.mark.parametrize(
    ("controls", "cpu", "rank", "expected"),
    [(SHARED, False, 8, None), (APART, True, 8, None), (APART, False, 16, 2), (APART, False, 8, 1)],
)
def test_how_many_controls_a_mix_may_have(controls: LoraControls, cpu: bool, rank: int, expected: int | None) -> None:
    args: Any = type("Args", (), {"max_lora_rank": rank})
    assert lora_settings.max_parts(controls, args, cpu=cpu) == expected


def test_on_cpus_adapters_take_no_slots_but_for_the_output_layer() -> None:
    assert lora_settings.lora_defaults(SHARED, cpu=True)["max-loras"] == [lora_settings.MIXES]
    assert "specialize-active-lora" not in lora_settings.lora_defaults(SHARED, cpu=True)
    head = SHARED.model_copy(update={"target_modules": ("q_proj", "lm_head")})
    assert lora_settings.lora_defaults(head, cpu=True)["max-loras"] == [16]


def test_mixes_that_take_a_slot_are_kept_in_smaller_number() -> None:
    for cpu, num in ((True, lora_settings.MIXES), (False, lora_settings.SLOTTED_MIXES)):
        args: Any = type("Args", (), {"max_cpu_loras": None, "max_loras": 16})
        lora_settings.keep_in_memory(args, SHARED, 4, cpu=cpu)
        assert args.max_cpu_loras == 4 + num
        assert lora_settings.max_mixes(args, 4) == num


def test_the_settings_exist_in_this_vllm(bundle: Path) -> None:
    """Those for CUDA too, which nothing else here runs."""
    import vllm.envs

    assert hasattr(vllm.envs, lora_settings.DUAL_STREAM)
    defaults = lora_settings.lora_defaults(SHARED, cpu=False)
    arguments = [text for name, values in defaults.items() for text in (f"--{name}", *map(str, values))]
    args = releases.parse_arguments(arguments)
    assert (args.specialize_active_lora, args.max_loras, args.max_lora_rank) == (True, 16, 8)


def test_the_user_wins(bundle: Path) -> None:
    args = start.bundle_arguments(open_bundle(bundle), ("--max-loras=3", "--max-lora-rank=64", "--max-cpu-loras=7"))
    assert (args.max_loras, args.max_lora_rank, args.max_cpu_loras) == (3, 64, 7)


@pytest.mark.parametrize(("cuda", "given", "expected"), [(True, None, "1"), (True, "0", "0"), (False, None, None)])
def test_dual_stream_is_set_on_cuda_alone(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, given: str | None, expected: str | None
) -> None:
    monkeypatch.setenv(lora_settings.DUAL_STREAM, given or "")  # so that it is put back after the test
    if given is None:
        monkeypatch.delenv(lora_settings.DUAL_STREAM)
    lora_settings.prepare_environment(cuda=cuda)
    assert os.environ.get(lora_settings.DUAL_STREAM) == expected
