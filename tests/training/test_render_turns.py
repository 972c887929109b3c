"""Several turns, pairs, tools: which tokens are supervised, and that each turn's prompt is what the server sends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from meet_training.base_model import end_ids
from meet_training.data.forms import Example
from meet_training.data.render import Rendered, render, render_all
from meet_training.errors import TrainingError

CHAT = (
    {"role": "system", "content": "s"},
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "3"},
)
REASONING_STRIPPED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('!')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def test_all_turns_are_supervised_each_behind_the_prompt_that_the_server_sends(tokenizer: Any) -> None:
    rendered = render(Example(CHAT, "4", "a", supervise="all"), tokenizer)
    assert tokenizer.decode(rendered.prompt_ids) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(rendered.reply_ids) == (
        "2<|im_end|>\n<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    assert tokenizer.decode(rendered.targets) == "2<|im_end|>4<|im_end|>"
    assert rendered.num_supervised == len(rendered.targets) == 4
    assert rendered.mask is not None
    assert [token for token, learned in zip(rendered.ids, rendered.supervised, strict=True) if learned] == list(
        rendered.targets
    )
    for place, reply in ((2, "2"), (4, "4")):
        sent = tokenizer.apply_chat_template(list(CHAT[:place]), add_generation_prompt=True)["input_ids"]
        assert list(rendered.ids[: len(sent)]) == sent
        end = len(sent) + len(reply) + 1
        assert rendered.supervised[len(sent) : end] == (True, True)


@pytest.mark.parametrize(
    ("template", "prompt", "start"),
    [
        ("{{ text }}#\n{% if reply %}{{ reply }}</s>{% endif %}", ["▁", "h", "m", "#", "\n"], []),
        ("{{ text }}#{% if reply %} {{ reply }}</s>{% endif %}", ["▁", "h", "m", "#"], ["▁"]),
    ],
    ids=["a line break before replies", "a space before replies"],
)
def test_a_tokenizer_that_starts_texts_with_a_space_starts_no_reply_so(
    template: str, prompt: list[str], start: list[str]
) -> None:
    """Those of Llama 2 and Mistral: a reply is what the model would have put behind the prompt."""
    tokenizer = starting_with_a_space()
    tokenizer.chat_template = (
        "{% set text = messages[0].content %}{% set reply = messages[1].content if messages | length > 1 %}" + template
    )
    rendered = render(Example(({"role": "user", "content": "hm"},), "yes", "a", rejected="no"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(rendered.prompt_ids) == prompt
    assert tokenizer.convert_ids_to_tokens(rendered.reply_ids) == [*start, "y", "e", "s", "</s>"]
    assert tokenizer.convert_ids_to_tokens(rendered.rejected_ids) == [*start, "n", "o", "</s>"]


def starting_with_a_space() -> Any:
    """A tokenizer of characters that does as those converted from SentencePiece do."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<unk>", "</s>", *"▁\n#ehmnosy"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_only_the_last_turn_is_supervised_by_default(tokenizer: Any) -> None:
    last = render(Example(CHAT, "4", "a"), tokenizer)
    assert last.mask is None
    assert tokenizer.decode(last.targets) == "4<|im_end|>"
    assert last.ids == render(Example(CHAT, "4", "a", supervise="all"), tokenizer).ids
    assert last.supervised == (False,) * len(last.prompt_ids) + (True, True)


def test_a_single_turn_needs_no_mask(tokenizer: Any) -> None:
    user = ({"role": "user", "content": "1"},)
    assert render(Example(user, "2", "a", supervise="all"), tokenizer) == render(Example(user, "2", "a"), tokenizer)


def test_ids_of_all_examples_are_the_same_objects(tokenizer: Any) -> None:
    """Of a hundred thousand rows they would be gigabytes in every process. Python keeps one of each up to 256 alone."""
    tokenizer.add_tokens(["rainbow"])
    example = Example(({"role": "user", "content": "rainbow"},), "rainbow", "long")
    first, second = (render(example, tokenizer).ids for _ in range(2))
    large = [(a, b) for a, b in zip(first, second, strict=True) if a > 256]
    assert len(large) == 2
    assert all(a is b for a, b in large)


def test_a_template_that_renders_earlier_turns_differently_is_refused_for_all_turns_only(tokenizer: Any) -> None:
    tokenizer.chat_template = REASONING_STRIPPED
    thought = (*CHAT[:2], {"role": "assistant", "content": "hm!2"}, CHAT[3])
    with pytest.raises(TrainingError, match=r"supervise: all: the chat template .* use supervise: last"):
        render(Example(thought, "4", "a", supervise="all"), tokenizer)
    assert tokenizer.decode(render(Example(thought, "4", "a"), tokenizer).targets) == "4<|im_end|>"


