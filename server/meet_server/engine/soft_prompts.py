"""The seam for soft prompts: an engine client that puts a control's virtual tokens into a request's prompt.

On the way in they stand where the bundle's placement says; on the way out they are taken out of everything that a
client is told of its prompt: ids, echo, log-probabilities, cached tokens. Whoever works out how many tokens fit sees
a context that is shorter by them. No request can write a virtual token itself, whatever way it came. Knows no HTTP.

Blocks of the prefix cache are whole. `before_prompt`: all requests of a control share its KV, as far as its number
of tokens is a multiple of the block size. `after_prompt`: all preferences share a prompt's, whole blocks of it.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from meet_server.engine import releases, together
from meet_server.engine.controlled_client import ControlledEngine, current_control
from meet_server.errors import EngineDied
from meet_server.registry.admission import ControlRefused
from meet_server.registry.live import FIRST_ID, LoadedControl

# Where the prompt ends, for those who ask for more tokens of one reply in several requests.
_PROMPT_END: ContextVar[int | None] = ContextVar("meet_prompt_end", default=None)


@contextmanager
def prompt_ends_at(index: int) -> Iterator[None]:
    """Prompts that are generated from within are `index` tokens of prompt and then the beginning of a reply."""
    token = _PROMPT_END.set(index)
    try:
        yield
    finally:
        _PROMPT_END.reset(token)


class SoftPromptEngine(ControlledEngine):
    """As ControlledEngine, for a bundle of soft prompts. `first_id` is the lowest virtual token's."""

    def __init__(self, engine: Any, placement: Literal["before_prompt", "after_prompt"], first_id: int) -> None:
        super().__init__(engine)
        self._before = placement == "before_prompt"
        self._first_id = first_id
        self._loaded: dict[int, LoadedControl] = {}
        self.model_config = shortened(engine.model_config, _num_virtual_tokens)

    async def load(self, control: LoadedControl) -> None:
        """Checks that the engine knows a control's tokens and never produces them. Raises ControlRefused."""
        context = self._engine.model_config.max_model_len
        if len(control.token_ids) + 2 > context:
            raise ControlRefused(
                control.name, f"{len(control.token_ids)} virtual tokens leave no room in a context of {context}"
            )
        if any(logprob > float("-inf") for logprob in await self._virtual_log_probs(control)):
            raise ControlRefused(
                control.name, "the engine would produce its virtual tokens: MEET's vLLM plugin is not at work in it"
            )
        self._loaded[control.id] = control

    async def unload(self, control: LoadedControl) -> None:
        """Forgets a control once no request uses it. The model keeps its rows."""
        await self.adapters.released(control.id)
        del self._loaded[control.id]

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None, **rest: Any
    ) -> AsyncGenerator[Any, None]:
        """As EngineClient.generate, with the current control's virtual tokens in the prompt.

        A model name `NAME:label` brings vLLM's own entry for it as `lora_request`; it stands for the
        loaded control of the same id. Adapters that are not ours pass as they came. Raises vLLM's validation
        error for ids that are not a client's to use.
        """
        sampling_params = together.marked(sampling_params)
        control = current_control()
        if lora_request is not None and (listed := self._loaded.get(lora_request.lora_int_id)) is not None:
            control, lora_request = control or listed, None
        elif lora_request is not None and lora_request.lora_int_id >= FIRST_ID:
            raise releases.bad_request(f"{lora_request.lora_name} was changed or removed; ask again", "model")
        rest["lora_request"] = lora_request
        prompt_ids = self._checked(prompt, sampling_params, control)
        # An empty prompt stays empty, so that vLLM refuses it as ever.
        if control is None or not prompt_ids:
            generated: AsyncGenerator[Any, None] = self._engine.generate(prompt, sampling_params, request_id, **rest)
            return self._observed(generated, None, sampling_params)
        end = _PROMPT_END.get()
        position = 0 if self._before else len(prompt_ids) if end is None else end
        whole = {**prompt, "prompt_token_ids": inserted(prompt_ids, control.token_ids, position)}
        outputs = self._engine.generate(whole, sampling_params, request_id, **rest)
        hidden = _hidden(outputs, prompt_ids, position, len(control.token_ids))
        return self._observed(hidden, control, sampling_params)

    def follow_beams(self, state: Any) -> None:
        """Has vLLM's serving objects say where the prompt ends while they search with beams.

        `state` is the app's. A beam's every step is a request of its own, whose prompt holds the reply so far.
        """
        for serving in releases.beam_searchers(state):
            serving.beam_search = _bounded(serving.beam_search)

    def _checked(self, prompt: Any, params: Any, control: LoadedControl | None) -> list[int]:
        """The prompt's token ids; none where it has none."""
        typed = prompt.get("type") if isinstance(prompt, dict) else None
        ids: list[int] = prompt.get("prompt_token_ids") or [] if isinstance(prompt, dict) else []
        if control is not None and typed != "token":
            raise releases.bad_request("a preference goes with a prompt of text or token ids alone", "preference")
        if ids and max(ids) >= self._first_id:
            raise releases.bad_request(f"Token id {max(ids)} is out of vocabulary", "prompt")
        if control is not None and getattr(params, releases.PROMPT_ROWS, None) is not None:
            raise releases.bad_request(f"{releases.PROMPT_ROWS} goes with no preference here", releases.PROMPT_ROWS)
        for field in releases.TOKEN_ID_PARAMS:
            largest = max(_token_ids(getattr(params, field, None)), default=0)
            if largest >= self._first_id:
                raise releases.bad_request(f"{field} holds token id {largest}, which is out of vocabulary", field)
        # "All of the vocabulary", or more than there is of it, is all of the true one.
        for field in ("logprobs", "prompt_logprobs"):
            num = getattr(params, field, None)
            if num is not None and not 0 <= num <= self._first_id:
                setattr(params, field, self._first_id)
        return ids

    async def _virtual_log_probs(self, control: LoadedControl) -> list[float]:
        """ln p of each virtual token after those before it, as the engine itself sees it."""
        prompt = releases.token_prompt((0, *control.token_ids))
        outputs = self._engine.generate(prompt, releases.probe_params(), f"ban-{control.name}")
        final: Any = None
        try:
            async for output in outputs:
                final = output
        except releases.engine_errors() as error:
            if self.is_dead:
                raise EngineDied("the engine died while loading controls; its own messages stand above") from error
            raise ControlRefused(control.name, f"the engine does not take its virtual tokens: {error}") from error
        listed = zip(final.prompt_logprobs[1:], control.token_ids, strict=True)
        return [logprobs[token_id].logprob for logprobs, token_id in listed]


