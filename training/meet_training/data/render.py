"""Chat template -> token ids, and which of them are supervised.

What is trained is what the server sends: each prompt is rendered with the model's own template and encoded
on its own, exactly as at inference; the reply follows, end-of-turn included, encoded as what stands behind that
prompt, and it alone is supervised.
Where every turn of the assistant's is learned, that holds at each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from meet_training.data.example import Example, Message
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of a conversation up to the first reply that is learned, and of what follows.

    `mask` says which of `reply_ids` are supervised; None: all of them. `rejected_ids` are those of the other
    reply of a pair, end of turn included, to the same `prompt_ids`.
    """

    prompt_ids: Ids
    reply_ids: Ids
    mask: tuple[bool, ...] | None = None
    rejected_ids: Ids | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)

    @property
    def ids(self) -> Ids:
        return self.prompt_ids + self.reply_ids

    @property
    def supervised(self) -> tuple[bool, ...]:
        """Whether each of `ids` is supervised."""
        return (False,) * len(self.prompt_ids) + (self.mask or (True,) * len(self.reply_ids))

    @property
    def targets(self) -> Ids:
        """The supervised ids, in order."""
        if self.mask is None:
            return self.reply_ids
        return tuple(token for token, learned in zip(self.reply_ids, self.mask, strict=True) if learned)

    @property
    def num_supervised(self) -> int:
        return len(self.reply_ids) if self.mask is None else sum(self.mask)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raises TrainingError where the tokenizer has no chat template or no end-of-turn token."""
    if not tokenizer.chat_template:
        raise TrainingError(f"base: {source} has no chat template; take a chat model, or add one to its tokenizer")
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"base: the tokenizer of {source} has no end-of-sequence token")


def render(example: Example, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int] = ()) -> Rendered:
    """Prompt and reply of an example as the model sees them at inference.

    The reply is what the template puts between the generation prompt and the end of the assistant's turn;
    line breaks that some templates put behind the end of turn are not part of it. It ends with one of `end_ids` or
    the end of sequence, which is added where the template has none of these. Raises TrainingError where the template
    cannot show the conversation so, or leaves out tools that it has.
    """
    template = _Template(tokenizer, example.tools, end_ids)
    reply = _message(example.reply)
    if example.supervise == "all":
        return _render_all_turns([*example.messages, reply], template)
    prompt_ids, reply_ids = template.turn([*example.messages], reply)
    rejected_ids = None
    if example.rejected is not None:
        _, rejected_ids = template.turn([*example.messages], _message(example.rejected))
    return Rendered(prompt_ids, reply_ids, rejected_ids=rejected_ids)


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Token ids of a conversation that is to be answered, as the server sends them. Raises TrainingError."""
    return _Template(tokenizer, None).prompt([*messages])


