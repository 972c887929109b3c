"""The seam: an engine client that gives each request its control. Knows no HTTP and no words.

Chat completions, completions, responses, messages and beam search all end in `engine.generate(...)`.
The control that the wrapper round vLLM's app resolved travels there in a context variable, which tasks
that a request starts inherit.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from meet_server.engine import releases
from meet_server.errors import ServerError
from meet_server.registry.admission import ControlRefused
from meet_server.registry.live import LoadedControl

_CONTROL: ContextVar[LoadedControl | None] = ContextVar("meet_control", default=None)


@contextmanager
def applying(control: LoadedControl | None) -> Iterator[None]:
    """Whatever is generated within gets this control; None leaves it uncontrolled."""
    token = _CONTROL.set(control)
    try:
        yield
    finally:
        _CONTROL.reset(token)


def current_control() -> LoadedControl | None:
    """What `applying` put in force here."""
    return _CONTROL.get()


class ControlledEngine:
    """vLLM's EngineClient with one method changed: `generate` sets the adapter of the request's control."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._adapters: dict[int, Any] = {}

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
    def is_dead(self) -> bool:
        """Whether the engine behind it has died; it does not come back."""
        return bool(self._engine.errored)

    async def load(self, control: LoadedControl) -> None:
        """Loads a control into the engine. Until then it cannot be generated with.

        An adapter that fails here is harmless; one that first failed while the engine steps would kill it.
        Raises ControlRefused.
        """
        adapter = releases.lora_request(f"{control.name}@{control.digest}", control.id, control.path)
        try:
            await self._engine.add_lora(adapter)
        except Exception as error:
            if self.is_dead:
                raise ServerError("the engine died while loading controls; its own messages stand above") from error
            raise ControlRefused(control.name, f"the engine does not load it: {error}") from error
        self._adapters[control.id] = adapter

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None, **rest: Any
    ) -> AsyncGenerator[Any, None]:
        """As EngineClient.generate, with the adapter of the current control.

        A model name `NAME:label` brings vLLM's own entry for it as `lora_request`; it stands for the
        loaded control of the same id. Adapters that are not ours pass as they came.
        """
        control = _CONTROL.get()
        if control is not None:
            lora_request = self._adapters[control.id]
        elif lora_request is not None:
            lora_request = self._adapters.get(lora_request.lora_int_id, lora_request)
        generated: AsyncGenerator[Any, None] = self._engine.generate(
            prompt, sampling_params, request_id, lora_request=lora_request, **rest
        )
        return generated


def list_models(models: Any, names: list[str], controls: Iterator[LoadedControl]) -> None:
    """Enters `NAME:label` of each control in vLLM's list of models, for `/v1/models` and replies' `model`.

    `models` is vLLM's OpenAIServingModels.
    """
    for control in controls:
        for name in names:
            entry = f"{name}:{control.name}"
            models.lora_requests[entry] = releases.lora_request(entry, control.id, control.path, base_model=name)


async def model_cards(models: Any) -> list[dict[str, Any]]:
    """The entries of vLLM's list of models, as JSON. `models` is its OpenAIServingModels."""
    return [card.model_dump(mode="json") for card in (await models.show_available_models()).data]
