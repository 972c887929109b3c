"""Runs an evaluation from plan to report, of a bundle or of an endpoint. `meet eval` and `meet demo` share it.

Knows folders and the order of things: the base model is asked first, because its replies are what the other is to
score. Who serves what is in `asking.py`; what is asked and what it says is in `meet_training.evaluation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meet_cli.asking import Asking, Servers, served_subject
from meet_cli.errors import CommandError
from meet_cli.figures import figures_console
from meet_cli.phases import Phases
from meet_cli.progress import tell_step, telling

if TYPE_CHECKING:
    from meet_bundle import Bundle
    from meet_training.evaluation.evaluation_config import EvaluationConfig
    from meet_training.evaluation.plan import Plan
    from meet_training.evaluation.replies import ReplyCache
    from meet_training.evaluation.results import Results
    from meet_training.evaluation.subject import Subject

REPLIES_FILE, SCORES_FILE = "replies.jsonl", "scores.jsonl"
EXIT_BOUND = 1


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The figures; `data` is the report as JSON has it, and lies in `folder`."""

    results: Results
    data: dict[str, Any]
    folder: Path

    @property
    def failures(self) -> list[str]:
        """One line for every bound that does not hold."""
        from meet_training.evaluation.report import failures

        return failures(self.results.rows)


def evaluate_bundle(
    bundle: Bundle, config: EvaluationConfig, servers: Servers, phases: Phases, output: Path | None = None
) -> Evaluated:
    """Asks what is not asked yet, and writes the report to `output`, else into the bundle's `report/` folder.

    Replies are kept in that folder as they come, so that an evaluation that was interrupted goes on where
    it stopped. What it takes is added to `phases`. Raises CommandError and MeetError.
    """
    from meet_training.evaluation.subject import subject_of_bundle

    subject = subject_of_bundle(bundle.manifest, servers.engine_args)
    return _evaluate(subject, bundle, config, servers, phases, output or bundle.path / "report")


def evaluate_endpoint(
    model: str | None, config: EvaluationConfig, servers: Servers, phases: Phases, output: Path
) -> Evaluated:
    """The same of whatever answers at `servers.url`; the rival is the same model, plainly prompted."""
    subject = served_subject(model, config, servers)
    if not subject.has_controls:
        config = config.of_plain_endpoint()
    return _evaluate(subject, None, config, servers, phases, output)


def calibrate(bundle: Bundle, evaluated: Evaluated) -> None:
    """Writes the measured curves, and the strengths that they recommend, into the bundle's manifest."""
    from meet_bundle import recalibrated

    if not (calibrations := evaluated.results.calibrations):
        why = evaluated.results.skipped.get("strength", "it is not among the figures")
        raise CommandError(f"--calibrate: strength was not measured: {why}")
    recalibrated(bundle, calibrations)
    told = ", ".join(f"{name}={each.recommended:g}" for name, each in calibrations.items())
    click.echo(f"the manifest now recommends {told}", err=True)


def show(evaluated: Evaluated) -> None:
    """Prints the sentences, tables and examples on stdout."""
    from meet_training.evaluation.report import show as show_report

    data = evaluated.data
    show_report(figures_console(), evaluated.results, num_prompts=data["num_prompts"], skipped=data["prompted_skipped"])


def refuse_failures(evaluated: Evaluated) -> None:
    """Says which bounds do not hold on stderr, and exits 1 for them."""
    for failure in evaluated.failures:
        click.echo(f"does not hold: {failure}", err=True)
    if evaluated.failures:
        raise click.exceptions.Exit(EXIT_BOUND)


def _evaluate(
    subject: Subject, bundle: Bundle | None, config: EvaluationConfig, servers: Servers, phases: Phases, folder: Path
) -> Evaluated:
    from meet_training.evaluation import report
    from meet_training.evaluation.answers import Answers
    from meet_training.evaluation.plan import plan_of
    from meet_training.evaluation.replies import ReplyCache
    from meet_training.evaluation.results import results
    from meet_training.evaluation.scores import ScoreCache

    if config.prompts is None:
        raise CommandError("no prompts: give --data PROMPTS.jsonl, or `prompts` in the configuration")
    plan = plan_of(subject, config)
    replies, scores = ReplyCache(folder / REPLIES_FILE), ScoreCache(folder / SCORES_FILE)
    tell_step(_counted(plan, replies, servers))
    with telling() as tell:
        asking = Asking(plan, bundle, servers, replies, scores, tell)
        with phases.timed("replies of the base model"):
            no_rival = asking.ask_rival()
        answers = Answers(plan, replies, scores, no_rival)
        with phases.timed("replies of the bundle" if bundle else "replies of the endpoint"):
            asking.ask_subject(answers)
        if plan.measures("judge"):
            with phases.timed("judgements"):
                asking.ask_judge(answers)
    found = results(answers)
    data = report.report_data(plan, found, no_rival)
    report.write_report(folder, data)
    return Evaluated(found, data, folder)


def _counted(plan: Plan, cache: ReplyCache, servers: Servers) -> str:
    """How many replies will be asked for, in words, before anybody is asked."""
    from meet_training.evaluation.replies import missing

    subject, sampling = plan.subject, plan.config.sampling
    rival = plan.rival() if servers.prompt_base else []
    asked = missing(plan.asked(), cache, subject.identity, sampling)
    # Of a plain endpoint both may ask the same, which is asked once.
    prompted = missing(rival, cache, subject.rival_identity, sampling).keys() - asked.keys()
    figures = ", ".join(["holds", *(figure for figure in plan.config.figures if plan.measures(figure))])
    return (
        f"{len(plan.prompts)} prompts, figures: {figures}: "
        f"{len(asked)} replies of {subject.name} and {len(prompted)} of the prompted model are to be had"
    )
