"""Every symbol of vLLM that the server relies on, as its source says it: found by reading, importing nothing.

So a release whose kernels do not run here can be checked too. `test_contracts.py` checks what only the running
package can say.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Symbol:
    """`name` in the first of `modules` that there is, with at least these parameters where it is a function."""

    modules: tuple[str, ...]
    name: str
    parameters: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.modules[0]}.{self.name}"


def symbol(modules: str | tuple[str, ...], name: str, *parameters: str) -> Symbol:
    return Symbol((modules,) if isinstance(modules, str) else modules, name, frozenset(parameters))


CLI_ARGS = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
ASYNC_LLM = "vllm.v1.engine.async_llm"
LOGITS = "vllm.model_executor.layers.logits_processor"

SYMBOLS = (
    symbol("vllm.utils.argparse_utils", "FlexibleArgumentParser"),
    symbol("vllm.utils.argparse_utils", "FlexibleArgumentParser.load_config_file", "file_path"),
    symbol(CLI_ARGS, "make_arg_parser", "parser"),
    symbol(CLI_ARGS, "validate_parsed_serve_args", "args"),
    symbol("vllm.engine.arg_utils", "EngineArgs.from_cli_args", "args"),
    symbol("vllm.engine.arg_utils", "EngineArgs.create_engine_config"),
    symbol("vllm.engine.arg_utils", "AsyncEngineArgs"),
    symbol(ASYNC_LLM, "AsyncLLM.from_vllm_config", "vllm_config", "enable_log_requests", "disable_log_stats"),
    symbol(ASYNC_LLM, "AsyncLLM.generate", "prompt", "sampling_params", "request_id", "lora_request"),
    symbol(ASYNC_LLM, "AsyncLLM.generate", "data_parallel_rank"),
    symbol(ASYNC_LLM, "AsyncLLM.add_lora", "lora_request"),
    symbol(ASYNC_LLM, "AsyncLLM.shutdown", "timeout"),
    symbol(ASYNC_LLM, "AsyncLLM.get_supported_tasks"),
    symbol(ASYNC_LLM, "AsyncLLM.errored"),
    symbol(
        "vllm.entrypoints.launchers.api_server.app_state",
        "init_app_state", "engine_client", "state", "args", "supported_tasks",
    ),
    symbol("vllm.entrypoints.launchers.app", "build_app", "args", "supported_tasks", "model_config"),
    symbol("vllm.entrypoints.generate.beam_search.online", "BeamSearchOnlineMixin.beam_search", "prompt"),
    symbol("vllm.entrypoints.openai.models.serving", "OpenAIServingModels.show_available_models"),
    symbol("vllm.lora.request", "LoRARequest"),
    symbol("vllm.sampling_params", "SamplingParams"),
    symbol("vllm.sampling_params", "RequestOutputKind"),
    symbol("vllm.inputs", "tokens_input", "prompt_token_ids"),
    symbol("vllm.exceptions", "VLLMError"),
    symbol("vllm.exceptions", "VLLMValidationError"),
    symbol("vllm.v1.engine.exceptions", "EngineGenerateError"),
    symbol("vllm.model_executor.custom_op", "op_registry_oot"),
    symbol("vllm.model_executor.custom_op", "PluggableLayer.register_oot"),
    symbol(LOGITS, "LogitsProcessor.__init__"),
    symbol(LOGITS, "LogitsProcessor.forward", "lm_head", "hidden_states"),
    symbol("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.add_lora_linear"),
    symbol("vllm.v1.engine.core", "EngineCore.add_request", "request"),
    symbol("vllm.v1.engine.core", "EngineCoreProc._process_input_queue"),
    symbol("vllm.v1.core.sched.interface", "SchedulerInterface.get_request_counts"),
    symbol("vllm.v1.engine.core", "EngineCoreProc._handle_client_request", "request_type", "request"),
    symbol("vllm.v1.worker.cpu_model_runner", "CPUModelRunner"),
    symbol("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._bookkeeping_sync"),
)  # fmt: skip


def missing(package: Path, wanted: Symbol) -> str | None:
    """What a release, `package` being its `vllm` folder, lacks of a symbol; None where it has it."""
    for module in wanted.modules:
        file = _file(package, module)
        if file is not None:
            found = _find(package, module, wanted.name.split("."))
            if found is None:
                return f"{module} has no {wanted.name}"
            lacking = wanted.parameters - _parameters(found)
            return f"{module}.{wanted.name} has no parameter {', '.join(sorted(lacking))}" if lacking else None
    return f"there is no {' or '.join(wanted.modules)}"


def _file(package: Path, module: str) -> Path | None:
    path = package.parent / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _find(package: Path, module: str, names: list[str]) -> ast.AST | None:
    """The node that defines a name, in the module itself or where it is imported from."""
    file = _file(package, module)
    if file is None:
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = _defined(tree.body, names[0])
    if isinstance(found, ast.ImportFrom):
        base = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
        parts = base[: len(base) - found.level + 1] if found.level else []
        return _find(package, ".".join([*parts, *([found.module] if found.module else [])]), names)
    for name in names[1:]:
        found = _defined(found.body, name) if isinstance(found, ast.ClassDef) else None
    return found


def _defined(body: list[ast.stmt], name: str) -> ast.AST | None:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return node
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node
        if isinstance(node, ast.If | ast.Try) and (inner := _defined(node.body, name)) is not None:
            return inner
    return None


def _assigned(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _parameters(node: ast.AST) -> set[str]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    listed = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return {argument.arg for argument in listed}
