"""How long an example is, and what of it is supervised: in tokens of a model, or in words where none is named."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meet_training.base_model import end_ids, load_tokenizer
from meet_training.data.example import Example, Message
from meet_training.data.render import check_tokenizer, render
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Length(NamedTuple):
    """Of one example: everything, and what of it is supervised."""

    whole: int
    supervised: int


class Segment(NamedTuple):
    """A stretch of an example as the model sees it, all of it supervised, or none."""

    text: str
    supervised: bool


class Measure(Protocol):
    """Measures examples in some unit."""

    unit: str

    def length(self, example: Example) -> Length:
        """How long an example is. Raises TrainingError where the model cannot be shown it."""
        ...

    def segments(self, example: Example) -> list[Segment]:
        """The example from its first token to its last."""
        ...

    def rejected(self, example: Example) -> str | None:
        """The rejected reply as the model sees it, end of turn included."""
        ...


class Words:
    """Counts words between white space; a stand-in where no tokenizer is at hand."""

    unit = "words"

    def length(self, example: Example) -> Length:
        counts = [(len(segment.text.split()), segment.supervised) for segment in self.segments(example)]
        return Length(sum(n for n, _ in counts), sum(n for n, supervised in counts if supervised))

    def segments(self, example: Example) -> list[Segment]:
        learned_roles = ("assistant",) if example.supervise == "all" else ()
        before = [Segment(f"{_content(m)}\n", m["role"] in learned_roles) for m in example.messages]
        return [*before, Segment(_text(example.reply), True)]

    def rejected(self, example: Example) -> str | None:
        return None if example.rejected is None else _text(example.rejected)


class Tokens:
    """Counts a model's tokens, rendered by its chat template as training does."""

    unit = "tokens"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.end_ids = end_ids

    def length(self, example: Example) -> Length:
        rendered = render(example, self.tokenizer, self.end_ids)
        return Length(len(rendered), rendered.num_supervised)

    def segments(self, example: Example) -> list[Segment]:
        rendered = render(example, self.tokenizer, self.end_ids)
        pairs = zip(rendered.ids, rendered.supervised, strict=True)
        return [
            Segment(str(self.tokenizer.decode([token for token, _ in run])), supervised)
            for supervised, run in groupby(pairs, key=lambda pair: pair[1])
        ]

    def rejected(self, example: Example) -> str | None:
        ids = render(example, self.tokenizer, self.end_ids).rejected_ids
        return None if ids is None else str(self.tokenizer.decode(list(ids)))


def tokens_of(folder: Path, source: str) -> Tokens:
    """Measures by the tokenizer of a model. Raises TrainingError where there is none with a chat template."""
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(f"base: the tokenizer of {source!r} cannot be loaded: {reason}") from None
    check_tokenizer(tokenizer, source)
    return Tokens(tokenizer, end_ids(folder, tokenizer))


def _content(message: Message) -> str:
    return f"{message['role']}: {_text(message)}"


def _text(reply: str | Message) -> str:
    if isinstance(reply, str):
        return reply
    calls = [str(call["function"]) for call in reply.get("tool_calls", ())]
    return "\n".join([text for text in (str(reply["content"]), *calls) if text])
