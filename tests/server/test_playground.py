"""The playground in a real browser, on a server whose replies the test writes piece by piece. Needs no engine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, StreamingResponse

from meet_server.http.page import page_router

PREFIX = "/behind/a-proxy"
WAIT_S = 20


def event(text: str) -> bytes:
    """An event of a stream of chat completions, as vLLM writes it."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, "token_ids": [1]}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


class Fake:
    """The page, a model, two preferences, and whatever `pieces` says in reply. `go` lets it."""

    def __init__(self) -> None:
        self.pieces: Callable[[], Iterable[bytes]] = lambda: [event("Water.")]
        self.go = threading.Event()
        self.asked: list[dict[str, Any]] = []

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page_router())

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            return {"data": [{"id": "tiny"}]}

        @app.get("/v1/preferences")
        def preferences() -> dict[str, Any]:
            card = {"description": "", "axis": "length", "opposite": None, "calibration": None}
            return {
                "data": [
                    {"id": name, "default": name == "concise", "strength_range": [-1, 2], **card}
                    for name in ("concise", "detailed")
                ]
            }

        @app.post("/v1/chat/completions", response_model=None)
        async def chat(request: Request) -> StreamingResponse | JSONResponse:
            self.asked.append(await request.json())
            headers = {"x-meet-preference": "concise=1; version=0"}
            return StreamingResponse(self._reply(), media_type="text/event-stream", headers=headers)

        outer = FastAPI()
        outer.mount(PREFIX, app)
        outer.mount("/", app)
        return outer

    def _reply(self) -> Iterator[bytes]:
        self.go.wait(WAIT_S)
        yield from self.pieces()
        yield b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Fake]]:
    fake = Fake()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(fake.app(), log_level="warning", lifespan="off"))
        running = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        running.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", fake
        server.should_exit = True
        running.join()


@pytest.fixture
def fake(served: tuple[str, Fake]) -> Fake:
    _, fake = served
    fake.__init__()  # type: ignore[misc]
    fake.go.set()
    return fake


@pytest.fixture
def page(browser: Any, served: tuple[str, Fake], fake: Fake) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 700})
    page = context.new_page()
    page.set_default_timeout(5000)
    opened(page, served[0])
    yield page
    context.close()


def opened(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_role("slider").first.wait_for()


def ask(page: Any, question: str = "What is rain?") -> None:
    page.get_by_label("Message").fill(question)
    page.get_by_role("button", name="Send").click()


def show(page: Any, view: str) -> None:
    page.get_by_role("button", name=view, exact=True).click()


def test_a_chat_outlives_a_look_at_the_other_view(page: Any, fake: Fake) -> None:
    ask(page)
    page.get_by_role("button", name="Send").wait_for()
    fake.go.clear()
    ask(page, "And snow?")
    page.get_by_role("button", name="Stop").wait_for()
    show(page, "Side by side")
    assert page.get_by_role("log").count() == 0
    page.get_by_label("Prompt for all").fill("half a prompt")
    fake.go.set()
    show(page, "Chat")
    page.get_by_role("button", name="Send").wait_for()
    assert page.locator("[role=log] .question").all_inner_texts() == ["What is rain?", "And snow?"]
    assert page.locator("[role=log] .reply").all_inner_texts() == ["Water.", "Water."]
    show(page, "Side by side")
    assert page.get_by_label("Prompt for all").input_value() == "half a prompt"


def test_what_is_no_event_in_a_stream_is_passed_over(page: Any, fake: Fake) -> None:
    """`--sse-keep-alive-interval` has vLLM send comments, and a proxy may cut the stream anywhere."""
    snow = event("Schnee fällt.")
    middle = snow.index("ä".encode()) + 1
    quietly = event(" Leise.").replace(b"\n", b"\r\n")
    fake.pieces = lambda: [b": keep-alive\n\n", snow[:middle], snow[middle:], b": keep-alive\n\n", quietly]
    ask(page)
    page.get_by_role("button", name="Send").wait_for()
    assert page.get_by_role("alert").count() == 0
    assert page.locator("[role=log] .reply").inner_text() == "Schnee fällt. Leise."


def test_behind_a_proxy_that_gives_the_server_a_path(page: Any, served: tuple[str, Fake]) -> None:
    url = f"{served[0]}{PREFIX}"
    elsewhere: list[str] = []
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:")) else elsewhere.append(asked.url))
    opened(page, f"{url}/")
    ask(page)
    page.get_by_role("button", name="Send").wait_for()
    assert page.locator("[role=log] .reply").inner_text() == "Water."
    assert elsewhere == []
    page.get_by_text("Copy as code").locator("visible=true").click()
    assert f"curl {url}/v1/chat/completions " in page.get_by_role("region", name="The request as curl").inner_text()


def test_sliders_stay_where_they_were_put(page: Any) -> None:
    assert page.get_by_text("Asks for: concise 1").is_visible()
    page.locator("#strength-detailed").fill("0.5")
    page.get_by_label("Tokens at most").fill("12")
    with page.expect_response("**/v1/preferences"):
        page.keyboard.press("Enter")
    page.get_by_role("button", name="No control").focus()
    assert page.get_by_text("Asks for: concise 1, detailed 0.5").is_visible()


def test_the_chat_shows_the_end_of_a_long_reply_unless_it_is_scrolled_away(page: Any, fake: Fake) -> None:
    def end() -> float:
        left: float = page.get_by_role("log").evaluate("e => e.scrollHeight - e.clientHeight - e.scrollTop")
        return left

    fake.pieces = lambda: [event(f"{line}\n") for line in range(100)]
    ask(page)
    page.get_by_role("button", name="Send").wait_for()
    assert end() < 2
    fake.go.clear()
    ask(page)
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("log").evaluate("e => { e.scrollTop = 0; }")
    page.wait_for_timeout(100)
    fake.go.set()
    page.get_by_role("button", name="Send").wait_for()
    assert page.get_by_role("log").evaluate("e => e.scrollTop") == 0


@pytest.mark.parametrize("typed", ["0.5", ".25", "1"])
def test_a_number_is_what_was_typed(page: Any, fake: Fake, typed: str) -> None:
    field = page.get_by_label("Temperature")
    assert field.input_value() == "0.7"
    field.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(typed)
    ask(page)
    page.get_by_role("button", name="Send").wait_for()
    assert (field.input_value(), fake.asked[-1]["temperature"]) == (typed, float(typed))


def test_what_is_typed_meanwhile_outlives_an_error(page: Any, fake: Fake) -> None:
    fake.pieces = lambda: [event("Wa"), b'data: {"error": {"message": "the engine has died"}}\n\n']
    fake.go.clear()
    ask(page)
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_label("Message").fill("And snow?")
    fake.go.set()
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == "the engine has died"
    page.get_by_role("button", name="Send").wait_for()
    assert page.get_by_label("Message").input_value() == "And snow?"
    page.get_by_label("Message").fill("")
    ask(page, "And hail?")
    page.get_by_role("button", name="Send").wait_for()
    assert page.get_by_label("Message").input_value() == "And hail?"
