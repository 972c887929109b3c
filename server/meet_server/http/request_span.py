"""A span round each request that asks for a reply, with the preference that was applied. Pure ASGI.

vLLM's own span of the engine's work, `llm_request`, becomes its child; both go where vLLM's
`--otlp-traces-endpoint` says. Neither keys nor texts are in it. Imports OpenTelemetry, which vLLM brings.
"""

from __future__ import annotations

from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider, get_tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meet_server.http.keys import KEY
from meet_server.http.paths import ASKING, path_of
from meet_server.http.request_log import REQUEST_ID
from meet_server.preferences.words import HEADER

PREFERENCE, KEY_NAME, ID = "meet.preference", "meet.key", "meet.request_id"
_CONTEXT = TraceContextTextMapPropagator()


class RequestSpan:
    """Spans are those of `provider`, or of the process's own."""

    def __init__(self, app: ASGIApp, *, provider: TracerProvider | None = None) -> None:
        self._app = app
        self._tracer = get_tracer("meet_server", tracer_provider=provider)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        if path not in ASKING or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        theirs = {name: headers[name] for name in _CONTEXT.fields if name in headers}
        attributes = {"http.request.method": "POST", "url.path": path}
        if REQUEST_ID in headers:
            attributes[ID] = headers[REQUEST_ID][:128]
        if (key := scope.get(KEY)) is not None:
            attributes[KEY_NAME] = key.name
        span = self._tracer.start_span(
            f"POST {path}", _CONTEXT.extract(theirs), kind=SpanKind.SERVER, attributes=attributes
        )

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if (applied := Headers(raw=message["headers"]).get(HEADER)) is not None:
                    span.set_attribute(PREFERENCE, applied)
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        ours: dict[str, str] = {}
        _CONTEXT.inject(ours, set_span_in_context(span))
        others = [pair for pair in scope["headers"] if pair[0].decode("latin-1") not in _CONTEXT.fields]
        traced = [*others, *((name.encode(), value.encode()) for name, value in ours.items())]
        try:
            await self._app({**scope, "headers": traced}, receive, noting)
        finally:
            span.end()
