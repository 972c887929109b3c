"""Chat template -> token ids, and which of them are supervised.

What is trained is what the server sends: each prompt is rendered with the model's own template and encoded
on its own, exactly as at inference; the reply follows, end-of-turn included, encoded as what stands behind that
prompt, and it alone is supervised.
Where every turn of the assistant's is learned, that holds at each of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from meet_training.data.example import Example, Message
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

EXAMPLES_AT_ONCE = 256
"""Examples whose texts go to the tokenizer together, which has a thread for each processor; told of as one."""

OnRendered = Callable[[int, int], None]
"""How many examples are rendered, and how many there are."""


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
    return _Renderer(tokenizer, end_ids).rendered([example])[0]


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Token ids of a conversation that is to be answered, as the server sends them. Raises TrainingError."""
    return _encoded([_Template(tokenizer, None).text([*messages], generate=True)], tokenizer)[0]


def render_all(
    examples: Mapping[str, Sequence[Example]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    end_ids: Collection[int] = (),
    on_rendered: OnRendered | None = None,
) -> dict[str, list[Rendered]]:
    """Every example that has at most `max_length` tokens. A longer one is left out, not cut: a cut reply
    would teach the model never to end its turn. A rejected reply that makes it longer is left out alone.

    Raises TrainingError where none of a preference is left.
    """
    renderer = _Renderer(tokenizer, end_ids)
    num_all = sum(map(len, examples.values()))
    rendered: dict[str, list[Rendered]] = {label: [] for label in examples}
    for label, given in examples.items():
        for start in range(0, len(given), EXAMPLES_AT_ONCE):
            rendered[label] += renderer.rendered(given[start : start + EXAMPLES_AT_ONCE])
            if on_rendered:
                on_rendered(sum(map(len, rendered.values())), num_all)
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


class _Turn(NamedTuple):
    """A text that the server sends, and what a reply adds to it, without the end of sequence that it may lack."""

    prompt: str
    answer: str


class _Renderer:
    """Renders examples of any number, and encodes what they have in common once: the prompt of a pair, or of all
    preferences, and a reply that is chosen in one example and rejected in another. Their ids are the same objects."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = {tokenizer.eos_token_id, *end_ids}
        self._prompts: dict[bytes, Ids] = {}
        self._replies: dict[tuple[bytes, bytes], Ids] = {}

    def rendered(self, examples: Sequence[Example]) -> list[Rendered]:
        """Those examples in order. Raises TrainingError."""
        turns = [self._turns(example) for example in examples]
        self._encode([turn for each in turns for turn in each])
        return [self._put_together(example, each) for example, each in zip(examples, turns, strict=True)]

    def _turns(self, example: Example) -> list[_Turn]:
        """The turns that are learned, in order; of a pair the chosen one and the rejected one."""
        template = _Template(self._tokenizer, example.tools)
        replies = [example.reply] if example.rejected is None else [example.reply, example.rejected]
        if example.supervise == "last":
            return template.turns([*example.messages], [_message(reply) for reply in replies])
        whole = [*example.messages, _message(example.reply)]
        places = [place for place, message in enumerate(whole) if message["role"] == "assistant"]
        return [turn for place in places for turn in template.turns(whole[:place], [whole[place]])]

    def _put_together(self, example: Example, turns: Sequence[_Turn]) -> Rendered:
        ids = [self._ids(turn) for turn in turns]
        if example.supervise == "all":
            return _all_turns(ids)
        prompt_ids, reply_ids = ids[0]
        return Rendered(prompt_ids, reply_ids, rejected_ids=ids[1][1] if len(ids) > 1 else None)

    def _ids(self, turn: _Turn) -> tuple[Ids, Ids]:
        """The ids that the server sends, and those that the reply adds to them."""
        return self._prompts[_key(turn.prompt)], self._replies[_keys(turn)]

    def _encode(self, turns: Iterable[_Turn]) -> None:
        """Learns the ids of turns.

        Some tokenizers (of Llama 2, Mistral) put a space before the first word of a text: by itself a reply would get
        one that the model does not put behind a prompt. Where ids of both run into one another it is by itself all the
        same, since the server encodes the prompt so.
        """
        new = [turn for turn in dict.fromkeys(turns) if _keys(turn) not in self._replies]
        prompts = [text for text in dict.fromkeys(turn.prompt for turn in new) if _key(text) not in self._prompts]
        self._prompts.update(zip(map(_key, prompts), _encoded(prompts, self._tokenizer), strict=True))
        alone = []
        for turn, whole in zip(
            new, _encoded([turn.prompt + turn.answer for turn in new], self._tokenizer), strict=True
        ):
            before = self._prompts[_key(turn.prompt)]
            if whole[: len(before)] == before:
                self._replies[_keys(turn)] = self._ended(whole[len(before) :])
            else:
                alone.append(turn)
        for turn, ids in zip(alone, _encoded([turn.answer for turn in alone], self._tokenizer), strict=True):
            self._replies[_keys(turn)] = self._ended(ids)

    def _ended(self, ids: Ids) -> Ids:
        """The same with the end of sequence, where the template puts nothing that ends the reply."""
        return ids if ids and ids[-1] in self._end_ids else (*ids, self._tokenizer.eos_token_id)


def _key(text: str) -> bytes:
    """What a text is known by, shorter than most texts: of a hundred thousand rows all would be kept."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _keys(turn: _Turn) -> tuple[bytes, bytes]:
    return _key(turn.prompt), _key(turn.answer)


def _encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    return [tuple(map(_one_of_each, ids)) for ids in encoded["input_ids"]]


def _all_turns(turns: Sequence[tuple[Ids, Ids]]) -> Rendered:
    """A conversation with each of the assistant's turns supervised, as the server would have led up to it."""
    first_prompt, ids = turns[0][0], turns[0][0]
    mask: list[bool] = []
    for prompt_ids, reply_ids in turns:
        if prompt_ids[: len(ids)] != ids:
            raise TrainingError(
                "supervise: all: the chat template of the base renders the assistant's earlier turns differently from "
                "how they were generated, so a later prompt would not be the one that the server sends; use "
                "supervise: last"
            )
        mask += [False] * (len(prompt_ids) - len(ids)) + [True] * len(reply_ids)
        ids = prompt_ids + reply_ids
    return Rendered(first_prompt, ids[len(first_prompt) :], None if all(mask) else tuple(mask))


class _Template:
    """The model's chat template, for conversations with the same tools on offer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: tuple[dict[str, Any], ...] | None) -> None:
        self.tokenizer = tokenizer
        self.tools = list(tools) if tools else None

    def turns(self, conversation: list[Message], replies: Sequence[Message]) -> list[_Turn]:
        """A turn for each reply to a conversation. Raises TrainingError."""
        prompt = self.text(conversation, generate=True)
        if self.tools and prompt == self.text(conversation, generate=True, tools=False):
            raise TrainingError(
                "base: its chat template shows the model no tools, so those of the data would be lost; take a base "
                "whose template does, or leave them out: name a column that the data lacks as columns.tools"
            )
        return [self._turn(prompt, conversation, reply) for reply in replies]

    def _turn(self, prompt: str, conversation: list[Message], reply: Message) -> _Turn:
        full = self.text([*conversation, reply], generate=False)
        if not full.startswith(prompt):
            raise TrainingError(
                "base: its chat template renders a conversation differently once it is answered, so the prompt that "
                "the server sends would not be the one that was trained"
            )
        if "tool_calls" in reply:
            self._check_shows_calls(conversation, reply, full)
        return _Turn(prompt, full[len(prompt) :].rstrip())

    def _check_shows_calls(self, conversation: list[Message], reply: Message, full: str) -> None:
        silent = {key: value for key, value in reply.items() if key != "tool_calls"}
        if full == self.text([*conversation, silent], generate=False):
            raise TrainingError("base: its chat template shows no tool calls of the assistant's, which the data has")

    def text(self, conversation: list[Message], *, generate: bool, tools: bool = True) -> str:
        """A conversation as the template writes it, with the beginning of the reply where it is to `generate` one."""
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
