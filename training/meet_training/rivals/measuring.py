"""What is measured of every rival alike: greedy replies, scores of given replies, perplexity of neutral ones.

Knows one model and how it is asked, not whose it is. No figure is made here; see `figures.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from meet_training.controls.control import ControlSet
from meet_training.data.attributes import Attribute
from meet_training.data.batches import UNCONTROLLED, Item, passes
from meet_training.data.example import Example, Message
from meet_training.data.render import Ids, Rendered, render
from meet_training.evaluation.log_odds import Score
from meet_training.evaluation.replies import Reply
from meet_training.rivals.answered import Answered
from meet_training.rivals.decoding import Asked, DecodingConfig, greedy
from meet_training.rivals.rendering import Rendering
from meet_training.stages import packed_attention
from meet_training.stages.layout import lay_out
from meet_training.stages.reply_nll import reply_nll
from meet_training.stages_config import SpeedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model as it is measured, its controls attached."""

    model: Any
    controls: ControlSet
    rendering: Rendering
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    tokens_per_pass: int = 2048

    def ready(self) -> Tuned:
        """The same in the arithmetic that is measured in."""
        self.model.requires_grad_(False)
        return replace(self, model=self.model.to(self.dtype).eval())

    def control(self, preference: str | None) -> int:
        """The index of a preference's control; -1 where none is asked for or it has none."""
        return self.controls.names.index(preference) if preference in self.controls.names else UNCONTROLLED

    def asked(self, messages: Sequence[Message], preference: str | None) -> Asked:
        ids = self.rendering.asked(messages, preference, self.tokenizer)
        return Asked(ids, self.control(preference))


@dataclass(frozen=True, slots=True)
class Cost:
    """What training took: tokens learned, tokens that went over the model for it, seconds of the stages, and how
    many numbers were learned. Of a rival with several models, of all of them."""

    learned_tokens: int = 0
    all_tokens: int = 0
    seconds: float = 0.0
    parameters: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.learned_tokens + other.learned_tokens,
            self.all_tokens + other.all_tokens,
            self.seconds + other.seconds,
            self.parameters + other.parameters,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on the same rows of every rival, in their order.

    Under each preference: the replies, the attribute of each, and the scores of every side's given reply. `neutral` and
    `neutral_tuning` are scores of neutral replies when no preference is asked for.
    """

    replies: Mapping[str, Sequence[Reply]]
    values: Mapping[str, Sequence[float]]
    scores: Mapping[str, Mapping[str, Sequence[Score]]]
    neutral: Sequence[Score]
    neutral_tuning: Sequence[Score] = ()
    cost: Cost = Cost()


Given = tuple[Sequence[Message], str]
"""A conversation and a reply to it that is scored."""


@dataclass(frozen=True, slots=True)
class Neutral:
    """Replies that perplexity is measured on: those that rivals are told by, and those that rates are chosen by."""

    test: Sequence[Given]
    tuning: Sequence[Given]


def replies_of(
    tuned: Tuned,
    prompts: Sequence[Sequence[Message]],
    preferences: Sequence[str | None],
    config: DecodingConfig,
    on_progress: OnProgress | None = None,
) -> list[list[Reply]]:
    """The replies under each preference, one a prompt; all of them decoded together."""
    asked = [tuned.asked(messages, preference) for preference in preferences for messages in prompts]
    found = iter(
        _as_reply(ids, tuned.tokenizer, config)
        for ids in greedy(tuned.model, tuned.controls, asked, config, on_progress)
    )
    return [list(islice(found, len(prompts))) for _ in preferences]


@torch.no_grad()
def scores_of(tuned: Tuned, given: Sequence[Given], preference: str | None, config: DecodingConfig) -> list[Score]:
    """Log-probability of each reply under a preference, its end of turn left out, as `meet eval` scores."""
    items = [
        Item(tuned.control(preference), _scored(tuned, messages, reply, preference, config.end_ids))
        for messages, reply in given
    ]
    found: dict[Rendered, Score] = {}
    device = tuned.model.device
    packed = packed_attention.packs(tuned.model, SpeedConfig(), device)
    for group in passes(list(dict.fromkeys(items)), tuned.tokens_per_pass, packed=packed):
        batch = lay_out(group, tuned.controls.virtual_ids, config.pad_id, device, packed=packed)
        with tuned.controls.applied(batch.token_controls):
            nll = reply_nll(tuned.model, batch)
        sums = torch.zeros(len(group), device=nll.device).index_add(0, batch.replies, -nll)
        for item, logprob in zip(group, sums.tolist(), strict=True):
            found[item.rendered] = Score(logprob, len(item.rendered.reply_ids))
    return [found[item.rendered] for item in items]


def measure(
    tuned: Tuned,
    preferences: Sequence[str],
    sides: Mapping[str, Sequence[str]],
    rows: Sequence[Answered],
    neutral: Neutral,
    attributes: Mapping[str, Attribute],
    config: DecodingConfig,
    on_progress: OnProgress | None = None,
) -> Measured:
    """Everything of a model under the preferences that it answers for.

    `sides` says whose given replies are scored under a preference, `attributes` what its replies are measured by.
    """
    prompts = [row.messages for row in rows]
    decoded = replies_of(tuned, prompts, preferences, config, on_progress)
    replies = dict(zip(preferences, decoded, strict=True))
    return Measured(
        replies=replies,
        values={name: [attributes[name].measure(reply.text) for reply in given] for name, given in replies.items()},
        scores={
            name: {
                side: scores_of(tuned, [(row.messages, row.replies[side]) for row in rows], name, config)
                for side in sides[name]
            }
            for name in preferences
        },
        neutral=scores_of(tuned, neutral.test, None, config),
        neutral_tuning=scores_of(tuned, neutral.tuning, None, config),
    )


def together(parts: Sequence[Measured]) -> Measured:
    """Several models of one rival as one. Each neutral reply counts once for each model."""
    return Measured(
        replies={name: given for part in parts for name, given in part.replies.items()},
        values={name: given for part in parts for name, given in part.values.items()},
        scores={name: given for part in parts for name, given in part.scores.items()},
        neutral=_summed([part.neutral for part in parts]),
        neutral_tuning=_summed([part.neutral_tuning for part in parts]),
        cost=sum((part.cost for part in parts), Cost()),
    )


def _summed(parts: Sequence[Sequence[Score]]) -> list[Score]:
    return [
        Score(sum(score.logprob for score in each), sum(score.num_tokens for score in each))
        for each in zip(*parts, strict=True)
    ]


def _as_reply(ids: Ids, tokenizer: PreTrainedTokenizerBase, config: DecodingConfig) -> Reply:
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return Reply(text, bool(ids) and ids[-1] in config.end_ids, len(ids))


def _scored(tuned: Tuned, messages: Sequence[Message], reply: str, preference: str | None, end_ids: Ids) -> Rendered:
    ids = render(Example(tuple(messages), reply, preference or ""), tuned.tokenizer, end_ids).reply_ids
    while ids and ids[-1] in end_ids:  # some templates put the end of sequence behind the end of turn
        ids = ids[:-1]
    return Rendered(tuned.rendering.asked(messages, preference, tuned.tokenizer), ids)
