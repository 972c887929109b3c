"""Chat template -> token ids, and which of them are supervised.

What is trained is what the server sends: the prompt is rendered with the model's own template and encoded
on its own, exactly as at inference; the reply follows, end-of-turn included, and it alone is supervised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meet_training.data.forms import Example
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of a prompt and of what follows it.

    Supervised are the ids of `reply_ids` that `mask` says, all of them where it is None. `rejected_ids` is the other
    reply of a pair, to the same prompt.
    """

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    mask: tuple[bool, ...] | None = None
    rejected_ids: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.reply_ids

    @property
    def targets(self) -> tuple[int, ...]:
        """The supervised ids, in order."""
        if self.mask is None:
            return self.reply_ids
        return tuple(token for token, supervised in zip(self.reply_ids, self.mask, strict=True) if supervised)

    @property
    def num_supervised(self) -> int:
        return len(self.reply_ids) if self.mask is None else sum(self.mask)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raises TrainingError where the tokenizer has no chat template or no end-of-turn token."""
    if not tokenizer.chat_template:
        raise TrainingError(f"base: {source} has no chat template; take a chat model, or add one to its tokenizer")
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"base: the tokenizer of {source} has no end-of-sequence token")


def render(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Prompt and reply of an example as the model sees them at inference.

    The reply is what the template puts between the generation prompt and the end of the assistant's turn;
    line breaks that some templates put behind the end of turn are not part of it.
    """
    conversation = list(example.messages)
    prompt = str(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
    answered = [*conversation, {"role": "assistant", "content": example.reply}]
    full = str(tokenizer.apply_chat_template(answered, tokenize=False))
    if not full.startswith(prompt):
        raise TrainingError(
            "base: its chat template renders a conversation differently once it is answered, so the prompt that "
            "the server sends would not be the one that was trained"
        )
    reply_ids = list(tokenizer(full[len(prompt) :].rstrip(), add_special_tokens=False)["input_ids"])
    eos = tokenizer.eos_token_id
    if not reply_ids or reply_ids[-1] != eos:
        reply_ids.append(eos)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return Rendered(tuple(prompt_ids), tuple(reply_ids))


def render_all(
    examples: dict[str, list[Example]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Rendered]]:
    """Every example that has at most `max_length` tokens. A longer one is left out, not cut: a cut reply
    would teach the model never to end its turn.

    Raises TrainingError where none of a preference is left.
    """
    rendered = {label: [render(example, tokenizer) for example in group] for label, group in examples.items()}
    kept = {label: [r for r in group if len(r) <= max_length] for label, group in rendered.items()}
    for label, group in kept.items():
        if not group:
            shortest = min(len(r) for r in rendered[label])
            raise TrainingError(
                f"max_length: {max_length} leaves no example of {label!r}; its shortest has {shortest} tokens"
            )
    return kept
