"""Requests that belong together are read in one step of the engine. Knows no HTTP and no controls.

The engine begins a step as soon as one request is there, so that of several that are sent at once the first is read
alone and the others in a second step. On the server's side `one_of` and `marked` write into the requests' sampling
parameters how many belong together; in the engine's process `Groups` knows which are still to come, and `waiting` has
the next step wait for them, `WAIT_S` at most and once for each group. None is held back: those that have arrived are in
vLLM's scheduler, and can be aborted as ever. While others are being answered no step waits: they would pay for it, and
those that arrive during one step are read together in the next anyhow.
"""

from __future__ import annotations

import functools
import queue
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

FIELD = "meet_together"
"""In `SamplingParams.extra_args`: the group, which of it this is, and how many they are. No client can set it."""

WAIT_S = 0.02
"""From the first of a group to the step that begins without the others, in seconds."""

_MOST = 64  # that may belong together
_KEPT = 256  # groups that are remembered, so that who comes late is not waited for anew

_Mark = tuple[str, int, int]


@dataclass(slots=True)
class _Unsaid:
    """What the next request of a task is to say; later ones of it, as beams are, belong to nobody."""

    mark: _Mark | None


_UNSAID: ContextVar[_Unsaid | None] = ContextVar("meet_together", default=None)


def each_of(num: int) -> list[AbstractContextManager[None]]:
    """For each of `num` tasks what to be in while it puts its request to the engine."""
    group = uuid.uuid4().hex
    return [one_of((group, index, num)) for index in range(num)]


@contextmanager
def one_of(mark: _Mark) -> Iterator[None]:
    """The first request that is put to the engine within is one of a group."""
    token = _UNSAID.set(_Unsaid(mark))
    try:
        yield
    finally:
        _UNSAID.reset(token)


def marked(params: Any) -> Any:
    """The sampling parameters of a request that is about to be put to the engine, with what it is one of in them, and
    without what a client may have said in its place."""
    unsaid = _UNSAID.get()
    mark = None
    if unsaid is not None:
        mark, unsaid.mark = unsaid.mark, None
    extra = getattr(params, "extra_args", None) or {}
    if mark is not None or FIELD in extra:
        others = {name: value for name, value in extra.items() if name != FIELD}
        params.extra_args = (others if mark is None else {**others, FIELD: list(mark)}) or None
    return params


@dataclass(slots=True)
class _Group:
    until: float
    missing: set[int]


class Groups:
    """Who has arrived in an engine's process, of groups that are not complete."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def arrived(self, params: Any, now: float) -> None:
        """A request with these parameters was added at `now`, in seconds of a monotonic clock."""
        match (getattr(params, "extra_args", None) or {}).get(FIELD):
            case [str(name), int(index), int(num)] if num <= _MOST:
                if name not in self._groups:
                    if len(self._groups) >= _KEPT:
                        del self._groups[next(iter(self._groups))]
                    self._groups[name] = _Group(now + WAIT_S, set(range(num)))
                self._groups[name].missing.discard(index)
            case _:
                pass

    def wait_s(self, now: float) -> float:
        """For how many seconds the next step is to wait; 0 or less where nobody is waited for."""
        return max((each.until - now for each in self._groups.values() if each.missing), default=0.0)


def noting(add_request: Callable[..., Any], groups: Groups) -> Callable[..., Any]:
    """`EngineCore.add_request` that tells `groups` of each request."""

    @functools.wraps(add_request)
    def add(core: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        groups.arrived(request.sampling_params, time.monotonic())
        return add_request(core, request, *args, **kwargs)

    return add


def waiting(process_input_queue: Callable[..., Any], groups: Groups) -> Callable[..., Any]:
    """`EngineCoreProc._process_input_queue`, which returns when a step is to be made, later where `groups` say so."""

    @functools.wraps(process_input_queue)
    def process(core: Any) -> None:
        process_input_queue(core)
        num_running, _ = core.scheduler.get_request_counts()
        while not num_running and (left := groups.wait_s(time.monotonic())) > 0:
            try:
                said = core.input_queue.get(timeout=left)
            except queue.Empty:
                return
            core._handle_client_request(*said)

    return process


def install() -> None:
    """Puts both into vLLM's engine process, once."""
    from vllm.v1.engine.core import EngineCore, EngineCoreProc

    if not hasattr(EngineCoreProc._process_input_queue, "__wrapped__"):
        groups = Groups()
        EngineCore.add_request = noting(EngineCore.add_request, groups)
        EngineCoreProc._process_input_queue = waiting(EngineCoreProc._process_input_queue, groups)
