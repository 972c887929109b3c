"""Changes on a running server: over HTTP, by another process, and against requests that are under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from controls import new_control, renamed
from running_server import Server
from test_batching import until

from meet_bundle import Bundle, open_bundle
from meet_server.access.keyring import Keyring
from meet_server.app import compose
from meet_server.engine.start import bundle_arguments, vllm_app
from meet_server.registry.changing import commit
from meet_server.registry.record import Files, pack
from meet_server.registry.state import added, removed, updated
from meet_server.registry.store import Store, beside
from meet_server.settings import Settings

ADMIN = "sk-admin-0123456789"
ZIP = {"content-type": "application/zip"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture(scope="module")
def polite(opened: Bundle) -> tuple[Files, Files]:
    """Two controls of one new preference."""
    return new_control(opened, "polite", 11), new_control(opened, "polite", 12)


@pytest.fixture(scope="module")
def store(bundle: Path) -> Store:
    return Store(beside(bundle))


class Client:
    """Asks a second app of the running server, one with an admin key."""

    def __init__(self, server: Server, bundle: Path) -> None:
        self._server = server
        settings = Settings(bundle=bundle, max_upload_bytes=4 << 20)
        args = bundle_arguments(open_bundle(bundle), ())

        async def second() -> Any:
            app = await vllm_app(server.engine, args)
            app.state.openai_serving_models = server.app.state.served.app.state.openai_serving_models
            served = replace(server.app.state.served, app=app)
            compose(served, args, Keyring(None, {"MEET_ADMIN_KEYS": ADMIN}), settings)
            return app

        self.app = server.call(second())

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            headers = {"authorization": f"Bearer {ADMIN}", **options.pop("headers", {})}
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://server") as client:
                return await client.request(method, path, headers=headers, **options)

        response: httpx.Response = self._server.call(ask())
        return response

    def reply(self, preference: str | None) -> tuple[str, str]:
        """A greedy reply, and what was applied."""
        body = {"messages": [{"role": "user", "content": "What is rain?"}], "preference": preference}
        response = self("POST", CHAT, json={**body, "max_tokens": 8, "temperature": 0})
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"], response.headers["x-meet-preference"]

    def listed(self) -> list[str]:
        return [each["id"] for each in self("GET", "/v1/preferences").json()["data"]]


@pytest.fixture(scope="module")
def client(server: Server, bundle: Path) -> Client:
    return Client(server, bundle)


@pytest.fixture(autouse=True)
def as_before(client: Client) -> Iterator[None]:
    yield
    if "polite" in client.listed():
        assert client("DELETE", "/v1/preferences/polite").status_code == 200
    assert client.listed() == ["concise", "detailed"]


def upload(client: Client, files: Files, method: str = "POST", path: str = "/v1/preferences") -> httpx.Response:
    return client(method, path, content=pack(files), headers=ZIP)


def test_added_updated_rolled_back_and_removed(
    client: Client, store: Store, polite: tuple[Files, Files], server: Server
) -> None:
    before = {name: client.reply(name) for name in (None, "concise")}
    held = controls_held(server)
    response = upload(client, polite[0])
    assert response.status_code == 201, response.text
    card = response.json()
    assert (card["id"], card["revision"], card["axis"]) == ("polite", 1, "length")
    assert store.read().entry("polite").current == 1  # on disk before the answer
    first, said = client.reply("polite")
    assert said == f"polite=1; version={card['version']}"
    assert first not in [reply for reply, _ in before.values()]
    models = [model["id"] for model in client("GET", "/v1/models").json()["data"]]
    assert models == ["tiny", "tiny:concise", "tiny:detailed", "tiny:polite"]
    assert client("POST", CHAT, json={"model": "tiny:polite+concise", "messages": [{"role": "user", "content": "x"}]})

    again = upload(client, polite[0])
    assert (again.status_code, again.json()["error"]["code"]) == (409, "preference_exists")
    second = upload(client, polite[1], "PATCH", "/v1/preferences/polite")
    assert (second.status_code, second.json()["revision"]) == (200, 2)
    assert client.reply("polite")[0] != first
    back = client("PATCH", "/v1/preferences/polite", json={"revision": 1})
    assert (back.json()["revision"], back.json()["version"]) == (1, card["version"])
    assert client.reply("polite")[0] == first

    assert client("DELETE", "/v1/preferences/polite").json() == {
        "id": "polite",
        "object": "preference",
        "deleted": True,
    }
    gone = client("POST", CHAT, json={"messages": [], "preference": "polite"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (400, "unknown_preference")
    assert "tiny:polite" not in client("GET", "/v1/models").text
    assert {name: client.reply(name) for name in (None, "concise")} == before
    # The mix that it was in goes with it.
    asyncio.run(until(lambda: controls_held(server) <= held))


def controls_held(server: Server) -> set[int]:
    """Ids of the controls and mixes in the engine, whoever asked for them."""
    return {each for each in server.call(server.engine.list_loras()) if each >= 1 << 20}


def test_described_aliased_disabled(client: Client) -> None:
    fields = {"description": "Few words.", "aliases": ["short", "terse"]}
    card = client("PATCH", "/v1/preferences/concise", json=fields).json()
    assert (card["description"], card["aliases"], card["revision"]) == ("Few words.", ["short", "terse"], 0)
    assert client.reply("terse") == client.reply("concise")
    off = client("PATCH", "/v1/preferences/concise", json={"enabled": False})
    assert (off.status_code, off.json()["enabled"]) == (200, False)
    assert client.listed() == ["detailed"]
    assert client("GET", "/v1/preferences/terse").status_code == 404
    assert client("PATCH", "/v1/preferences/concise", json={"enabled": True, **fields, "aliases": ["short"]}).is_success
    assert client.reply("concise") == client.reply("short")


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("POST", "", {"content": b"nonsense", "headers": ZIP}, 400, "invalid_upload"),
        ("POST", "", {"content": b"{}"}, 415, "unsupported_media_type"),
        ("POST", "", {"content": b"x" * (5 << 20), "headers": ZIP}, 413, "body_too_large"),
        ("PATCH", "/concise", {"json": {}}, 400, "invalid_body"),
        ("PATCH", "/concise", {"json": {"enabled": "perhaps"}}, 400, "invalid_body"),
        ("PATCH", "/concise", {"json": {"strength": 2}}, 400, "invalid_body"),
        ("PATCH", "/concise", {"json": {"aliases": ["a b"]}}, 400, "invalid_label"),
        ("PATCH", "/concise", {"json": {"aliases": ["detailed"]}}, 409, "label_taken"),
        ("PATCH", "/concise", {"json": {"revision": 77}}, 404, "revision_not_found"),
        ("PATCH", "/none-such", {"json": {"enabled": True}}, 404, "preference_not_found"),
        ("DELETE", "/none-such", {}, 404, "preference_not_found"),
    ],
)
def test_refusals(
    client: Client, store: Store, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    before = store.read()
    response = client(method, f"/v1/preferences{path}", **options)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert store.read() == before


def test_a_control_that_is_not_what_its_probe_says_never_gets_in(
    client: Client, store: Store, opened: Bundle, server: Server
) -> None:
    """Right in every shape, and another's weights: only the engine can tell."""
    probe = opened.manifest.preference("detailed").probe
    before, held = store.read(), controls_held(server)
    response = upload(client, renamed(opened, "concise", "polite", probe=probe))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "control_refused")
    assert "probe" in response.json()["error"]["message"]
    assert store.read() == before
    asyncio.run(until(lambda: controls_held(server) <= held))


