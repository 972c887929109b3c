"""The seam: an engine client that gives each request its control. Knows no HTTP and no words.

Chat completions, completions, responses, messages and beam search all end in `engine.generate(...)`.
The control that the wrapper round vLLM's app resolved travels there in a context variable, which tasks
that a request starts inherit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from meet_server.engine import releases, together
from meet_server.engine.adapters import Adapters
from meet_server.engine.observing import Observe, label_of, observed
from meet_server.registry.admission import ControlRefused
from meet_server.registry.live import FIRST_ID, LoadedControl

_CONTROL: ContextVar[LoadedControl | None] = ContextVar("meet_control", default=None)
_IS_CLIENTS: ContextVar[bool] = ContextVar("meet_is_clients", default=True)


@contextmanager
def applying(control: LoadedControl | None) -> Iterator[None]:
    """Whatever is generated within gets this control; None leaves it uncontrolled."""
    token = _CONTROL.set(control)
    try:
        yield
    finally:
        _CONTROL.reset(token)


@contextmanager
def unobserved() -> Iterator[None]:
    """Whatever is generated within is no client's, and is not counted."""
    token = _IS_CLIENTS.set(False)
    try:
        yield
    finally:
        _IS_CLIENTS.reset(token)


def current_control() -> LoadedControl | None:
    """What `applying` put in force here."""
    return _CONTROL.get()


class ControlledEngine:
    """vLLM's EngineClient with one method changed: `generate` sets the adapter of the request's control."""

    def __init__(self, engine: Any, max_mixes: int = 1) -> None:
        """`max_mixes` is how many mixes the engine keeps."""
        self._engine = engine
        self.observe: Observe | None = None
        """Told of each client's request when it has ended."""
        self.adapters = Adapters(engine, max_mixes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def plain(self) -> Any:
        """The engine client as vLLM made it, whose requests get no control."""
        return self._engine

    @property
    def dtype(self) -> str:
        """What the model is served in: `float32`, `bfloat16`."""
        return str(self._engine.model_config.dtype).removeprefix("torch.")

    @property
    def ranks(self) -> Sequence[int | None]:
        """What `generate` may be told as `data_parallel_rank`, to ask each of several engines. One has no rank."""
        num = self._engine.vllm_config.parallel_config.data_parallel_size
        return (None,) if num == 1 else range(num)

    @property
    def is_dead(self) -> bool:
        """Whether the engine behind it has died; it does not come back."""
        return bool(self._engine.errored)

    async def load(self, control: LoadedControl) -> None:
        """Loads a control into the engine. Until then it cannot be generated with. Raises ControlRefused."""
        await self.adapters.load(control)

    async def unload(self, control: LoadedControl) -> None:
        """Takes a control out of the engine once no request uses it; new ones must not get it any more."""
        await self.adapters.unload(control)

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None, **rest: Any
    ) -> AsyncGenerator[Any, None]:
        """As EngineClient.generate, with the adapter of the current control.

        A model name `NAME:label` brings vLLM's own entry for it as `lora_request`; it stands for the
        loaded control of the same id. Adapters that are not ours pass as they came.
        """
        sampling_params = together.marked(sampling_params)
        control = _CONTROL.get()
        if control is None and lora_request is not None and lora_request.lora_int_id >= FIRST_ID:
            control = self.adapters.control(lora_request.lora_int_id)
            if control is None:
                raise releases.bad_request(f"{lora_request.lora_name} was changed or removed; ask again", "model")
        generated: AsyncGenerator[Any, None]
        if control is None:
            generated = self._engine.generate(prompt, sampling_params, request_id, lora_request=lora_request, **rest)
        else:
            generated = self._generate_controlled(control, prompt, sampling_params, request_id, rest)
        return self._observed(generated, control, sampling_params)

    async def answers(self, timeout_s: float) -> bool:
        """Whether the engine answers a question that it answers between any two of its steps."""
        try:
            await asyncio.wait_for(self._engine.is_sleeping(), timeout_s)
        except TimeoutError:
            return False
        except Exception:
            if self.is_dead:
                return True  # which is another matter, and told by `is_dead`
            raise
        return True

    def kill(self) -> None:
        """Ends an engine that does not answer; from then on it is dead."""
        releases.kill_engine(self._engine)

    def _observed(
        self, outputs: AsyncGenerator[Any, None], control: LoadedControl | None, params: Any
    ) -> AsyncGenerator[Any, None]:
        if self.observe is None or not _IS_CLIENTS.get():
            return outputs
        return observed(outputs, label_of(control), params, self.observe)

    def together(self, num: int) -> Sequence[AbstractContextManager[None]]:
        """For each of `num` tasks what to be in while it puts its request to the engine: they are read in one step.

        Where there are several engines requests of one group may go to any of them, and none waits for another.
        """
        return together.each_of(num) if self.ranks == (None,) else [nullcontext()] * num

    @contextmanager
    def applying(self, control: LoadedControl | None) -> Iterator[None]:
        """As the function `applying`, for as long as a client's request lasts: the control stays loaded."""
        with self.adapters.holding(control), applying(control):
            yield

    async def _generate_controlled(
        self, control: LoadedControl, prompt: Any, sampling_params: Any, request_id: str, rest: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Holds the control or the mix, which is loaded if it is not there, until the engine has done with the request
        or was told that nobody waits for it.

        Raises vLLM's validation error where the engine does not load it.
        """
        try:
            async with self.adapters.using(control) as adapter:
                outputs = self._engine.generate(prompt, sampling_params, request_id, lora_request=adapter, **rest)
                async with aclosing(outputs):
                    async for each in outputs:
                        yield each
        except ControlRefused as error:
            raise releases.bad_request(str(error), "preference") from error


def list_models(models: Any, names: list[str], controls: Iterator[LoadedControl]) -> None:
    """Enters `NAME:label` of each control in vLLM's list of models, for `/v1/models` and replies' `model`.

    Those of ours that it had are replaced. `models` is vLLM's OpenAIServingModels.
    """
    for entry in [name for name, listed in models.lora_requests.items() if listed.lora_int_id >= FIRST_ID]:
        del models.lora_requests[entry]
    for control in controls:
        for name in names:
            entry = f"{name}:{control.name}"
            models.lora_requests[entry] = releases.lora_request(entry, control.id, control.path, base_model=name)


async def model_cards(models: Any) -> list[dict[str, Any]]:
    """The entries of vLLM's list of models, as JSON. `models` is its OpenAIServingModels."""
    return [card.model_dump(mode="json") for card in (await models.show_available_models()).data]
