"""`preference` on stock `vllm serve`: a plugin of vLLM's (`vllm.endpoint_plugins`), loaded where VLLM_PLUGINS names it.

    VLLM_PLUGINS=meet_preference vllm serve BUNDLE/model --enable-lora --max-lora-rank 8 \
        --lora-modules concise=BUNDLE/controls/concise detailed=BUNDLE/controls/detailed

It gives a request the adapter of the label that it asks for, under the name that `--lora-modules` gave it, and no more:
one label, as trained. Mixes, strengths, soft prompts, proof and `preferences` need `meet serve`. It knows no bundle,
imports no vLLM and leaves the engine alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.errors import RequestError
from meet_server.http.body import Disconnected, read_body, replay, with_length
from meet_server.http.errors import error_response
from meet_server.http.paths import GENERATING, path_of
from meet_server.preferences import words

Labels = Callable[[], Collection[str]]


class PreferencePlugin:
    """What vLLM asks of an endpoint plugin."""

    name = "meet_preference"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._models: Any = None

    def attach_router(self, app: FastAPI) -> None:
        """Puts the wrapper in: vLLM builds its middleware after this."""
        app.add_middleware(PreferenceToModel, labels=self._labels)

    async def init_state(self, engine_client: object, state: State, args: object) -> None:  # noqa: ARG002
        """Remembers vLLM's list of adapters, which may change while it serves."""
        self._models = getattr(state, "openai_serving_models", None)

    def _labels(self) -> Collection[str]:
        return () if self._models is None else tuple(self._models.lora_requests)


class PreferenceToModel:
    """Takes `preference` or the header out of a request, and names the adapter of that label as its model."""

    def __init__(self, app: ASGIApp, *, labels: Labels) -> None:
        self._app = app
        self._labels = labels

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or path_of(scope) not in GENERATING:
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(scope, receive)  # its size is vLLM's to bound
            label, body = self._take(body, Headers(scope=scope).getlist(words.HEADER))
        except Disconnected:
            return
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        answer_to = send if label is None else _announce(label, send)
        await self._app(with_length(scope, len(body)), replay(body, receive), answer_to)

    def _take(self, body: bytes, lines: list[str]) -> tuple[str | None, bytes]:
        """The label to apply (None: none was asked for) and the body without our words."""
        try:
            request = json.loads(body)
        except ValueError:
            return None, body  # vLLM's to answer
        if not isinstance(request, dict) or not (words.FIELD in request or lines):
            return None, body
        asked = words.from_field(request.pop(words.FIELD)) if words.FIELD in request else None
        said = words.from_header(",".join(lines)) if lines else asked
        if asked is not None and said != asked:
            raise RequestError(
                "conflicting_preferences", f"{words.FIELD} and {words.HEADER} disagree", param=words.FIELD
            )
        label = self._one(said or words.UNCONTROLLED)
        if label is not None:
            request["model"] = label
        return label or words.NO_CONTROL, json.dumps(request).encode()

    def _one(self, asked: words.Asked) -> str | None:
        if not asked.parts:
            return None
        (label, strength), *more = asked.parts
        if more or strength not in (None, 1.0):
            raise RequestError(
                "unsupported_mix",
                "stock vLLM applies one preference, as trained; `meet serve` mixes",
                param=words.FIELD,
            )
        if label not in self._labels():
            known = ", ".join(sorted(self._labels())) or "none; start vLLM with --lora-modules"
            raise RequestError("unknown_preference", f"{label!r} is no preference; known: {known}", param=words.FIELD)
        return label


def _announce(label: str, send: Send) -> Send:
    async def announcing(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            MutableHeaders(scope=message)[words.HEADER] = label
        await send(message)

    return announcing
