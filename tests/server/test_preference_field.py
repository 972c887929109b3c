"""The wrapper round a fake app: what reaches it, with which control, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from example_manifest import manifest, preference

from meet_server.access.fair_queue import FairQueue
from meet_server.access.keyring import Key
from meet_server.http.keys import KEY
from meet_server.http.paths import GENERATING_TOO
from meet_server.http.preference_field import PreferenceField
from meet_server.http.turns import Turns
from meet_server.registry.catalogue import Catalogue
from meet_server.registry.live import LiveControls, LoadedControl
from meet_server.settings import LoadSettings

CHAT = "/v1/chat/completions"


class Reply:
    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.status = messages[0]["status"]
        self.headers = {k.decode().lower(): v.decode() for k, v in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])
        self.num_chunks = len(messages) - 1

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


class FakeApp:
    """Notes what it gets, and answers in two chunks."""

    def __init__(self, status: int, queue: FairQueue) -> None:
        self.status = status
        self.queue = queue
        self.seen: list[dict[str, Any]] = []
        self.control: LoadedControl | None = None

    @contextmanager
    def applying(self, control: LoadedControl | None) -> Iterator[None]:
        self.control = control
        yield
        self.control = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        after = await receive()
        headers = [(k.decode(), v.decode()) for k, v in scope["headers"]]
        seen = {"body": message["body"], "headers": headers, "control": self.control, "after": after["type"]}
        self.seen.append({**seen, "running": self.queue.num_running})
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"x-request-id", b"1")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})


class Wrapped:
    """The wrapper, a fake app inside it, and `concise` (or `short`), `formal` and `playful` loaded."""

    def __init__(self, *, status: int = 200, default: str | None = None) -> None:
        self.queue = FairQueue(64, 8)
        self.inner = FakeApp(status, self.queue)
        live = LiveControls()
        for name in ("concise", "formal", "playful"):
            live.publish(live.number(preference(name), Path("controls") / name))
        self.app = PreferenceField(
            self.inner,
            catalogue=Catalogue(manifest(default=default)),
            live=live,
            applying=self.inner.applying,
            together=lambda num: [nullcontext()] * num,
            names=("tiny", "tiny:odd"),
            turns=Turns(self.queue, LoadSettings()),
        )

    def post(
        self,
        body: object,
        path: str = CHAT,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        method: str = "POST",
        chunks: int = 1,
        key: Key | None = None,
    ) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(b"content-length", str(len(raw)).encode())]
            + [(k.lower().encode(), v.encode("latin-1")) for k, v in headers],
            KEY: key,
        }
        step = -(-len(raw) // chunks) or 1
        pieces = [raw[i : i + step] for i in range(0, len(raw), step)] or [b""]
        incoming = [
            {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
            for index, piece in enumerate(pieces)
        ] + [{"type": "http.disconnect"}]
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            return incoming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        return Reply(sent)

    @property
    def seen(self) -> dict[str, Any]:
        return self.inner.seen[-1]

    @property
    def body(self) -> Any:
        return json.loads(self.seen["body"])

    @property
    def control(self) -> str | None:
        return self.seen["control"] and self.seen["control"].name


def test_field_is_taken_out_and_applied() -> None:
    app = Wrapped()
    reply = app.post({"preference": "short", "model": "tiny", "messages": [], "temperature": 0.5})
    assert app.body == {"model": "tiny", "messages": [], "temperature": 0.5}
    assert app.control == "concise"
    assert dict(app.seen["headers"])["content-length"] == str(len(app.seen["body"]))
    assert reply.headers == {"x-request-id": "1", "x-meet-preference": "concise=1; version=000000000000"}
    assert (reply.status, reply.body, reply.num_chunks) == (200, b"ab", 2)
    assert app.seen["after"] == "http.disconnect"  # the client's leaving is still heard


THEIRS = sorted(GENERATING_TOO)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", *THEIRS])
def test_every_generating_route(path: str) -> None:
    app = Wrapped()
    app.post({"preference": "formal"}, path)
    assert (app.body, app.control) == ({}, "formal")


@pytest.mark.parametrize("path", [CHAT, *THEIRS])
def test_what_is_asked_for_means_the_same_on_every_route(path: str) -> None:
    app = Wrapped(default="formal")
    reply = app.post({"model": "tiny:playful"}, path)
    assert reply.headers["x-meet-preference"] == "playful=1.5; version=000000000000"  # as calibration recommends
    assert app.post({"model": "tiny"}, path).headers["x-meet-preference"].startswith("formal=1; ")
    header = (("X-Meet-Preference", "concise"),)
    assert (
        app.post({"preference": "concise"}, path, headers=header).headers["x-meet-preference"].startswith("concise=1; ")
    )
    assert app.post({"preference": "nonsense"}, path).error["code"] == "unknown_preference"


@pytest.mark.parametrize("path", THEIRS)
def test_several_preferences_are_not_ignored_where_they_do_not_go(path: str) -> None:
    reply = Wrapped().post({"preferences": ["concise", None]}, path)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_preference", "preferences")


@pytest.mark.parametrize(
    ("path", "method"),
    [("/v1/embeddings", "POST"), (f"{CHAT}/batch", "GET"), (CHAT, "GET"), ("/tokenize", "POST")],
)
def test_other_routes_are_left_alone(path: str, method: str) -> None:
    app = Wrapped(default="concise")
    reply = app.post({"preference": "nonsense"}, path, method=method)
    assert app.body == {"preference": "nonsense"}
    assert "x-meet-preference" not in reply.headers


def test_body_without_our_words_passes_byte_for_byte() -> None:
    app = Wrapped()
    raw = b'{ "model":"tiny",  "messages":[], "seed": 1.00 }'
    reply = app.post(raw, chunks=3)
    assert app.seen["body"] == raw
    assert app.control is None
    assert reply.headers["x-meet-preference"] == "none"


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"preference"', b"[" * 50_000, b"\xff\xfe"])
def test_what_is_no_object_is_left_for_vllm(raw: bytes) -> None:
    app = Wrapped(default="concise")
    reply = app.post(raw)
    assert app.seen["body"] == raw
    assert app.control is None
    assert "x-meet-preference" not in reply.headers


def test_default_and_null() -> None:
    app = Wrapped(default="formal")
    app.post({"model": "tiny"})
    assert app.control == "formal"
    app.post({"preference": None, "model": "tiny"})
    assert (app.control, app.body) == (None, {"model": "tiny"})


@pytest.mark.parametrize(
    ("model", "control", "listed"),
    [
        ("tiny:concise", "concise", "tiny:concise"),
        ("tiny:short", "concise", "tiny:concise"),
        ("tiny:none", None, "tiny"),
        ("tiny:odd", None, "tiny:odd"),
        ("tiny:odd:formal", "formal", "tiny:odd:formal"),
        (None, None, None),
    ],
)
def test_model_suffix(model: str | None, control: str | None, listed: str | None) -> None:
    app = Wrapped()
    app.post({"model": model})
    assert (app.control, app.body) == (control, {"model": listed})


@pytest.mark.parametrize("model", ["other", "tinier", "other:concise", 3, ["tiny"]])
def test_models_that_are_not_ours_are_left_for_vllm(model: object) -> None:
    app = Wrapped(default="concise")
    body = {"model": model, "preference": "nonsense"}
    app.post(body)
    assert (app.body, app.control) == (body, None)


@pytest.mark.parametrize("model", ["tiny", "other", None])
def test_responses_in_the_background_are_refused(model: str | None) -> None:
    app = Wrapped()
    reply = app.post({"model": model, "background": True}, "/v1/responses")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_body", "background")
    assert app.inner.seen == []
    for body, path in (
        ({"background": False}, "/v1/responses"),
        ({"background": None}, "/v1/responses"),
        ({"background": True}, CHAT),
    ):
        assert app.post(body, path).status == 200


@pytest.mark.parametrize(
    ("path", "body", "num"),
    [
        (CHAT, {"messages": [{}, {}, {}], "items": ["a", "b"]}, 1),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, 4),
        (f"{CHAT}/batch", {"messages": [[{}], [{}], [{}]]}, 3),
        (f"{CHAT}/batch", {"messages": []}, 1),
        ("/generative_scoring", {"query": "a", "items": ["b", "c"]}, 2),
        ("/v1/systemone", {"questions": {"a": {}, "b": {}, "c": {}}}, 3),
        ("/v1/systemone", {"questions": 3}, 1),
        ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {"n": 4}, "n": 2}, 4),
        ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": None}, 1),
    ],
)
def test_what_vllm_asks_the_engine_at_once_is_counted_in_the_queue(path: str, body: dict[str, Any], num: int) -> None:
    app = Wrapped()
    app.post(body, path)
    assert app.seen["running"] == num


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [], "n": 2049}),
        (CHAT, {"messages": [], "n": 129, "preferences": ["concise"] * 16}),
        (CHAT, {"model": "another", "messages": [], "n": 1e6}),
        ("/v1/completions", {"prompt": ["a"] * 1025, "n": 2}),
        ("/v1/completions", {"prompt": [[1]] * 2049}),
        (f"{CHAT}/batch", {"messages": [[{}]] * 2049}),
    ],
)
def test_one_request_has_the_engine_for_itself_no_longer_than_for_so_many_replies(
    path: str, body: dict[str, Any]
) -> None:
    app = Wrapped()
    reply = app.post(body, path)
    assert (reply.status, reply.error["code"]) == (400, "too_many_replies")
    assert app.inner.seen == []
    assert app.queue.num_running == 0


@pytest.mark.parametrize(
    ("body", "named", "control", "left"),
    [
        ({"model": "tiny"}, "tiny:short", "concise", None),
        ({"model": "tiny", "preference": None}, "tiny", None, None),
        ({"model": "tiny:concise"}, "tiny:formal", "formal", None),
        ({"model": "tiny:formal"}, "", "formal", None),
        ({"model": "another", "preference": "formal"}, "", "formal", None),  # the model that vLLM takes is ours
        ({"model": "another"}, "", "concise", None),
        ({"model": "tiny"}, "another", None, "another"),  # which vLLM may have
    ],
)
def test_invocations_are_of_the_model_that_sagemakers_header_names(
    body: dict[str, Any], named: str, control: str | None, left: str | None
) -> None:
    app = Wrapped(default="concise")
    reply = app.post(body, "/invocations", headers=(("X-Amzn-SageMaker-Adapter-Identifier", named),))
    assert app.control == control
    assert ("x-meet-preference" in reply.headers) == (left is None)
    assert dict(app.seen["headers"]).get("x-amzn-sagemaker-adapter-identifier") == left


def test_invocations_that_ask_for_two_preferences_are_refused() -> None:
    adapter = (("X-Amzn-SageMaker-Adapter-Identifier", "tiny:formal"),)
    error = Wrapped().post({"preference": "concise"}, "/invocations", headers=adapter).error
    assert error["code"] == "conflicting_preferences"
    assert Wrapped().post({"preference": "concise"}, headers=adapter).status == 200  # elsewhere it says nothing


def test_unknown_suffix_is_refused() -> None:
    error = Wrapped().post({"model": "tiny:angry"}).error
    assert (error["code"], error["param"]) == ("unknown_preference", "model")
    assert "concise" in error["message"]


def test_header() -> None:
    app = Wrapped()
    app.post({"model": "tiny"}, headers=(("X-Meet-Preference", "formal"),))
    assert app.control == "formal"
    # Two lines of one header are one list.
    two = (("X-Meet-Preference", "formal=0.5"), ("x-meet-preference", "concise"))
    reply = app.post({"model": "tiny"}, headers=two)
    assert reply.headers["x-meet-preference"].startswith("concise=1,formal=0.5; version=")


@pytest.mark.parametrize(
    ("path", "body", "control"),
    [
        (CHAT, {"verbosity": "low"}, "concise"),
        (CHAT, {"verbosity": "medium"}, None),
        (CHAT, {"text": {"verbosity": "low"}}, None),
        ("/v1/responses", {"text": {"verbosity": "low"}}, "concise"),
        ("/v1/responses", {"text": "low"}, None),
        ("/v1/responses", {"verbosity": "low"}, None),
        ("/v1/messages", {"output_config": {"effort": "low"}}, "concise"),
        ("/v1/messages", {"output_config": {"effort": "max"}}, None),
    ],
)
def test_verbosity_and_effort_where_they_belong(path: str, body: dict[str, Any], control: str | None) -> None:
    app = Wrapped()
    app.post(body, path)
    assert (app.control, app.body) == (control, body)  # vLLM gets to see them


def test_places_that_disagree() -> None:
    reply = Wrapped().post({"model": "tiny:formal", "preference": "concise"})
    assert reply.status == 400
    assert reply.error["code"] == "conflicting_preferences"
    assert "preference asks for concise=1 and model for formal=1" in reply.error["message"]
    reply = Wrapped().post({"verbosity": "low"}, headers=(("X-Meet-Preference", "none"),))
    assert "X-Meet-Preference asks for none and verbosity for concise=1" in reply.error["message"]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (3, "invalid_preference"),
        ({"concise": "much"}, "invalid_preference"),
        ("angry", "unknown_preference"),
        ({"formal": 9}, "strength_out_of_range"),
    ],
)
def test_refusals(value: object, code: str) -> None:
    app = Wrapped()
    reply = app.post({"preference": value})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, "preference")
    assert app.inner.seen == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"preference": "short"}, 200),
        ({"preference": None}, 200),
        ({"model": "tiny"}, 200),
        ({"preference": "formal"}, 403),
        ({"preference": {"concise": 1, "formal": 0.1}}, 403),
        ({"model": "tiny:formal"}, 403),
        ({"preferences": ["concise", "formal"]}, 403),
    ],
)
def test_a_key_of_some_preferences_has_no_others(body: dict[str, Any], status: int) -> None:
    app = Wrapped()
    reply = app.post(body, key=Key("widget", "user", b"", preferences=frozenset({"concise"})))
    assert reply.status == status
    if status == 403:
        assert reply.error["code"] == "preference_not_allowed"
        assert "'formal'" in reply.error["message"]
        assert app.inner.seen == []


def test_errors_of_the_app_carry_no_preference() -> None:
    reply = Wrapped(status=404).post({"preference": "concise"})
    assert reply.headers == {"x-request-id": "1"}


def test_client_that_leaves_while_sending_gets_no_reply() -> None:
    app = Wrapped()
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    asyncio.run(app.app(scope, receive, send))
    assert (sent, app.inner.seen) == ([], [])


def test_root_path_is_not_part_of_the_route() -> None:
    app = Wrapped()
    scope = {"type": "http", "method": "POST", "path": f"/api{CHAT}", "root_path": "/api", "headers": []}
    incoming = [{"type": "http.request", "body": b'{"preference":"formal"}'}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        pass

    asyncio.run(app.app(scope, receive, send))
    assert app.control == "formal"
