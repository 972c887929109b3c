"""From a bundle and the user's words to engine arguments."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from meet_bundle import Bundle, SoftPromptControls, open_bundle
from meet_server.engine import lora_settings, plugin, releases, start
from meet_server.errors import ServerError


def test_defaults_for_a_bundle(bundle: Path) -> None:
    args = start.bundle_arguments(open_bundle(bundle), ())
    assert args.model == str(bundle / "model")
    assert (args.served_model_name, args.dtype) == (["tiny"], "float32")
    assert (args.enable_lora, args.max_lora_rank) == (True, 8)
    assert args.max_cpu_loras == 2 + lora_settings.MIXES  # every control and mix stays in memory
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


def test_a_config_file_of_vllms_wins_as_arguments_do_and_they_over_it(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(
        "max-loras: 1\nserved_model_name: [file]\ngpu-memory-utilization: 0.1\nenforce-eager: false\nmax-num-seqs: 4\n"
    )
    args = start.bundle_arguments(open_bundle(bundle), ("--max-num-seqs=8", "--config", str(file), "--seed", "5"))
    assert (args.max_loras, args.served_model_name, args.max_num_seqs, args.seed) == (1, ["file"], 8, 5)
    assert (args.enforce_eager, args.kv_cache_memory_bytes) == (False, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("- a list", "--config .*engine.yaml: "),
        ("max-loras: [", "--config .*engine.yaml: "),
        ("nonsense: 1", "unrecognized arguments: --nonsense"),
        ("port: 9", "--port has no effect here"),
    ],
)
def test_mistakes_in_a_config_file_are_one_line(
    content: str | None, message: str, bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "engine.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ServerError, match=message) as caught:
        start.bundle_arguments(open_bundle(bundle), ("--config", str(file)))
    assert "\n" not in str(caught.value)
    with pytest.raises(ServerError, match="--config is not followed by a file"):
        start.bundle_arguments(open_bundle(bundle), ("--config",))


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


def test_layers_are_computed_by_vllms_kernels_for_cpus(bundle: Path) -> None:
    if not releases.is_cpu():
        pytest.skip("compiled on GPUs")
    config = releases.engine_config(start.bundle_arguments(open_bundle(bundle), ())).compilation_config
    assert "all" in config.custom_ops  # "none" leaves them to a compiler, which adapters turn off


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is no model folder"):
        start.plain_arguments(tmp_path, "base", ())


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


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("memory.max", "1073741824\n", GIB),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "1073741824\n", GIB),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "", None),
    ],
)
def test_a_container_has_what_it_may_have(tmp_path: Path, name: str, said: str, expected: int | None) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(said)
    assert start.memory_bytes(tmp_path) == (expected or start.memory_bytes(tmp_path / "none"))


@pytest.mark.parametrize("memory", [GIB // 4, GIB])
def test_the_cache_is_sized_by_that(bundle: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    if not releases.is_cpu():
        pytest.skip("for CPUs")
    monkeypatch.setattr(start, "memory_bytes", lambda: memory)
    monkeypatch.setattr(start, "CPU_KV_TOKENS", 1 << 30)
    assert start.bundle_arguments(open_bundle(bundle), ()).kv_cache_memory_bytes == memory // 4


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


class Kept(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def test_that_the_plugin_for_stock_vllm_is_not_loaded_is_no_news(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.plugins import load_endpoint_plugins

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    logger, kept = logging.getLogger("vllm.plugins"), Kept()
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "handlers", [kept])
    caplog.set_level(logging.WARNING, logger.name)
    load_endpoint_plugins()
    assert "meet_preference" in kept.said.pop()  # else there would be nothing to leave out
    start.prepare_environment()
    load_endpoint_plugins()
    logger.warning("Found endpoint plugin(s) %s but", ["another"])
    assert kept.said == ["Found endpoint plugin(s) ['another'] but"]
