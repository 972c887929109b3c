"""Requests that belong together are read in one step, and one that does not come is not waited for long."""

from __future__ import annotations

import queue
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from running_server import Server, Soft

from meet_server.engine import together
from meet_server.engine.controlled_client import ControlledEngine
from meet_server.engine.together import FIELD, WAIT_S, Groups


def params(extra: dict[str, Any] | None = None) -> Any:
    return SimpleNamespace(extra_args=extra)


def mark(index: int, num: int, group: str = "g") -> Any:
    return params({FIELD: [group, index, num]})


def test_each_says_once_what_it_is_one_of() -> None:
    said = []
    for context in together.each_of(3):
        with context:
            said.append(together.marked(params({"other": 1})).extra_args)
            assert together.marked(params()).extra_args is None  # a beam's second step waits for nobody
    assert [each["other"] for each in said] == [1, 1, 1]
    (group,) = {each[FIELD][0] for each in said}
    assert [each[FIELD] for each in said] == [[group, index, 3] for index in range(3)]
    with together.each_of(1)[0]:
        pass  # a task that ended before it asked
    assert together.marked(params()).extra_args is None


def test_no_client_says_it_in_the_servers_place() -> None:
    assert together.marked(params({FIELD: ["g", 0, 2], "other": 1})).extra_args == {"other": 1}
    assert together.marked(params({FIELD: ["g", 0, 2]})).extra_args is None
    (context,) = together.each_of(1)
    with context:
        assert together.marked(params({FIELD: ["g", 0, 2]})).extra_args[FIELD][1:] == [0, 1]


class TestGroups:
    def test_all_but_the_last_are_waited_for(self) -> None:
        groups = Groups()
        groups.arrived(params(), 0)
        assert groups.wait_s(0) == 0
        for index in (2, 0):
            groups.arrived(mark(index, 3), 0.001)
            assert groups.wait_s(0.001) == pytest.approx(WAIT_S)
        groups.arrived(mark(1, 3), 0.002)
        assert groups.wait_s(0.002) == 0

    def test_who_comes_late_is_not_waited_for_anew(self) -> None:
        groups = Groups()
        groups.arrived(mark(0, 3), 0)
        assert groups.wait_s(WAIT_S) <= 0
        groups.arrived(mark(1, 3), 1)
        assert groups.wait_s(1) <= 0

    def test_who_comes_twice_opens_no_group(self) -> None:
        groups = Groups()
        for index in (0, 1, 0, 1):  # two choices each
            groups.arrived(mark(index, 2), 0)
        assert groups.wait_s(0) == 0

    def test_many_groups_are_forgotten(self) -> None:
        groups = Groups()
        for number in range(10_000):
            groups.arrived(mark(0, 1, str(number)), 0)
        assert len(groups._groups) <= 256

    @pytest.mark.parametrize("said", ["x", [], [1, 2, 3], ["g", 0], {"g": 1}, 3, ["g", 0, 10**9]])
    def test_what_is_no_mark_is_nobodys(self, said: Any) -> None:
        groups = Groups()
        groups.arrived(params({FIELD: said}), 0)
        assert groups.wait_s(0) == 0


class Core:
    """What `waiting` asks of the engine's process."""

    def __init__(self, groups: Groups) -> None:
        self.input_queue: queue.Queue[tuple[Any]] = queue.Queue()
        self.added: list[Any] = []
        self.num_running = 0
        self.scheduler = SimpleNamespace(get_request_counts=lambda: (self.num_running, len(self.added)))
        self.add = together.noting(lambda core, request: core.added.append(request), groups)
        self.step = together.waiting(lambda core: core._handle_client_request(*core.input_queue.get()), groups)

    def _handle_client_request(self, request: Any) -> None:
        self.add(self, request)


def request(sampling_params: Any) -> Any:
    return (SimpleNamespace(sampling_params=sampling_params),)


def test_a_step_begins_when_all_are_there() -> None:
    core = Core(Groups())
    for index in range(3):
        core.input_queue.put(request(mark(index, 3)))
    start = time.monotonic()
    core.step(core)
    assert len(core.added) == 3
    assert time.monotonic() - start < WAIT_S


def test_a_step_begins_without_one_that_does_not_come() -> None:
    core = Core(Groups())
    core.input_queue.put(request(mark(0, 2)))
    start = time.monotonic()
    core.step(core)
    assert len(core.added) == 1
    assert WAIT_S <= time.monotonic() - start < 10 * WAIT_S
    core.input_queue.put(request(params()))
    core.input_queue.put(request(params()))
    start = time.monotonic()
    core.step(core)
    assert len(core.added) == 2  # the other request belongs to nobody: it is for the next step's look
    assert time.monotonic() - start < WAIT_S


def test_no_step_waits_while_others_are_answered() -> None:
    core = Core(Groups())
    core.num_running = 1
    core.input_queue.put(request(mark(0, 2)))
    start = time.monotonic()
    core.step(core)
    assert time.monotonic() - start < WAIT_S


@pytest.mark.parametrize(("num_engines", "num_marked"), [(1, 3), (2, 0)])
def test_of_several_engines_none_waits_for_another(num_engines: int, num_marked: int) -> None:
    parallel = SimpleNamespace(data_parallel_size=num_engines)
    engine: Any = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))
    said = []
    for context in ControlledEngine(engine).together(3):
        with context:
            said.append(together.marked(params()).extra_args)
    assert sum(each is not None for each in said) == num_marked


@pytest.mark.parametrize("kind", ["lora", "soft"])
def test_several_preferences_are_read_in_one_step(
    kind: str, server: Server, soft: Soft, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = server if kind == "lora" else soft.server
    steps = []
    processor = asked.engine.plain.output_processor
    process = processor.process_outputs

    def counting(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if outputs:
            steps.append(len(outputs))
        return process(outputs, *args, **kwargs)

    monkeypatch.setattr(processor, "process_outputs", counting)
    for number in range(5):
        body = {
            "prompt": [5 + number] * 40 + list(range(3, 43)),
            "max_tokens": 1,
            "preferences": ["concise", "detailed", None],
        }
        reply = httpx.post(f"{asked.url}/v1/completions", json=body, timeout=60)
        assert len(reply.json()["choices"]) == 3
    assert steps.count(3) >= 4, steps  # one may come late on a machine that is busy with other things
