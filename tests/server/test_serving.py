"""The running server through the official client: each way to ask, what is refused, and what is listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running_server import Server

from meet_bundle import Manifest, open_bundle
from meet_server.app import compose, keys_of
from meet_server.engine.start import bundle_arguments, vllm_app
from meet_server.settings import Settings

MESSAGES: Any = [{"role": "user", "content": "What is rain?"}]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def chat(client: openai.OpenAI, model: str = "tiny", **options: Any) -> tuple[str, str, str]:
    """Greedy reply, the reply's model and its header."""
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=NUM_TOKENS, **options
    )
    reply = raw.parse()
    return reply.choices[0].message.content or "", reply.model, raw.headers["x-meet-preference"]


@pytest.fixture(scope="module")
def greedy(client: openai.OpenAI) -> dict[str, str]:
    """The reply that each preference has, asked for by the field."""
    return {
        name: chat(client, extra_body={"preference": None if name == "none" else name})[0]
        for name in ("none", "concise", "detailed")
    }


def test_controls_change_the_reply(greedy: dict[str, str]) -> None:
    assert len(set(greedy.values())) == 3


def test_other_routes_that_generate_apply_what_is_asked_for(http: httpx.Client, greedy: dict[str, str]) -> None:
    options = {"temperature": 0, "max_tokens": NUM_TOKENS}
    for path, messages in (("/invocations", MESSAGES), ("/v1/chat/completions/batch", [MESSAGES, MESSAGES])):
        for asked in ({"preference": "concise", "model": "tiny"}, {"model": "tiny:short"}):
            reply = http.post(path, json={"messages": messages, **options, **asked})
            assert reply.status_code == 200, reply.text
            assert reply.headers["x-meet-preference"].startswith("concise=1; ")
            assert {choice["message"]["content"] for choice in reply.json()["choices"]} == {greedy["concise"]}


def test_invocations_apply_the_adapter_that_sagemakers_header_names(http: httpx.Client, greedy: dict[str, str]) -> None:
    options = {"messages": MESSAGES, "temperature": 0, "max_tokens": NUM_TOKENS}
    for model, named, control in (("tiny", "tiny:detailed", "detailed"), ("another", "", "none")):
        headers = {"X-Amzn-SageMaker-Adapter-Identifier": named}
        reply = http.post("/invocations", json={"model": model, **options}, headers=headers)
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-meet-preference"].startswith(control)
        assert reply.json()["choices"][0]["message"]["content"] == greedy[control]


@pytest.mark.parametrize(
    ("control", "options"),
    [
        ("none", {}),
        ("none", {"extra_body": {"preference": None}}),
        ("none", {"extra_headers": {"X-Meet-Preference": "none"}}),
        ("concise", {"extra_body": {"preference": "concise"}}),
        ("concise", {"extra_body": {"preference": "short"}}),
        ("concise", {"extra_body": {"preference": ["concise"]}}),
        ("concise", {"extra_body": {"preference": {"concise": 1}}}),
        ("concise", {"model": "tiny:concise"}),
        ("concise", {"extra_headers": {"X-Meet-Preference": "concise=1"}}),
        ("concise", {"verbosity": "low"}),
        ("detailed", {"verbosity": "high"}),
        ("detailed", {"model": "tiny:detailed", "verbosity": "high", "extra_body": {"preference": "detailed"}}),
    ],
)
def test_each_way_to_ask_gives_the_same_reply(
    client: openai.OpenAI, greedy: dict[str, str], control: str, options: dict[str, Any]
) -> None:
    content, model, header = chat(client, **options)
    assert content == greedy[control]
    assert model == options.get("model", "tiny")
    assert header == "none" if control == "none" else header.startswith(f"{control}=1; version=")


@pytest.mark.parametrize(
    ("mix", "options"),
    [
        ("concise=0.7,detailed=-0.5", {"extra_body": {"preference": {"detailed": -0.5, "short": 0.7}}}),
        ("concise=0.7,detailed=-0.5", {"extra_headers": {"X-Meet-Preference": "short=0.7000001,detailed=-0.5"}}),
        ("concise=1,detailed=1", {"extra_body": {"preference": ["detailed", "concise"]}}),
        ("concise=1,detailed=1", {"model": "tiny:short+detailed"}),
        ("concise=-1", {"extra_body": {"preference": {"concise": -1}}}),
    ],
)
def test_mixes_and_strengths(
    client: openai.OpenAI, greedy: dict[str, str], mix: str, options: dict[str, Any], manifest: Manifest
) -> None:
    content, model, header = chat(client, **options)
    assert content not in greedy.values()
    assert model == "tiny"
    versions = [each.version for each in manifest.preferences if each.name in mix]
    assert header == f"{mix}; version={','.join(versions)}"


def test_a_strength_of_nothing_is_no_control(client: openai.OpenAI, greedy: dict[str, str]) -> None:
    content, _, header = chat(client, extra_body={"preference": {"concise": 0.001}})
    assert (content, header) == (greedy["none"], "none")


@pytest.mark.parametrize("control", ["none", "concise", "detailed"])
def test_streaming_gives_the_same_reply(client: openai.OpenAI, greedy: dict[str, str], control: str) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0,
        max_tokens=NUM_TOKENS,
        stream=True,
        extra_headers={"X-Meet-Preference": control},
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == greedy[control]


