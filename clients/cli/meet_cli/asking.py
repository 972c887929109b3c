"""Gets the models of an evaluation served and asked: servers of our own, never two at once, or one that runs.

Starts nothing where every answer is kept already. Knows processes and addresses, not what is asked nor why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meet_cli.ending import run_async
from meet_cli.errors import CommandError, one_line
from meet_cli.extras import require_engine
from meet_cli.local_server import free_port, meet_server_command, plain_server_command, running_server
from meet_cli.progress import Tell, duration, tell_step
from meet_cli.server_errors import errors_of

if TYPE_CHECKING:
    from meet_bundle import BaseModelSource, Bundle, Manifest
    from meet_training.evaluation.answers import Answers
    from meet_training.evaluation.asking import Endpoint
    from meet_training.evaluation.evaluation_config import EvaluationConfig, SamplingConfig
    from meet_training.evaluation.plan import Plan
    from meet_training.evaluation.replies import Question, ReplyCache
    from meet_training.evaluation.scores import GivenReply, ScoreCache
    from meet_training.evaluation.subject import Subject


@dataclass(frozen=True, slots=True)
class Servers:
    """Where replies come from. Without a `url` the bundle is served here; the base model always is."""

    engine_args: tuple[str, ...] = ()
    url: str | None = None
    api_key: str | None = None
    prompt_base: bool = True

    @property
    def root(self) -> str:
        """The url that was given, without `/v1`."""
        return (self.url or "").rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Asking:
    """One evaluation's questions, who answers them and where the answers are kept. `bundle` is None for an endpoint."""

    plan: Plan
    bundle: Bundle | None
    servers: Servers
    replies: ReplyCache
    scores: ScoreCache
    tell: Tell

    def ask_rival(self) -> str | None:
        """The plainly prompted model, which scores its own replies too. Returns why it was not asked, or None."""
        questions, identity = self.plan.rival(), self.plan.subject.rival_identity
        if not self.servers.prompt_base:
            return "--no-base was given"
        if not questions:
            return "no preference has an instruction"
        if not self._any_missing(questions, identity) and not self._unscored(self._given_by_base(), identity):
            return None
        if self.bundle is None:
            self._ask(questions, self._running(identity))
            return None
        base = _resolve_base(self.bundle.manifest.base)
        if isinstance(base, str):
            return base
        port, name = free_port(), self.bundle.manifest.base.source
        command = plain_server_command(base, name, port, self.servers.engine_args)
        with self._own_server(command, port, f"the base model {name}", name, identity) as endpoint:
            self._ask(questions, endpoint)
            self._score(self._given_by_base(), endpoint)
        return None

    def ask_subject(self, answers: Answers) -> None:
        """The model that is evaluated: at the url that was given, or on a server of our own."""
        questions, given, identity = self.plan.asked(), answers.to_score(), self.plan.subject.identity
        if not self._any_missing(questions, identity) and not self._unscored(given, identity):
            return
        with self._subject_server(identity) as endpoint:
            self._ask(questions, endpoint)
            self._score(given, endpoint)

    def ask_judge(self, answers: Answers) -> None:
        """The one who judges, where the configuration names one."""
        from meet_training.evaluation.judging import judge_endpoint, judge_sampling

        judge = self.plan.config.judge
        if judge is None:
            return
        questions = [question for _, pairs in answers.judge_questions() for pair in pairs for question in pair]
        self._ask(questions, judge_endpoint(judge), judge_sampling(judge))

    def _given_by_base(self) -> list[GivenReply]:
        from meet_training.evaluation.answers import Answers

        return Answers(self.plan, self.replies, self.scores).neutral_under_base()

    @contextmanager
    def _subject_server(self, identity: str) -> Iterator[Endpoint]:
        if self.servers.url is not None:
            if self.bundle is not None:
                _check_serves(self.servers.root, self.servers.api_key, self.bundle.manifest)
            yield self._running(identity)
            return
        if self.bundle is None:
            raise CommandError("neither a bundle nor --url was given")
        require_engine("meet eval, without --url,")
        port, model = free_port(), self.plan.subject.model
        command = meet_server_command(self.bundle.path, port, self.servers.engine_args)
        with self._own_server(command, port, str(self.bundle.path), model, identity) as endpoint:
            yield endpoint

    @contextmanager
    def _own_server(
        self, command: Sequence[str], port: int, what: str, model: str, identity: str
    ) -> Iterator[Endpoint]:
        from meet_training.evaluation.asking import Endpoint

        tell_step(f"starting a server for {what}")
        with running_server(command, port, what=f"the server for {what}") as server:
            yield Endpoint(server.url, model, identity)

    def _running(self, identity: str) -> Endpoint:
        from meet_training.evaluation.asking import Endpoint

        return Endpoint(self.servers.root, self.plan.subject.model, identity, self.servers.api_key or "none")

    def _any_missing(self, questions: Sequence[Question], identity: str) -> bool:
        from meet_training.evaluation.replies import missing

        return bool(missing(questions, self.replies, identity, self.plan.config.sampling))

    def _unscored(self, given: Sequence[GivenReply], identity: str) -> bool:
        from meet_training.evaluation.scores import unscored

        return bool(unscored(given, self.scores, identity))

    def _ask(self, questions: Sequence[Question], endpoint: Endpoint, sampling: SamplingConfig | None = None) -> None:
        from meet_training.evaluation.replies import ask_missing

        config = self.plan.config
        asking = ask_missing(
            questions,
            endpoint,
            sampling or config.sampling,
            self.replies,
            concurrency=config.concurrency,
            on_progress=_tell_answers(self.tell, f"replies of {endpoint.model}"),
        )
        run_async(asking)

    def _score(self, given: Sequence[GivenReply], endpoint: Endpoint) -> None:
        from meet_training.evaluation.scores import score_missing

        scoring = score_missing(
            given,
            endpoint,
            self.scores,
            concurrency=self.plan.config.concurrency,
            on_progress=_tell_answers(self.tell, f"scores by {endpoint.model}"),
        )
        run_async(scoring)


