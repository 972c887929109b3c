"""Preference data from prompts of one's own: sample replies, throw out what is unfit, keep what fits best.

A run that stops goes on where it stopped, since raw samples gather beside the output. The output itself and
its report are replaced at once, when all is done.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field

from meet_bundle.output import write_output
from meet_training.data.attributes import ATTRIBUTES
from meet_training.data.conversations import text_of
from meet_training.data.generate_config import Bounds, GenerateConfig, PreferenceRecipe, load_generate_config
from meet_training.data.sampling import (
    Prompt,
    Request,
    Sampled,
    SampleFile,
    ask_all,
    endpoint,
    request_for,
)
from meet_training.data.selection import Choice, choose, quantiles
from meet_training.data.sources import Row, read_rows, reading
from meet_training.errors import TrainingError

__all__ = [
    "Bounds",
    "GenerateConfig",
    "PreferenceRecipe",
    "PreferenceReport",
    "Progress",
    "Report",
    "generate",
    "load_generate_config",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far sampling is; those of an earlier run count as done, their tokens do not count."""

    num_done: int
    num_requests: int
    num_tokens: int
    elapsed_s: float


class PreferenceReport(BaseModel):
    """What became of the samples of one preference."""

    model_config = ConfigDict(frozen=True)

    sampled: int = Field(description="Replies sampled.")
    thrown_out: dict[str, int] = Field(description="Replies thrown out, by reason.")
    not_chosen: int = Field(description="Replies that were fit, where a better one was kept.")
    kept: int = Field(description="Rows in the output.")
    prompts_without: int = Field(description="Prompts that no reply was kept for.")
    num_tokens: int = Field(description="Tokens sampled.")
    quantiles: dict[str, dict[str, float]] = Field(description="Of the kept replies, by attribute.")


class Report(BaseModel):
    """What a run made."""

    model_config = ConfigDict(frozen=True)

    output: str = Field(description="Name of the file written.")
    model: str
    prompts: int = Field(description="Prompts asked.")
    prompts_kept: int = Field(description="Prompts with at least one kept reply.")
    rows: int = Field(description="Rows written.")
    preferences: dict[str, PreferenceReport]

    def table(self) -> str:
        """The report as a small table of text, one line a preference."""
        head = _line("preference", "sampled", "kept", "not chosen", "words p10/50/90", "thrown out")
        return "\n".join([head, *(_table_line(name, part) for name, part in self.preferences.items())])


def _table_line(name: str, part: PreferenceReport) -> str:
    words = part.quantiles.get("words", {})
    spread = "/".join(f"{words[point]:.0f}" for point in ("p10", "p50", "p90")) if words else "-"
    reasons = ", ".join(f"{reason} {number}" for reason, number in part.thrown_out.items()) or "none"
    return _line(name, part.sampled, part.kept, part.not_chosen, spread, reasons)


def _line(name: str, sampled: object, kept: object, not_chosen: object, spread: str, reasons: str) -> str:
    return f"{name:<14}{sampled!s:>8}{kept!s:>6}{not_chosen!s:>12}  {spread:<17}{reasons}"


def num_missing(config: GenerateConfig) -> int:
    """How many requests no samples are kept for: where it is none, `generate` asks nobody.

    Raises TrainingError where the prompts or an earlier run's samples cannot be used.
    """
    sampled = SampleFile(config.samples_path)
    return sum(request.key not in sampled for request in _requests(config, read_prompts(config.prompts)))


async def generate(
    config: GenerateConfig,
    base_url: str | None,
    *,
    progress: Callable[[Progress], None] | None = None,
    client: AsyncOpenAI | None = None,
) -> Report:
    """Make the data that `config` describes with the endpoint at `base_url`; write it and its report.

    `client` stands in for the one made from `base_url`, which may be None where nothing is missing. Raises
    TrainingError where the prompts, an earlier run's samples or the endpoint cannot be used; what was sampled
    until then is kept for the next run.
    """
    prompts = read_prompts(config.prompts)
    requests = _requests(config, prompts)
    sampled = SampleFile(config.samples_path)
    missing = [request for request in requests if request.key not in sampled]
    if missing and client is not None:
        await _sample(config, client, missing, len(requests), sampled, progress)
    elif missing:
        if base_url is None:
            raise TrainingError(f"base_url: none, and samples of {len(missing)} requests are missing")
        async with endpoint(config, base_url) as own_client:
            await _sample(config, own_client, missing, len(requests), sampled, progress)
    rows, report = select(config, prompts, requests, {request.key: sampled[request.key] for request in requests})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for path, content in ((config.output, lines), (config.report_path, report.model_dump_json(indent=2) + "\n")):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_output(path, content.encode())
    return report


