"""Which replica a request goes to, by what it asks for and by how busy each is. Needs no Ray."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from starlette.datastructures import Headers

from meet_server.ray_serve.affinity import SLACK, Wanted, ranked, wanted

CHAT = "/v1/chat/completions"
IDLE = {f"replica{number}": 0 for number in range(8)}
LABELS = [f"label{number}" for number in range(400)]


def want(body: dict[str, Any], path: str = CHAT, **headers: str) -> Wanted:
    return wanted(path, Headers({name.replace("_", "-"): value for name, value in headers.items()}), to_bytes(body))


def to_bytes(body: object) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "headers", "labels"),
    [
        ({"preference": "concise"}, {}, "concise"),
        ({"preference": {"formal": 0.5, "Concise": 0.7}}, {}, "concise+formal"),
        ({"preference": ["formal", "concise"]}, {}, "concise+formal"),
        ({"preference": None}, {}, None),
        ({"preference": None, "model": "demo:concise"}, {}, None),
        ({"model": "demo:concise"}, {}, "concise"),
        ({"model": "demo:formal+concise"}, {}, "concise+formal"),
        ({"model": "demo:none"}, {}, None),
        ({"model": "demo"}, {}, None),
        ({}, {"x_meet_preference": "formal=0.5,concise=0.2"}, "concise+formal"),
        ({}, {}, None),
        ({"preference": 3}, {}, None),
        ({"preference": {"concise": "a lot"}}, {}, None),
    ],
)
def test_what_a_request_asks_for(body: dict[str, Any], headers: dict[str, str], labels: str | None) -> None:
    assert want(body, **headers) == Wanted(labels)


def test_what_is_no_generating_request_and_what_is_no_object_asks_for_nothing() -> None:
    assert want({"preference": "concise"}, path="/tokenize") == Wanted()
    for body in (b"", b"{", b"[" * 100_000, b"[]", b"\xff"):
        assert wanted(CHAT, Headers({}), body) == Wanted()


def test_a_replica_that_is_named_is_taken_if_it_is_there() -> None:
    where = want({"preference": "concise"}, x_meet_replica="replica3")
    assert ranked(where, IDLE) == ["replica3"]
    assert ranked(where.without("replica3"), IDLE)[0] != "replica3"
    assert ranked(want({}, x_meet_replica="nobody"), IDLE) == []


def test_every_preference_has_a_replica_of_its_own_and_all_replicas_have_some() -> None:
    first = {label: ranked(Wanted(label), IDLE)[0] for label in LABELS}
    assert first == {label: ranked(Wanted(label), dict(reversed(IDLE.items())))[0] for label in LABELS}
    shares = Counter(first.values())
    assert set(shares) == set(IDLE)
    assert max(shares.values()) < 2 * len(LABELS) / len(IDLE)


def test_a_replica_that_goes_moves_only_what_was_its_own() -> None:
    before = {label: ranked(Wanted(label), IDLE) for label in LABELS}
    left = {name: load for name, load in IDLE.items() if name != "replica5"}
    for label, order in before.items():
        assert ranked(Wanted(label), left) == [name for name in order if name != "replica5"]


def test_a_replica_with_more_than_its_share_is_passed_over() -> None:
    order = ranked(Wanted("concise"), IDLE)
    busy = IDLE | {order[0]: 9}  # 1.25 times the mean of 10 requests on 8 replicas, rounded up: 2
    assert ranked(Wanted("concise"), busy) == order[1:]
    alone = {"replica0": 1000}
    assert ranked(Wanted("concise"), alone) == ["replica0"]
    assert ranked(Wanted("concise"), dict.fromkeys(IDLE, 100)) == order


def test_one_preference_for_everybody_fills_replicas_evenly() -> None:
    loads = dict(IDLE)
    for _ in range(1000):
        loads[ranked(Wanted("concise"), loads)[0]] += 1
    assert max(loads.values()) <= SLACK * 1000 / len(loads) + 1
