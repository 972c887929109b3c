"""What is counted of each preference, for Prometheus. Knows neither HTTP nor engine: it is told what happened.

Labels are names of preferences that are served, `none` and `mix`: their number does not grow with what clients ask for.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

NONE, MIX = "none", "mix"

# Replies whose lengths are remembered, per preference, and how many there must be before a median says anything.
WINDOW, ENOUGH = 512, 20
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

Outcome = Literal["ok", "error", "aborted"]


@dataclass(frozen=True, slots=True)
class Generated:
    """One request of the engine, once it has ended. `lengths` are the tokens of each of its replies."""

    label: str
    outcome: Outcome
    num_prompt_tokens: int
    lengths: tuple[int, ...]
    first_token_s: float | None
    duration_s: float


Gauges = Callable[[], Iterable[tuple[str, str, float]]]
"""Name, meaning and value of what is looked up when somebody asks; a counter's name ends in `_total`."""


class Metrics:
    """Counts for one server. `gauges` are looked up at each scrape."""

    def __init__(self, gauges: Gauges = lambda: ()) -> None:
        self._gauges = gauges
        self._registry = CollectorRegistry()
        self._lengths: dict[str, deque[int]] = {}
        self._labels: set[str] = set()

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"meet_{name}", meaning, labels, registry=self._registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"meet_{name}", meaning, ("preference",), registry=self._registry, buckets=buckets)

        self._requests = counter("requests", "Requests of the engine, by how they ended.", "preference", "outcome")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.", "preference")
        self._reply = counter("reply_tokens", "Tokens of replies.", "preference")
        self._first = histogram("time_to_first_token_seconds", "From the engine's being asked.", _SECONDS)
        self._each = histogram("time_per_token_seconds", "Between tokens, after the first.", _TOKEN_SECONDS)
        self._whole = histogram("generation_seconds", "From the engine's being asked to the end.", _SECONDS)
        self._refused = counter("refused_requests", "Requests that were refused, by the code of the error.", "code")

    def generated(self, one: Generated) -> None:
        """Counts a request of the engine."""
        num = sum(one.lengths)
        self._labels.add(one.label)
        self._requests.labels(one.label, one.outcome).inc()
        self._prompt.labels(one.label).inc(one.num_prompt_tokens)
        self._reply.labels(one.label).inc(num)
        self._whole.labels(one.label).observe(one.duration_s)
        if one.first_token_s is not None:
            self._first.labels(one.label).observe(one.first_token_s)
            if (longest := max(one.lengths, default=0)) > 1:
                self._each.labels(one.label).observe((one.duration_s - one.first_token_s) / (longest - 1))
        if one.outcome == "ok":
            self._lengths.setdefault(one.label, deque(maxlen=WINDOW)).extend(one.lengths)

    def refused(self, code: str) -> None:
        """Counts a request that was answered with an error of ours."""
        self._refused.labels(code).inc()

    def keep_only(self, names: Iterable[str]) -> None:
        """Drops what was counted of preferences that are served no more."""
        for label in self._labels - {NONE, MIX, *names}:
            self._forget(label)

    def _forget(self, label: str) -> None:
        self._labels.discard(label)
        self._lengths.pop(label, None)
        for outcome in ("ok", "error", "aborted"):
            self._drop(self._requests, label, outcome)
        for metric in (self._prompt, self._reply, self._first, self._each, self._whole):
            self._drop(metric, label)

    def register(self, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
        """Adds all of it to what a registry shows, and returns what takes it out again."""
        shown = _Shown(self)
        registry.register(shown)
        return lambda: registry.unregister(shown)

    def collect(self) -> Iterator[Metric]:
        """As a collector of Prometheus's."""
        yield from self._registry.collect()
        for name, meaning, value in self._gauges():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"meet_{name}", meaning)
            family.add_metric([], value)
            yield family
        yield from self._effects()

    def _effects(self) -> Iterator[Metric]:
        """The measured effect of each preference: how long its replies are, and beside uncontrolled ones."""
        median = GaugeMetricFamily(
            "meet_reply_tokens_median", f"Median length of the last {WINDOW} replies.", labels=["preference"]
        )
        ratio = GaugeMetricFamily(
            "meet_reply_length_ratio", "That median over that of uncontrolled replies.", labels=["preference"]
        )
        medians = {
            label: statistics.median(lengths) for label, lengths in self._lengths.items() if len(lengths) >= ENOUGH
        }
        for label, value in medians.items():
            median.add_metric([label], value)
            if label != NONE and (uncontrolled := medians.get(NONE)):
                ratio.add_metric([label], value / uncontrolled)
        yield median
        yield ratio

    @staticmethod
    def _drop(metric: Counter | Histogram, *labels: str) -> None:
        # Removing what was never counted raises KeyError in releases before 0.23 and is nothing after.
        metric.labels(*labels)
        metric.remove(*labels)


class _Shown:
    """What a registry holds of a `Metrics`. It names nothing beforehand, so that a process may have several."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()
