"""What a trace holds: of a request in front of a fake app, and what a collector gets from a server of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from meet_server.access.keyring import Key
from meet_server.http.keys import KEY
from meet_server.http.paths import COMPLETIONS
from meet_server.http.request_span import RequestSpan

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
APPLIED = b"concise=1; version=abc"


def spans(path: str, headers: list[tuple[bytes, bytes]], status: int = 200) -> tuple[list[ReadableSpan], str | None]:
    """The spans of one request, and the `traceparent` that the app behind gets."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value.decode() for name, value in scope["headers"] if name == b"traceparent")
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-meet-preference", APPLIED)]})
        await send({"type": "http.response.body", "body": b"secret text"})
        if status == 500:
            raise RuntimeError("the engine died")

    async def nothing(message: Any = None) -> Any:
        return None

    async def run() -> None:
        key = Key("widget", "user", b"digest")
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, KEY: key}
        await RequestSpan(app, provider=provider)(scope, nothing, nothing)

    if status == 500:
        with pytest.raises(RuntimeError):
            asyncio.run(run())
    else:
        asyncio.run(run())
    assert len(seen) <= 1
    return list(exporter.get_finished_spans()), seen[0] if seen else None


def test_a_span_says_what_was_applied_and_is_the_parent_of_what_follows() -> None:
    headers = [
        (b"traceparent", TRACEPARENT.encode()),
        (b"x-request-id", b"asked-7"),
        (b"authorization", b"Bearer sk-1"),
    ]
    (span,), passed_on = spans(COMPLETIONS, headers)
    assert (span.name, span.kind) == (f"POST {COMPLETIONS}", SpanKind.SERVER)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": COMPLETIONS,
        "meet.request_id": "asked-7",
        "meet.key": "widget",
        "meet.preference": APPLIED.decode(),
        "http.response.status_code": 200,
    }
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert (passed_on or "").startswith(f"00-{TRACE}-{span.context.span_id:016x}-")


@pytest.mark.parametrize("given", [[], [(b"traceparent", b"nonsense \xff")]])
def test_without_a_trace_of_the_clients_one_begins(given: list[tuple[bytes, bytes]]) -> None:
    (span,), passed_on = spans(COMPLETIONS, given)
    assert span.parent is None
    assert (passed_on or "").startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")


def test_an_error_is_one_and_what_asks_for_no_reply_has_no_span() -> None:
    (span,), _ = spans(COMPLETIONS, [], status=500)
    assert span.status.status_code is StatusCode.ERROR
    assert spans("/tokenize", [(b"traceparent", TRACEPARENT.encode())]) == ([], TRACEPARENT)


PROGRAM = """
import sys
from meet_server.run import serve
from meet_server.settings import Settings
bundle, registry, *engine_args = sys.argv[1:]
if __name__ == "__main__":
    serve(Settings(bundle=bundle, registry=registry, port=0, engine_args=engine_args))
"""


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, and keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.spans: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"

    def until(self, trace: str, num: int) -> dict[str, Any]:
        """The spans of a trace by their names, once there are so many. Start and probes of the engine have others."""
        end = time.monotonic() + 30
        while len(found := [span for span in list(self.spans) if span.trace_id.hex() == trace]) < num:
            assert time.monotonic() < end, [(span.name, span.trace_id.hex()) for span in self.spans]
            time.sleep(0.05)
        return {span.name: span for span in found}


class Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        message = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.mark.slow  # an engine of its own: a process has one provider of traces
def test_a_collector_gets_the_request_and_the_engines_work_inside_it(
    bundle: Path, tmp_path: Path, collector: Collector
) -> None:
    program = tmp_path / "traced.py"
    program.write_text(PROGRAM)
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(program), str(bundle), str(tmp_path / "registry"),
               "--kv-cache-memory-bytes=67108864", f"--otlp-traces-endpoint={collector.url}"]  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("ready: ")).split()[1]
            headers = {"traceparent": TRACEPARENT, "x-request-id": "asked-7"}
            body = {"prompt": "What is rain?", "max_tokens": 6, "temperature": 0.5, "ignore_eos": True}
            reply = httpx.post(
                f"{url}{COMPLETIONS}", json={**body, "preference": "concise"}, headers=headers, timeout=60
            )
            assert reply.status_code == 200, reply.text
            found = collector.until(TRACE, 2)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    engines, ours = found["llm_request"], found[f"POST {COMPLETIONS}"]
    print(json.dumps({span.name: attributes(span) for span in (ours, engines)}, indent=1))  # noqa: T201 - `pytest -s`
    said, usage = attributes(ours), reply.json()["usage"]
    assert said["meet.preference"] == reply.headers["x-meet-preference"]
    assert said["meet.preference"].startswith("concise=1; version=")
    assert (said["meet.request_id"], said["http.response.status_code"]) == ("asked-7", 200)
    told = attributes(engines)
    assert told["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.completion_tokens"] == 6
    assert told["gen_ai.request.temperature"] == 0.5
    assert "asked-7" in told["gen_ai.request.id"]
    assert 0 < told["gen_ai.latency.time_to_first_token"] <= told["gen_ai.latency.e2e"]
    assert (ours.parent_span_id.hex(), engines.parent_span_id) == (PARENT, ours.span_id)
    assert "rain" not in str(ours) + str(engines)