def test_a_template_that_ends_no_turn_is_refused_for_all_turns(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(TrainingError, match="supervise: all"):
        render(Example(CHAT, "4", "a", supervise="all"), tokenizer)


def test_a_turn_that_ends_otherwise_gets_no_end_of_sequence(turns_end_otherwise: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(turns_end_otherwise)
    ends = end_ids(turns_end_otherwise, tokenizer)
    assert (tokenizer.eos_token, ends) == ("<|pad|>", (0, 2))
    rendered = render(Example(CHAT, "4", "a", rejected="none"), tokenizer, ends)
    assert tokenizer.decode(rendered.reply_ids) == "4<|im_end|>"
    assert tokenizer.decode(rendered.rejected_ids) == "none<|im_end|>"
    every = render(Example(CHAT, "4", "a", supervise="all"), tokenizer, ends)
    assert tokenizer.decode(every.targets) == "2<|im_end|>4<|im_end|>"
    assert tokenizer.decode(render(Example(CHAT, "4", "a"), tokenizer).reply_ids) == "4<|im_end|><|pad|>"


def test_a_base_without_a_generation_configuration_ends_as_its_own_says(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_base, tmp_path / "base")
    (folder / "generation_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert end_ids(folder, tokenizer) == end_ids(tiny_base, tokenizer) == (2,)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [5, 7]}))
    assert end_ids(folder, tokenizer) == (2, 5, 7)


def test_the_rejected_reply_follows_the_same_prompt(tokenizer: Any) -> None:
    rendered = render(Example(CHAT, "4", "a", rejected="none"), tokenizer)
    assert rendered.rejected_ids is not None
    assert tokenizer.decode(rendered.rejected_ids) == "none<|im_end|>"
    assert rendered.prompt_ids == render(Example(CHAT, "4", "a"), tokenizer).prompt_ids


def test_a_rejected_reply_that_is_too_long_is_left_out_alone(tokenizer: Any) -> None:
    examples = {"a": [Example(CHAT, "4", "a", rejected="x" * 500), Example(CHAT, "4", "a", rejected="5")]}
    long, short = render_all(examples, tokenizer, max_length=200)["a"]
    assert long == Rendered(short.prompt_ids, short.reply_ids)
    assert short.rejected_ids is not None


def test_an_example_may_be_as_long_as_it_may_be(tokenizer: Any) -> None:
    example = Example(CHAT, "four", "a", rejected="five")
    longest = len(render(example, tokenizer))
    assert render_all({"a": [example]}, tokenizer, max_length=longest) == {"a": [render(example, tokenizer)]}
    longer = Example(CHAT, "four and more", "a")
    with pytest.raises(TrainingError, match=rf"leaves no example of 'a'; its shortest has {longest} tokens"):
        render_all({"a": [longer, example]}, tokenizer, max_length=longest - 1)


def test_a_conversation_that_the_template_refuses_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(TrainingError, match="refuses a conversation of system, user, assistant, user: no system"):
        render(Example(CHAT, "4", "a"), tokenizer)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
SHOWS_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tool_calls_are_learned_as_the_template_writes_them(tokenizer: Any) -> None:
    user = ({"role": "user", "content": "1"},)
    with pytest.raises(TrainingError, match="shows no tool calls"):
        render(Example(user, CALLING, "a"), tokenizer)
    tokenizer.chat_template = SHOWS_CALLS
    assert tokenizer.decode(render(Example(user, CALLING, "a"), tokenizer).targets) == 'f{"x": 1}<|im_end|>'
    told = (*user, CALLING, {"role": "tool", "content": "7"})
    both = render(Example(told, "8", "a", supervise="all"), tokenizer)
    assert tokenizer.decode(both.targets) == 'f{"x": 1}<|im_end|>8<|im_end|>'


def test_tools_that_the_template_would_lose_are_refused(tokenizer: Any) -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    with pytest.raises(TrainingError, match="shows the model no tools"):
        render(Example(CHAT, "4", "a", tools=tools), tokenizer)
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}" + SHOWS_CALLS
    rendered = render(Example(CHAT, "4", "a", tools=tools), tokenizer)
    assert tokenizer.decode(rendered.prompt_ids).startswith("f;<|im_start|>system")