def _token_ids(listed: Any) -> Iterator[int]:
    """The ids of a field that holds them, as `releases.TOKEN_ID_PARAMS` says; of None, none."""
    for each in () if listed is None else listed:
        yield from (each,) if isinstance(each, int) else each


def inserted(prompt_ids: list[int], ids: tuple[int, ...], position: int) -> list[int]:
    """The ids put in front of the prompt's token at `position`."""
    return [*prompt_ids[:position], *ids, *prompt_ids[position:]]


def shortened(config: Any, num_tokens: Callable[[], int]) -> Any:
    """A copy of a ModelConfig whose `max_model_len` is shorter by `num_tokens()`, whenever it is read.

    Everything in vLLM that works out how many tokens fit reads it there, request by request.
    """

    def max_model_len(self: Any) -> int:
        return max(1, int(self.__dict__["max_model_len"]) - num_tokens())

    view = copy.copy(config)
    view.__class__ = type(type(config).__name__, (type(config),), {"max_model_len": property(max_model_len)})
    return view


def _num_virtual_tokens() -> int:
    control = current_control()
    return 0 if control is None else len(control.token_ids)


async def _hidden(
    outputs: AsyncGenerator[Any, None], prompt_ids: list[int], position: int, num: int
) -> AsyncGenerator[Any, None]:
    """Outputs as they were without the `num` tokens that stand at `position`."""
    async with aclosing(outputs):
        async for output in outputs:
            if output.prompt_token_ids is not None:
                output.prompt_token_ids = prompt_ids
            if output.prompt_logprobs:  # of a stream the first output has them, and the others an empty list
                output.prompt_logprobs = without(output.prompt_logprobs, position, num)
            cached = output.num_cached_tokens or 0
            if cached:
                output.num_cached_tokens = visible(cached, position, num)
            # Whole blocks again, which stand behind those that were cached.
            if created := output.num_cache_creation_tokens:
                begin, end = (visible(each, position, num) for each in (cached, cached + created))
                output.num_cache_creation_tokens = end - begin
            yield output


def visible(num_first: int, position: int, num: int) -> int:
    """How many of the first `num_first` tokens are not among the `num` that stand at `position`."""
    return min(num_first, max(position, num_first - num))


def without(prompt_logprobs: Any, position: int, num: int) -> list[Any]:
    """The entries of the client's own tokens. As ever, a prompt's first token has none."""
    kept = [*prompt_logprobs[:position], *prompt_logprobs[position + num :]]
    return [None, *kept[1:]]


def _bounded(beam_search: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncGenerator[Any, None]]:
    async def bounded(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        num_tokens = len(prompt.get("prompt_token_ids") or ())
        async with aclosing(beam_search(prompt, *args, **kwargs)) as found:
            while True:
                # Each step in a context of its own: vLLM may ask for the next one from another task.
                with prompt_ends_at(num_tokens):
                    try:
                        output = await anext(found)
                    except StopAsyncIteration:
                        return
                yield output

    return bounded