def served_subject(model: str | None, config: EvaluationConfig, servers: Servers) -> Subject:
    """Whatever answers at the url that was given; its first model where none is named. Raises CommandError."""
    import openai

    from meet_client import MeetClient
    from meet_client.words import ModelList, model_of
    from meet_training.evaluation.subject import subject_of_endpoint

    listed: list[Any] | None
    with errors_of(servers.root), MeetClient(servers.root, servers.api_key, max_retries=0) as client:
        try:
            name = model or model_of(client.openai.get("/models", cast_to=ModelList))
        except ValueError as error:
            raise CommandError(f"{servers.root}: {error} Else name one with --model") from None
        try:
            listed = [preference.to_dict() for preference in client.preferences()]
        except (openai.NotFoundError, ValueError):  # a plain endpoint
            listed = None
    return subject_of_endpoint(servers.root, name, config, listed)


def _tell_answers(tell: Tell, name: str) -> Callable[[int, int], None]:
    started = time.monotonic()
    first: list[int] = []

    def on_progress(num_done: int, num_all: int) -> None:
        first[:] = first or [num_done - 1]
        each_s = (time.monotonic() - started) / (num_done - first[0])
        tell(name, num_done, num_all, f"{duration(each_s * (num_all - num_done))} left")

    return on_progress


def _resolve_base(made_from: BaseModelSource) -> Path | str:
    """The base model's folder or hub name, or why it cannot be served here."""
    from meet_training.base_model import check_causal_model, describe_base, resolve_base
    from meet_training.errors import TrainingError

    try:
        require_engine("the base model")
        base = resolve_base(made_from.source, on_step=tell_step)
        check_causal_model(base)
        found = describe_base(made_from.source, base).digest
    except (TrainingError, click.ClickException) as error:
        return one_line(error)
    if made_from.digest not in (None, found):
        return f"{base} has other weights than the {made_from.source} that this bundle was made from"
    return base


def _check_serves(url: str, api_key: str | None, manifest: Manifest) -> None:
    """Raises CommandError where the server does not serve this very bundle's controls."""
    from meet_client import MeetClient

    with errors_of(url), MeetClient(url, api_key, max_retries=0) as client:
        served = {preference.name: preference for preference in client.preferences()}
    for preference in manifest.preferences:
        found = served.get(preference.name)
        if found is None or found.version != preference.version:
            raise CommandError(
                f"{url} does not serve this bundle: its version of {preference.name!r} is "
                f"{'none' if found is None else found.version}, the bundle's is {preference.version}"
            )
        # The name alone stands for it, and replies are kept by name.
        theirs, ours = (
            1.0 if each.calibration is None else each.calibration.recommended for each in (found, preference)
        )
        if theirs != ours:
            raise CommandError(
                f"{url} serves {preference.name!r} at the strength {theirs:g} where none is named, this bundle's "
                f"manifest recommends {ours:g}: start the server anew from this bundle"
            )
