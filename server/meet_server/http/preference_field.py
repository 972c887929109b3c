"""Pure-ASGI wrapper round the generating routes: finds and removes the preference of a request.

It reads the body, whose size `bounds` has limited, takes out what is ours, resolves it and lets vLLM's app answer
with the control in force. Streaming, errors and disconnects pass through untouched. It refuses to understand anything
else in a body: what is no JSON object, or names a model that is not ours, is left for vLLM to answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.access.keyring import Key
from meet_server.errors import RequestError
from meet_server.http import several_preferences
from meet_server.http.body import Disconnected, read_body, replay, with_length
from meet_server.http.errors import error_response
from meet_server.http.keys import KEY
from meet_server.http.paths import CHAT, COMPLETIONS, GENERATING, MESSAGES, RESPONSES, path_of
from meet_server.http.several_preferences import Entry, SeveralReplies
from meet_server.preferences import words
from meet_server.preferences.resolve import Resolver
from meet_server.preferences.words import Said
from meet_server.registry.live import Applied, LiveControls, LoadedControl

Applying = Callable[[LoadedControl | None], AbstractContextManager[None]]


class PreferenceField:
    """The wrapper. `names` are what the base model is called; `applying` puts a control in force."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        resolver: Resolver,
        live: LiveControls,
        applying: Applying,
        names: Iterable[str],
    ) -> None:
        self._app = app
        self._resolver = resolver
        self._live = live
        self._applying = applying
        # Longest first, so that a name that holds a colon is not taken for a shorter one with a suffix.
        self._names = sorted(names, key=len, reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _generating_path(scope)
        if path is None:
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(scope, receive)
            request, headers = _object(body), Headers(scope=scope)
            several = self._take_several(path, headers, request)
            applied, rewritten = (None, None) if several else self._take(path, headers, request)
            _check_allowed(scope.get(KEY), [entry.applied for entry in several[0]] if several else [applied])
        except Disconnected:
            return
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        if several is not None:
            await self._answer_each(*several, scope, receive, send)
            return
        if rewritten is not None:
            body, scope = rewritten, with_length(scope, len(rewritten))
        receive = replay(body, receive)
        if applied is None:
            await self._app(scope, receive, send)
            return
        with self._applying(applied.control):
            await self._app(scope, receive, _announce(str(applied), send))

    async def _answer_each(self, entries: list[Entry], body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        said = " | ".join(str(entry.applied) for entry in entries)
        replies = SeveralReplies(self._app, self._applying, entries)
        await replies.answer(with_length(scope, len(body)), body, receive, _announce(said, send))

    def _take(self, path: str, headers: Headers, request: dict[str, Any] | None) -> tuple[Applied | None, bytes | None]:
        """What to apply (None: not ours to say), and the body without our words (None: as it came)."""
        suffix = None if request is None else self._suffix(request)
        if request is None or suffix is None:
            return None, None
        applied = self._live.lookup(self._resolver.resolve(self._said(path, headers, request, suffix)))
        name = self._listed_name(request.get("model"), suffix, applied)
        if words.FIELD not in request and name == request.get("model"):
            return applied, None
        request.pop(words.FIELD, None)
        if name is not None:
            request["model"] = name
        return applied, _bytes(request)

    def _take_several(
        self, path: str, headers: Headers, request: dict[str, Any] | None
    ) -> tuple[list[Entry], bytes] | None:
        """What to apply for each choice, and the body without our words. None where one reply is asked for, or not
        of our model."""
        if request is None or several_preferences.FIELD not in request:
            return None
        suffix = self._suffix(request)
        if suffix is None:
            return None
        if path not in (CHAT, COMPLETIONS):
            raise RequestError(
                "invalid_preference",
                f"{several_preferences.FIELD} goes with {CHAT} and {COMPLETIONS}; here, ask for one `preference`",
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
        mix = self._resolver.mix(words.from_field(value, place), place)
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
        if path == CHAT and (asked := self._resolver.from_verbosity(request.get("verbosity"))):
            said.append(Said("verbosity", asked))
        if path == RESPONSES and (asked := self._resolver.from_verbosity(_inner(request, "text", "verbosity"))):
            said.append(Said("text.verbosity", asked))
        if path == MESSAGES and (asked := self._resolver.from_effort(_inner(request, "output_config", "effort"))):
            said.append(Said("output_config.effort", asked))
        return said

    def _listed_name(self, model: Any, suffix: str, applied: Applied) -> Any:
        """The model's name as `/v1/models` lists it: preferences by their names, and one at a time."""
        if not suffix:
            return model
        base = model[: -len(suffix) - 1]
        one = applied.control is not None and len(applied.mix.parts) == 1
        return f"{base}:{applied.mix.parts[0][0]}" if one else base


def _generating_path(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path = path_of(scope)
    return path if path in GENERATING else None


def _check_allowed(key: Key | None, asked: Iterable[Applied | None]) -> None:
    for applied in asked:
        if key is None or applied is None:
            continue
        if (refused := key.allows(name for name, _ in applied.mix.parts)) is not None:
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


def _inner(request: dict[str, Any], outer: str, inner: str) -> object:
    value = request.get(outer)
    return value.get(inner) if isinstance(value, dict) else None


def _announce(applied: str, send: Send) -> Send:
    """A `send` that adds the reply header, where the reply is no error."""

    async def announcing(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            MutableHeaders(scope=message)[words.HEADER] = applied
        await send(message)

    return announcing
