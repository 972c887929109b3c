"""`preferences`: one request, one choice per entry. What goes wrong is tried on a fake app, the rest on the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from example_manifest import manifest, preference
from running_server import Server, Soft
from test_batching import until

from meet_server.access.fair_queue import FairQueue
from meet_server.http import several_preferences
from meet_server.http.merging import MergingStream, merged_usage
from meet_server.http.preference_field import PreferenceField
from meet_server.http.several_preferences import num_choices
from meet_server.http.turns import Turns
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.settings import LoadSettings

CHAT = "/v1/chat/completions"


def usage_of(name: str) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": len(name), "total_tokens": 7 + len(name)}


class App:
    """Answers in the words of the control in force; `behave` may fail, wait, or say something else first."""

    def __init__(self, behave: Callable[[str, Any], AsyncIterator[bytes | None]] | None = None) -> None:
        self.control: ContextVar[LoadedControl | None] = ContextVar("control", default=None)
        self.behave = behave or self.plain
        self.bodies: list[Any] = []
        self.states: list[Any] = []
        self.together: list[int] = []
        self.gone: list[str] = []
        self.listens = True

    @contextmanager
    def applying(self, control: LoadedControl | None) -> Iterator[None]:
        token = self.control.set(control)
        yield
        self.control.reset(token)

    @contextmanager
    def one_of(self, index: int) -> Iterator[None]:
        self.together.append(index)
        yield

    async def plain(self, name: str, body: Any) -> AsyncIterator[bytes | None]:
        if not body.get("stream"):
            choices = [{"index": i, "message": {"content": name}} for i in range(int(body.get("n", 1)))]
            yield json.dumps({"id": name, "choices": choices, "usage": usage_of(name)}).encode()
            return
        for piece in ("a", "b"):
            chunk = {"id": name, "created": len(name), "choices": [{"index": 0, "delta": {"content": name + piece}}]}
            event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
            yield event[:9]  # events come in whatever pieces
            await asyncio.sleep(0)
            yield event[9:]
        last = {"id": name, "created": len(name), "choices": [], "usage": usage_of(name)}
        yield b"data: " + json.dumps(last).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        control = self.control.get()
        name = control.name if control else "none"
        body = json.loads((await receive())["body"])
        self.bodies.append(body)
        self.states.append(scope.get("state"))
        leaving = asyncio.create_task(receive())
        kind = b"text/event-stream" if body.get("stream") else b"application/json"
        started = False
        try:
            async for piece in self.behave(name, body):
                if piece is None:  # refused
                    headers = [(b"content-type", b"application/json")]
                    await send({"type": "http.response.start", "status": 400, "headers": headers})
                    await asyncio.sleep(0.03)  # the others go on meanwhile
                    await send({"type": "http.response.body", "body": b'{"error":{"message":"no"}}'})
                    return
                if not started:
                    headers = [(b"content-type", kind), (b"content-length", b"1")][: 1 if body.get("stream") else 2]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if self.listens and leaving.done():
                    return
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.gone.append(name)
            leaving.cancel()


class Wrapped:
    def __init__(self, app: App) -> None:
        live, self.queue = LiveControls(), FairQueue(64, 8)
        for name in ("concise", "formal"):
            live.publish(live.number(preference(name), Path("controls") / name))
        self.app = PreferenceField(
            app,
            catalogue=Catalogue(manifest()),
            live=live,
            applying=app.applying,
            together=lambda num: [app.one_of(index) for index in range(num)],
            names=("tiny",),
            turns=Turns(self.queue, LoadSettings()),
        )

    def post(self, body: Any, path: str = CHAT, headers: dict[str, str] | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://server") as client:
                return await client.post(path, json=body, headers=headers)

        return asyncio.run(ask())


def events(reply: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert lines.count("[DONE]") == 1
    return [json.loads(line) for line in lines[:-1]]


def test_one_choice_per_entry_in_their_order() -> None:
    app = App()
    reply = Wrapped(app).post({"model": "tiny", "preferences": ["formal", None, {"short": 1}, "formal"]})
    assert [(c["index"], c["preference"], c["message"]["content"]) for c in reply.json()["choices"]] == [
        (0, "formal=1", "formal"),
        (1, "none", "none"),
        (2, "concise=1", "concise"),
        (3, "formal=1", "formal"),
    ]
    assert reply.json()["usage"] == {"prompt_tokens": 7, "completion_tokens": 23, "total_tokens": 30}
    assert reply.headers["content-length"] == str(len(reply.content))
    applied = reply.headers["x-meet-preference"].split(" | ")
    assert applied == [
        "formal=1; version=000000000000", "none", "concise=1; version=000000000000", "formal=1; version=000000000000"
    ]  # fmt: skip
    assert app.bodies == [{"model": "tiny"}] * 4
    assert len({id(state) for state in app.states}) == 4  # vLLM keeps what it knows of a request there
    assert app.together == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [2, 2.0, "2"])
def test_n_is_for_each_entry(n: object) -> None:
    app = App()
    wrapped = Wrapped(app)
    weights = []

    def behave(name: str, body: Any) -> AsyncIterator[bytes | None]:
        weights.append(wrapped.queue.num_running)
        return app.plain(name, body)

    app.behave = behave
    reply = wrapped.post({"preferences": ["formal", None], "n": n})
    assert (reply.json()["id"], weights) == ("formal", [4, 4])
    placed = [(c["index"], c["preference"]) for c in reply.json()["choices"]]
    assert placed == [(0, "formal=1"), (1, "formal=1"), (2, "none"), (3, "none")]


@pytest.mark.parametrize(
    ("body", "num"),
    [
        ({}, 1),
        ({"n": None}, 1),
        ({"n": "3"}, 3),
        ({"n": 3.0, "prompt": ["a", "b"]}, 6),
        ({"n": True, "prompt": [1, 2]}, 1),
        ({"n": 2.5}, 1),
        ({"n": "x"}, 1),
        ({"n": [2]}, 1),
        ({"n": -2}, 1),
        ({"n": float("inf")}, 1),
    ],
)
def test_choices_are_counted_as_vllm_reads_n(body: dict[str, Any], num: int) -> None:
    assert num_choices(body) == num


def test_streams_are_interleaved_and_end_once() -> None:
    reply = Wrapped(App()).post({"preferences": ["formal", None, "concise"], "stream": True})
    assert "content-length" not in reply.headers
    *pieces, closing = events(reply)
    texts: dict[int, str] = {}
    for piece in pieces:
        (choice,) = piece["choices"]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"]["content"]
        assert choice["preference"] == ("formal=1", "none", "concise=1")[choice["index"]]
    assert texts == {0: "formalaformalb", 1: "noneanoneb", 2: "conciseaconciseb"}
    assert [piece["choices"][0]["index"] for piece in pieces] != [0, 0, 1, 1, 2, 2]
    assert len({(piece["id"], piece["created"]) for piece in (*pieces, closing)}) == 1
    assert closing["choices"] == []
    assert closing["usage"] == {"prompt_tokens": 7, "completion_tokens": 17, "total_tokens": 24}


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_is_refused_ends_all_at_once(stream: bool) -> None:
    app = App(waits_unless("formal", None))
    reply = Wrapped(app).post({"preferences": ["concise", "formal", None], "stream": stream})
    assert (reply.status_code, reply.json()) == (400, {"error": {"message": "no"}})
    assert "x-meet-preference" not in reply.headers
    assert sorted(app.gone) == ["concise", "formal", "none"]


def waits_unless(name: str, piece: bytes | None) -> Callable[[str, Any], AsyncIterator[bytes | None]]:
    async def behave(mine: str, body: Any) -> AsyncIterator[bytes | None]:
        if mine == name:
            yield b"data: {}\n\n".replace(b"{}", b'{"choices":[]}') if piece else None
            yield piece
        while True:
            await asyncio.sleep(0.01)
            yield b""

    return behave


def test_one_that_fails_in_its_stream_ends_all_with_its_error() -> None:
    app = App(waits_unless("formal", b'data: {"error":{"message":"broken"}}\n\n'))
    reply = Wrapped(app).post({"preferences": ["concise", "formal"], "stream": True})
    assert events(reply) == [{"error": {"message": "broken"}}]
    assert sorted(app.gone) == ["concise", "formal"]


def test_one_that_raises_ends_all() -> None:
    async def raises(name: str, body: Any) -> AsyncIterator[bytes | None]:
        if name == "formal":
            raise ZeroDivisionError
        while True:
            await asyncio.sleep(0.01)
            yield b""

    app = App(raises)
    with pytest.raises(ZeroDivisionError):
        Wrapped(app).post({"preferences": ["concise", "formal"]})
    assert sorted(app.gone) == ["concise", "formal"]


@pytest.mark.parametrize("speaks", [True, False])
def test_when_a_client_leaves_none_of_its_requests_is_left(monkeypatch: pytest.MonkeyPatch, speaks: bool) -> None:
    """Neither one that learns it as it speaks on, nor one that is deaf and dumb."""
    if not speaks:
        monkeypatch.setattr(several_preferences, "_GRACE_S", 0.05)

    async def behave(name: str, body: Any) -> AsyncIterator[bytes | None]:
        while speaks:
            await asyncio.sleep(0.001)
            yield b"data: {}\n\n".replace(b"{}", b'{"choices":[]}')
        await asyncio.Event().wait()

    app, sent = App(behave), list[Any]()
    app.listens = False
    body = {"preferences": ["concise", "formal", None], "stream": True}

    async def leave() -> None:
        coming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> Any:
            if not coming:
                await asyncio.sleep(0.05)
                return {"type": "http.disconnect"}
            return coming.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        await asyncio.wait_for(Wrapped(app).app(scope, receive, send), 5)
        await asyncio.sleep(0)  # what was cancelled ends
        assert sorted(app.gone) == ["concise", "formal", "none"]

    asyncio.run(leave())
    assert not any(message.get("body") for message in sent)


def test_as_many_as_are_allowed() -> None:
    assert len(Wrapped(App()).post({"preferences": ["formal"] * 16}).json()["choices"]) == 16


@pytest.mark.parametrize(
    ("body", "path", "code", "param"),
    [
        ({"preferences": "formal"}, CHAT, "invalid_preference", "preferences"),
        ({"preferences": []}, CHAT, "invalid_preference", "preferences"),
        ({"preferences": None}, CHAT, "invalid_preference", "preferences"),
        ({"preferences": ["formal"] * 17}, CHAT, "invalid_preference", "preferences"),
        ({"preferences": ["formal", 3]}, CHAT, "invalid_preference", "preferences[1]"),
        ({"preferences": ["formal", {"formal": "x"}]}, CHAT, "invalid_preference", "preferences[1]"),
        ({"preferences": [None, "angry"]}, "/v1/completions", "unknown_preference", "preferences[1]"),
        ({"preferences": [{"formal": 9}]}, CHAT, "strength_out_of_range", "preferences[0]"),
        ({"preferences": ["formal"], "preference": "formal"}, CHAT, "conflicting_preferences", "preference"),
        ({"preferences": ["formal"], "preference": None}, CHAT, "conflicting_preferences", "preference"),
        ({"preferences": ["formal"], "model": "tiny:formal"}, CHAT, "conflicting_preferences", "model"),
        ({"preferences": ["formal"], "verbosity": "low"}, CHAT, "conflicting_preferences", "verbosity"),
        ({"preferences": ["formal"]}, "/v1/responses", "invalid_preference", "preferences"),
        ({"preferences": ["formal"]}, "/v1/messages", "invalid_preference", "preferences"),
    ],
)
def test_refusals(body: Any, path: str, code: str, param: str) -> None:
    app = App()
    reply = Wrapped(app).post(body, path)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param)
    assert app.bodies == []


def test_models_that_are_not_ours_are_left_for_vllm() -> None:
    app = App()
    Wrapped(app).post({"preferences": ["formal"], "model": "other"})
    assert app.bodies == [{"preferences": ["formal"], "model": "other"}]


def test_signs_of_life_pass_and_events_without_data_do_not() -> None:
    merging = MergingStream([("a", 0), ("b", 1)])
    assert merging.take(1, b": keep-alive\n\nevent: ping\n\ndata:\n\n: keep") == b": keep-alive\n\n"
    event = b'data: {"choices":[{"index":0%b}],"id":"x","created":1}\n\n'
    assert merging.take(0, event % b"") == event % b',"preference":"a"'
    assert merging.take(1, b"-alive\n\n") == b": keep-alive\n\n"
    assert merging.take(0, b'data: {"error":{}}\n\n') == b'data: {"error":{}}\n\n'
    assert merging.take(1, b": keep-alive\n\n") == b""


def test_usage_as_it_grows() -> None:
    merging = MergingStream([("a", 0), ("b", 1)])

    def take(reply: int, completion: int) -> Any:
        usage = {"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 5 + completion}
        piece = {"choices": [{"index": 0}], "usage": usage}
        return json.loads(merging.take(reply, b"data: " + json.dumps(piece).encode() + b"\n\n")[6:])["usage"]

    assert [take(0, 1)["total_tokens"], take(1, 1)["total_tokens"], take(0, 2)["total_tokens"]] == [6, 7, 8]


def test_details_of_usage() -> None:
    def usage(cached: int, reasoning: int) -> dict[str, Any]:
        return {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": None},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    merged = merged_usage([usage(4, 1), usage(0, 2), None])
    assert merged == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }


MESSAGES: Any = [{"role": "user", "content": "What is rain?"}]
NUM_TOKENS = 12


@pytest.mark.parametrize("kind", ["lora", "soft"])
def test_each_choice_is_the_reply_to_a_request_of_its_own(kind: str, server: Server, soft: Soft) -> None:
    address, model = (server.url, "tiny") if kind == "lora" else (soft.server.url, "soft")
    asked = ["detailed", None, "short", ["concise"]]
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        options: Any = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": NUM_TOKENS}
        singly = [client.chat.completions.create(**options, extra_body={"preference": each}) for each in asked]
        alone = [each.choices[0].message.content for each in singly]
        num_prompt = singly[0].usage.prompt_tokens if singly[0].usage else 0
        assert len(set(alone)) == 3
        body = {"preferences": asked}
        reply = client.chat.completions.create(**options, extra_body=body)
        assert [choice.message.content for choice in reply.choices] == alone
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        said = ["detailed=1", "none", "concise=1", "concise=1"]
        assert [(choice.model_extra or {})["preference"] for choice in reply.choices] == said
        assert reply.model == model
        usage: Any = reply.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (num_prompt, 4 * NUM_TOKENS)

        texts = [""] * 4
        closing: Any = None
        stream = client.chat.completions.create(
            **options, extra_body=body, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                assert (choice.model_extra or {})["preference"] == said[choice.index]
            closing = chunk.usage or closing
        assert texts == alone
        assert (closing.prompt_tokens, closing.completion_tokens) == (num_prompt, 4 * NUM_TOKENS)

        completions: Any = {"model": model, "prompt": ["rain", "snow"], "temperature": 0, "max_tokens": 4}
        whole = client.completions.create(**completions, extra_body={"preferences": ["concise", None]})
        texts = [
            choice.text
            for each in ("concise", None)
            for choice in client.completions.create(**completions, extra_body={"preference": each}).choices
        ]
        assert [choice.text for choice in whole.choices] == texts
        assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_what_vllm_refuses_is_one_error(server: Server, stream: bool) -> None:
    body = {"messages": MESSAGES, "preferences": ["concise", None], "temperature": -1, "stream": stream}
    reply = httpx.post(f"{server.url}{CHAT}", json=body, timeout=60)
    assert reply.status_code == 400
    assert "temperature" in reply.json()["error"]["message"]
    assert server.engine.get_num_unfinished_requests() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_all(soft: Soft, stream: bool) -> None:
    body = {
        "prompt": "rain", "max_tokens": 400, "ignore_eos": True, "stream": stream,
        "preferences": ["concise", "detailed", None],
    }  # fmt: skip
    engine = soft.server.engine

    async def leave() -> None:
        async with (
            httpx.AsyncClient(base_url=soft.server.url, timeout=300) as client,
            client.stream("POST", "/v1/completions", json=body) as reply,
        ):
            async for _ in reply.aiter_bytes():
                break

    async def cut() -> None:
        task = asyncio.create_task(leave())
        await until(lambda: engine.get_num_unfinished_requests() == 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cut())
    asyncio.run(until(lambda: engine.get_num_unfinished_requests() == 0))


def test_after_the_prompt_it_is_computed_once(soft: Soft) -> None:
    """Of each choice but the first that is scheduled the prompt's whole blocks are found in the prefix cache."""
    if soft.placement != "after_prompt":
        pytest.skip("of the other placement")
    body = {
        "prompt": [9] * 33 + list(range(3, 130)),
        "max_tokens": 1,
        "preferences": ["concise", "detailed", "formal", None],
    }

    def computed() -> float:
        lines = httpx.get(f"{soft.server.url}/metrics").text.splitlines()
        totals = dict(line.rsplit(" ", 1) for line in lines if line.startswith("vllm:prefix_cache_"))
        queries, hits = (
            sum(float(v) for k, v in totals.items() if k.startswith(f"vllm:prefix_cache_{what}_total"))
            for what in ("queries", "hits")
        )
        return queries - hits

    # Requests that the test before has left may be counted late; once a later one is answered they have been.
    httpx.post(f"{soft.server.url}/v1/completions", json={"prompt": [7], "max_tokens": 1}, timeout=60)
    before = computed()
    reply = httpx.post(f"{soft.server.url}/v1/completions", json=body, timeout=60)
    assert len(reply.json()["choices"]) == 4
    # The prompt has 160 tokens, the controls 16 each, and the last of an uncontrolled prompt's blocks is read again.
    assert computed() - before <= 160 + 3 * 16 + 32
