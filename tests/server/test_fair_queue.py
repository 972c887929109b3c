"""Turns, with no clock but the loop's and no requests at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from meet_server.access.fair_queue import FairQueue, NoTurn, Turn


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def order(queue: FairQueue, turns: list[Turn], running: Turn) -> list[str]:
    """Whose turn comes after whose, one at a time."""
    found = []
    while True:
        queue.give_back(running)
        granted = [turn for turn in turns if turn.granted.done()]
        if not granted:
            return found
        running = granted[0]
        turns.remove(running)
        found.append(f"{running.key}{running.preference}")


def test_at_once_while_there_is_room() -> None:
    async def test() -> None:
        queue = FairQueue(2, 2)
        turns = [queue.ask("a", "x") for _ in range(4)]
        assert [turn.granted.done() for turn in turns] == [True, True, False, False]
        with pytest.raises(NoTurn) as caught:
            queue.ask("a", "x")
        assert (caught.value.why, caught.value.retry_after_s) == ("full", 2)
        queue.give_back(turns[0])
        assert turns[2].granted.done()
        for turn in turns[1:]:
            queue.give_back(turn)
        assert (queue.num_running, queue.num_waiting) == (0, 0)

    run(test)


def test_turns_go_round_between_keys_and_within_a_key_between_preferences() -> None:
    async def test() -> None:
        queue = FairQueue(1, 100)
        first = queue.ask("z", "")
        flood = [queue.ask("a", "x") for _ in range(4)]
        others = [queue.ask("a", "y"), queue.ask("b", "x"), queue.ask("b", "x")]
        assert order(queue, [*flood, *others], first) == ["ax", "bx", "ay", "bx", "ax", "ax", "ax"]

    run(test)


def test_a_full_queue_makes_room_for_who_waits_with_few() -> None:
    async def test() -> None:
        queue = FairQueue(1, 6)
        queue.ask("z", "")
        flood = [queue.ask("a", "x") for _ in range(6)]
        few = [queue.ask("b", "x") for _ in range(3)]
        assert [turn.granted.done() for turn in flood] == [False] * 3 + [True] * 3  # the newest were sent away
        for turn in flood[3:]:
            with pytest.raises(NoTurn):
                turn.granted.result()
        with pytest.raises(NoTurn):
            queue.ask("b", "x")
        with pytest.raises(NoTurn):
            queue.ask("a", "x")
        assert queue.num_waiting == 6
        assert not any(turn.granted.done() for turn in few)
        within = queue.ask("a", "y")  # the same between preferences of one key
        assert not within.granted.done()
        assert flood[2].granted.done()

    run(test)


def test_a_full_queue_makes_room_only_for_who_waits_with_fewer() -> None:
    async def test() -> None:
        queue = FairQueue(1, 3)
        queue.ask("k", "")
        x, newest_x, z = (queue.ask("a", preference) for preference in "xxz")
        queue.ask("a", "y")
        assert [turn.granted.done() for turn in (x, newest_x, z)] == [False, True, False]
        with pytest.raises(NoTurn):
            queue.ask("a", "w")  # as many as each of the others
        queue.ask("b", "x")
        with pytest.raises(NoTurn):
            queue.ask("b", "y")  # it would have two then, and `a` one
        queue.give_back(newest_x)  # which had no turn
        assert (queue.num_running, queue.num_waiting) == (1, 3)
        assert all(isinstance(turn.granted.exception(), NoTurn) for turn in (x, newest_x))
        nobody_waits = FairQueue(1, 0)
        nobody_waits.ask("a", "x")
        with pytest.raises(NoTurn):
            nobody_waits.ask("a", "x")

    run(test)


def test_one_that_asks_for_many_replies_is_not_overtaken_for_ever() -> None:
    async def test() -> None:
        queue = FairQueue(4, 100)
        small = [queue.ask("a", "x") for _ in range(4)]
        large = queue.ask("b", "x", weight=64)  # more than there is counts as all there is
        after = [queue.ask("a", "x") for _ in range(2)]
        for turn in small[:3]:
            queue.give_back(turn)
            assert not large.granted.done()
        after.append(queue.ask("a", "x"))  # for which there would be room
        assert not after[-1].granted.done()
        queue.give_back(small[3])
        assert large.granted.done()
        assert not any(turn.granted.done() for turn in after)
        queue.give_back(large)
        assert all(turn.granted.done() for turn in after)

    run(test)


def test_waits_end() -> None:
    async def test() -> None:
        queue = FairQueue(1, 10)
        first = queue.ask("a", "x")
        late, cancelled, last = (queue.ask("a", "x") for _ in range(3))
        with pytest.raises(NoTurn) as caught:
            await queue.wait(late, 0.01)
        assert caught.value.why == "late"
        task = asyncio.create_task(queue.wait(cancelled, 10))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (task.cancelled(), queue.num_waiting) == (True, 1)
        returned = queue.ask("a", "x")
        task = asyncio.create_task(queue.wait(returned, 10))
        await asyncio.sleep(0)
        queue.give_back(returned)
        await asyncio.wait([task], timeout=1)
        assert (task.cancelled(), queue.num_waiting) == (True, 1)
        queue.give_back(first)
        await queue.wait(last, 10)
        queue.give_back(last)
        assert (queue.num_running, queue.num_waiting) == (0, 0)

    run(test)


def test_when_to_come_again_follows_how_long_turns_last_and_how_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        queue = FairQueue(2, 10)
        turns = [queue.ask("a", "x") for _ in range(3)]
        now += 21
        queue.give_back(turns[2])  # waited, and never ran
        queue.give_back(turns[0])
        assert queue.retry_after_s == 2  # 1 s at first, and a tenth of the way to 21 s: 3 s, of which two run at a time
        queue.give_back(turns[0])
        turns += [queue.ask("a", "x") for _ in range(4)]
        assert queue.retry_after_s == 6  # after the three that wait
        now += 10_000
        queue.give_back(turns[1])
        assert queue.retry_after_s == 60

    run(test)
