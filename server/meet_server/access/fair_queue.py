"""Whose turn it is: a bounded number of requests run, a bounded number wait, and nobody's flood keeps others out.

Turns go round between keys, and within a key between preferences. Where the queue is full, the newest request of
whoever waits with the most makes room for one who waits with few. Belongs to one event loop; knows no HTTP, no engine.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal

_MAX_RETRY_S = 60
_SMOOTHING = 0.1  # share of the newest request in the average duration


class NoTurn(Exception):
    """A request cannot have a turn now. `why`: the queue is full, or the wait was too long."""

    def __init__(self, why: Literal["full", "late"], retry_after_s: int) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after_s = retry_after_s


@dataclass(slots=True, eq=False)
class Turn:
    """One request's turn. `weight` is how many replies it asks for at a time."""

    key: str
    preference: str
    weight: int = 1
    began: float = 0.0
    ended: bool = False
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


Line = OrderedDict[str, deque[Turn]]
"""Who waits with one key, by preference; the first is next."""


class FairQueue:
    """Turns for `max_running` replies at a time; `max_waiting` requests wait for one."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._lines: OrderedDict[str, Line] = OrderedDict()
        self._duration_s = 1.0
        self.num_running = 0
        self.num_waiting = 0

    def ask(self, key: str, preference: str, weight: int = 1) -> Turn:
        """A turn, which may be granted already. Raises NoTurn where the queue is full of others as deserving."""
        turn = Turn(key, preference, min(max(1, weight), self._max_running))
        if not self.num_waiting and self._fits(turn):
            self._grant(turn)
            return turn
        if self.num_waiting >= self._max_waiting:
            self._make_room(turn)
        self._lines.setdefault(key, OrderedDict()).setdefault(preference, deque()).append(turn)
        self.num_waiting += 1
        return turn

    async def wait(self, turn: Turn, timeout_s: float) -> None:
        """Returns once it is granted. Raises NoTurn; a wait that is cancelled has given its turn back."""
        try:
            await asyncio.wait_for(asyncio.shield(turn.granted), timeout_s)
        except TimeoutError:
            self.give_back(turn)
            raise NoTurn("late", self.retry_after_s) from None
        except asyncio.CancelledError:
            self.give_back(turn)
            raise

    def give_back(self, turn: Turn) -> None:
        """Ends a turn, or the wait for it, once."""
        if turn.ended:
            return
        turn.ended = True
        if not turn.granted.done():
            self._remove(turn)
            turn.granted.cancel()
        elif not turn.granted.cancelled() and turn.granted.exception() is None:
            self.num_running -= turn.weight
            now = asyncio.get_running_loop().time()
            self._duration_s += _SMOOTHING * (now - turn.began - self._duration_s)
        self._grant_next()

    @property
    def retry_after_s(self) -> int:
        """When those that wait now will have had their turns, in whole seconds."""
        seconds = self._duration_s * (self.num_waiting + 1) / self._max_running
        return max(1, min(_MAX_RETRY_S, math.ceil(seconds)))

    def _fits(self, turn: Turn) -> bool:
        return self.num_running + turn.weight <= self._max_running

    def _grant(self, turn: Turn) -> None:
        self.num_running += turn.weight
        turn.began = asyncio.get_running_loop().time()
        turn.granted.set_result(None)

    def _grant_next(self) -> None:
        while self._lines:
            key, line = next(iter(self._lines.items()))
            preference, waiting = next(iter(line.items()))
            if not self._fits(waiting[0]):
                return  # one that asks for many replies is not overtaken for ever
            turn = waiting[0]
            self._lines.move_to_end(key)
            line.move_to_end(preference)
            self._remove(turn)
            self._grant(turn)

    def _remove(self, turn: Turn) -> None:
        line = self._lines[turn.key]
        line[turn.preference].remove(turn)
        self.num_waiting -= 1
        if not line[turn.preference]:
            del line[turn.preference]
            if not line:
                del self._lines[turn.key]

    def _make_room(self, turn: Turn) -> None:
        """Sends the newest of the greediest away. Raises NoTurn where the newcomer is as greedy as any."""
        num_by_key = {key: sum(map(len, line.values())) for key, line in self._lines.items()}
        greediest = max(num_by_key, key=lambda key: num_by_key[key], default=turn.key)
        if num_by_key.get(greediest, 0) <= num_by_key.get(turn.key, 0) + 1:
            greediest = turn.key
        line = self._lines.get(greediest, OrderedDict())
        preference = max(line, key=lambda name: len(line[name]), default=turn.preference)
        own = len(line.get(turn.preference, ())) + 1
        if greediest == turn.key and len(line.get(preference, ())) <= own:
            raise NoTurn("full", self.retry_after_s)
        evicted = line[preference][-1]
        self._remove(evicted)
        evicted.granted.set_exception(NoTurn("full", self.retry_after_s))
