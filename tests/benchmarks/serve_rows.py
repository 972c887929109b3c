"""What `bench_serve.py` compares: rows, and the bundles that they are measured on. Measures nothing itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "server"))


@dataclass(frozen=True)
class Side:
    """One of the two things a row compares: where requests go, and what of ours they say.

    `each` holds further fields, of which request number i gets those at i modulo their number.
    """

    name: str
    url: str
    fields: dict[str, Any]
    each: tuple[dict[str, Any], ...] = ({},)


@dataclass(frozen=True)
class Row:
    """Tokens per second of `ours` over those of `other`, at so many requests at once.

    With `prompt_tokens` it is the time until all choices of a request have their first token, over prompts of so
    many tokens that were never seen before, and `bound` is an upper one.
    """

    name: str
    concurrent: int
    ours: Side
    other: Side
    bound: float | None
    num_tokens: int = 32
    pairs: int = 21
    prompt: str = "What is {word}?"
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class Served:
    """What the rows may send requests to: our app and vLLM's own, on one engine."""

    ours: str
    plain: str
    model: str


def uncontrolled_rows(served: Served, what: str = "") -> list[Row]:
    """A request that asks for no preference costs what it costs without us."""
    model = {"model": served.model}
    return [
        Row(
            f"uncontrolled through our app / vLLM's own app{what}",
            concurrent,
            Side("our app", served.ours, model),
            Side("vLLM's app", served.plain, model),
            bound=0.98,
        )
        for concurrent in (1, 8, 32)
    ]


def tiny_rows(served: Served) -> list[Row]:
    """The same where the engine is so quick that what Python adds shows most."""
    return uncontrolled_rows(served, ", tiny model")


# Begins alike for two whole blocks of the prefix cache, as prompts with a system message do, and ends anew each time.
QUESTION = (
    "A reader of a magazine for curious people has sent in this question, and would like to have an answer that can be "
    "read in a minute or two, by young and old, at home and at school. What is {word}, and what has it to do with the "
    "number {number}?"
)


# The same the other way round: as long, and nobody else's from its first words on.
OWN_QUESTION = (
    "{number} and {word}: what is the one, and what has it to do with the other? A reader of a magazine for curious "
    "people has sent in this question, and would like to have an answer that can be read in a minute or two, by young "
    "and old, at home and at school."
)


# About 490 tokens, none of which another request has computed: what a user pastes in and asks about.
LETTER = "Letter number {number}, about {word}. " + (
    "My grandmother kept a diary of the weather for forty years, and wrote down each morning what the sky was like, "
    "how warm it was by the kitchen door, and what she thought the afternoon would bring. I have begun to read it from "
    "the first page, and to compare what she expected with what came. " * 7
) + "What is the letter about, and what would you answer to it?"  # fmt: skip


def soft_prompt_rows(served: Served, what: str) -> list[Row]:
    """Any number of different soft prompts costs as near nothing as can be. Prompts differ from request to request."""

    def row(num: int, load: str, prompt: str, num_tokens: int, concurrent: int, pairs: int) -> Row:
        each = tuple({"preference": f"p{index}"} for index in range(num))
        return Row(
            f"soft prompts {what}, {num} different preferences / uncontrolled, {load}",
            concurrent,
            Side("controlled", served.ours, {"model": served.model}, each),
            Side("uncontrolled", served.ours, {"model": served.model, "preference": None}),
            bound=0.97,
            num_tokens=num_tokens,
            pairs=pairs,
            prompt=prompt,
        )

    # A measurement takes several seconds, and there are many rows: so many pairs of so many at once let them end.
    alike = [
        row(num, "90 + 64 tokens, prompts begin alike", QUESTION, 64, concurrent=16, pairs=11)
        for num in (1, 8, 64, 256)
    ]
    own = [row(num, "90 + 64 tokens", OWN_QUESTION, 64, concurrent=16, pairs=11) for num in (1, 8, 64, 256)]
    long = [row(num, "490 + 128 tokens", LETTER, 128, concurrent=8, pairs=7) for num in (1, 8, 64, 256)]
    return [*alike, *own, *long]


def preferences_rows(served: Served) -> list[Row]:
    """Several preferences of one prompt compute it once."""
    asked = [f"p{index}" for index in range(4)]
    return [
        Row(
            "time to first token of 4 preferences over one 512-token prompt / of one",
            1,
            Side("four", served.ours, {"model": served.model, "preferences": asked}),
            Side("one", served.ours, {"model": served.model, "preference": asked[0]}),
            bound=1.25,
            num_tokens=2,
            prompt_tokens=512,
        )
    ]


def tiny_bundle(scratch: Path) -> Path:
    from tiny_bundle import make_bundle

    return make_bundle(scratch)


def lora_bundle(scratch: Path) -> Path:
    from lora_bundle import make_lora_bundle, smollm2

    return make_lora_bundle(smollm2(), scratch, 4)


def soft_prompts(scratch: Path, num: int, num_virtual_tokens: int, placement: Any) -> Path:
    from soft_prompt_bundle import same_soft_prompts

    return same_soft_prompts(scratch, num, num_virtual_tokens, placement)


@dataclass(frozen=True)
class Group:
    """Rows, and the bundle that they are measured on unless the user names one, made in a scratch folder."""

    rows: Callable[[Served], list[Row]]
    bundle: Callable[[Path], Path]


ROWS: dict[str, Group] = {
    "uncontrolled": Group(uncontrolled_rows, lora_bundle),
    "uncontrolled-tiny": Group(tiny_rows, tiny_bundle),
    "soft-prompts-after": Group(
        lambda served: soft_prompt_rows(served, "of 16 tokens after the prompt"),
        lambda scratch: soft_prompts(scratch, 256, 16, "after_prompt"),
    ),
    "soft-prompts-after-8": Group(
        lambda served: soft_prompt_rows(served, "of 8 tokens after the prompt"),
        lambda scratch: soft_prompts(scratch, 256, 8, "after_prompt"),
    ),
    "soft-prompts-after-4": Group(
        lambda served: soft_prompt_rows(served, "of 4 tokens after the prompt"),
        lambda scratch: soft_prompts(scratch, 256, 4, "after_prompt"),
    ),
    "soft-prompts-before": Group(
        lambda served: soft_prompt_rows(served, "of 32 tokens before the prompt"),
        lambda scratch: soft_prompts(scratch, 256, 32, "before_prompt"),
    ),
    "preferences": Group(preferences_rows, lambda scratch: soft_prompts(scratch, 4, 16, "after_prompt")),
}
