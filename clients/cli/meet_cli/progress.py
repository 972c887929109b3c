"""Tells how far a long command is: live bars on a terminal, a plain line now and then elsewhere.

Knows names, counts and words; what is counted is the command's business. All of it goes to stderr, so that
stdout holds the result alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_S = 10.0

Tell = Callable[[str, int, int, str], None]
"""What is being done, how much of it is done, how much there is, and what else there is to say."""


@contextmanager
def telling(console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Tell]:
    """A function that tells progress on `console` (stderr where none is given) until the block ends.

    `clock` gives seconds; it decides when the next plain line is due.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as tell:
            yield tell
    else:
        yield _lines(console, clock)


@contextmanager
def _bars(console: Console) -> Iterator[Tell]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as progress:

        def tell(name: str, num_done: int, num_all: int, words: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, words=words)
            progress.update(tasks[name], completed=num_done, total=num_all, words=words)

        yield tell


def _lines(console: Console, clock: Callable[[], float]) -> Tell:
    told_at: dict[str, float] = {}

    def tell(name: str, num_done: int, num_all: int, words: str) -> None:
        now = clock()
        if num_done < num_all and name in told_at and now - told_at[name] < LINE_EVERY_S:
            return
        told_at[name] = now
        line = f"{name}: {num_done}/{num_all}" + (f", {words}" if words else "")
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return tell


def tell_step(words: str) -> None:
    """Tells on stderr that a slow step begins."""
    click.echo(f"{words} ...", err=True)


def tell_warning(words: str) -> None:
    """Tells on stderr what does not end the command now, and may later."""
    click.echo(f"warning: {words}", err=True)


def duration(seconds: float) -> str:
    """A number of seconds in the words that a person would use: `45 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_over = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {seconds_over} s"
    return f"{minutes // 60} h {minutes % 60} min"
