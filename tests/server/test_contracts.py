"""What is relied on in vLLM: if a release moves or changes it, this says what, before anything hangs."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from meet_server.engine import plugin, releases
from meet_server.engine.adapters import Adapters
from meet_server.registry.live import LoadedControl


def parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_where_things_are() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.v1.engine.async_llm import AsyncLLM

    assert parameters(build_app) >= {"args", "supported_tasks", "model_config"}
    assert parameters(init_app_state) >= {"engine_client", "state", "args", "supported_tasks"}
    assert parameters(AsyncLLM.from_vllm_config) >= {"vllm_config", "enable_log_requests", "disable_log_stats"}
    assert parameters(AsyncLLM.generate) >= {"prompt", "sampling_params", "request_id", "lora_request"}
    assert parameters(AsyncLLM.shutdown) >= {"timeout"}
    assert hasattr(AsyncEngineArgs, "from_cli_args")
    assert isinstance(AsyncLLM.errored, property)


def test_the_engine_client_is_asked_for_generation_by_generate_alone() -> None:
    """`add_request` and `encode` are not the seam; a serving class that used the first would go round us."""
    from vllm.engine.protocol import EngineClient

    assert "generate" in EngineClient.__abstractmethods__
    assert "add_request" not in EngineClient.__abstractmethods__


def test_arguments_that_are_set() -> None:
    args = releases.parse_arguments(
        ["--model=m", "--enable-lora", "--max-lora-rank=8", "--lora-target-modules", "a", "b"]
    )
    assert (args.model, args.lora_target_modules, args.max_lora_rank) == ("m", ["a", "b"], 8)


def test_every_parameter_that_holds_token_ids_is_looked_at() -> None:
    """But for those that only end a reply, and one that vLLM makes of texts."""
    from vllm.sampling_params import SamplingParams

    ending = {"stop_token_ids", "_all_stop_token_ids", "_eos_token_id", "_bad_words_token_ids"}
    named = {field for field in SamplingParams.__struct_fields__ if "token_id" in field}
    assert named - ending <= set(releases.TOKEN_ID_PARAMS)
    assert {"allowed_token_ids", "logit_bias"} <= set(SamplingParams.__struct_fields__)


def test_a_module_that_a_release_keeps_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "_CLI_ARGS", ("vllm.no_folder.cli_args", "vllm.no_module", *releases._CLI_ARGS))
    assert releases.parse_arguments(["--model=m"]).model == "m"


def test_list_of_models_takes_entries() -> None:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    source = inspect.getsource(OpenAIServingModels)
    assert "self.lora_requests: dict[str, LoRARequest] = {}" in source
    assert "for lora in self.lora_requests.values()" in source


def test_lora_request_and_the_prefix_cache_key() -> None:
    from vllm.v1.core import kv_cache_utils

    request = releases.lora_request("concise@digest", 7, Path("/controls/concise"))
    assert (request.lora_name, request.lora_int_id, request.lora_path) == ("concise@digest", 7, "/controls/concise")
    # The digest in the name keeps blocks of an updated control apart.
    assert "lora_request.lora_name" in inspect.getsource(kv_cache_utils._gen_lora_extra_hash_keys)


def test_two_instances_of_one_content_are_two_adapters_to_vllm() -> None:
    """Rolled back to a content whose requests have not ended: in one batch vLLM would load one of the two alone."""
    from vllm.lora.request import LoRARequest

    assert "self.lora_name == value.lora_name" in inspect.getsource(LoRARequest.__eq__)

    class Engine:
        errored = False

        async def add_lora(self, request: Any) -> None:
            assert isinstance(request, LoRARequest)

    adapters = Adapters(Engine(), 1)
    for control_id in (7, 9):
        control = LoadedControl("concise", "a" * 64, control_id, Path("/controls/concise"))
        asyncio.run(adapters.load(control))
    first, second = adapters[7], adapters[9]
    assert len({first, second}) == 2
    assert all(each.lora_name.startswith(f"concise@{'a' * 64}") for each in (first, second))


def test_max_lora_ranks() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    from meet_server.engine.lora_settings import LORA_RANKS

    assert get_args(MaxLoRARanks) == LORA_RANKS


def test_the_wrapper_that_is_replaced() -> None:
    from vllm.lora.punica_wrapper import punica_selector
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from meet_server.engine.cpu_lora import DenseLora

    assert "current_platform.get_punica_wrapper()" in inspect.getsource(punica_selector.get_punica_wrapper)
    for name in ("update_metadata", "add_lora_linear", "add_lora_logits", "add_lora_embedding"):
        assert callable(getattr(PunicaWrapperCPU, name))
    for name in ("_apply_shrink", "_apply_expand"):
        assert parameters(getattr(DenseLora, name)) == parameters(getattr(PunicaWrapperCPU, name))


def test_setting_an_adapter_raises_the_version_of_its_stack() -> None:
    """vLLM makes the stacks outside inference mode on CPUs, and writes them in place."""
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.platforms import current_platform

    source = inspect.getsource(BaseLinearLayerWithLoRA)
    assert "self.lora_a_stacked[s_index][index] = 0" in source
    assert ".copy_(" in source
    if current_platform.is_cpu():
        assert current_platform.inference_mode.__func__ is not torch.inference_mode
        with current_platform.inference_mode():
            stack = torch.zeros(2, 1, 3, 4)
        before = stack._version
        stack[1, 0, :2, :2].copy_(torch.ones(2, 2))
        assert stack._version > before


def test_the_workers_loader_that_is_wrapped() -> None:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager

    # Where the wrapper is installed already, signatures are those of what it wraps.
    assert parameters(WorkerLoRAManager._load_adapter) == {"self", "lora_request"}
    assert parameters(WorkerLoRAManager.remove_adapter) == {"self", "adapter_id"}
    assert parameters(LRUCacheWorkerLoRAManager.add_adapter) == {"self", "lora_request"}
    assert "_load_adapter" not in vars(LRUCacheWorkerLoRAManager)
    assert "remove_adapter" not in vars(LRUCacheWorkerLoRAManager)
    assert "self._adapter_manager.activate_adapter(" in inspect.getsource(LRUCacheWorkerLoRAManager)
    assert list(inspect.signature(LoRAModel).parameters)[:3] == ["lora_model_id", "rank", "loras"]
    for weights in (LoRALayerWeights, PackedLoRALayerWeights):
        names = list(inspect.signature(weights).parameters)
        assert [name.removesuffix("s") for name in names[:6]] == [
            "module_name", "rank", "lora_alpha", "lora_a", "lora_b", "scaling"
        ]  # fmt: skip


def test_the_choice_of_kernels_for_products_on_cpus() -> None:
    from vllm.model_executor.layers import utils

    assert parameters(utils.dispatch_cpu_unquantized_gemm) == {"layer", "remove_weight"}
    assert "layer.cpu_linear = lambda x, weight, bias" in inspect.getsource(utils.dispatch_cpu_unquantized_gemm)


def test_the_keeper_of_adapters_that_is_replaced() -> None:
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.lora.layers.column_parallel_linear import ColumnParallelLinearWithLoRA
    from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA
    from vllm.lora.model_manager import LoRAModelManager, LRUCacheLoRAModelManager
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    assert issubclass(LRUCacheWorkerLoRAManager._manager_cls, LRUCacheLoRAModelManager)
    assert "lora_manager_cls=self._manager_cls" in inspect.getsource(LRUCacheWorkerLoRAManager.create_lora_manager)
    for name in ("_create_lora_modules", "_add_adapter", "set_adapter_mapping", "remove_adapter", "activate_adapter"):
        assert callable(getattr(LRUCacheLoRAModelManager, name))
    assert isinstance(LoRAModelManager.lora_slots, property)
    assert "self.lora_slots," in inspect.getsource(LoRAModelManager._create_lora_modules)
    assert parameters(BaseLinearLayerWithLoRA.apply) == {"self", "x", "bias"}
    for layer in (ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA):
        assert "self.apply(" in inspect.getsource(layer.forward)


def test_the_plugin_is_installed_where_workers_look() -> None:
    (point,) = [p for p in entry_points(group=releases.PLUGINS_GROUP) if p.name == plugin.NAME]
    assert point.load() is plugin.register


def test_the_plugin_does_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("for CPUs")
    platform = type(current_platform)
    monkeypatch.setattr(platform, "get_punica_wrapper", platform.__dict__["get_punica_wrapper"])
    stock = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
    monkeypatch.setattr(platform, "get_punica_wrapper", classmethod(lambda _: stock))
    monkeypatch.delenv(plugin.SWITCH, raising=False)
    plugin.register()
    assert current_platform.get_punica_wrapper() == stock
    monkeypatch.setenv(plugin.SWITCH, "1")
    plugin.register()
    assert current_platform.get_punica_wrapper() == "meet_server.engine.cpu_lora.DenseLora"


def test_what_an_evaluation_reads_of_a_scored_reply() -> None:
    """`meet eval` sends token ids to completions and reads the log-probability of each by its id as text."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponseChoice
    from vllm.entrypoints.serve.tokenize.protocol import (
        TokenizeChatRequest,
        TokenizeCompletionRequest,
        TokenizeResponse,
    )
    from vllm.logprobs import Logprob

    request = CompletionRequest(model="m", prompt=[1, 2], max_tokens=1, temperature=0, prompt_logprobs=0)
    assert (request.prompt, request.prompt_logprobs) == ([1, 2], 0)
    choice = CompletionResponseChoice(index=0, text="", prompt_logprobs=[None, {2: Logprob(-1.5, 1, "b")}])
    assert choice.model_dump(mode="json")["prompt_logprobs"] == [
        None, {"2": {"logprob": -1.5, "rank": 1, "decoded_token": "b"}},
    ]  # fmt: skip
    assert {"messages", "add_generation_prompt"} <= set(TokenizeChatRequest.model_fields)
    assert {"prompt", "add_special_tokens"} <= set(TokenizeCompletionRequest.model_fields)
    assert "tokens" in TokenizeResponse.model_fields
