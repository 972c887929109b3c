"""What is counted: of a request's outputs, of each preference, and what a scrape shows."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from running_server import Server

from meet_server.access.fair_queue import FairQueue
from meet_server.access.keyring import Key
from meet_server.app import gauges
from meet_server.engine import observing
from meet_server.http.keys import KEY
from meet_server.http.request_log import RequestLog
from meet_server.metrics import Generated, Metrics
from meet_server.registry.mixes import Residents

METRIC = re.compile(r"meet_[a-z_]+")


def one(label: str = "concise", length: int = 10, outcome: Any = "ok") -> Generated:
    return Generated(label, outcome, 5, (length,), 0.25, 0.25 + 0.01 * (length - 1))


def shown(metrics: Metrics) -> dict[str, float]:
    registry = CollectorRegistry()
    unregister = metrics.register(registry)
    lines = generate_latest(registry).decode().splitlines()
    unregister()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_counts_of_each_preference() -> None:
    metrics = Metrics(lambda: [("waiting_requests", "Waiting.", 3), ("mix_loads_total", "Loads.", 2)])
    metrics.generated(one())
    metrics.generated(one(length=30))
    metrics.generated(one("none", outcome="aborted"))
    metrics.refused("overloaded")
    found = shown(metrics)
    assert found['meet_requests_total{outcome="ok",preference="concise"}'] == 2
    assert found['meet_requests_total{outcome="aborted",preference="none"}'] == 1
    assert found['meet_prompt_tokens_total{preference="concise"}'] == 10
    assert found['meet_reply_tokens_total{preference="concise"}'] == 40
    assert found['meet_time_to_first_token_seconds_sum{preference="concise"}'] == 0.5
    assert found['meet_time_per_token_seconds_sum{preference="concise"}'] == pytest.approx(0.02)
    assert found['meet_refused_requests_total{code="overloaded"}'] == 1
    assert (found["meet_waiting_requests"], found["meet_mix_loads_total"]) == (3, 2)


def test_the_effect_is_a_rolling_median_beside_uncontrolled_replies() -> None:
    metrics = Metrics()
    for _ in range(19):
        metrics.generated(one(length=10))
    assert not any("median" in name for name in shown(metrics))  # too few to say anything
    metrics.generated(one(length=10))
    for _ in range(30):
        metrics.generated(one("none", length=40))
        metrics.generated(one("none", length=1, outcome="aborted"))  # cut short by a client
    found = shown(metrics)
    assert found['meet_reply_tokens_median{preference="concise"}'] == 10
    assert found['meet_reply_length_ratio{preference="concise"}'] == 0.25
    for _ in range(600):
        metrics.generated(one(length=20))
    assert shown(metrics)['meet_reply_length_ratio{preference="concise"}'] == 0.5


def test_what_is_served_no_more_is_shown_no_more() -> None:
    metrics = Metrics()
    for label in ("concise", "gone", "none", "mix"):
        for _ in range(20):
            metrics.generated(one(label))
    metrics.keep_only(["concise"])
    found = " ".join(shown(metrics))
    assert "gone" not in found
    assert all(f'preference="{label}"' in found for label in ("concise", "none", "mix"))


def test_two_servers_of_one_process_do_not_collide() -> None:
    registry = CollectorRegistry(auto_describe=True)
    Metrics().register(registry)
    Metrics().register(registry)


def output(*lengths: int) -> Any:
    outputs = [SimpleNamespace(index=index, token_ids=[0] * num) for index, num in enumerate(lengths)]
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], outputs=outputs)


@pytest.mark.parametrize(("deltas", "lengths"), [(True, (5, 4)), (False, (3, 3))])
def test_tokens_of_each_reply(monkeypatch: pytest.MonkeyPatch, deltas: bool, lengths: tuple[int, ...]) -> None:
    monkeypatch.setattr(observing.releases, "are_deltas", lambda _: deltas)
    found = watched([output(2, 1), output(3, 3)])
    assert (found.outcome, found.num_prompt_tokens, found.lengths) == ("ok", 3, lengths)
    assert found.first_token_s is not None
    assert found.first_token_s <= found.duration_s


def test_how_a_request_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing.releases, "are_deltas", lambda _: True)
    assert watched([output(1), ValueError("no")]).outcome == "error"
    left = watched([output(1), output(1)], leave_after=1)
    assert (left.outcome, left.lengths) == ("aborted", (1,))


def watched(steps: list[Any], leave_after: int | None = None) -> Generated:
    seen: list[Generated] = []
    closed: list[bool] = []

    async def outputs() -> AsyncGenerator[Any, None]:
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            closed.append(True)

    async def run() -> None:
        generated = observing.observed(outputs(), "x", None, seen.append)
        num = 0
        try:
            async for _ in generated:
                num += 1
                if num == leave_after:
                    break
        except ValueError:
            pass
        await generated.aclose()

    asyncio.run(run())
    assert closed == [True]  # the engine is told
    assert len(seen) == 1
    return seen[0]


def test_the_running_server_counts_by_preference(server: Server) -> None:
    """Strengths and mixes without number are one label."""
    with httpx.Client(base_url=server.url, timeout=60) as http:

        def ask(preference: Any) -> None:
            body = {"prompt": "rain", "max_tokens": 3, "ignore_eos": True, "preference": preference}
            assert http.post("/v1/completions", json=body).status_code == 200

        before = counted(http)
        for strength in (0.31, 0.32, 0.33):
            ask({"concise": strength})
            ask({"concise": strength, "detailed": 0.2})
        ask("short")
        ask(None)
        assert http.post("/v1/completions", json={"preference": "angry"}).status_code == 400
        after = counted(http)
    new = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert new['meet_requests_total{outcome="ok",preference="concise"}'] == 4
    assert new['meet_requests_total{outcome="ok",preference="mix"}'] == 3
    assert new['meet_requests_total{outcome="ok",preference="none"}'] == 1
    assert new['meet_reply_tokens_total{preference="concise"}'] == 12
    assert new['meet_refused_requests_total{code="unknown_preference"}'] == 1
    assert new["meet_mix_loads_total"] == 6
    assert "angry" not in " ".join(after)


def counted(http: httpx.Client) -> dict[str, float]:
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("meet_")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.mark.parametrize(("given", "kept"), [("abc-1", True), ("", False), ("a\nb", False), ("x" * 300, False)])
def test_a_request_is_one_line(caplog: pytest.LogCaptureFixture, given: str, kept: bool) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value.decode() for name, value in scope["headers"] if name == b"x-request-id")
        headers = [(b"x-meet-preference", b"concise=1; version=abc")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"secret text"})

    sent: list[Any] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        headers = [(b"x-request-id", given.encode())] if given else []
        key = Key("widget", "user", b"digest")
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, KEY: key}
        await RequestLog(app)(scope, receive, send)

    with caplog.at_level(logging.INFO, "meet.requests"):
        asyncio.run(run())
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert (line["key"], line["preference"], line["status"]) == ("widget", "concise=1; version=abc", 200)
    assert line["complete"] is True
    assert seen == [line["request_id"]]
    assert (line["request_id"] == given) is kept
    assert dict(sent[0]["headers"])[b"x-request-id"].decode() == line["request_id"]
    assert "secret" not in caplog.text


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "meet.json").read_text())
    asked = {
        name for panel in board["panels"] for target in panel["targets"] for name in METRIC.findall(target["expr"])
    }
    metrics = Metrics(
        lambda: gauges(
            SimpleNamespace(adapters=SimpleNamespace(mixes=Residents(None, None, None, 1))), [], FairQueue(1, 1)
        )
    )  # type: ignore[arg-type]
    for label in ("concise", "none"):
        for _ in range(20):
            metrics.generated(one(label))
    metrics.refused("overloaded")
    there = {name.split("{")[0] for name in shown(metrics)}
    assert asked
    assert asked <= there
