"""Every symbol of vLLM's serving side that MEET uses, where releases 0.30 to 0.33 keep it.

Nothing else imports vLLM, but for what `plugin` puts into the engine's own processes. All imports stand in functions:
vLLM reads its environment at import, which `start` prepares first, and `import meet_server` stays light.
`tests/server/test_contracts.py` says what is relied on.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from fastapi import FastAPI
from yaml import YAMLError

from meet_server.errors import ServerError

PLUGINS_GROUP = "vllm.general_plugins"

# A field of SamplingParams that holds token ids for each token of the prompt, which it counts.
PROMPT_ROWS = "prompt_logprob_token_ids"

# Those that hold token ids, as a list, as keys or as rows of them, and change what is produced or shown.
TOKEN_ID_PARAMS = ("logit_bias", "allowed_token_ids", "logprob_token_ids", "trace_decode_token_ids", PROMPT_ROWS)

# 0.33 moved it; newest first.
_CLI_ARGS = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")


def is_cpu() -> bool:
    """Whether this vLLM was built for, and runs on, CPUs."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def is_cuda() -> bool:
    """Whether this vLLM runs on CUDA, or what offers the same."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike())


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """What `vllm serve` would make of these arguments. Raises ServerError with argparse's own message."""
    args: Namespace = _parser().parse_args(list(arguments))
    try:
        _first_module(_CLI_ARGS).validate_parsed_serve_args(args)
    except (TypeError, ValueError) as error:
        raise ServerError(f"engine arguments: {_first_line(error)}") from None
    return args


def with_config_file(arguments: Sequence[str]) -> list[str]:
    """The arguments, and in place of `--config FILE` what is in that file, which all others override.

    vLLM would put it in front of the server's defaults too. Raises ServerError where it cannot be read.
    """
    arguments = list(arguments)
    if "--config" not in arguments:
        return arguments
    index = arguments.index("--config")
    before, file, after = arguments[:index], arguments[index + 1 : index + 2], arguments[index + 2 :]
    if not file:
        raise ServerError("engine arguments: --config is not followed by a file")
    try:
        return [*_parser().load_config_file(file[0]), *before, *after]
    except (OSError, ValueError, AttributeError, YAMLError) as error:  # AttributeError: it holds no mapping
        raise ServerError(f"engine arguments: --config {file[0]}: {_first_line(error)}") from None


def _parser() -> Any:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:  # argparse prints two hundred lines of usage and exits
            raise ServerError(f"engine arguments: {message}")

    return _first_module(_CLI_ARGS).make_arg_parser(Parser())


def engine_config(args: Namespace) -> Any:
    """The VllmConfig of these arguments. Raises ServerError where vLLM refuses them."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        return AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except (TypeError, ValueError, NotImplementedError) as error:  # pydantic's ValidationError is a ValueError
        raise ServerError(f"vLLM refuses the model or the engine arguments: {_first_line(error)}") from error


def start_engine(config: Any, args: Namespace) -> Any:
    """Starts the engine's processes and waits until they are up. Returns an AsyncLLM."""
    from vllm.v1.engine.async_llm import AsyncLLM

    class Engine(AsyncLLM):  # type: ignore[misc]
        def __del__(self) -> None:
            """`running_engine` shuts it down. AsyncLLM does so again here, which fails as the interpreter ends."""

    try:
        return Engine.from_vllm_config(
            config, enable_log_requests=args.enable_log_requests, disable_log_stats=args.disable_log_stats
        )
    except RuntimeError as error:
        raise ServerError("the engine did not start; its own messages stand above") from error


async def build_app(engine: Any, args: Namespace) -> FastAPI:
    """vLLM's own OpenAI-compatible app on an engine client."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app as build

    tasks = await engine.get_supported_tasks()
    app: FastAPI = build(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    return app


def lora_request(name: str, lora_id: int, path: Path | str, base_model: str | None = None) -> Any:
    """A LoRARequest. The name is part of the prefix cache's key, so it must say which content it is."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=str(path), base_model_name=base_model)


def probe_params() -> Any:
    """Sampling parameters that return the log-probability of each prompt token, and one token more.

    That one is sampled, so that what vLLM compiles for the first log-probability and the first sampled
    token is compiled before a user waits for it.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)


def are_deltas(params: Any) -> bool:
    """Whether each output of a request has what is new in it, and not all there is so far."""
    from vllm.sampling_params import RequestOutputKind

    return bool(getattr(params, "output_kind", None) == RequestOutputKind.DELTA)


def kill_engine(engine: Any) -> None:
    """Ends the engine's processes at once. Requests under way then get an error, as when it dies by itself."""
    for process in engine.engine_core.resources.engine_manager.processes:
        process.kill()


def token_prompt(token_ids: Sequence[int]) -> Any:
    """A prompt of token ids, as `generate` takes it."""
    from vllm.inputs import tokens_input

    return tokens_input(list(token_ids))


def bad_request(message: str, parameter: str) -> Exception:
    """What vLLM's serving classes answer with a 400; `parameter` names the field at fault."""
    from vllm.exceptions import VLLMValidationError

    error: Exception = VLLMValidationError(message, parameter=parameter)
    return error


def beam_searchers(state: Any) -> list[Any]:
    """The serving objects of vLLM's app that search with beams. `state` is the app's."""
    named = ("openai_serving_chat", "openai_serving_chat_batch", "openai_serving_completion")
    return [serving for name in named if hasattr(serving := getattr(state, name, None), "beam_search")]


def engine_errors() -> tuple[type[Exception], ...]:
    """What `generate` and `add_lora` raise for one request while the engine lives on."""
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineGenerateError

    return (VLLMError, EngineGenerateError, ValueError, RuntimeError)


def plugin_is_installed(name: str) -> bool:
    """Whether vLLM's worker processes will find our plugin by its entry point."""
    return any(point.name == name for point in entry_points(group=PLUGINS_GROUP))


def _first_module(names: Sequence[str]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):  # another's import, not this module or a folder of it
                raise
    raise ServerError(f"this release of vLLM has none of {', '.join(names)}; MEET works with 0.30 to 0.33")


def _first_line(error: Exception) -> str:
    """What a person needs of vLLM's and pydantic's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic: "1 validation error for ModelConfig", then the message itself.
    return lines[1] if len(lines) > 1 and "validation error" in lines[0] else (lines[0] if lines else repr(error))