def test_an_update_lets_requests_end_on_the_old_control(client: Client, polite: tuple[Files, Files]) -> None:
    upload(client, polite[0])
    one = {"prompt": "rain", "preference": "polite", "temperature": 0, "max_tokens": 450, "ignore_eos": True}

    async def ask_while_it_changes() -> tuple[httpx.Response, httpx.Response, list[httpx.Response], httpx.Response]:
        transport = httpx.ASGITransport(client.app)
        headers = {"authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://server", headers=headers, timeout=120
        ) as asking:
            before = await asking.post("/v1/completions", json=one)
            changing = asyncio.create_task(asking.patch("/v1/preferences/polite", content=pack(polite[1]), headers=ZIP))

            async def under_way_at_the_end() -> httpx.Response:
                while True:
                    reply = await asking.post("/v1/completions", json=one)
                    if changing.done():
                        return reply

            ended = await asyncio.gather(*(under_way_at_the_end() for _ in range(8)))
            return before, await changing, ended, await asking.post("/v1/completions", json=one)

    before, change, ended, after = client._server.call(ask_while_it_changes())
    assert change.status_code == 200, change.text
    texts = {reply.headers["x-meet-preference"]: reply.json()["choices"][0]["text"] for reply in (before, after)}
    assert len(texts) == len(set(texts.values())) == 2
    assert all(reply.json()["choices"][0]["text"] == texts[reply.headers["x-meet-preference"]] for reply in ended)
    assert before.headers["x-meet-preference"] in {reply.headers["x-meet-preference"] for reply in ended}


def test_what_another_process_changes_is_taken_up(
    client: Client, store: Store, opened: Bundle, polite: tuple[Files, Files]
) -> None:
    other = Store(beside(opened.path))
    content = other.keep(polite[0])
    commit(opened, other, lambda state: added(state, opened.manifest, "polite", content))
    start = time.monotonic()
    asyncio.run(until(lambda: "polite" in client.listed(), 10))
    assert time.monotonic() - start < 5
    version = client.reply("polite")[1]
    # One that the engine refuses is not served, and what was served stays.
    wrong = renamed(opened, "concise", "polite", probe=opened.manifest.preference("detailed").probe)
    content = other.keep(wrong)
    commit(opened, other, partial(_update, opened, content))
    time.sleep(2.5)
    assert client.reply("polite")[1] == version
    commit(opened, other, lambda state: removed(state, opened.manifest, "polite"))
    asyncio.run(until(lambda: "polite" not in client.listed(), 10))


def _update(opened: Bundle, content: str, state: Any) -> Any:
    return updated(state, opened.manifest, "polite", content)
