"""`meet chat` against a fake server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from meet_cli.commands import chat
from meet_cli.errors import one_line


def test_one_reply_and_what_was_applied(meet: Callable[..., Any], server: Any) -> None:
    outcome = meet("chat", "--url", server.url, "-p", "concise=0.7,detailed=0.5", "--max-tokens", "9", "Why?")
    assert outcome.exit_code == 0, outcome.err
    assert outcome.out == "word \n"
    assert outcome.err == "[concise=0.7,detailed=0.5]\n"
    (body,) = server.bodies
    assert body["messages"] == [{"role": "user", "content": "Why?"}]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("fake", 9, True)
    assert "temperature" not in body


def test_the_default_is_left_to_the_server(meet: Callable[..., Any], server: Any) -> None:
    assert meet("chat", "--url", f"{server.url}/v1/", "Why?").err == "[none]\n"
    assert "preference" not in server.bodies[0]
    assert "x-meet-preference" not in server.headers[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_reply_does_nothing_to_a_terminal(monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO]) -> None:
    pieces = ["rain\n\tfalls \x1b", "]0;owned\x07\x9b2J\r", "in Zürich \N{EARTH GLOBE EUROPE-AFRICA}"]

    @contextmanager
    def stream(messages: object, **options: object) -> Iterator[Any]:
        class Stream(list[str]):
            applied = "none"

        yield Stream(pieces)

    monkeypatch.setattr(sys, "stdout", out := kind())
    reply = chat._ask(SimpleNamespace(stream=stream), [{"role": "user", "content": "Why?"}], {})  # type: ignore[arg-type]
    assert reply == "".join(pieces)
    if kind is Terminal:
        shown = "rain\n\tfalls \\x1b]0;owned\\x07\\x9b2Jin Zürich \N{EARTH GLOBE EUROPE-AFRICA}\n"
        assert out.getvalue() == shown
    else:  # what is no terminal gets what was said
        assert "\x07" in out.getvalue()


def test_what_a_server_says_is_wrong_does_nothing_to_a_terminal() -> None:
    assert one_line("no\n \x1b[2Jmodel") == "no \\x1b[2Jmodel"


def test_message_can_be_piped(meet: Callable[..., Any], server: Any) -> None:
    assert meet("chat", "--url", server.url, piped="Why is\nit so?\n").exit_code == 0
    assert server.bodies[0]["messages"][0]["content"] == "Why is\nit so?"


def test_nothing_piped_is_a_mistake(meet: Callable[..., Any], server: Any) -> None:
    outcome = meet("chat", "--url", server.url, piped="\n")
    assert outcome.exit_code == 2
    assert "no MESSAGE was given" in outcome.err


def test_in_turns_the_chat_is_remembered(
    meet: Callable[..., Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter(["Why?", "", "And then?"])

    def next_turn(_: str) -> str:
        try:
            return next(turns)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", next_turn)
    monkeypatch.setattr("meet_cli.commands.chat.on_terminal", lambda: True)
    outcome = meet("chat", "--url", server.url, "-p", "concise")
    assert outcome.exit_code == 0, outcome.err
    assert [message["content"] for message in server.bodies[1]["messages"]] == ["Why?", "word ", "And then?"]


def test_the_key_comes_from_the_environment(
    meet: Callable[..., Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-this-server")
    assert meet("chat", "--url", server.url, "Why?").exit_code == 0
    monkeypatch.setenv("MEET_API_KEY", "from-meet")
    assert meet("chat", "--url", server.url, "Why?").exit_code == 0
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer from-meet"]


def test_the_address_comes_from_the_environment_and_help_says_so(
    meet: Callable[..., Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEET_URL", server.url)
    assert meet("chat", "Why?").exit_code == 0
    told = meet("chat", "--help").out
    assert {"$MEET_URL", "$MEET_API_KEY"} <= set(told.replace(".", " ").split())


def test_an_unknown_preference_is_the_servers_one_line(meet: Callable[..., Any], server: Any) -> None:
    outcome = meet("chat", "--url", server.url, "-p", "terse", "Why?")
    assert outcome.exit_code == 2
    assert outcome.err == f"meet: error: {server.url} answered 400: 'terse' is no preference\n"


def test_a_server_that_breaks_off_is_one_line(meet: Callable[..., Any], server: Any) -> None:
    server.breaks_off = True
    outcome = meet("chat", "--url", server.url, "-p", "detailed", "Why?")
    assert outcome.exit_code == 2
    assert outcome.out.startswith("word ")
    assert outcome.err.startswith(f"meet: error: the connection to {server.url} failed (peer closed connection")


def test_nobody_there_is_one_line(meet: Callable[..., Any]) -> None:
    outcome = meet("chat", "--url", "http://127.0.0.1:9", "Why?")
    assert outcome.exit_code == 2
    assert outcome.err.startswith("meet: error: the connection to http://127.0.0.1:9 failed (")
    assert outcome.err.endswith("is `meet serve` running?\n")
    assert outcome.err.count("\n") == 1


def test_what_is_no_openai_server_is_one_line(meet: Callable[..., Any], server: Any) -> None:
    line = f"meet: error: {server.url}: the server lists no models; is it an OpenAI-compatible server?\n"
    server.models = {"data": []}
    outcome = meet("chat", "--url", server.url, "Why?")
    assert (outcome.exit_code, outcome.err) == (2, line)
    server.page = "<html>welcome</html>"
    outcome = meet("chat", "--url", server.url, "Why?")
    assert (outcome.exit_code, outcome.err) == (2, line)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-p", "détaillé"], r"--preference 'd\xe9taill\xe9': a label is of ASCII letters, digits and `_.-` alone"),
        (["-p", "concise\n"], r"--preference 'concise\n': a label"),
        (["--api-key", "clé"], "the API key ($MEET_API_KEY) has other characters than printable ASCII"),
        (["--url", "http://localhost:port"], "http://localhost:port is no address of a server: "),
        (["--url", "http://[::1"], "http://[::1 is no address of a server: "),
    ],
)
def test_what_cannot_be_sent_is_one_line(meet: Callable[..., Any], args: list[str], told: str) -> None:
    outcome = meet("chat", "--url", "http://127.0.0.1:9", *args, "Why?")
    assert outcome.exit_code == 2
    assert told in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_message_in_another_encoding_is_one_line(server: Any, errors: str) -> None:
    """As it comes in by a pipe, under a locale that lets such bytes through and under one that does not."""
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": f"utf-8:{errors}"}
    command = [sys.executable, "-m", "meet_cli", "chat", "--url", server.url]
    done = subprocess.run(command, env=env, input=b"caf\xe9?", capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"is no utf-8 text" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert server.bodies == []


def test_two_messages_are_a_mistake(meet: Callable[..., Any]) -> None:
    assert meet("chat", "Why", "is").exit_code == 2
