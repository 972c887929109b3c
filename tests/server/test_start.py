"""From a bundle and the user's words to engine arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from meet_bundle import Bundle, SoftPromptControls, open_bundle
from meet_server.engine import plugin, releases, start
from meet_server.errors import ServerError


def test_defaults_for_a_bundle(bundle: Path) -> None:
    args = start.bundle_arguments(open_bundle(bundle), ())
    assert args.model == str(bundle / "model")
    assert (args.served_model_name, args.dtype) == (["tiny"], "float32")
    assert (args.enable_lora, args.max_loras, args.max_cpu_loras, args.max_lora_rank) == (True, 2, 2, 8)
    assert "q_proj" in args.lora_target_modules
    if releases.is_cpu():
        assert (args.block_size, args.kv_cache_memory_bytes) == (32, 65_536 * 2 * 2 * 32 * 4)


def test_defaults_for_a_plain_model_are_the_same(bundle: Path) -> None:
    plain = start.plain_arguments(bundle / "model", "base", ())
    ours = start.bundle_arguments(open_bundle(bundle), ())
    assert not plain.enable_lora
    for field in ("model", "dtype", "block_size", "kv_cache_memory_bytes"):
        assert getattr(plain, field) == getattr(ours, field)


def test_the_user_wins(bundle: Path) -> None:
    args = start.bundle_arguments(
        open_bundle(bundle), ("--max_loras", "1", "--served-model-name=other", "--gpu-memory-utilization=0.1")
    )
    assert (args.max_loras, args.served_model_name) == (1, ["other"])
    assert args.kv_cache_memory_bytes is None  # the user chose another way to say it


@pytest.mark.parametrize(("given", "in_memory"), [(1, 2), (4, 4)])
def test_every_control_stays_in_memory(bundle: Path, given: int, in_memory: int) -> None:
    args = start.bundle_arguments(open_bundle(bundle), (f"--max-loras={given}",))
    assert (args.max_loras, args.max_cpu_loras) == (given, in_memory)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--max-loras=many",), "argument --max-loras: .*many"),
        (("--port=9",), "--port has no effect here"),
        (("--uds=/tmp/x",), "--uds has no effect here"),
    ],
)
def test_mistakes_in_arguments_are_one_line(bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ServerError, match=message) as caught:
        start.bundle_arguments(open_bundle(bundle), arguments)
    assert "\n" not in str(caught.value)


def test_config_that_vllm_refuses_is_one_line(bundle: Path) -> None:
    args = start.bundle_arguments(open_bundle(bundle), ("--max-model-len=100000",))
    with pytest.raises(ServerError, match="vLLM refuses the model or the engine arguments") as caught:
        releases.engine_config(args)
    assert "\n" not in str(caught.value)


def test_soft_prompts_need_no_adapters(bundle: Path) -> None:
    opened = open_bundle(bundle)
    controls = SoftPromptControls(num_virtual_tokens=16, placement="after_prompt")
    args = start.bundle_arguments(Bundle(bundle, opened.manifest.model_copy(update={"controls": controls})), ())
    assert not args.enable_lora
    if releases.is_cpu():
        assert (args.enforce_eager, args.block_size) == (True, 32)


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is no model folder"):
        start.plain_arguments(tmp_path, "base", ())


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_lora_rank(rank: int, allowed: int) -> None:
    assert start.lora_rank(rank) == allowed


def test_lora_rank_too_large() -> None:
    with pytest.raises(ServerError, match="rank 513; vLLM serves up to 512"):
        start.lora_rank(513)


GIB = 1 << 30
SMALL = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}


@pytest.mark.parametrize(
    ("config", "dtype", "memory", "expected"),
    [
        (SMALL, "bfloat16", 64 * GIB, 65_536 * 2 * 30 * 3 * 64 * 2),
        (SMALL, "float32", 64 * GIB, 65_536 * 2 * 30 * 3 * 64 * 4),
        (SMALL, "bfloat16", 4 * GIB, GIB),
        ({**SMALL, "max_position_embeddings": 131_072}, "bfloat16", 64 * GIB, 131_072 * 2 * 30 * 3 * 64 * 2),
        ({"text_config": {}}, "bfloat16", 64 * GIB, GIB),
    ],
)
def test_cpu_kv_bytes(config: dict[str, int], dtype: str, memory: int, expected: int) -> None:
    assert start.cpu_kv_bytes(config, dtype, memory) == expected


def test_without_our_plugin_nothing_starts(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not releases.is_cpu():
        pytest.skip("for CPUs")
    args = start.bundle_arguments(open_bundle(bundle), ())
    monkeypatch.setattr(plugin, "NAME", "not-installed")
    with pytest.raises(ServerError, match="plugin is not installed"), start.running_engine(args):
        pass
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(ServerError, match="VLLM_PLUGINS is 'other'"), start.running_engine(args):
        pass


def test_dtype_of_a_plain_model_is_that_of_its_weights(tmp_path: Path) -> None:
    """vLLM's `auto` would serve float32 weights in bfloat16."""
    for field in ("dtype", "torch_dtype"):
        (tmp_path / "config.json").write_text(json.dumps({field: "float32"}))
        assert start.plain_arguments(tmp_path, "base", ()).dtype == "float32"