def render_all(
    examples: Mapping[str, Sequence[Example]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    end_ids: Collection[int] = (),
) -> dict[str, list[Rendered]]:
    """Every example that has at most `max_length` tokens. A longer one is left out, not cut: a cut reply
    would teach the model never to end its turn. A rejected reply that makes it longer is left out alone.

    Raises TrainingError where none of a preference is left.
    """
    rendered = {label: [render(example, tokenizer, end_ids) for example in group] for label, group in examples.items()}
    kept = {label: [_fit(r, max_length) for r in group if len(r) <= max_length] for label, group in rendered.items()}
    for label, group in kept.items():
        if not group:
            shortest = min(len(r) for r in rendered[label])
            raise TrainingError(
                f"max_length: {max_length} leaves no example of {label!r}; its shortest has {shortest} tokens"
            )
    return kept


def _fit(rendered: Rendered, max_length: int) -> Rendered:
    rejected = rendered.rejected_ids
    if rejected is None or len(rendered.prompt_ids) + len(rejected) <= max_length:
        return rendered
    return replace(rendered, rejected_ids=None)


def _render_all_turns(conversation: list[Message], template: _Template) -> Rendered:
    """The conversation with each of the assistant's turns supervised, as the server would have led up to it."""
    ids: Ids = ()
    mask: list[bool] = []
    first_prompt: Ids | None = None
    for place, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt_ids, reply_ids = template.turn(conversation[:place], message)
        if prompt_ids[: len(ids)] != ids:
            raise TrainingError(
                "supervise: all: the chat template of the base renders the assistant's earlier turns differently from "
                "how they were generated, so a later prompt would not be the one that the server sends; use "
                "supervise: last"
            )
        if first_prompt is None:
            first_prompt, mask = prompt_ids, []
        else:
            mask += [False] * (len(prompt_ids) - len(ids))
        mask += [True] * len(reply_ids)
        ids = prompt_ids + reply_ids
    first_prompt = first_prompt or ()
    return Rendered(first_prompt, ids[len(first_prompt) :], None if all(mask) else tuple(mask))


class _Template:
    """The model's chat template, for conversations with the same tools on offer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: tuple[dict[str, Any], ...] | None,
        end_ids: Collection[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.tools = list(tools) if tools else None
        self.end_ids = {tokenizer.eos_token_id, *end_ids}

    def turn(self, conversation: list[Message], reply: Message) -> tuple[Ids, Ids]:
        """The ids that the server sends for the conversation, and those that the reply adds to them."""
        prompt = self._text(conversation, generate=True)
        if self.tools and prompt == self._text(conversation, generate=True, tools=False):
            raise TrainingError(
                "base: its chat template shows the model no tools, so those of the data would be lost; take a base "
                "whose template does, or leave them out: name a column that the data lacks as columns.tools"
            )
        full = self._text([*conversation, reply], generate=False)
        if not full.startswith(prompt):
            raise TrainingError(
                "base: its chat template renders a conversation differently once it is answered, so the prompt that "
                "the server sends would not be the one that was trained"
            )
        answer = full[len(prompt) :].rstrip()
        if "tool_calls" in reply:
            self._check_shows_calls(conversation, reply, full)
        return self._encoded(prompt, answer)

    def prompt(self, conversation: list[Message]) -> Ids:
        """The ids of a conversation that is to be answered."""
        return self._ids(self._text(conversation, generate=True))

    def _ids(self, text: str) -> Ids:
        return tuple(map(_one_of_each, self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def _encoded(self, prompt: str, answer: str) -> tuple[Ids, Ids]:
        """Ids of both, with the end of sequence where the template puts nothing that ends the reply.

        Some tokenizers (of Llama 2, Mistral) put a space before the first word of a text: by itself a reply would get
        one that the model does not put behind a prompt. Where ids of both run into one another it is by itself all the
        same, since the server encodes the prompt so.
        """
        before, whole = self._ids(prompt), self._ids(prompt + answer)
        ids = whole[len(before) :] if whole[: len(before)] == before else self._ids(answer)
        return before, ids if ids and ids[-1] in self.end_ids else (*ids, self.tokenizer.eos_token_id)

    def _check_shows_calls(self, conversation: list[Message], reply: Message, full: str) -> None:
        silent = {key: value for key, value in reply.items() if key != "tool_calls"}
        if full == self._text([*conversation, silent], generate=False):
            raise TrainingError("base: its chat template shows no tool calls of the assistant's, which the data has")

    def _text(self, conversation: list[Message], *, generate: bool, tools: bool = True) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                conversation, tools=self.tools if tools else None, add_generation_prompt=generate, tokenize=False
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in conversation)
            raise TrainingError(f"base: its chat template refuses a conversation of {roles}: {error}") from None
        return str(text)


@cache
def _one_of_each(token: int) -> int:
    """The same number, always the same object: a tokenizer makes new ones, each four times the size of its place."""
    return token


def _message(reply: str | Message) -> Message:
    return {"role": "assistant", "content": reply} if isinstance(reply, str) else reply
