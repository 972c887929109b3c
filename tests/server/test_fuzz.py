"""Bodies, headers and uploads that nobody thought of, against the running server: no 5xx, no hang, no traceback."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from running_server import Server

from meet_server.errors import RequestError
from meet_server.registry.record import ALLOWED, unpack

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
LABELS = st.sampled_from(["concise", "detailed", "short", "angry", "none", "", "a b", "x" * 70])
NUMBERS = st.one_of(st.floats(), st.integers(-3, 3), st.integers())
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), LABELS)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | LABELS, inner, max_size=3),
)
PREFERENCE = st.one_of(LABELS, st.lists(LABELS, max_size=10), st.dictionaries(LABELS, NUMBERS, max_size=10), ANYTHING)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]), "content": st.text(max_size=20)}),
    max_size=3,
)
BODY = st.fixed_dictionaries(
    {"max_tokens": st.integers(0, 3)},
    optional={
        "model": st.one_of(st.sampled_from(["tiny", "tiny:concise", "tiny:short+detailed", "tiny:"]), SCALARS),
        "preference": PREFERENCE,
        "preferences": st.one_of(st.lists(PREFERENCE, max_size=3), ANYTHING),
        "messages": st.one_of(MESSAGES, ANYTHING),
        "prompt": st.one_of(st.text(max_size=20), st.lists(st.integers(-1, 400), max_size=8), ANYTHING),
        "input": st.one_of(st.text(max_size=20), ANYTHING),
        "max_output_tokens": st.integers(-1, 3),
        "verbosity": SCALARS,
        "text": ANYTHING,
        "output_config": ANYTHING,
        "stream": st.one_of(st.booleans(), SCALARS),
        "n": st.integers(-1, 3),
        "temperature": st.one_of(st.floats(0, 2), SCALARS),
    },
)
LATIN = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40).map(str.strip)
HEADERS = st.dictionaries(
    st.sampled_from(["X-Meet-Preference", "authorization", "x-api-key", "x-request-id", "accept"]), LATIN
)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def check(reply: httpx.Response) -> None:
    assert reply.status_code < 500, (reply.request.content[:1000], reply.text)
    assert "Traceback" not in reply.text
    if reply.status_code >= 400:
        assert reply.json()


def examples(num: int) -> Any:
    quiet = [
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ]
    return settings(max_examples=num, deadline=None, derandomize=True, suppress_health_check=quiet,
                    phases=[Phase.generate, Phase.shrink], database=None)  # fmt: skip


def ask(http: httpx.Client, path: str, body: bytes, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    check(http.post(path, content=body, headers={"content-type": b"application/json", **raw}))


@pytest.mark.parametrize("num", [150, pytest.param(6000, marks=pytest.mark.slow)])
def test_bodies_and_headers(http: httpx.Client, num: int) -> None:
    @examples(num)
    @given(st.sampled_from(PATHS), BODY, HEADERS)
    def cases(path: str, body: Any, headers: dict[str, str]) -> None:
        ask(http, path, json.dumps(body).encode(), headers)

    cases()


@pytest.mark.parametrize("num", [80, pytest.param(2500, marks=pytest.mark.slow)])
def test_bodies_that_are_no_objects(http: httpx.Client, num: int) -> None:
    @examples(num)
    @given(
        st.sampled_from(PATHS), st.one_of(st.binary(max_size=60), ANYTHING.map(lambda each: json.dumps(each).encode()))
    )
    def cases(path: str, body: bytes) -> None:
        ask(http, path, body, {})

    cases()


@pytest.mark.parametrize("num", [100, pytest.param(2500, marks=pytest.mark.slow)])
def test_uploads(num: int) -> None:
    """Whatever the bytes are, they are files that may come in or an error of ours."""

    @examples(num)
    @given(
        st.one_of(
            st.binary(max_size=200), st.binary(max_size=60).map(lambda junk: ARCHIVE[: -len(junk) or None] + junk)
        )
    )
    def cases(data: bytes) -> None:
        with contextlib.suppress(RequestError):
            assert set(unpack(data, 10_000)) <= ALLOWED

    cases()


def _archive() -> bytes:
    from meet_server.registry.record import pack

    return pack({"README.md": b"x" * 50, "adapter_config.json": b"{}"})


ARCHIVE = _archive()
