"""`meet chat` against a fake server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


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


def test_two_messages_are_a_mistake(meet: Callable[..., Any]) -> None:
    assert meet("chat", "Why", "is").exit_code == 2
