"""What is in data, in one pass over it: form, labels, lengths, duplicates, pairs, and one example in full.

Holds counts, lengths and digests of what it read, never the examples. Shows nothing: that is the command's.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from meet_training.data.dataset import DataSet
from meet_training.data.drawing import Draws, shares
from meet_training.data.example import Example, Message
from meet_training.data.forms import pair_up, prompt_key
from meet_training.data.measure import Measure, Segment
from meet_training.data.sources import reading
from meet_training.errors import TrainingError

OnExample = Callable[[int], None]
"""How many examples were looked at."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class DataSetFigures(_Frozen):
    """One data set as it was recognised."""

    source: str
    form: str
    why: str = Field(description="what its form was recognised by")
    rows: int = Field(description="rows that `where` keeps")
    bad_rows: int = Field(description="of these, rows without their form, left out as `bad_rows` says")
    first_bad_row: str | None


class Lengths(_Frozen):
    """Quantiles that occur, in the inspection's unit."""

    p50: int
    p90: int
    max: int


class PreferenceFigures(_Frozen):
    """The examples of one preference."""

    examples: int
    taken: int = Field(description="examples that training takes, by weight and examples_per_preference")
    whole: Lengths | None = Field(description="prompt and reply")
    supervised: Lengths | None
    too_long: int | None = Field(description="examples over max_length, which training leaves out")
    pairs: int = Field(description="examples with the reply that they are preferred to")
    could_pair: int = Field(description="others whose prompt the opposite preference answers too")
    pairs_taken: int | None = Field(description="of those taken, examples with a pair, where the objective wants pairs")


class OverlapFigures(_Frozen):
    """How much of a test file stands in the data."""

    rows: int
    prompts_in_both: int = Field(description="rows whose prompt is in the data")
    replies_in_both: int = Field(description="of these, rows whose reply is in the data too")


class Inspection(_Frozen):
    """Everything that was found."""

    data: list[DataSetFigures]
    unit: str
    max_length: int | None
    preferences: dict[str, PreferenceFigures]
    labels: dict[str, int] = Field(description="replies by the label that the data gives them")
    not_wanted: int = Field(description="replies that are data of no preference")
    duplicates: int = Field(description="examples that occur again under the same preference")
    in_several: int = Field(description="replies to one prompt that are data of several preferences")
    test: OverlapFigures | None
    example: list[Segment] = Field(description="the first example, as the model sees it")
    example_preference: str
    example_rejected: str | None


@dataclass(slots=True)
class _Group:
    """What is kept of one preference's examples."""

    by_data_set: Counter[int] = field(default_factory=Counter)
    whole: array[int] = field(default_factory=lambda: array("L"))
    supervised: array[int] = field(default_factory=lambda: array("L"))
    examples: set[int] = field(default_factory=set)
    lone_prompts: Counter[int] = field(default_factory=Counter)
    prompts: set[int] = field(default_factory=set)
    num_pairs: int = 0
    num_duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What training would do with the data: its preferences with their opposites, its limits, the seed that examples
    are drawn by, and whether its objective wants pairs."""

    opposites: Mapping[str, str | None] = field(default_factory=dict)
    max_length: int | None = None
    limit: int | None = None
    seed: int = 0
    pairs: bool = False


def inspect(
    data_sets: Sequence[DataSet],
    measure: Measure,
    wanted: Wanted,
    *,
    test: DataSet | None = None,
    on_example: OnExample | None = None,
) -> Inspection:
    """Reads all data sets, and the test's, and counts. Raises TrainingError where a row is refused or none is there."""
    groups: dict[str, _Group] = {label: _Group() for label in wanted.opposites}
    labels: Counter[str] = Counter()
    first: Example | None = None
    num_seen = num_not_wanted = 0
    weights = [data_set.data.weight for data_set in data_sets]
    draws: Draws[Example] | None = None
    if wanted.pairs:
        draws = Draws(wanted.opposites, weights, wanted.limit, wanted.seed)
    for number, data_set in enumerate(data_sets):
        with reading(data_set.labelled()) as rows:
            for label, example, again in rows:
                labels[label] += 1
                num_seen += 1
                if on_example:
                    on_example(num_seen)
                if example is None:
                    num_not_wanted += not again
                    continue
                first = first or example
                _count(groups.setdefault(example.preference, _Group()), number, example, measure)
                if draws is not None and example.preference in wanted.opposites:
                    draws.offer(example.preference, number, _shortened(example), prompt_key(example))
    if first is None:
        sources = ", ".join(data_set.data.source for data_set in data_sets)
        raise TrainingError(f"{sources}: {'no rows' if not labels else 'no row is data of a preference'}")
    paired = {} if draws is None else pair_up(draws.drawn(), wanted.opposites)
    return Inspection(
        data=[_data_set_figures(data_set) for data_set in data_sets],
        unit=measure.unit,
        max_length=wanted.max_length,
        preferences={label: _figures(label, groups, weights, wanted, paired.get(label)) for label in groups},
        labels=dict(labels.most_common()),
        not_wanted=num_not_wanted,
        duplicates=sum(group.num_duplicates for group in groups.values()),
        in_several=_in_several(groups),
        test=None if test is None else _overlap(test, groups),
        example=measure.segments(first),
        example_preference=first.preference,
        example_rejected=measure.rejected(first),
    )