def test_completions_streaming_and_not(client: openai.OpenAI) -> None:
    replies = {}
    for control in (None, "concise", "detailed"):
        options: Any = {"prompt": "rain", "temperature": 0, "max_tokens": NUM_TOKENS}
        options["extra_body"] = {"preference": control}
        whole = client.completions.create(model="tiny", **options)
        stream = client.completions.create(model="tiny", stream=True, **options)
        replies[control] = whole.choices[0].text
        assert "".join(chunk.choices[0].text for chunk in stream) == replies[control]
        suffixed = "tiny" if control is None else f"tiny:{control}"
        assert client.completions.create(model=suffixed, **options).choices[0].text == replies[control]
    assert len(set(replies.values())) == 3


def test_several_choices_and_logprobs(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=3, max_tokens=4, logprobs=True, extra_body={"preference": "concise"}
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert all(choice.logprobs and choice.logprobs.content for choice in reply.choices)


def test_responses(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> str:
        reply = client.responses.create(
            model="tiny", input="What is rain?", temperature=0, max_output_tokens=16, **options
        )
        return reply.output_text

    uncontrolled, concise = ask(), ask(extra_body={"preference": "concise"})
    assert uncontrolled != concise
    assert ask(text={"verbosity": "low"}) == concise
    stream = client.responses.create(
        model="tiny", input="What is rain?", temperature=0, max_output_tokens=16, stream=True,
        extra_body={"preference": "concise"},
    )  # fmt: skip
    assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == concise


def test_messages(http: httpx.Client) -> None:
    def ask(**fields: Any) -> str:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": NUM_TOKENS, "temperature": 0, **fields}
        reply = http.post("/v1/messages", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["content"])

    uncontrolled, concise = ask(), ask(preference="concise")
    assert uncontrolled != concise
    assert ask(output_config={"effort": "low"}) == concise
    assert ask(model="tiny:concise") == concise


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"extra_body": {"preference": "angry"}}, "unknown_preference", "preference"),
        ({"model": "tiny:angry"}, "unknown_preference", "model"),
        ({"extra_body": {"preference": 3}}, "invalid_preference", "preference"),
        ({"extra_headers": {"X-Meet-Preference": "concise="}}, "invalid_preference", "X-Meet-Preference"),
        ({"model": "tiny:concise", "verbosity": "high"}, "conflicting_preferences", "verbosity"),
        ({"model": "tiny:concise", "extra_body": {"preference": None}}, "conflicting_preferences", "model"),
        ({"extra_body": {"preference": {"concise": 5}}}, "strength_out_of_range", "preference"),
    ],
)
def test_refusals_reach_the_client_as_openai_errors(
    client: openai.OpenAI, options: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **options)
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")
    if code == "unknown_preference":
        assert "known: concise (or short), detailed" in caught.value.message


def test_what_is_vllms_to_refuse_is_left_to_it(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        chat(client, model="other")
    headers = {"content-type": "application/json"}
    assert http.post("/v1/chat/completions", content=b"{", headers=headers).status_code in (400, 422)
    assert http.post("/v1/chat/completions", content=b"[]", headers=headers).status_code in (400, 422)


def test_models(client: openai.OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:concise", "tiny:detailed"]
    assert client.models.retrieve("tiny:concise").id == "tiny:concise"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tiny:angry")
    tokens = http.post("/tokenize", json={"model": "tiny:concise", "prompt": "rain"})
    assert tokens.status_code == 200


def test_preferences(http: httpx.Client) -> None:
    listed = http.get("/v1/preferences").json()
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["concise", "detailed"]
    one = http.get("/v1/preferences/concise").json()
    assert one == listed["data"][0] == http.get("/v1/preferences/short").json()
    assert one["object"] == "preference"
    assert one["opposite"] == "detailed"
    assert one["strength_range"] == [-1.0, 2.0]
    assert len(one["version"]) == 12
    missing = http.get("/v1/preferences/angry")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "preference_not_found")


def test_health_and_metrics(http: httpx.Client) -> None:
    assert http.get("/health/live").json() == {"status": "live"}
    assert http.get("/health/ready").json() == {"status": "ready"}
    assert http.get("/health").status_code == 200
    assert "vllm:" in http.get("/metrics").text


def test_with_an_api_key_everything_of_ours_is_behind_it(server: Server, bundle: Path) -> None:
    """A second app on the same engine, put together as the first, with vLLM's own --api-key."""
    args = bundle_arguments(open_bundle(bundle), ("--api-key=secret", "--allowed-origins", '["https://page.example"]'))
    settings = Settings(bundle=bundle)

    async def second() -> Any:
        app = await vllm_app(server.engine, args)
        served = replace(server.app.state.served, app=app)
        compose(served, args, keys_of(settings, args), settings)
        return app

    app = server.call(second())
    wrong = {"model": "tiny", "messages": MESSAGES, "preference": "angry"}

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            key = {"authorization": "Bearer secret", "origin": "https://page.example"}
            return [
                await client.post("/v1/chat/completions", json=wrong),
                await client.get("/v1/preferences"),
                await client.get("/v1/preferences", headers=key),
                await client.post("/v1/chat/completions", json=wrong, headers=key),
                await client.get("/health/ready"),
            ]

    responses = server.call(ask())
    assert [response.status_code for response in responses] == [401, 401, 200, 400, 200]
    # Our own refusals pass vLLM's CORS on their way out, so that a page can read them.
    assert responses[3].headers["access-control-allow-origin"] == "https://page.example"
    assert "X-Meet-Preference" in responses[3].headers["access-control-expose-headers"]