def _requests(config: GenerateConfig, prompts: Sequence[Prompt]) -> list[Request]:
    return [request_for(config, prompt.text, name) for prompt in prompts for name in config.preferences]


async def _sample(
    config: GenerateConfig,
    client: AsyncOpenAI,
    missing: Sequence[Request],
    num_requests: int,
    sampled: SampleFile,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Add what is missing to the samples."""
    started = time.monotonic()
    num_tokens, num_done = 0, num_requests - len(missing)
    async with aclosing(ask_all(client, missing, config.concurrency)) as answers:
        async for request, answer in answers:
            sampled.add(request.key, answer, prompt=request.prompt, preference=request.preference)
            num_tokens, num_done = num_tokens + answer.num_tokens, num_done + 1
            if progress is not None:
                progress(Progress(num_done, num_requests, num_tokens, time.monotonic() - started))


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file of rows. Raises TrainingError that names a line with no prompt, or a known one."""
    prompts: dict[str, Prompt] = {}
    with reading(read_rows(path)) as rows:
        for row in rows:
            prompt = _read_prompt(row)
            if prompt.text in prompts:
                raise row.mistake("prompt", f"must be a new one, found {prompt.text!r} a second time")
            prompts[prompt.text] = prompt
    if not prompts:
        raise TrainingError(f"prompts = {str(path)!r}: holds no prompt; allowed: at least one")
    return list(prompts.values())


def _read_prompt(row: Row) -> Prompt:
    subject = row.fields.get("subject")
    if not isinstance(subject, str | None):
        raise row.mistake("subject", f"must be text, or be left out, found {subject!r}")
    return Prompt(text_of(row, "prompt").strip(), subject)


def select(
    config: GenerateConfig,
    prompts: Sequence[Prompt],
    requests: Iterable[Request],
    sampled: Mapping[str, Sampled],
) -> tuple[list[dict[str, str]], Report]:
    """The rows to write, in the order of the prompts, and the report about them. Pure."""
    keys = {(request.prompt, request.preference): request.key for request in requests}
    taken: set[str] = set()
    choices: dict[str, list[Choice]] = {name: [] for name in config.preferences}
    rows: list[dict[str, str]] = []
    for prompt in prompts:
        subject = {} if prompt.subject is None else {"subject": prompt.subject}
        for name, recipe in config.preferences.items():
            choice = choose(
                sampled[keys[prompt.text, name]].samples, prompt.text, recipe, taken, on_topic=config.on_topic
            )
            choices[name].append(choice)
            rows += [{"prompt": prompt.text, "reply": reply, "preference": name, **subject} for reply in choice.kept]
    tokens = {
        name: sum(sampled[keys[prompt.text, name]].num_tokens for prompt in prompts) for name in config.preferences
    }
    report = Report(
        output=config.output.name,
        model=config.model,
        prompts=len(prompts),
        prompts_kept=len({row["prompt"] for row in rows}),
        rows=len(rows),
        preferences={name: _report_on(choices[name], tokens[name]) for name in config.preferences},
    )
    return rows, report


def _report_on(choices: Sequence[Choice], num_tokens: int) -> PreferenceReport:
    thrown_out = sum((choice.thrown_out for choice in choices), Counter())
    kept = [reply for choice in choices for reply in choice.kept]
    not_chosen = sum(choice.num_not_chosen for choice in choices)
    return PreferenceReport(
        sampled=len(kept) + not_chosen + thrown_out.total(),
        thrown_out={reason.value: number for reason, number in thrown_out.most_common()},
        not_chosen=not_chosen,
        kept=len(kept),
        prompts_without=sum(not choice.kept for choice in choices),
        num_tokens=num_tokens,
        quantiles={
            name: dict(quantiles(attribute.measure(reply) for reply in kept)) for name, attribute in ATTRIBUTES.items()
        },
    )
