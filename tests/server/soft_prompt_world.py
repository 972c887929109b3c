"""The seam for soft prompts on a fake of vLLM's engine client, whose outputs tell of the prompt that it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from meet_server.engine import releases
from meet_server.engine.controlled_client import applying
from meet_server.engine.soft_prompts import SoftPromptEngine
from meet_server.registry.live import FIRST_ID, LoadedControl

Placement = Literal["before_prompt", "after_prompt"]
BOTH: tuple[Placement, ...] = ("before_prompt", "after_prompt")
FIRST_VIRTUAL = 100
CONTEXT = 64
CONCISE = LoadedControl("concise", "1" * 64, FIRST_ID, Path("controls/concise"), (100, 101, 102, 103))
FORMAL = LoadedControl("formal", "2" * 64, FIRST_ID + 1, Path("controls/formal"), (104, 105, 106, 107))
PROMPT = [7, 8, 9]


class ModelConfig:
    """As much of vLLM's as is looked at."""

    def __init__(self) -> None:
        self.max_model_len = CONTEXT
        self.max_logprobs = 20


class FakeClient:
    """vLLM's engine client. Its outputs tell of the whole prompt; the log-probability of each token is its position."""

    def __init__(self) -> None:
        self.model_config = ModelConfig()
        self.errored = False
        self.asked: list[SimpleNamespace] = []
        self.num_aborted = 0
        self.num_outputs = 1
        self.cached: int | None = 0
        self.created: int | None = 0
        self.virtual_logprob = float("-inf")
        self.error: Exception | None = None

    async def generate(
        self, prompt: Any, params: Any, request_id: str, *, lora_request: Any = None, **rest: Any
    ) -> AsyncGenerator[Any, None]:
        self.asked.append(SimpleNamespace(prompt=prompt, params=params, lora=lora_request, id=request_id, rest=rest))
        if self.error is not None:
            raise self.error
        try:
            for index in range(self.num_outputs):
                yield self.output(prompt["prompt_token_ids"], params, index)
        finally:
            self.num_aborted += 1

    def output(self, ids: list[int], params: Any, index: int) -> RequestOutput:
        logprobs: Any = None
        if params.prompt_logprobs is not None:
            # As LogprobsProcessor.pop_prompt_logprobs has it: all of them once, and then none.
            logprobs = [None, *({i: self.logprob(p, i)} for p, i in enumerate(ids[1:], 1))] if index == 0 else []
        made = CompletionOutput(0, "x", [5], None, None)
        return RequestOutput(
            "1", None, ids, logprobs, [made], False, num_cached_tokens=self.cached,
            num_cache_creation_tokens=self.created,
        )  # fmt: skip

    def logprob(self, position: int, token_id: int) -> Logprob:
        return Logprob(float(position) if token_id < FIRST_VIRTUAL else self.virtual_logprob)


class World:
    def __init__(self, placement: Placement = "after_prompt") -> None:
        self.client = FakeClient()
        self.engine = SoftPromptEngine(self.client, placement, FIRST_VIRTUAL)

    def generate(self, prompt: Any, control: LoadedControl | None, params: Any = None, lora: Any = None) -> Any:
        with applying(control):
            return self.engine.generate(prompt, params or SamplingParams(), "1", lora_request=lora, priority=3)

    def outputs(
        self, ids: Sequence[int], control: LoadedControl | None, params: Any = None, lora: Any = None
    ) -> list[Any]:
        async def go() -> list[Any]:
            return [output async for output in self.generate(releases.token_prompt(ids), control, params, lora)]

        return asyncio.run(go())

    def given(self, ids: Sequence[int], control: LoadedControl | None, lora: Any = None) -> list[int]:
        """The prompt that the engine is given."""
        self.outputs(ids, control, lora=lora)
        given: list[int] = self.client.asked[-1].prompt["prompt_token_ids"]
        return given

    def load(self, *controls: LoadedControl) -> None:
        async def go() -> None:
            for control in controls:
                await self.engine.load(control)

        asyncio.run(go())


def listed(control: LoadedControl) -> Any:
    """vLLM's own entry for a control, which a model's name brings."""
    return releases.lora_request(f"tiny:{control.name}", control.id, control.path)


@contextmanager
def refused(parameter: str, message: str) -> Iterator[None]:
    with pytest.raises(VLLMValidationError, match=message) as caught:
        yield
    assert caught.value.parameter == parameter
