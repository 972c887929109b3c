"""Draws examples by a seed out of streams of any length, and mixes data sets by weight. Pure.

A stream is drawn from in one pass that holds no more than what is kept: every item gets a pseudo-random
priority from the seed and its place in the stream, and those with the lowest priorities stay. So a smaller
draw is a part of every larger one, and more items at the end of a stream leave most of a draw as it was.
Streams whose items get their priorities from something that they have in common are drawn from alike.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """At most `limit` of the items that are offered, all where it is None; every item is as likely."""

    def __init__(self, limit: int | None, seed: str) -> None:
        self.limit = limit
        self.seed = seed
        self.num_offered = 0
        self._kept: list[tuple[int, int, T]] = []  # a heap whose first has the highest priority value

    def offer(self, item: T, by: str | None = None) -> None:
        """Keeps the item, or another one in its place, or drops it. `by` is what its priority comes from, where that is
        not the seed and its place."""
        place = self.num_offered
        self.num_offered += 1
        entry = (-_priority(f"{self.seed}/{place}" if by is None else by), place, item)
        if self.limit is None or len(self._kept) < self.limit:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def drawn(self, num: int | None = None) -> list[T]:
        """`num` of what is kept, all where it is None, in the order in which they were offered."""
        kept = self._kept if num is None else heapq.nlargest(num, self._kept, key=lambda entry: entry[:2])
        return [item for _, _, item in sorted(kept, key=lambda entry: entry[1])]


class Mixture(Generic[T]):
    """Items of several data sets: all of them, or by weight, drawn by the seed where there are more than `limit`."""

    def __init__(self, weights: Sequence[float | None], limit: int | None, seed: str) -> None:
        """Weights are those of the data sets, in their order; all None: the sets are one."""
        self.weights = [weight for weight in weights if weight is not None]
        self.limit = limit
        num_parts = len(self.weights) or 1
        self._parts: list[Reservoir[T]] = [Reservoir(limit, f"{seed}/{part}") for part in range(num_parts)]

    def offer(self, data_set: int, item: T, by: str | None = None) -> None:
        """One item of the data set with this number, and what its priority comes from (`Reservoir.offer`)."""
        self._parts[data_set if self.weights else 0].offer(item, by)

    def drawn(self) -> list[T]:
        """What is taken, data set by data set, each in its own order."""
        if not self.weights:
            return self._parts[0].drawn()
        nums = shares([part.num_offered for part in self._parts], self.weights, self.limit)
        return [item for part, num in zip(self._parts, nums, strict=True) for item in part.drawn(num)]


class Draws(Generic[T]):
    """What is drawn of every preference: of each by itself, or by prompt, so that pairs stay together.

    By prompt the n-th items that preferences have of a prompt get one priority. So what is drawn of two that have the
    same prompts equally often are the same prompts, of which each has as many.
    """

    def __init__(
        self, preferences: Iterable[str], weights: Sequence[float | None], limit: int | None, seed: int
    ) -> None:
        self._seed = seed
        self._mixtures = {label: Mixture[T](weights, limit, f"{seed}/{label}") for label in preferences}
        self._num_of_prompt: Counter[tuple[str, int]] = Counter()

    def offer(self, preference: str, data_set: int, item: T, prompt: str | None = None) -> None:
        """One item of a preference and a data set; `prompt` where it is drawn by that. Raises KeyError where the
        preference is none of those."""
        by = None
        if prompt is not None:
            drawn_by = preference, _priority(prompt)  # as little of a prompt as tells it from others
            by = f"{self._seed}/{drawn_by[1]}/{self._num_of_prompt[drawn_by]}"
            self._num_of_prompt[drawn_by] += 1
        self._mixtures[preference].offer(data_set, item, by)

    def drawn(self) -> dict[str, list[T]]:
        """What is taken of every preference."""
        return {label: mixture.drawn() for label, mixture in self._mixtures.items()}


def shares(available: Sequence[int], weights: Sequence[float], limit: int | None) -> list[int]:
    """How many items to take of each data set, so that their numbers stand to each other as the weights.

    As many as the scarcest data set allows, at most `limit`; a data set that has none is left out of the sum.
    Fractions of an item go to the data sets with the largest ones, the first of equals.
    """
    exact = [Fraction(repr(weight)) if num else Fraction() for weight, num in zip(weights, available, strict=True)]
    whole = sum(exact)
    if not whole:
        return [0] * len(exact)
    total = min(int(num * whole / weight) for num, weight in zip(available, exact, strict=True) if weight)
    total = total if limit is None else min(limit, total)
    wanted = [total * weight / whole for weight in exact]
    nums = [int(share) for share in wanted]
    by_remainder = sorted(range(len(nums)), key=lambda i: (nums[i] - wanted[i], i))
    for i in by_remainder[: total - sum(nums)]:
        nums[i] += 1
    return nums


def _priority(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
