"""What an endpoint's chat completion says. Knows neither who asked nor what for."""

from __future__ import annotations

from typing import Any


def choices_of(answer: object) -> list[Any]:
    """The choices of a completion, each with text or none; no choices where it is something else.

    The SDK hands on whatever came with status 200; some gateways answer so when something failed.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list):
        return []
    contents = (getattr(getattr(one, "message", None), "content", ...) for one in choices)
    return choices if all(isinstance(content, str | None) for content in contents) else []


def text_of(choice: Any) -> str:
    """Its text. A lone surrogate, which JSON can hold and a file cannot, becomes a question mark."""
    return (choice.message.content or "").encode("utf-8", "replace").decode()
