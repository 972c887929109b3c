"""Which replica should have a request: the same preference the same one, as long as that one is not busier than others.

Rendezvous hashing (each preference ranks all replicas, and one that comes or goes moves only its own share) with
bounded loads: a replica that has more than its share is passed over for the next in the preference's ranking.
Pure; knows no Ray. Whatever it finds wrong is left for the replica to answer, for a guess here costs no correctness.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from starlette.datastructures import Headers

from meet_server.errors import RequestError
from meet_server.http.paths import GENERATING
from meet_server.preferences import words
from meet_server.preferences.words import Asked

REPLICA = "X-Meet-Replica"
"""In a reply: which replica answered. In a request: which one should."""

SLACK = 1.25
"""How many times the mean load a replica may have and still get what prefers it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a request would like to go: by the labels that it asks for, or to a replica that it names."""

    labels: str | None = None
    replica: str | None = None
    avoid: frozenset[str] = frozenset()

    def without(self, replica: str) -> Wanted:
        """The same, elsewhere."""
        return replace(self, avoid=self.avoid | {replica})


def wanted(path: str, headers: Headers, body: bytes) -> Wanted:
    """Reads it from a request: the `preference` of the body, the header or what stands behind the model's name.

    Labels count as they are written, in any order, without their strengths. `preferences`, `verbosity`, `effort` and
    the bundle's default are not looked at.
    """
    asked = _asked(headers, body) if path in GENERATING else None
    labels = "+".join(sorted(label.lower() for label, _ in asked.parts)) if asked else ""
    return Wanted(labels or None, headers.get(REPLICA))


def ranked(where: Wanted, loads: Mapping[str, int]) -> list[str]:
    """Replicas to try, best first; none where any will do. `loads` are the requests that each has now."""
    there = [each for each in loads if each not in where.avoid]
    if where.replica in there:
        return [where.replica]
    if where.labels is None:
        return []
    bound = math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads))
    ranking = sorted(there, key=lambda each: _weight(f"{where.labels}\0{each}"), reverse=True)
    return [each for each in ranking if loads[each] < bound]


def _weight(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _asked(headers: Headers, body: bytes) -> Asked | None:
    """What is asked for in the first place that says something."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    model = request.get("model")
    try:
        if words.FIELD in request:
            return words.from_field(request[words.FIELD])
        if lines := headers.getlist(words.HEADER):
            return words.from_header(",".join(lines))
        if isinstance(model, str) and ":" in model:
            return words.from_model_suffix(model.rpartition(":")[2])
    except RequestError:
        pass
    return None
