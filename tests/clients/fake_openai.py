"""A stand-in for a MEET server and for a plain one, on the standard library: `python fake_openai.py PORT`.

Its replies are made from what was asked, so that tests can say what they must be: one word for `concise` or a
message that ends with "Be short.", nine words for `detailed` or "Be long.", four otherwise. One preference at
a strength is so far from four. Every word is one token; a given reply of one word is likely under `concise`, of nine
under `detailed`, and every other in between.
"""

from __future__ import annotations

import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSIONS = {"concise": "a" * 12, "detailed": "b" * 12}
NUM_WORDS = {"concise": 1, "detailed": 9, "none": 4}


class FakeServer(ThreadingHTTPServer):
    """Remembers the bodies and headers of the chat requests that it got."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.scored: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.changes: list[tuple[str, str, str | None, Any, str | None]] = []
        self.versions = dict(VERSIONS)
        self.fail_after: int | None = None
        self.breaks_off = False
        self.plain = False
        self.models: Any = {"object": "list", "data": [{"id": "fake", "object": "model", "created": 0}]}
        self.page: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        if self.server.page is not None:
            self.answer(200, self.server.page, {"Content-Type": "text/html"})
            return
        cards = [
            {"id": name, "object": "preference", "axis": "length", "aliases": [],
             "opposite": {"concise": "detailed", "detailed": "concise"}.get(name),
             "description": "", "version": version, "news": 1, "strength_range": [-1.0, 2.0],
             "calibration": {"attribute": "words", "strengths": [0.0, 1.0], "medians": [4.0, NUM_WORDS.get(name, 4)],
                             "recommended": 1.0}}
            for name, version in self.server.versions.items()
        ]  # fmt: skip
        answers: dict[str, Any] = {
            "/health": {},
            "/v1/models": self.server.models,
        }
        if not self.server.plain:
            answers["/v1/preferences"] = {"object": "list", "data": cards}
            answers |= {f"/v1/preferences/{card['id']}": card for card in cards}
        if self.path in answers:
            self.answer(200, answers[self.path])
        else:
            self.answer(404, {"error": {"message": f"no {self.path}", "code": "not_found"}})

    def do_PATCH(self) -> None:
        self.changed()

    def do_DELETE(self) -> None:
        self.changed()

    def changed(self) -> None:
        """Remembers a change of the preferences, and answers as if it had been made."""
        kind, data = self.headers["content-type"], self.rfile.read(int(self.headers["content-length"] or 0))
        body = json.loads(data) if data and kind == "application/json" else data
        self.server.changes.append((self.command, self.path, kind, body, self.headers["authorization"]))
        fields = body if isinstance(body, dict) else {}
        self.answer(200, {"id": "added", "object": "preference", **fields})

    def do_POST(self) -> None:
        if self.path == "/v1/preferences":
            self.changed()
            return
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self.answer(200, {"tokens": tokens_of(body)})
            return
        if self.path == "/v1/completions":
            self.server.scored.append(body)
            self.answer(200, scored(body))
            return
        self.server.bodies.append(body)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.fail_after is not None and len(self.server.bodies) > self.server.fail_after:
            self.answer(500, {"error": {"message": "out of order"}})
            return
        if "preferences" in body:
            labels = [label or "none" for label in body["preferences"]]
            if body.get("stream"):
                self.stream_each(labels)
            else:
                self.answer(200, completions(labels, body))
            return
        words = self.asked(body)
        labels = [part.partition("=")[0] for part in words.split(",")]
        unknown = [label for label in labels if label not in NUM_WORDS]
        if unknown:
            self.answer(400, {"error": {"message": f"{unknown[0]!r} is no preference", "code": "unknown_preference"}})
        elif body.get("stream"):
            self.stream(labels[0], words)
        else:
            self.answer(200, completion(text_for(labels[0], body)), {"X-Meet-Preference": words})

    def asked(self, body: dict[str, Any]) -> str:
        value = body.get("preference", self.headers.get("X-Meet-Preference"))
        if isinstance(value, dict):
            return ",".join(f"{name}={strength:g}" for name, strength in value.items())
        return ",".join(value) if isinstance(value, list) else value or "none"

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, label: str, words: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Meet-Preference", words)
        if self.server.breaks_off:
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        pieces = [f"{word} " for word in ["word"] * NUM_WORDS[label]]
        for index, piece in enumerate(pieces):
            finish = "stop" if index == len(pieces) - 1 else None
            self.wfile.write(f"data: {json.dumps(chunk(piece, finish))}\n\n".encode())
        if not self.server.breaks_off:
            self.wfile.write(b"data: [DONE]\n\n")

    def stream_each(self, labels: list[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Meet-Preference", " | ".join(labels))
        self.end_headers()
        for word in range(max(NUM_WORDS[label] for label in labels)):
            for index, label in enumerate(labels):
                if word < NUM_WORDS[label]:
                    piece = chunk("word ", "stop" if word == NUM_WORDS[label] - 1 else None)
                    piece["choices"][0] |= {"index": index, "preference": label}
                    self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def tokens_of(body: dict[str, Any]) -> list[int]:
    """One token a word of a text; three for a rendered chat."""
    return [7, 7, 7] if "messages" in body else [100 + n for n, _ in enumerate(body["prompt"].split())]


def scored(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body["prompt"]
    num_words = len(prompt) - 3
    asked = body.get("preference")
    strengths = asked if isinstance(asked, dict) else {} if asked is None else {asked: 1.0}
    each = -2.0 + sum(strength if num_words == NUM_WORDS[name] else -strength for name, strength in strengths.items())
    rows = [None, *({str(token): {"logprob": each, "rank": 1}} for token in prompt[1:])]
    choice = {"index": 0, "finish_reason": "length", "text": "x", "logprobs": None, "prompt_logprobs": rows}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
    return {"id": "1", "object": "text_completion", "created": 0, "model": "fake", "choices": [choice], "usage": usage}


def text_for(label: str, body: dict[str, Any]) -> str:
    message = body["messages"][-1]["content"]
    if message.endswith("Be short."):
        label = "concise"
    if message.endswith("Be long."):
        label = "detailed"
    num_words = NUM_WORDS[label]
    asked = body.get("preference")
    if isinstance(asked, dict) and len(asked) == 1:
        strength = asked[label]
        num_words = round(NUM_WORDS["none"] + strength * (num_words - NUM_WORDS["none"]))
    return " ".join(["word"] * num_words)


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1, "completion_tokens": len(text.split()), "total_tokens": 1 + len(text.split())}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice], "usage": usage}


def completions(labels: list[str], body: dict[str, Any]) -> dict[str, Any]:
    """One choice per label, the last first: their order is in their index."""
    choices = [
        {**completion(text_for(label, body))["choices"][0], "index": index, "preference": label}
        for index, label in enumerate(labels)
    ]
    return {**completion(""), "choices": choices[::-1]}


def chunk(text: str, finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "delta": {"content": text}}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "fake", "choices": [choice]}


if __name__ == "__main__":
    # A shell without job control has its background jobs ignore SIGINT, and their children with them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with FakeServer(int(sys.argv[1])) as server:
        server.serve_forever()
