"""From data sets to the examples of every preference: all of them, or drawn by the seed and mixed by weight.

Knows no tokens, and of files only that somebody reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from meet_training.config import TrainConfig
from meet_training.data.dataset import DataSet, open_data
from meet_training.data.drawing import Draws, Mixture
from meet_training.data.example import UNCONTROLLED, Example, Message
from meet_training.data.sources import reading
from meet_training.data_config import DataConfig
from meet_training.errors import TrainingError

__all__ = [
    "UNCONTROLLED",
    "Example",
    "Message",
    "digest",
    "draws_by_prompt",
    "for_objective",
    "gather",
    "load_examples",
    "load_uncontrolled",
    "pair_up",
    "prompt_key",
]


def load_examples(config: TrainConfig) -> dict[str, list[Example]]:
    """The examples of every preference, in the order in which the configuration names the preferences.

    Raises TrainingError where data is empty, has one label only, or has none of a preference.
    """
    return gather(config, [open_data(data) for data in config.data])


def gather(config: TrainConfig, data_sets: Sequence[DataSet]) -> dict[str, list[Example]]:
    """The same from data sets that are open already. Holds no more examples than it returns.

    Where the objective wants pairs and not all examples are taken, they are drawn by prompt.
    """
    weights, limit = [data_set.data.weight for data_set in data_sets], config.examples_per_preference
    found: Draws[Example] = Draws(config.preferences, weights, limit, config.seed)
    by_prompt = draws_by_prompt(config)
    seen: set[str] = set()
    for number, data_set in enumerate(data_sets):
        with reading(data_set.labelled()) as rows:
            for label, example, _ in rows:
                seen.add(label)
                if example is None:
                    continue
                if example.preference not in config.preferences:
                    known = ", ".join(config.preferences)
                    raise TrainingError(
                        f"{data_set.data.source}: label {label!r} is none of the preferences ({known}); "
                        f"name it under `preferences`, or map it under `labels`"
                    )
                found.offer(example.preference, number, example, prompt_key(example) if by_prompt else None)
    drawn = found.drawn()
    _check_labels(drawn, seen, ", ".join(data_set.data.source for data_set in data_sets))
    return drawn


def draws_by_prompt(config: TrainConfig) -> bool:
    """Whether examples are drawn by prompt: where pairs are wanted, which draws of each preference would break."""
    draws = config.examples_per_preference is not None or any(data.weight is not None for data in config.data)
    return draws and config.objective.kind == "preference"


def load_uncontrolled(configs: Sequence[DataConfig], *, limit: int | None = None, seed: int = 0) -> list[Example]:
    """Replies that no control is to learn: every reply of the data, whatever its label, of a pair the chosen one.

    At most `limit` of them, drawn by the seed. Raises TrainingError where there is none.
    """
    mixture: Mixture[Example] = Mixture([data.weight for data in configs], limit, f"{seed}/uncontrolled")
    for number, data in enumerate(configs):
        with reading(open_data(data).uncontrolled()) as rows:
            for example in rows:
                mixture.offer(number, example)
    if not (drawn := mixture.drawn()):
        raise TrainingError(f"{', '.join(data.source for data in configs)}: no rows")
    return drawn


def for_objective(examples: Mapping[str, Sequence[Example]], config: TrainConfig) -> dict[str, list[Example]]:
    """The examples with their pairs, where the preference objective is to see them, or without.

    Raises TrainingError where that objective finds no pair of a preference.
    """
    if config.objective.kind == "likelihood":
        return {label: [replace(example, rejected=None) for example in group] for label, group in examples.items()}
    paired = pair_up(examples, {label: said.opposite for label, said in config.preferences.items()})
    if without := [label for label, group in paired.items() if all(example.rejected is None for example in group)]:
        raise TrainingError(
            f"objective.kind: 'preference' needs pairs, and {', '.join(without)} has none; give pairwise data, or "
            f"replies of its `opposite` to the same prompts"
        )
    return paired


def pair_up(examples: Mapping[str, Sequence[Example]], opposites: Mapping[str, str | None]) -> dict[str, list[Example]]:
    """Gives examples without a rejected reply one that the opposite preference has to the same prompt.

    Where several replies answer a prompt, the first of one side gets the first of the other, and so on round.
    Examples that have one already, that learn earlier turns too, or whose prompt has no reply of the opposite
    stay as they are.
    """
    by_prompt = {label: _by_prompt(group) for label, group in examples.items()}
    paired: dict[str, list[Example]] = {}
    for label, group in examples.items():
        others = by_prompt.get(opposites.get(label) or "", {})
        turn: dict[str, int] = defaultdict(int)
        paired[label] = []
        for example in group:
            prompt = prompt_key(example)
            replies = others.get(prompt, [])
            if replies and example.rejected is None and example.supervise == "last":
                rejected = replies[turn[prompt] % len(replies)]
                turn[prompt] += 1
                example = replace(example, rejected=rejected) if rejected != example.reply else example
            paired[label].append(example)
    return paired


def prompt_key(example: Example) -> str:
    """What pairs have in common: the conversation up to the reply, and the tools on offer."""
    return json.dumps([example.messages, example.tools], sort_keys=True)


def digest(examples: Mapping[str, Sequence[Example]]) -> str:
    """SHA-256 of what is trained on, in order."""
    hashed = hashlib.sha256()
    for label, group in examples.items():
        for example in group:
            content = [label, example.messages, example.reply, example.rejected, example.tools, example.supervise]
            hashed.update(json.dumps(content, sort_keys=True).encode())
    return hashed.hexdigest()


def _check_labels(drawn: Mapping[str, Sequence[Example]], seen: set[str], sources: str) -> None:
    if not seen:
        raise TrainingError(f"{sources}: no rows")
    if len(seen) == 1:
        raise TrainingError(
            f"{sources}: every row has the label {seen.pop()!r}; a control is told apart from at least one other"
        )
    if missing := [label for label, group in drawn.items() if not group]:
        raise TrainingError(f"{sources}: no example of {', '.join(missing)}; labels found: {', '.join(sorted(seen))}")


def _by_prompt(group: Sequence[Example]) -> dict[str, list[str | Message]]:
    replies: dict[str, list[str | Message]] = defaultdict(list)
    for example in group:
        if example.supervise == "last":
            replies[prompt_key(example)].append(example.reply)
    return replies
