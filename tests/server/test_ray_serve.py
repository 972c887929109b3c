"""Two replicas of the tiny bundle under Ray Serve, run by `meet serve --ray`: one is killed under load at the end.

`make test-ray` installs Ray and runs these.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from controls import new_control

from meet_bundle import open_bundle
from meet_server.registry.record import pack

pytest.importorskip("ray", reason="Ray is not installed; `make test-ray` does it")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ADMIN = "sk-admin-0123456789"
REPLICA = "x-meet-replica"
COMPLETIONS = "/v1/completions"
START_S, REPLACED_S, TAKEN_UP_S = 600, 600, 5


@dataclass
class Served:
    """What the tests ask, and where its processes are."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {ADMIN}"})

    def post(self, body: dict[str, Any], replica: str | None = None, timeout: float = 120) -> httpx.Response:
        body = {"prompt": "What is rain?", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **body}
        return httpx.post(f"{self.url}{COMPLETIONS}", json=body, headers=self.to(replica), timeout=timeout)

    def to(self, replica: str | None) -> dict[str, str]:
        return self.headers | ({REPLICA: replica} if replica else {})

    def text(self, preference: object, replica: str | None = None) -> str:
        response = self.post({"preference": preference}, replica)
        assert response.status_code == 200, response.text
        assert replica in (None, response.headers[REPLICA])
        return str(response.json()["choices"][0]["text"])

    def replicas(self) -> set[str]:
        """Those that answer now. Of two idle ones either is drawn, and one is missed once in 2^19."""
        asked = (httpx.get(f"{self.url}/v1/models", headers=self.headers, timeout=60) for _ in range(20))
        return {response.headers[REPLICA] for response in asked if response.status_code == 200}

    def process_of(self, replica: str) -> psutil.Process:
        """Ray's process that is this replica, as it calls itself in its log."""
        self.text(None, replica)
        (pid,) = set(re.findall(rf"pid=(\d+)\).* meet_Replica {replica} ", self.log.read_text()))
        return psutil.Process(int(pid))


@pytest.fixture(scope="module")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("ray") / "log"
    scratch = Path(tempfile.mkdtemp(prefix="meet-ray-"))  # a short path: Ray makes sockets in it
    command = [
        sys.executable, "-m", "meet_cli.commands.serve", str(bundle), "--ray", "--replicas", "2", f"--port={port}",
        "--set", "ray.cpus=0.5", "--set", "engine_timeout_s=600",
        "--", "--kv-cache-memory-bytes=67108864", "--max-num-seqs=16",
    ]  # fmt: skip
    environment = os.environ | {
        "RAY_TMPDIR": str(scratch),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray makes one, and keeps it in the home folder
        "RAY_agent_register_timeout_ms": "120000",  # for a machine with other work
        "RAY_DEDUP_LOGS": "0",
        "MEET_ADMIN_KEYS": ADMIN,
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + START_S
            while b"ready: " not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield Served(f"http://127.0.0.1:{port}", process, log)
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=90)
            finally:
                for each in children:
                    with contextlib.suppress(psutil.Error):
                        each.kill()
                process.kill()
                shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def pair(served: Served) -> tuple[str, str]:
    """The names of the two replicas."""
    first, second = sorted(served.replicas())
    return first, second


def test_both_answer_and_say_the_same(served: Served, pair: tuple[str, str]) -> None:
    for preference in ("concise", {"concise": 0.5, "detailed": 0.5}, None):
        assert served.text(preference, pair[0]) == served.text(preference, pair[1])
    assert served.text("concise", pair[0]) != served.text(None, pair[1])


