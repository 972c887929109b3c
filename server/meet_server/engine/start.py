"""From settings and a bundle to a running engine. Knows vLLM's arguments, not its symbols.

Defaults are chosen here, in one list; whatever the user gives after `--` is appended and wins.
"""

from __future__ import annotations

import json
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from fastapi import FastAPI

from meet_bundle import Bundle, LoraControls, Manifest
from meet_server.engine import banned_ids, lora_settings, plugin, releases
from meet_server.errors import ServerError

ENGINE_EXIT_S = 5

# vLLM on CPUs would otherwise take nine tenths of the machine's memory for its KV cache.
CPU_KV_TOKENS = 65_536
CPU_KV_SHARE = 0.25
CPU_KV_FALLBACK_BYTES = 1 << 30
# Where a container's own limits are.
CGROUPS = Path("/sys/fs/cgroup")

# Arguments of `vllm serve` that belong to its own server process, which is not running here.
NOT_HERE = {
    "host": "set the server's own host instead",
    "port": "set the server's own port instead",
    "uds": "the server listens on TCP",
    "ssl_keyfile": "end TLS in front of the server",
    "ssl_certfile": "end TLS in front of the server",
    "headless": "the server always answers HTTP",
    "grpc": "the server speaks HTTP",
    "api_server_count": "there is one API process, since each would have its own controls",
}


def prepare_environment() -> None:
    """Environment that vLLM reads when it is first imported: call before anything that imports it."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns at every fork
    logging.getLogger("vllm.plugins").addFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    """All but vLLM's warning that our plugin for stock `vllm serve` was not loaded: `meet serve` needs none."""
    return not (record.getMessage().startswith("Found endpoint plugin") and record.args == (["meet_preference"],))


def bundle_arguments(bundle: Bundle, engine_args: Sequence[str]) -> Namespace:
    """Engine arguments for a bundle. Raises ServerError for what cannot be served."""
    manifest = bundle.manifest
    defaults = _common_defaults(bundle.model_path, manifest.name, manifest.model_dtype)
    if not isinstance(manifest.controls, LoraControls):
        return _parse(defaults, engine_args)
    controls, cpu = manifest.controls, releases.is_cpu()
    args = _parse(defaults | lora_settings.lora_defaults(controls, cpu=cpu), engine_args)
    lora_settings.keep_in_memory(args, controls, len(manifest.preferences), cpu=cpu)
    return args


def max_parts(manifest: Manifest, args: Namespace) -> int | None:
    """How many controls one mix may have on an engine with these arguments, or None for any number."""
    controls = manifest.controls
    if not isinstance(controls, LoraControls):
        return None
    return lora_settings.max_parts(controls, args, cpu=releases.is_cpu())


def plain_arguments(model: Path, name: str, engine_args: Sequence[str]) -> Namespace:
    """The same defaults for a model folder without controls."""
    defaults = _common_defaults(model, name, _dtype(_config(model)))
    return _parse(defaults, engine_args)


def cpu_kv_bytes(config: dict[str, Any], dtype: str, memory: int) -> int:
    """KV cache in bytes: room for CPU_KV_TOKENS tokens, or one full context, within a share of the memory.

    `config` is the model's config.json, `memory` what there is, in bytes.
    """
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else None)
    limit = int(memory * CPU_KV_SHARE)
    if not layers or not kv_heads or not head_dim:
        return min(CPU_KV_FALLBACK_BYTES, limit)
    tokens = max(CPU_KV_TOKENS, config.get("max_position_embeddings") or 0)
    per_token = 2 * layers * kv_heads * head_dim * (4 if dtype == "float32" else 2)
    return min(int(tokens * per_token), limit)