def _count(group: _Group, data_set: int, example: Example, measure: Measure) -> None:
    length = measure.length(example)
    group.by_data_set[data_set] += 1
    group.whole.append(length.whole)
    group.supervised.append(length.supervised)
    prompt, whole = _digests(example.messages, example.reply)
    if whole in group.examples:
        group.num_duplicates += 1
    group.examples.add(whole)
    group.prompts.add(prompt)
    if example.rejected is not None:
        group.num_pairs += 1
    elif example.supervise == "last":
        group.lone_prompts[prompt] += 1


def _figures(
    label: str,
    groups: Mapping[str, _Group],
    weights: Sequence[float | None],
    wanted: Wanted,
    paired: Sequence[Example] | None,
) -> PreferenceFigures:
    group = groups[label]
    opposite = groups.get(wanted.opposites.get(label) or "", _Group())
    num = len(group.whole)
    given = [weight for weight in weights if weight is not None]
    if given:
        taken = sum(shares([group.by_data_set[i] for i in range(len(given))], given, wanted.limit))
    else:
        taken = num if wanted.limit is None else min(num, wanted.limit)
    too_long = None if wanted.max_length is None else sum(n > wanted.max_length for n in group.whole)
    return PreferenceFigures(
        examples=num,
        taken=taken,
        whole=_lengths(group.whole),
        supervised=_lengths(group.supervised),
        too_long=too_long,
        pairs=group.num_pairs,
        could_pair=sum(n for prompt, n in group.lone_prompts.items() if prompt in opposite.prompts),
        pairs_taken=None if paired is None else sum(example.rejected is not None for example in paired),
    )


def _data_set_figures(data_set: DataSet) -> DataSetFigures:
    recognised = data_set.recognised
    return DataSetFigures(
        source=data_set.data.source,
        form=recognised.form if recognised else "none",
        why=recognised.why if recognised else "it has no rows",
        rows=data_set.num_rows,
        bad_rows=data_set.num_bad_rows,
        first_bad_row=data_set.first_bad_row,
    )


def _lengths(values: array[int]) -> Lengths | None:
    if not values:
        return None
    ordered = sorted(values)
    at = [ordered[round(share * (len(ordered) - 1))] for share in (0.5, 0.9, 1.0)]
    return Lengths(p50=at[0], p90=at[1], max=at[2])


def _in_several(groups: Mapping[str, _Group]) -> int:
    counts = Counter(digest for group in groups.values() for digest in group.examples)
    return sum(count > 1 for count in counts.values())


def _overlap(test: DataSet, groups: Mapping[str, _Group]) -> OverlapFigures:
    num_prompts = num_replies = 0
    with reading(test.asked()) as rows:
        for messages, reply in rows:
            prompt, whole = _digests(messages, reply)
            if any(prompt in group.prompts for group in groups.values()):
                num_prompts += 1
                num_replies += reply is not None and any(whole in group.examples for group in groups.values())
    return OverlapFigures(rows=test.num_rows, prompts_in_both=num_prompts, replies_in_both=num_replies)


def _shortened(example: Example) -> Example:
    """An example of which digests alone are left, as much as says what it makes a pair with."""
    prompt, whole = _digests([*example.messages, *(example.tools or ())], example.reply)
    rejected = None if example.rejected is None else ""
    return Example(({"prompt": prompt},), str(whole), example.preference, rejected, supervise=example.supervise)


def _digests(messages: Sequence[Message], reply: str | Message | None) -> tuple[int, int]:
    """Of the prompt, and of prompt and reply: 64 bits each, so that a million of them take little room."""
    hashed = hashlib.blake2b(json.dumps(messages, sort_keys=True).encode(), digest_size=8)
    prompt = hashed.digest()
    hashed.update(json.dumps(reply, sort_keys=True).encode())
    return int.from_bytes(prompt, "big"), int.from_bytes(hashed.digest(), "big")
