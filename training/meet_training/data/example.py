"""What is learned from: a conversation, the reply to it, and the preference that the reply is data of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
"""As chat templates take it: role, content, and of an assistant perhaps tool_calls."""

UNCONTROLLED = ""
"""The preference of examples that no control is to learn: replies of the base model itself."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation up to the reply, the reply, and the preference that the reply shows.

    A reply is text, or the assistant's message where there is more to it, such as tool calls. `rejected` is
    the other reply of a pair: under `preference` it is the worse one. `supervise` says whether the assistant's
    earlier turns are learned too.
    """

    messages: tuple[Message, ...]
    reply: str | Message
    preference: str
    rejected: str | Message | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    supervise: Literal["last", "all"] = "last"
