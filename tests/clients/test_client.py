"""meet-client against a fake server."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from meet_client import DEFAULT, AsyncMeetClient, MeetClient, Preference, Reply


def test_a_reply(server: Any) -> None:
    with MeetClient(server.url) as client:
        reply = client.chat("Why?", preference="concise", max_tokens=7)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.applied, reply.finish_reason) == ("word", "concise", "stop")
    assert reply.completion.choices[0].message.content == "word"
    (body,) = server.bodies
    assert body["preference"] == "concise"
    assert body["max_tokens"] == 7
    assert body["model"] == "fake"


@pytest.mark.parametrize(
    "preference", ["concise", ["concise", "detailed"], {"concise": 0.7, "detailed": 0.5}, None], ids=str
)
def test_every_form_of_preference_goes_over_the_wire_as_it_is(server: Any, preference: Any) -> None:
    with MeetClient(server.url, model="toy") as client:
        client.chat([{"role": "user", "content": "Why?"}], preference=preference, extra_body={"top_k": 3})
    assert server.bodies[0]["preference"] == preference
    assert server.bodies[0]["top_k"] == 3
    assert server.bodies[0]["model"] == "toy"


@pytest.mark.parametrize("given", [{}, {"preference": DEFAULT}])
def test_the_default_is_no_field(server: Any, given: dict[str, Any]) -> None:
    with MeetClient(server.url) as client:
        client.chat("Why?", **given)
    assert "preference" not in server.bodies[0]


def test_a_stream_says_first_what_was_applied(server: Any) -> None:
    with MeetClient(server.url) as client, client.stream("Why?", preference="detailed") as pieces:
        assert pieces.applied == "detailed"
        assert list(pieces) == ["word "] * 9


def test_a_reply_for_each_preference(server: Any) -> None:
    with MeetClient(server.url) as client:
        replies = client.chat_each("Why?", ["detailed", None, "concise"], max_tokens=7, extra_body={"top_k": 3})
    assert [(reply.applied, len(reply.text.split())) for reply in replies] == [
        ("detailed", 9), ("none", 4), ("concise", 1)
    ]  # fmt: skip
    (body,) = server.bodies
    assert body["preferences"] == ["detailed", None, "concise"]
    assert (body["max_tokens"], body["top_k"], body["model"]) == (7, 3, "fake")
    assert "preference" not in body


def test_a_stream_for_each_preference(server: Any) -> None:
    texts = ["", "", ""]
    with MeetClient(server.url) as client, client.stream_each("Why?", ["detailed", None, "concise"]) as pieces:
        assert pieces.applied == "detailed | none | concise"
        for index, text in pieces:
            texts[index] += text
    assert [len(text.split()) for text in texts] == [9, 4, 1]
    assert server.bodies[0]["preferences"] == ["detailed", None, "concise"]


def test_preferences(server: Any) -> None:
    with MeetClient(f"{server.url}/v1") as client:
        concise, detailed = client.preferences()
    assert isinstance(concise, Preference)
    assert (concise.name, concise.axis, concise.version, concise.opposite) == (
        "concise",
        "length",
        "a" * 12,
        "detailed",
    )
    assert concise.to_dict()["news"] == 1
    assert concise.strength_range == (-1.0, 2.0)
    assert concise.calibration is not None
    assert concise.calibration.medians == [4.0, 1.0]
    assert detailed.name == "detailed"


def test_one_preference(server: Any) -> None:
    with MeetClient(server.url) as client:
        assert client.preference("detailed").opposite == "concise"
        with pytest.raises(openai.NotFoundError):
            client.preference("terse")
        with pytest.raises(openai.NotFoundError, match=r"no /v1/preferences/\.\.%2Fmodels%3F"):
            client.preference("../models?")


def test_changes_go_as_the_server_wants_them(server: Any) -> None:
    with MeetClient(server.url, api_key="admin", max_retries=0) as client:
        assert client.add_preference(b"PK zip").name == "added"
        assert client.change_preference("added", {"enabled": False, "aliases": ["new"]}).aliases == ["new"]
        assert client.change_preference("added", b"PK more").name == "added"
        client.remove_preference("added")
    assert server.changes == [
        ("POST", "/v1/preferences", "application/zip", b"PK zip", "Bearer admin"),
        ("PATCH", "/v1/preferences/added", "application/json", {"enabled": False, "aliases": ["new"]}, "Bearer admin"),
        ("PATCH", "/v1/preferences/added", "application/zip", b"PK more", "Bearer admin"),
        ("DELETE", "/v1/preferences/added", "application/json", b"", "Bearer admin"),
    ]


def test_a_server_that_lists_no_preferences_is_no_meet_server(server: Any) -> None:
    server.plain = True
    with MeetClient(server.url, max_retries=0) as client, pytest.raises(openai.NotFoundError):
        client.preferences()


@pytest.mark.parametrize("models", [{"data": []}, {"data": None}, {"data": [{}]}, {"data": "fake"}, {}, [], None])
def test_a_server_that_lists_no_models_is_named(server: Any, models: Any) -> None:
    server.models = models

    async def talk() -> None:
        async with AsyncMeetClient(server.url) as client:
            await client.chat("Why?")

    with MeetClient(server.url) as client, pytest.raises(ValueError, match="the server lists no models; is it an Open"):
        client.chat("Why?")
    with pytest.raises(ValueError, match="the server lists no models; is it an Open"):
        asyncio.run(talk())
    assert server.bodies == []


def test_a_web_page_is_no_list_of_models(server: Any) -> None:
    server.page = "<html>welcome</html>"
    with MeetClient(server.url) as client, pytest.raises(ValueError, match="the server lists no models"):
        client.chat("Why?")


@pytest.mark.parametrize("key", ["clé", "sk-1\n"])
@pytest.mark.parametrize("client", [MeetClient, AsyncMeetClient])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(client: Any, key: str) -> None:
    with pytest.raises(ValueError, match=r"the API key \(\$MEET_API_KEY\)") as caught:
        client("http://127.0.0.1:9", key)
    assert key not in str(caught.value)


def test_retries_are_left_to_the_sdk(server: Any) -> None:
    server.fail_after = 0
    with MeetClient(server.url, max_retries=2) as client, pytest.raises(openai.InternalServerError):
        client.chat("Why?")
    assert len(server.bodies) == 3


def test_errors_are_those_of_the_sdk(server: Any) -> None:
    with MeetClient(server.url) as client, pytest.raises(openai.BadRequestError, match="no preference") as caught:
        client.chat("Why?", preference="terse")
    assert caught.value.code == "unknown_preference"


def test_asynchronous(server: Any) -> None:
    async def talk() -> None:
        async with AsyncMeetClient(server.url) as client:
            reply = await client.chat("Why?", preference={"concise": 0.7})
            assert (reply.text, reply.applied) == ("word word", "concise=0.7")
            async with await client.stream("Why?", preference="detailed") as pieces:
                assert pieces.applied == "detailed"
                assert [piece async for piece in pieces] == ["word "] * 9
            each = await client.chat_each("Why?", ["concise", None])
            assert [reply.applied for reply in each] == ["concise", "none"]
            assert [preference.name for preference in await client.preferences()] == ["concise", "detailed"]

    asyncio.run(talk())


@pytest.fixture
def behind_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody runs, for every host."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("behind_proxy")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_without_the_proxy(server: Any, host: str) -> None:
    url = f"http://{host}:{server.server_port}"

    async def talk() -> str:
        async with AsyncMeetClient(url, max_retries=0) as client:
            return (await client.chat("Why?", preference="concise")).text

    assert asyncio.run(talk()) == "word"
    with MeetClient(url, max_retries=0) as client:
        assert client.chat("Why?", preference="concise").text == "word"


@pytest.mark.usefixtures("behind_proxy")
@pytest.mark.parametrize(
    ("url", "goes_direct"),
    [
        ("http://127.8.0.1:8000", True),
        ("https://LOCALHOST/v1", True),
        ("http://[::1]:8000", True),
        ("http://meet.example:8000", False),
        ("http://10.0.0.1:8000", False),
        ("http://127.0.0.1.example", False),
    ],
)
def test_which_servers_are_asked_without_the_proxy(url: str, goes_direct: bool) -> None:
    with MeetClient(url) as client:
        http = client.openai._client
        assert (http._transport_for_url(client.openai.base_url) is http._transport) is goes_direct
        assert http._transport_for_url(type(client.openai.base_url)("http://elsewhere.example")) is not http._transport


def test_timeouts_and_limits_without_a_proxy_are_the_sdks() -> None:
    with MeetClient("http://127.0.0.1:1") as near, MeetClient("http://meet.example") as far:
        assert near.openai.timeout == far.openai.timeout
        assert near.openai._client.timeout == far.openai._client.timeout
        assert near.openai._client.follow_redirects is far.openai._client.follow_redirects is True


def test_an_http_client_that_is_given_is_taken() -> None:
    with openai.DefaultHttpxClient() as own:
        assert MeetClient("http://127.0.0.1:1", http_client=own).openai._client is own


def test_the_sdks_own_client_is_there(server: Any) -> None:
    with MeetClient(server.url) as client:
        assert client.openai.models.list().data[0].id == "fake"
