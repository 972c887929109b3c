"""Log-probabilities of given replies, from a server that answers vLLM's `/tokenize` and `prompt_logprobs`.

No sampling: the prompt, rendered by the server's own chat template, and the reply are sent as token ids, and the
log-probability of every token of the reply given those before it comes back. The reply's end-of-turn token is not
counted. Kept like replies. A control that stands between prompt and reply cannot be scored so: it would come after
the reply, and whoever calls must know that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import openai

from meet_training.data.records import RecordFile
from meet_training.errors import TrainingError
from meet_training.evaluation.asking import Endpoint, OnProgress, client_of, errors_of, work_through
from meet_training.evaluation.log_odds import Score
from meet_training.evaluation.prompts import Prompt


@dataclass(frozen=True, slots=True)
class GivenReply:
    """A reply to be scored, and fields of the body that only a MEET server knows, such as `preference`."""

    prompt: Prompt
    reply: str
    fields: Mapping[str, Any]

    def key(self, identity: str) -> str:
        """SHA-256 of everything that decides the score, hexadecimal."""
        decides = [identity, self.prompt, self.reply, dict(self.fields)]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class ScoreCache(RecordFile[Score]):
    """Scores by key in a JSON Lines file, one line each."""

    what = "score"

    def read(self, fields: dict[str, Any]) -> Score:
        """The score of a line."""
        return Score(float(fields["logprob"]), int(fields["num_tokens"]))

    def write(self, record: Score) -> Mapping[str, Any]:
        """The fields of a line."""
        return asdict(record)


def unscored(given: Sequence[GivenReply], cache: ScoreCache, identity: str) -> dict[str, GivenReply]:
    """The replies that no score is kept for, by key, each once."""
    keyed = {each.key(identity): each for each in given}
    return {key: each for key, each in keyed.items() if key not in cache}


async def score_missing(
    given: Sequence[GivenReply],
    endpoint: Endpoint,
    cache: ScoreCache,
    *,
    concurrency: int = 32,
    on_progress: OnProgress | None = None,
    client: openai.AsyncOpenAI | None = None,
) -> None:
    """Scores every reply that no score is kept for, `concurrency` at once, and keeps each score.

    `client` stands in for the one made from the endpoint. Raises TrainingError where the endpoint refuses, stops
    answering, or is no server that scores; what it answered until then is kept.
    """
    to_score = unscored(given, cache, endpoint.identity)
    num_all = len({each.key(endpoint.identity) for each in given})
    if not to_score:
        return
    async with client_of(endpoint, client) as sender:

        async def ask(key: str, each: GivenReply) -> None:
            with errors_of(endpoint, each.prompt[-1].content):
                cache.add(key, await _score(sender, endpoint, each))

        await work_through(to_score, ask, num_all=num_all, concurrency=concurrency, on_progress=on_progress)


async def _score(client: openai.AsyncOpenAI, endpoint: Endpoint, given: GivenReply) -> Score:
    messages = [message._asdict() for message in given.prompt]
    prompt = await _tokens(client, endpoint, {"messages": messages, "add_generation_prompt": True})
    reply = await _tokens(client, endpoint, {"prompt": given.reply, "add_special_tokens": False})
    completion = await client.completions.create(
        model=endpoint.model,
        prompt=[*prompt, *reply],
        max_tokens=1,
        temperature=0,
        extra_body={"prompt_logprobs": 0, **given.fields},
    )
    choices: Any = getattr(completion, "choices", None)
    rows = (choices[0].model_extra or {}).get("prompt_logprobs") if isinstance(choices, list) and choices else None
    if not isinstance(rows, list) or len(rows) != len(prompt) + len(reply):
        raise TrainingError(f"{endpoint.url} gives no `prompt_logprobs`: it cannot score replies")
    try:
        logprobs = [float(row[str(token)]["logprob"]) for row, token in zip(rows[len(prompt) :], reply, strict=True)]
    except (KeyError, TypeError, ValueError):
        raise TrainingError(
            f"{endpoint.url} gives `prompt_logprobs` without those of the prompt's own tokens"
        ) from None
    return Score(sum(logprobs), len(reply))


async def _tokens(client: openai.AsyncOpenAI, endpoint: Endpoint, what: dict[str, Any]) -> list[int]:
    body = {"model": endpoint.model, **what}
    answer: Any = await client.post(f"{endpoint.url.rstrip('/')}/tokenize", cast_to=object, body=body)
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list):
        raise TrainingError(f"{endpoint.url} answers `/tokenize` with no tokens: it cannot score replies")
    return tokens