def test_keys_bounds_and_mistakes_are_answered_as_without_ray(served: Served) -> None:
    nobody = httpx.get(f"{served.url}/v1/models", timeout=60)
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")
    unknown = served.post({"preference": "angry"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_preference")
    assert httpx.get(f"{served.url}/health/ready", timeout=60).json() == {"status": "ready"}


def test_streams_come_piece_by_piece(served: Served) -> None:
    body = {"prompt": "rain", "max_tokens": 200, "ignore_eos": True, "stream": True, "preference": "concise"}
    times = []
    with httpx.stream("POST", f"{served.url}{COMPLETIONS}", json=body, headers=served.headers, timeout=120) as reply:
        assert reply.headers["x-meet-preference"].startswith("concise")
        for line in reply.iter_lines():
            if line.startswith("data: "):
                times.append(time.monotonic())
                last = line
    assert last == "data: [DONE]"
    assert len(times) > 20
    assert times[len(times) // 2] - times[0] > 0.2 * (times[-1] - times[0])


def test_a_client_that_leaves_stops_the_engine(served: Served, pair: tuple[str, str]) -> None:
    body = {"prompt": "rain", "max_tokens": 450, "ignore_eos": True, "stream": True}
    url, headers = f"{served.url}{COMPLETIONS}", served.to(pair[0])
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as reply:
        lines = reply.iter_lines()  # held, for httpx closes the reply with it
        next(lines)
        assert figure(served, pair[0], "meet_running_replies") == 1
    deadline = time.monotonic() + 20
    while figure(served, pair[0], "meet_running_replies") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert figure(served, pair[0], "meet_running_replies") == 0
    assert figure(served, pair[0], 'meet_requests_total{outcome="aborted",preference="none"}') == 1


def figure(served: Served, replica: str, name: str) -> float:
    text = httpx.get(f"{served.url}/metrics", headers=served.to(replica), timeout=60).text
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def test_a_preference_comes_back_to_its_replica_and_spreads_when_that_is_busy(served: Served) -> None:
    homes = {}
    for label in [f"label{number}" for number in range(12)]:  # unknown ones are refused by the replica they go to
        went = {served.post({"preference": label}).headers[REPLICA] for _ in range(3)}
        assert len(went) == 1, label
        homes[label] = went.pop()
    assert len(set(homes.values())) == 2
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: served.post({"preference": "concise", "max_tokens": 100}), range(12)))
    assert {reply.status_code for reply in replies} == {200}
    assert {reply.headers[REPLICA] for reply in replies} == set(homes.values())


def test_what_is_added_through_one_is_served_by_the_other(
    served: Served, pair: tuple[str, str], bundle: Path, record_property: Any
) -> None:
    archive = pack(new_control(open_bundle(bundle), "polite", 11))
    url, headers = f"{served.url}/v1/preferences", served.to(pair[0]) | {"content-type": "application/zip"}
    assert httpx.post(url, content=archive, headers=headers, timeout=60).status_code == 201
    start = time.monotonic()
    while (reply := served.post({"preference": "polite"}, pair[1])).status_code != 200:
        assert reply.json()["error"]["code"] == "unknown_preference"
        assert time.monotonic() - start < TAKEN_UP_S
        time.sleep(0.05)
    taken_s = time.monotonic() - start
    print(f"taken up by the other replica after {taken_s:.2f} s")  # noqa: T201
    assert taken_s < TAKEN_UP_S
    assert reply.headers[REPLICA] == pair[1]
    assert served.text("polite", pair[0]) == served.text("polite", pair[1]) != served.text(None)
    assert httpx.delete(f"{url}/polite", headers=served.to(pair[1]), timeout=60).status_code == 200


@dataclass
class Sent:
    """One request of the load."""

    wish: str | None
    begun: float
    ended: float = 0
    status: int = 0
    code: str = ""
    served_by: str = ""


def test_a_replica_that_is_killed_takes_nothing_with_it_but_what_it_worked_on(
    served: Served, pair: tuple[str, str]
) -> None:
    victim, other = pair
    process = served.process_of(victim)
    engine = process.children(recursive=True)
    assert engine
    before = served.text("concise")
    sent, stop, stream, streams = [], threading.Event(), [], threading.Event()

    def ask(wish: str | None) -> None:
        while not stop.is_set():
            one = Sent(wish, time.monotonic())
            reply = served.post({"preference": "concise", "max_tokens": 20}, wish)
            one.ended, one.status = time.monotonic(), reply.status_code
            one.served_by = reply.headers.get(REPLICA, "")
            if reply.status_code != 200:
                one.code = reply.json()["error"]["code"]
            sent.append(one)

    def listen() -> None:
        body = {"prompt": "rain", "max_tokens": 480, "ignore_eos": True, "stream": True}
        url = f"{served.url}{COMPLETIONS}"
        with httpx.stream("POST", url, json=body, headers=served.to(victim), timeout=120) as reply:
            for line in filter(None, reply.iter_lines()):
                stream.append(line)
                streams.set()

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(ask, wish) for wish in (victim, victim, other, other, None, None)]
        time.sleep(3)
        jobs.append(pool.submit(listen))
        assert streams.wait(60)  # else it would be refused as those that do not stream are
        while figure(served, victim, "meet_running_replies") < 2:
            time.sleep(0.05)
        killed = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        time.sleep(8)
        stop.set()
        for job in jobs:
            job.result(timeout=120)
    lost = [one for one in sent if one.status != 200]
    after = [one for one in sent if one.begun > killed]
    print(f"{len(sent)} requests, {len(after)} begun after the kill, {len(lost)} lost")  # noqa: T201
    assert len(after) > 10
    assert all(one.status == 503 and one.code == "replica_lost" for one in lost), lost
    assert all(one.begun < killed < one.ended and one.wish != other for one in lost), lost
    assert max(one.ended - killed for one in lost) < 30 if lost else True
    assert stream[-1] == "data: [DONE]"
    assert json.loads(stream[-2].removeprefix("data: "))["error"]["code"] == "replica_lost"

    deadline = time.monotonic() + REPLACED_S
    while len(found := served.replicas()) < 2 or victim in found:
        assert time.monotonic() < deadline, served.log.read_text()[-4000:]
        time.sleep(1)
    (new,) = found - {other}
    print(f"another replica after {time.monotonic() - killed:.0f} s")  # noqa: T201
    assert served.text("concise", new) == before
    assert not [each for each in engine if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_replica_whose_engine_dies_is_replaced_and_its_requests_go_elsewhere(served: Served) -> None:
    victim, other = sorted(served.replicas())
    process = served.process_of(victim)
    for each in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            each.kill()
    deadline = time.monotonic() + 30
    while served.post({}, victim).headers.get(REPLICA) == victim:  # until it has seen that its engine is dead
        assert time.monotonic() < deadline
    assert {served.post({}, wish).status_code for wish in (victim, None, other) for _ in range(5)} == {200}
    deadline = time.monotonic() + REPLACED_S
    while len(found := served.replicas()) < 2 or victim in found:
        assert time.monotonic() < deadline, served.log.read_text()[-4000:]
        time.sleep(1)
    process.wait(timeout=60)


def test_a_bundle_that_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    from meet_server.errors import ServerError
    from meet_server.ray_serve import build

    with pytest.raises(ServerError, match="repicas"):
        build({"bundle": str(tmp_path), "replicas": "2", "repicas": "2"})
    with pytest.raises(ServerError, match=r"ray\.replicas"):
        build({"bundle": str(tmp_path), "replicas": "0"})
