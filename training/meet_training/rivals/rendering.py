"""How a rival shows the model what is asked for: not at all, by an instruction, by a text token, or as a chain.

Pure but for the tokenizer: from conversations and replies to token ids and what of them is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from meet_training.data.example import Message
from meet_training.data.generate_config import instructed
from meet_training.data.render import Ids, Rendered, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ByPreference = Mapping[str, Sequence[Rendered]]
"""Examples with the opposite's reply as `rejected_ids`, by preference."""


class Rendering(Protocol):
    """What the model is trained on, and what it is asked."""

    def training(self, examples: ByPreference, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Rendered]]:
        """What is trained on, in groups that are drawn from alike."""

    def asked(self, messages: Sequence[Message], preference: str | None, tokenizer: PreTrainedTokenizerBase) -> Ids:
        """The ids that a reply follows on; None asks for no preference."""


@dataclass(frozen=True, slots=True)
class AsItIs:
    """The conversation alone: a control, or a model of its own, knows the preference. `paired` keeps both replies."""

    paired: bool = False

    def training(self, examples: ByPreference, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Rendered]]:  # noqa: ARG002
        if self.paired:
            return {label: list(group) for label, group in examples.items()}
        return {label: [replace(each, rejected_ids=None) for each in group] for label, group in examples.items()}

    def asked(self, messages: Sequence[Message], preference: str | None, tokenizer: PreTrainedTokenizerBase) -> Ids:  # noqa: ARG002
        return prompt_ids(messages, tokenizer)


@dataclass(frozen=True, slots=True)
class Instructed(AsItIs):
    """A preference's instruction at the end of the last message."""

    instructions: Mapping[str, str] | None = None

    def asked(self, messages: Sequence[Message], preference: str | None, tokenizer: PreTrainedTokenizerBase) -> Ids:
        if preference is None or self.instructions is None:
            return prompt_ids(messages, tokenizer)
        *before, last = messages
        last = {**last, "content": instructed(str(last["content"]), self.instructions[preference])}
        return prompt_ids([*before, last], tokenizer)


@dataclass(frozen=True, slots=True)
class TextToken:
    """A text that names the preference, between prompt and reply. It is never learned itself."""

    template: str

    def training(self, examples: ByPreference, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Rendered]]:
        return {
            label: [
                replace(each, prompt_ids=each.prompt_ids + self.token(label, tokenizer), rejected_ids=None)
                for each in group
            ]
            for label, group in examples.items()
        }

    def asked(self, messages: Sequence[Message], preference: str | None, tokenizer: PreTrainedTokenizerBase) -> Ids:
        token = () if preference is None else self.token(preference, tokenizer)
        return prompt_ids(messages, tokenizer) + token

    def token(self, preference: str, tokenizer: PreTrainedTokenizerBase, before: str = "") -> Ids:
        """The ids of a preference's text, after a text of no preference."""
        text = before + self.template.format(preference=preference)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Chain(TextToken):
    """Both replies of a pair in one sequence, each after its text token (Liu et al. 2023, arXiv 2302.02676).

    Replies are learned, each with its end of turn, texts are not. Every pair makes two chains, one in each order, so
    that each preference is also met in the place where it is asked for. Departures: no token of the first reply is
    hidden at random, and there is no pre-training data.
    """

    opposites: tuple[tuple[str, str], ...] = ()

    def training(self, examples: ByPreference, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Rendered]]:
        return {
            f"{one} and {other}": [
                self._chain(each, first, second, tokenizer)
                for first, second in ((one, other), (other, one))
                for each in examples[first]
            ]
            for one, other in self.opposites
        }

    def _chain(self, pair: Rendered, first: str, second: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        other = pair.rejected_ids or ()
        between = self.token(second, tokenizer, before="\n")
        mask = (*(True for _ in pair.reply_ids), *(False for _ in between), *(True for _ in other))
        return Rendered(pair.prompt_ids + self.token(first, tokenizer), pair.reply_ids + between + other, mask)
