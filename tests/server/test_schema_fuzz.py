"""Requests that the server's own OpenAPI document allows, and such as it does not: no 5xx, no hang, no traceback.

Every operation of ours and of vLLM's, by schemathesis; those that change preferences with an admin's key too.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from requests import Request
from running_server import Server
from schemathesis.checks import not_a_server_error
from test_changing import Client
from test_fuzz import ARCHIVE, PREFERENCE, examples

from meet_server.http.paths import CHAT, COMPLETIONS, GENERATING, MESSAGES, PREFERENCES, RESPONSES

schemathesis.openapi.media_type(
    "application/zip",
    st.one_of(st.just(ARCHIVE), st.binary(max_size=200), st.integers(1, 90).map(lambda cut: ARCHIVE[:-cut])),
)
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
LIMIT_S = 30
MODEL = "tiny"
CHANGE = f"PATCH {PREFERENCES}/{{name}}"
UNSUPPORTED = {"POST /v1/systemone": 501}  # what vLLM's document says of models that cannot do it
# What makes a request that may end late end soon, by the field of each route. What is no number is left as it came.
BOUNDS = {
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "max_output_tokens": 16,
    "min_tokens": 2,
    "n": 2,
    "best_of": 2,
    "thinking_token_budget": 2,
}
NEEDED = {"/v1/responses": "max_output_tokens"}
# A request that is right but for what is added to it: a case of many fields at once seldom is.
TURN = [{"role": "user", "content": "rain"}]
RIGHT = {
    CHAT: {"messages": TURN},
    COMPLETIONS: {"prompt": "rain"},
    RESPONSES: {"input": "rain"},
    MESSAGES: {"messages": TURN},
}


def bounded(path: str, body: Any) -> Any:
    """The body, changed so that a reply to it is short."""
    if not isinstance(body, dict):
        return body
    short = {**body, NEEDED.get(path, "max_tokens"): body.get(NEEDED.get(path, "max_tokens"), 3)}
    for field, limit in BOUNDS.items():
        if isinstance(value := short.get(field), int | float) and not isinstance(value, bool):
            short[field] = min(value, limit)
    if isinstance(inner := short.get("sampling_params"), dict):
        short["sampling_params"] = bounded(path, inner)
    return short


def is_json(value: Any) -> bool:
    """Whether the client here can send it. What JSON has no number for is sent by `test_fuzz`."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def operations(server: Server) -> list[Any]:
    document = httpx.get(f"{server.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    found = [each.ok() for each in schema.get_all_operations()]
    labels = {operation.label for operation in found}
    assert {f"POST {path}" for path in GENERATING} <= labels
    assert {f"{method} {PREFERENCES}" for method in ("GET", "POST")} <= labels
    assert {f"{method} {PREFERENCES}/{{name}}" for method in ("GET", "PATCH", "DELETE")} <= labels
    return found


@pytest.fixture(scope="module")
def admin(server: Server, bundle: Path) -> Iterator[Client]:
    """With an admin's key; preferences are afterwards as they were."""
    client = Client(server, bundle)
    before = client("GET", PREFERENCES).json()["data"]
    yield client
    for card in before:
        fields = {"enabled": True, "description": card["description"], "aliases": card["aliases"]}
        assert client("PATCH", f"{PREFERENCES}/{card['id']}", json=fields).status_code == 200
    assert client("GET", PREFERENCES).json()["data"] == before


def cases(operation: Any, mode: Any) -> st.SearchStrategy[Any]:
    """Cases of the operation, whose replies are short. Where it generates, they may have a preference too."""
    plain = operation.as_strategy(generation_mode=mode)

    @st.composite
    def changed(draw: st.DrawFn) -> Any:
        case = draw(plain)
        if operation.label == CHANGE and draw(st.booleans()):
            case.path_parameters["name"] = draw(st.sampled_from(["concise", "detailed"]))
        if operation.method.upper() == "POST":
            right = mode is MODES[0] and operation.path in RIGHT and draw(st.booleans())
            case.body = bounded(operation.path, RIGHT[operation.path] if right else case.body)
            if operation.path in GENERATING and isinstance(case.body, dict) and draw(st.booleans()):
                case.body["preference"] = draw(PREFERENCE.filter(is_json))
            if isinstance(case.body, dict) and "model" in case.body and draw(st.booleans()):
                case.body["model"] = MODEL  # a name made up is refused before anything else is looked at
        return case

    return changed()


def run(operations: list[Any], num_each: int, send: Any) -> Counter[str]:
    """Sends so many cases of each operation and kind, and returns how many were answered with which status."""
    answered: Counter[str] = Counter()
    for operation, mode in product(operations, MODES):

        @examples(num_each)
        @given(cases(operation, mode))
        def check(case: Any) -> None:
            answered[send(case)] += 1

        try:
            check()
        except Unsatisfiable:  # an operation that takes nothing cannot be asked wrongly
            assert mode is MODES[1], operation.label
        except Exception as error:
            error.add_note(f"of {operation.label}, {mode.value}")
            raise
    return answered


@pytest.mark.parametrize("num_each", [6, pytest.param(75, marks=pytest.mark.slow)])
def test_every_operation(server: Server, operations: list[Any], num_each: int) -> None:
    def send(case: Any) -> str:
        response = case.call(base_url=server.url, timeout=LIMIT_S)
        if response.status_code != UNSUPPORTED.get(case.operation.label):
            case.validate_response(response, checks=[not_a_server_error])
        assert response.elapsed < LIMIT_S
        assert b"Traceback" not in response.content
        return f"{response.status_code}"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answered = run(operations, num_each, send)
    print(f"{answered.total()} requests, answered with {dict(sorted(answered.items()))}")  # noqa: T201 - `pytest -s`
    assert answered["200"] > answered.total() / 10
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("num_each", [6, pytest.param(75, marks=pytest.mark.slow)])
def test_changes_by_an_admin(operations: list[Any], admin: Client, num_each: int) -> None:
    def send(case: Any) -> str:
        asked = Request(**case.as_transport_kwargs(base_url="http://server")).prepare()
        headers = {name: value for name, value in asked.headers.items() if name.lower() != "authorization"}
        response = admin(asked.method, asked.path_url, content=asked.body or b"", headers=headers)
        assert response.status_code < 500, response.text
        assert "Traceback" not in response.text
        return f"{response.status_code}"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answered = run([each for each in operations if each.path.startswith(PREFERENCES)], num_each, send)
    print(f"{answered.total()} requests, answered with {dict(sorted(answered.items()))}")  # noqa: T201 - `pytest -s`
    assert not answered["401"] + answered["403"]
