"""Pure-ASGI wrapper round the generating routes: finds and removes the preference of a request.

It reads the body, whose size `bounds` has limited, takes out what is ours, resolves it and lets vLLM's app answer
with the control in force. Streaming, errors and disconnects pass through untouched. It refuses to understand anything
else in a body, but for `background`, which would escape it: what is no JSON object, or names a model that is not ours,
is left for vLLM to answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.access.keyring import Key
from meet_server.errors import RequestError
from meet_server.http import several_preferences
from meet_server.http.body import Disconnected, read_body, replay, with_length
from meet_server.http.errors import error_response
from meet_server.http.keys import KEY
from meet_server.http.paths import (
    ASKING,
    BATCH,
    CHAT,
    COMPLETIONS,
    DECISIONS,
    INVOCATIONS,
    MESSAGES,
    RESPONSES,
    SCORING,
    TOKENS,
    path_of,
)
from meet_server.http.several_preferences import Entry, SeveralReplies, Together
from meet_server.http.turns import Turns
from meet_server.preferences import words
from meet_server.preferences.words import Said
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.live import Applied, LiveControls, LoadedControl

Applying = Callable[[LoadedControl | None], AbstractContextManager[None]]

THEIR_FIELDS = {CHAT: ("verbosity",), RESPONSES: ("text", "verbosity"), MESSAGES: ("output_config", "effort")}
"""Where each API has a field of its own that the manifest may map to preferences."""
TAKING_SEVERAL = (CHAT, COMPLETIONS)
ADAPTER = "X-Amzn-SageMaker-Adapter-Identifier"
"""On `/invocations` vLLM takes the model's name from here, and none where none is here: never from the body."""
EACH_OF = {BATCH: "messages", SCORING: "items", DECISIONS: "questions"}
"""Where vLLM asks the engine for each of several at once, as it does for several prompts."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request's entries (none: not ours to say), and its body without our words."""

    entries: list[Entry]
    body: bytes
    is_several: bool = False
    num_choices: int = 1

    @property
    def label(self) -> str:
        """The preferences that it takes its turn with, whatever their strengths."""
        return "|".join("+".join(name for name, _ in entry.applied.mix.parts) for entry in self.entries)