def memory_bytes(cgroups: Path = CGROUPS) -> int:
    """The machine's memory, or what its container may have of it, where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2, and of version 1
        with suppress(OSError, ValueError):  # it is of the other version, or the limit is "max"
            memory = min(memory, int((cgroups / name).read_text()))
    return memory


@contextmanager
def running_engine(
    args: Namespace, *, worker_start: Literal["spawn", "fork"] = "spawn", first_banned_id: int | None = None
) -> Iterator[Any]:
    """An AsyncLLM for these arguments, shut down whatever happens. Blocks until it is up.

    It never produces `first_banned_id` or a token above it.
    """
    with _worker_plugin(first_banned_id):
        config = releases.engine_config(args)
        if worker_start == "fork":
            # Only now: on CPUs, making the configuration sets "spawn".
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        engine = releases.start_engine(config, args)
    try:
        yield engine
    finally:
        # vLLM's default of 0 kills its processes before they have let go of shared memory.
        engine.shutdown(timeout=max(config.shutdown_timeout, ENGINE_EXIT_S))


def max_running(engine: Any) -> int:
    """How many replies the engine works on at a time, all of its replicas together."""
    config = engine.vllm_config
    return int(config.scheduler_config.max_num_seqs) * int(config.parallel_config.data_parallel_size)


def api_keys(args: Namespace) -> list[str]:
    """The keys that vLLM's own middleware asks for, as it looks them up itself."""
    return [key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]


async def vllm_app(engine: Any, args: Namespace) -> FastAPI:
    """vLLM's own app, complete with its state. Enter its lifespan before use."""
    app = await releases.build_app(engine, args)
    # vLLM's handler for a dead engine tells its server to stop. Ours watches the engine itself.
    app.state.server = SimpleNamespace(should_exit=False)
    return app


@contextmanager
def _worker_plugin(first_banned_id: int | None) -> Iterator[None]:
    """Has the worker processes that start within make mixes and ban ids, and on CPUs use our LoRA and keep our hands
    on seeds."""
    lora_settings.prepare_environment(cuda=releases.is_cuda())
    wanted = {plugin.SWITCH: "1"}
    if first_banned_id is not None:
        wanted[banned_ids.FIRST_ID] = str(first_banned_id)
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and plugin.NAME not in allowed.split(","):
        raise ServerError(
            f"VLLM_PLUGINS is {allowed!r}; it must name {plugin.NAME}, which makes mixes and corrects vLLM on CPUs"
        )
    if not releases.plugin_is_installed(plugin.NAME):
        raise ServerError(
            "MEET's vLLM plugin is not installed, and without it there are no mixes, virtual tokens are produced, and "
            "vLLM on CPUs is wrong: install the package with pip (`pip install -e .` in a checkout) instead of setting "
            "PYTHONPATH"
        )
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        plugin.register()  # forked workers inherit this process, in which plugins may be loaded already
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


Defaults = dict[str, list[Any]]
"""Values of each argument by its name without the dashes."""


def _common_defaults(model: Path, name: str, dtype: str) -> Defaults:
    defaults: Defaults = {"model": [model], "served-model-name": [name], "dtype": [dtype], "no-use-tqdm-on-load": []}
    if releases.is_cpu():
        defaults["block-size"] = [32]
        # Adapters turn compilation off; said from the start, it leaves vLLM's layers to their kernels for CPUs, else to
        # PyTorch step by step. Without adapters, compiled was no faster and starts slower.
        defaults["enforce-eager"] = []
        defaults["kv-cache-memory-bytes"] = [cpu_kv_bytes(_config(model), dtype, memory_bytes())]
    return defaults


def _parse(defaults: Defaults, engine_args: Sequence[str]) -> Namespace:
    engine_args = releases.with_config_file(engine_args)
    given = {
        argument.partition("=")[0].removeprefix("--").replace("_", "-")
        for argument in engine_args
        if argument.startswith("--")
    }
    if "gpu-memory-utilization" in given:
        given.add("kv-cache-memory-bytes")  # two ways to say one thing, of which the user chose the other
    arguments: list[str] = []
    for name, values in defaults.items():
        if name not in given:
            arguments += [f"--{name}", *map(str, values)]
    args = releases.parse_arguments([*arguments, *engine_args])
    untouched = releases.parse_arguments([])
    for field, instead in NOT_HERE.items():
        if getattr(args, field, None) != getattr(untouched, field, None):
            raise ServerError(f"engine argument --{field.replace('_', '-')} has no effect here: {instead}")
    return args


def _config(model: Path) -> dict[str, Any]:
    file = model / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ServerError(f"{model} is no model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ServerError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ServerError(f"{file} holds no JSON object")
    return config


def _dtype(config: dict[str, Any]) -> str:
    """What the weights are stored in. vLLM's `auto` would make bfloat16 of float32."""
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")
