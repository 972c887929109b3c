"""What all rivals of a comparison share: the base, the data dealt out, and how replies are decoded and measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meet_training.base_model import (
    check_causal_model,
    describe_base,
    end_ids,
    load_causal,
    load_tokenizer,
    resolve_base,
)
from meet_training.data.attributes import ATTRIBUTES, Attribute
from meet_training.data.example import Example
from meet_training.data.render import check_tokenizer, render
from meet_training.errors import TrainingError
from meet_training.evaluation.figures import Share
from meet_training.evaluation.given import read_neutral
from meet_training.rivals.answered import Answered, Split, digest_of, split
from meet_training.rivals.classifier import Judge, PreferenceClassifier, keep_judge, kept_accuracy, kept_judge
from meet_training.rivals.compare_config import CLASSIFIER, CompareConfig
from meet_training.rivals.decoding import DecodingConfig
from meet_training.rivals.figures import Ordered, ordered_pairs, sides
from meet_training.rivals.measuring import Given, Neutral
from meet_training.rivals.rendering import TextToken
from meet_training.stages.machine import choose_device, choose_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLASSIFIER_FILE = "classifier.json"


class Setting:
    """One comparison's base and data. Raises TrainingError where they cannot be used."""

    def __init__(self, config: CompareConfig, on_step: Callable[[str], None] | None = None) -> None:
        self.config = config
        self._on_step = on_step
        self.folder: Path = resolve_base(config.base, on_step=on_step)
        check_causal_model(self.folder)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.folder)
        check_tokenizer(self.tokenizer, config.base)
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.precision, self.device)
        self.decoding = DecodingConfig(
            end_ids=end_ids(self.folder, self.tokenizer),
            pad_id=int(self.tokenizer.pad_token_id or 0),
            max_tokens=config.test.max_tokens,
            repetition_penalty=config.test.repetition_penalty,
        )
        self.split: Split = split(config, self._fits)
        self.neutral: Neutral | None = _neutral(config)
        self.pairs: list[Ordered] = ordered_pairs(config)
        self.sides = sides(config)

    @property
    def tuning_rows(self) -> slice:
        """Where in what is measured the prompts are that learning rates are chosen on."""
        return slice(0, len(self.split.tuning))

    @property
    def test_rows(self) -> slice:
        """Where the tested ones are."""
        return slice(len(self.split.tuning), None)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what decides every result, trained or not: base, tested data, how it is decoded and measured."""
        config = self.config
        dealt = self.split
        decides: list[Any] = [
            describe_base(config.base, self.folder).model_dump(mode="json"),
            str(self.dtype),
            self.device.type,
            [digest_of(rows) for rows in (dealt.test, dealt.tuning, dealt.classifier)],
            config.test.model_dump(mode="json", exclude={"data", "neutral"}),
            None if self.neutral is None else [self.neutral.test, self.neutral.tuning],
            {name: axis.model_dump() for name, axis in config.axes.items()},
            config.classifier.model_dump() if config.judged else None,
        ]
        if len(self.decoding.end_ids) > 1:  # left out where it says nothing: results are kept under the digest without
            decides.append(self.decoding.end_ids)
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @cached_property
    def training_digest(self) -> str:
        """SHA-256 of what is trained on."""
        rows = [(two, digest_of(rows)) for two, rows in self.split.training.items()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def load_base(self) -> PreTrainedModel:
        """The base, anew from its files, in the arithmetic that is measured in."""
        return load_causal(self.folder, self.dtype).to(self.device)

    @cached_property
    def judge(self) -> Judge:
        """The classifier, trained on prompts of nobody else's, and its accuracy on the tested pairs."""
        classifier = PreferenceClassifier(self.load_base(), self.tokenizer)
        file = self.config.output / CLASSIFIER_FILE
        if (kept := kept_judge(classifier, file, self.identity)) is not None:
            return kept
        (less, more), *_ = [axis.order for axis in self.config.axes.values() if axis.attribute == CLASSIFIER]
        trained, tested = self.split.classifier, self.split.test
        if self._on_step:
            self._on_step(f"training the preference classifier on {len(trained)} pairs ...")
        classifier.train(
            [row.replies[more] for row in trained],
            [row.replies[less] for row in trained],
            weight_decay=self.config.classifier.weight_decay,
        )
        accuracy = classifier.accuracy([row.replies[more] for row in tested], [row.replies[less] for row in tested])
        judge = Judge(classifier, accuracy)
        keep_judge(judge, file, self.identity)
        return judge

    @property
    def judge_accuracy(self) -> Share | None:
        """The classifier's accuracy on the tested pairs, where one was trained already and needed."""
        return kept_accuracy(self.config.output / CLASSIFIER_FILE, self.identity) if self.config.judged else None

    def attributes(self) -> Mapping[str, Attribute]:
        """What the replies under each preference are measured by."""
        names = {label: self.config.axis_of(label).attribute for label in self.config.preferences}
        return {
            label: self.judge.classifier if name == CLASSIFIER else ATTRIBUTES[name] for label, name in names.items()
        }

    def _fits(self, row: Answered) -> bool:
        """Whether the prompt and its two longest replies, each behind its text, have at most `max_length` tokens."""
        rendered = [
            render(Example(row.messages, reply, name), self.tokenizer, self.decoding.end_ids)
            for name, reply in row.replies.items()
        ]
        token = TextToken(self.config.token_text)
        texts = [len(token.token(name, self.tokenizer, before="\n")) for name in row.replies]
        longest = sorted(len(each.reply_ids) for each in rendered)[-2:]
        return len(rendered[0].prompt_ids) + sum(longest) + 2 * max(texts) <= self.config.max_length


def _neutral(config: CompareConfig) -> Neutral | None:
    """The replies of the file for perplexity, where one is named. Raises TrainingError."""
    if config.test.neutral is None:
        return None
    num_test, num_tuning = config.test.prompts, config.tuning.prompts
    given: list[Given] = [
        ([message._asdict() for message in prompt], reply)
        for prompt, reply in read_neutral(config.test.neutral, num_test + num_tuning)
    ]
    if len(given) < num_test + num_tuning:
        raise TrainingError(
            f"test.neutral: {config.test.neutral} has {len(given)} rows; it must have {num_test + num_tuning}: "
            f"{num_test} to test on (test.prompts) and {num_tuning} to choose rates by (tuning.prompts)"
        )
    return Neutral(given[:num_test], given[num_test:])