class PreferenceField:
    """The wrapper. `names` are what the base model is called; `applying` puts a control in force,
    `together` has the requests of several begin together."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        catalogue: Catalogue,
        live: LiveControls,
        applying: Applying,
        together: Together,
        names: Iterable[str],
        turns: Turns,
    ) -> None:
        self._app = app
        self._catalogue = catalogue
        self._live = live
        self._applying = applying
        self._together = together
        self._turns = turns
        # Longest first, so that a name that holds a colon is not taken for a shorter one with a suffix.
        self._names = sorted(names, key=len, reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope)
        key: Key | None = scope.get(KEY)
        who = "" if key is None else key.name
        if scope["type"] != "http" or scope["method"] != "POST" or path not in ASKING:
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(scope, receive)
            asked = self._asked(path, Headers(scope=scope), body)
            _check_allowed(key, asked.entries)
        except Disconnected:
            return
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        if asked.body is not body:
            scope = with_length(scope, len(asked.body))
        if asked.entries and path == INVOCATIONS:
            headers = [(name, value) for name, value in scope["headers"] if name.lower() != ADAPTER.lower().encode()]
            scope = {**scope, "headers": headers}
        if asked.entries:
            send = _announce(" | ".join(str(entry.applied) for entry in asked.entries), send)
        with ExitStack() as held:  # before the first wait: its controls stay loaded until the request ends
            for entry in asked.entries:
                held.enter_context(self._applying(entry.applied.control))
            turn = (who, asked.label, asked.num_choices)
            await self._turns.answer(self._answering(asked), turn, scope, receive, send)

    def _asked(self, path: str, headers: Headers, body: bytes) -> _Asked:
        request = _object(body)
        if request is None:
            return _Asked([], body)
        if path == INVOCATIONS and (named := headers.get(ADAPTER)):
            request["model"] = named
        elif path == INVOCATIONS and self._suffix(request) is None:
            del request["model"]
        if path == RESPONSES and request.get("background"):
            # vLLM would answer at once and go on without what the request holds: its control, its turn, its key's.
            raise RequestError("invalid_body", "background is not served here; stream the reply", param="background")
        if (several := self._take_several(path, headers, request)) is not None:
            entries, body = several
            num = len(entries) * several_preferences.num_choices(request)
            return _Asked(entries, body, is_several=True, num_choices=num)
        applied, rewritten = self._take(path, headers, request)
        entries = [] if applied is None else [Entry(applied, 0)]
        return _Asked(entries, rewritten or body, num_choices=_num_choices(path, request))

    def _answering(self, asked: _Asked) -> ASGIApp:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if asked.is_several:
                several = SeveralReplies(self._app, self._applying, asked.entries, self._together)
                await several.answer(scope, asked.body, receive, send)
            else:
                await self._app(scope, replay(asked.body, receive), send)

        return answer

    def _take(self, path: str, headers: Headers, request: dict[str, Any]) -> tuple[Applied | None, bytes | None]:
        """What to apply (None: not ours to say), and the body without our words (None: as it came)."""
        suffix = self._suffix(request)
        if suffix is None:
            return None, None
        applied = self._live.lookup(self._catalogue.resolver.resolve(self._said(path, headers, request, suffix)))
        name = self._listed_name(request.get("model"), suffix, applied)
        if words.FIELD not in request and name == request.get("model"):
            return applied, None
        request.pop(words.FIELD, None)
        if name is not None:
            request["model"] = name
        return applied, _bytes(request)

    def _take_several(self, path: str, headers: Headers, request: dict[str, Any]) -> tuple[list[Entry], bytes] | None:
        """What to apply for each choice, and the body without our words. None where one reply is asked for, or not
        of our model."""
        if several_preferences.FIELD not in request:
            return None
        suffix = self._suffix(request)
        if suffix is None:
            return None
        if path not in TAKING_SEVERAL:
            raise RequestError(
                "invalid_preference",
                f"{several_preferences.FIELD} goes with {' and '.join(TAKING_SEVERAL)}; here, ask for one `preference`",
                param=several_preferences.FIELD,
            )
        if said := self._said(path, headers, request, suffix):
            raise RequestError(
                "conflicting_preferences",
                f"{said[0].place} asks for a preference, and {several_preferences.FIELD} for several; ask in one place",
                param=said[0].place,
            )
        entries = several_preferences.entries_of(request, self._apply)
        del request[several_preferences.FIELD]
        return entries, _bytes(request)

    def _apply(self, value: object, place: str) -> Applied:
        mix = self._catalogue.resolver.mix(words.from_field(value, place), place)
        try:
            return self._live.lookup(mix)
        except RequestError as error:
            raise RequestError(error.code, f"{place}: {error.message}", param=place) from None

    def _suffix(self, request: dict[str, Any]) -> str | None:
        """What stands behind the model's name: "" for nothing, None where the model is not ours."""
        model = request.get("model")
        if model is None or model == "":
            return ""
        if isinstance(model, str):
            for name in self._names:
                if model == name:
                    return ""
                if model.startswith(f"{name}:"):
                    return model[len(name) + 1 :]
        return None

    def _said(self, path: str, headers: Headers, request: dict[str, Any], suffix: str) -> list[Said]:
        said = []
        if words.FIELD in request:
            said.append(Said(words.FIELD, words.from_field(request[words.FIELD])))
        if suffix:
            said.append(Said("model", words.from_model_suffix(suffix)))
        if lines := headers.getlist(words.HEADER):
            said.append(Said(words.HEADER, words.from_header(",".join(lines))))
        if (place := THEIR_FIELDS.get(path)) is not None:
            resolver, value = self._catalogue.resolver, _at(request, place)
            asked = resolver.from_effort(value) if path == MESSAGES else resolver.from_verbosity(value)
            if asked is not None:
                said.append(Said(".".join(place), asked))
        return said

    def _listed_name(self, model: Any, suffix: str, applied: Applied) -> Any:
        """The model's name as `/v1/models` lists it: preferences by their names, and one at a time."""
        if not suffix:
            return model
        base = model[: -len(suffix) - 1]
        return f"{base}:{applied.mix.parts[0][0]}" if len(applied.mix.parts) == 1 else base


def _check_allowed(key: Key | None, asked: Iterable[Entry]) -> None:
    if key is None:
        return
    for entry in asked:
        if (refused := key.allows(name for name, _ in entry.applied.mix.parts)) is not None:
            raise RequestError(
                "preference_not_allowed", f"the key that was shown may not use {refused!r}", param=words.FIELD
            )


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def _bytes(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request, separators=(",", ":")).encode()
    except RecursionError:
        raise RequestError("invalid_body", "the body is nested too deeply") from None


def _num_choices(path: str, request: dict[str, Any]) -> int:
    if path == TOKENS:
        params = request.get("sampling_params")
        return several_preferences.num_choices({"n": params.get("n")} if isinstance(params, dict) else {})
    each = request.get(EACH_OF.get(path, ""))
    return len(each) if isinstance(each, list | dict) and each else several_preferences.num_choices(request)


def _at(request: dict[str, Any], place: tuple[str, ...]) -> object:
    """What stands in an object at a place of it, None where nothing does."""
    value: Any = request
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _announce(applied: str, send: Send) -> Send:
    """A `send` that adds the reply header, where the reply is no error."""

    async def announcing(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            MutableHeaders(scope=message)[words.HEADER] = applied
        await send(message)

    return announcing
