"""Processes that write to one registry, and are killed while they do. Prints figures as JSON, or fails.

python tests/server/registry_writers.py kills|turns FOLDER
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from controls import sealed
from example_manifest import DIGEST, manifest, preference

from meet_server.errors import MeetError
from meet_server.registry.record import Files
from meet_server.registry.state import State, added, changed, removed, updated
from meet_server.registry.store import Store

BUNDLE = manifest()
NUM_KILLS, NUM_PROCESSES, NUM_CHANGES = 200, 4, 15


def control(name: str, text: str) -> Files:
    """A control of that name, whose description and weights are told apart by the text."""
    files = {"adapter_model.safetensors": text.encode() * 2000, "adapter_config.json": b"{}"}
    return sealed(preference(name, description=text), files, DIGEST)


def turns(folder: Path) -> dict[str, int]:
    """Each process changes a preference of its own; none of the changes is lost to another's."""
    children = [forked(lambda number=number: write_own(folder, number)) for number in range(NUM_PROCESSES)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * NUM_PROCESSES
    store = Store(folder)
    state = store.read()
    found = {name: store.record(str(entry.content)).description for name, entry in state.entries.items()}
    assert found == {f"p{number}": f"{number}-{NUM_CHANGES - 1}" for number in range(NUM_PROCESSES)}
    for content in state.contents:
        store.verify(content)
    # The last of them held its own when it ended; what it held goes with the next change.
    store.update(describing("concise", "the end"))
    assert names(folder) == state.contents
    return {"processes": NUM_PROCESSES, "changes": state.generation}


def write_own(folder: Path, number: int) -> None:
    store = Store(folder)
    for step in range(NUM_CHANGES):
        content = store.keep(control(f"p{number}", f"{number}-{step}"))
        store.update(taking_in(added if step == 0 else updated, f"p{number}", content))


def kills(folder: Path) -> dict[str, int]:
    """What was acknowledged is there, and of what was not, either all or nothing."""
    chance = random.Random(0)
    figures = {"kills": NUM_KILLS, "acknowledged": 0, "unacknowledged": 0, "lost": 0, "half_written": 0}
    last, change_s = State(), seconds_a_change(folder.parent)
    for number in range(NUM_KILLS):
        acknowledged = killed_writer(folder, number, chance.uniform(0, 16) * change_s)
        last = acknowledged[-1] if acknowledged else last
        figures["acknowledged"] += len(acknowledged)
        store = Store(folder)
        state = store.read()
        figures["lost"] += state.generation < last.generation or (state.generation == last.generation and state != last)
        figures["unacknowledged"] += state.generation == last.generation + 1
        assert state.generation <= last.generation + 1
        figures["half_written"] += sum(not is_whole(store, content) for content in state.contents)
        last = state
    # What the killed ones left behind goes with the next change.
    Store(folder).update(lambda state: changed(state, BUNDLE, "concise", {"description": "the end"}))
    assert names(folder) == Store(folder).read().contents
    return figures


def seconds_a_change(parent: Path) -> float:
    """How long one takes on this disk, under what else there is to do now: kills are to fall into the first."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        start = time.perf_counter()
        write_own(Path(folder), 0)
        return (time.perf_counter() - start) / NUM_CHANGES


def killed_writer(folder: Path, number: int, after_s: float) -> list[State]:
    """What a process said was committed, before it was killed, so long after it began."""
    reading, writing = os.pipe()
    child = forked(lambda: write_until_killed(folder, number, writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        pipe.read(1)  # it is about to begin
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return [State.model_validate_json(line) for line in pipe.read().split(b"\n") if line]


def write_until_killed(folder: Path, number: int, pipe: int) -> None:
    store, step = Store(folder), 0
    os.write(pipe, b"\n")
    while True:
        name = f"p{step % 3}"
        exists = bool(store.read().entry(name).revisions)
        if step % 7 == 6:
            state = store.update(describing("concise", f"{number}-{step}"))
        elif step % 5 == 4 and exists:
            state = store.update(removing(name))
        else:
            content = store.keep(control(name, f"{number}-{step}"))
            state = store.update(taking_in(updated if exists else added, name, content))
        os.write(pipe, state.model_dump_json().encode() + b"\n")
        step += 1


def taking_in(change: Callable[..., State], name: str, content: str) -> Callable[[State], State]:
    return lambda state: change(state, BUNDLE, name, content)


def describing(name: str, text: str) -> Callable[[State], State]:
    return lambda state: changed(state, BUNDLE, name, {"description": text})


def removing(name: str) -> Callable[[State], State]:
    return lambda state: removed(state, BUNDLE, name)


def is_whole(store: Store, content: str) -> bool:
    try:
        store.verify(content)
    except (MeetError, OSError):
        return False
    return True


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "contents").iterdir()}


def forked(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"kills": kills, "turns": turns}[sys.argv[1]](Path(sys.argv[2]))))
