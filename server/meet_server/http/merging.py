"""Several replies of vLLM's to one: whole ones, or streams of events as they come. Pure: sends nothing.

Every choice gets its place among all and says its `preference`. The prompt was the same for all and counts once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

DONE = b"data: [DONE]\n\n"
_DATA, _COMMENT = b"data:", b":"

Place = tuple[str, int]
"""The preference of one reply's choices, and the index of the first of them."""


class Merging:
    """Whole replies, as JSON."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._bodies = [b""] * len(places)

    def take(self, reply: int, chunk: bytes) -> bytes:
        """Keeps a piece of a reply; there is nothing to send on before the end."""
        self._bodies[reply] += chunk
        return b""

    @property
    def failed(self) -> bool:
        """A whole reply says by its status whether it failed."""
        return False

    def finish(self) -> bytes:
        """The one reply: the first with the choices of all."""
        replies = [json.loads(body) for body in self._bodies]
        choices = [
            placed
            for reply, place in zip(replies, self._places, strict=True)
            for placed in _placed(reply["choices"], place)
        ]
        usage = merged_usage([reply.get("usage") for reply in replies])
        return json.dumps({**replies[0], "choices": choices, "usage": usage}, separators=(",", ":")).encode()


class MergingStream:
    """Streams of server-sent events, interleaved as they come."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._partial = [b""] * len(places)
        self._usages: list[dict[str, Any] | None] = [None] * len(places)
        self._same: dict[str, Any] = {}  # a stream has one id and one time
        self._closing: dict[str, Any] | None = None
        self.failed = False
        """One of the streams has said that it failed."""

    def take(self, reply: int, chunk: bytes) -> bytes:
        """What a piece of a reply's stream comes to; nothing after a failure."""
        *events, self._partial[reply] = (self._partial[reply] + chunk).split(b"\n\n")
        return b"".join(self._event(reply, event) for event in events)

    def finish(self) -> bytes:
        """The end of the stream: the usage of all, where it was asked for, and the mark of the end."""
        if self.failed or self._closing is None:
            return DONE
        return _event({**self._closing, "usage": merged_usage(self._usages)}) + DONE

    def _event(self, reply: int, event: bytes) -> bytes:
        event = event.strip()
        if self.failed:
            return b""
        if event.startswith(_COMMENT):
            return event + b"\n\n"  # vLLM's sign of life, which clients skip
        data = event.removeprefix(_DATA).strip() if event.startswith(_DATA) else b""
        if data in (b"", b"[DONE]"):
            return b""
        piece = json.loads(data)
        if "error" in piece:
            self.failed = True
            return event + b"\n\n"
        for field in ("id", "created"):
            piece[field] = self._same.setdefault(field, piece.get(field))
        if piece.get("usage"):
            self._usages[reply] = piece["usage"]
            piece["usage"] = merged_usage(self._usages)
        if not piece["choices"]:
            self._closing = piece
            return b""
        return _event({**piece, "choices": list(_placed(piece["choices"], self._places[reply]))})


def merged_usage(usages: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """One prompt and all completions. Of the prompt that is cached which the first to be scheduled found cached."""
    known = [usage for usage in usages if usage]
    if not known:
        return None
    completion = sum(usage.get("completion_tokens") or 0 for usage in known)
    merged = {
        **known[0],
        "completion_tokens": completion,
        "total_tokens": known[0]["prompt_tokens"] + completion,
    }
    for field, combine in (("prompt_tokens_details", min), ("completion_tokens_details", sum)):
        if details := [usage[field] for usage in known if usage.get(field)]:
            merged[field] = {
                name: combine([each.get(name) or 0 for each in details]) if isinstance(value, int) else value
                for name, value in details[0].items()
            }
    return merged


def _placed(choices: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
    preference, first_index = place
    return [{**choice, "index": first_index + choice["index"], "preference": preference} for choice in choices]


def _event(piece: dict[str, Any]) -> bytes:
    return _DATA + b" " + json.dumps(piece, separators=(",", ":")).encode() + b"\n\n"
