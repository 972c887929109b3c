"""Runs an evaluation with servers of our own: first the bundle's, then the base model's, never both at once.

`meet eval` and `meet demo` share it. Knows processes and addresses; what is asked and what it says is in
`meet_training.evaluation`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meet_cli.errors import CommandError, one_line
from meet_cli.extras import require_engine
from meet_cli.figures import figures_console
from meet_cli.local_server import free_port, meet_server_command, plain_server_command, running_server
from meet_cli.phases import Phases
from meet_cli.progress import Tell, duration, tell_step, telling
from meet_cli.server_errors import errors_of

if TYPE_CHECKING:
    from meet_bundle import Bundle, Manifest
    from meet_training.evaluation.evaluate import Row
    from meet_training.evaluation.evaluation_config import EvaluationConfig
    from meet_training.evaluation.replies import Endpoint, Question, ReplyCache

REPLIES_FILE = "replies.jsonl"
EXIT_BOUND = 1


@dataclass(frozen=True, slots=True)
class Servers:
    """Where replies come from. Without a `url` the bundle is served here; the base model always is."""

    engine_args: tuple[str, ...] = ()
    url: str | None = None
    api_key: str | None = None
    prompt_base: bool = True


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The figures of each preference; `data` is the report as JSON has it."""

    rows: list[Row]
    data: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        """One line for every bound that does not hold."""
        from meet_training.evaluation.report import failures

        return failures(self.rows)


def evaluate_bundle(bundle: Bundle, config: EvaluationConfig, servers: Servers, phases: Phases) -> Evaluated:
    """Asks what is not asked yet, and writes the report into the bundle's `report/` folder.

    Replies are kept in that folder as they come, so that an evaluation that was interrupted goes on where
    it stopped. What it takes is added to `phases`. Raises CommandError and MeetError.
    """
    from meet_training.evaluation import evaluate, prompts, replies, report

    if config.prompts is None:
        raise CommandError("no prompts: give --data PROMPTS.jsonl, or `prompts` in the configuration")
    manifest = bundle.manifest
    evaluate.check_axes(manifest, config)
    asked = prompts.read_prompts(config.prompts, config.limit)
    cache = replies.ReplyCache(bundle.path / "report" / REPLIES_FILE)
    with telling() as tell:
        asking = _Asking(bundle, config, servers, cache, tell)
        with phases.timed("replies of the bundle"):
            asking.ask_meet(evaluate.meet_questions(manifest, asked))
        with phases.timed("replies of the base model"):
            skipped = asking.ask_base(evaluate.base_questions(manifest, asked))
    collected = evaluate.collect(manifest, asked, cache, config.sampling, prompted=skipped is None)
    rows = evaluate.measure(manifest, config, asked, collected)
    data = report.report_data(manifest, config, rows, num_prompts=len(asked), skipped=skipped)
    report.write_report(bundle.path / "report", data)
    return Evaluated(rows, data)


def show(evaluated: Evaluated) -> None:
    """Prints the table and the examples on stdout."""
    from meet_training.evaluation.report import show as show_report

    data = evaluated.data
    show_report(figures_console(), evaluated.rows, num_prompts=data["num_prompts"], skipped=data["prompted_skipped"])


def refuse_failures(evaluated: Evaluated) -> None:
    """Says which bounds do not hold on stderr, and exits 1 for them."""
    for failure in evaluated.failures:
        click.echo(f"does not hold: {failure}", err=True)
    if evaluated.failures:
        raise click.exceptions.Exit(EXIT_BOUND)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Gets one model after the other served and asked. Starts nothing where every reply is kept already."""

    bundle: Bundle
    config: EvaluationConfig
    servers: Servers
    cache: ReplyCache
    tell: Tell

    def ask_meet(self, questions: Sequence[Question]) -> None:
        """The MEET model: at the url that was given, or on a server of our own."""
        from meet_training.evaluation.evaluate import meet_identity
        from meet_training.evaluation.replies import Endpoint

        manifest = self.bundle.manifest
        identity = meet_identity(manifest)
        if not self._any_missing(questions, identity):
            return
        if self.servers.url is not None:
            url, key = self.servers.url.rstrip("/").removesuffix("/v1"), self.servers.api_key
            _check_serves(url, key, manifest)
            self._ask(questions, Endpoint(url, manifest.name, identity, key or "none"))
            return
        require_engine("meet eval, without --url,")
        port = free_port()
        command = meet_server_command(self.bundle.path, port, self.servers.engine_args)
        tell_step(f"starting a server for {self.bundle.path}")
        with running_server(command, port, what=f"the server for {self.bundle.path}") as server:
            self._ask(questions, Endpoint(server.url, manifest.name, identity))

    def ask_base(self, questions: Sequence[Question]) -> str | None:
        """The base model, prompted; returns why it was not asked, or None."""
        from meet_training.evaluation.evaluate import base_identity
        from meet_training.evaluation.replies import Endpoint

        manifest = self.bundle.manifest
        identity = base_identity(manifest)
        if not self.servers.prompt_base:
            return "--no-base was given"
        if not questions:
            return "no preference of the bundle has an instruction"
        if not self._any_missing(questions, identity):
            return None
        base = _resolve_base(manifest.base.source)
        if isinstance(base, str):
            return base
        port, name = free_port(), manifest.base.source
        command = plain_server_command(base, name, port, self.servers.engine_args)
        tell_step(f"starting a server for the base model {name}")
        with running_server(command, port, what=f"the server for the base model {name}") as server:
            self._ask(questions, Endpoint(server.url, name, identity))
        return None

    def _any_missing(self, questions: Sequence[Question], identity: str) -> bool:
        from meet_training.evaluation.replies import missing

        return bool(missing(questions, self.cache, identity, self.config.sampling))

    def _ask(self, questions: Sequence[Question], endpoint: Endpoint) -> None:
        from meet_training.evaluation.replies import ask_missing

        asking = ask_missing(
            questions,
            endpoint,
            self.config.sampling,
            self.cache,
            concurrency=self.config.concurrency,
            on_progress=_tell_replies(self.tell, f"replies of {endpoint.model}"),
        )
        asyncio.run(asking)


def _tell_replies(tell: Tell, name: str) -> Callable[[int, int], None]:
    started = time.monotonic()
    first: list[int] = []

    def on_progress(num_done: int, num_all: int) -> None:
        first[:] = first or [num_done - 1]
        each_s = (time.monotonic() - started) / (num_done - first[0])
        tell(name, num_done, num_all, f"{duration(each_s * (num_all - num_done))} left")

    return on_progress


def _resolve_base(source: str) -> Path | str:
    """The base model's folder or hub name, or why it cannot be served here."""
    from meet_training.base_model import check_causal_model, resolve_base
    from meet_training.errors import TrainingError

    try:
        require_engine("the base model")
        base = resolve_base(source, on_step=tell_step)
        check_causal_model(base)
    except (TrainingError, click.ClickException) as error:
        return one_line(error)
    return base


def _check_serves(url: str, api_key: str | None, manifest: Manifest) -> None:
    """Raises CommandError where the server does not serve this very bundle's controls."""
    from meet_client import MeetClient

    with errors_of(url), MeetClient(url, api_key, max_retries=0) as client:
        try:
            served = {preference.name: preference.version for preference in client.preferences()}
        except ValueError as error:
            raise CommandError(f"{url}: {error}") from None
    for preference in manifest.preferences:
        if served.get(preference.name) != preference.version:
            found = served.get(preference.name) or "none"
            raise CommandError(
                f"{url} does not serve this bundle: its version of {preference.name!r} is {found}, "
                f"the bundle's is {preference.version}"
            )
