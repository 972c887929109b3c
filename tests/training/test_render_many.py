"""Many examples at once: each text is encoded once, to the ids that it has by itself, and how far that is is told."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from meet_training.base_model import end_ids, load_tokenizer, resolve_base
from meet_training.config import TrainConfig, load_config
from meet_training.data.forms import Example, for_objective, load_examples
from meet_training.data.render import EXAMPLES_AT_ONCE, Rendered, render, render_all

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MEET_SHARED_DATA", ROOT.parent / "shared/data"))
ASKED = ({"role": "user", "content": "Why?"},)
NEVER_CUT = 10**6


class Counting:
    """A tokenizer that counts how often it encodes each text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: Counter[str] = Counter()

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.texts.update(texts)
        return self._tokenizer(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def by_itself(example: Example, tokenizer: Any, ends: tuple[int, ...]) -> Rendered:
    """One example whose last turn is learned, with a call of the tokenizer for each text."""

    def text(messages: list[Any], *, generate: bool) -> str:
        tools = list(example.tools) if example.tools else None
        shown = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=generate, tokenize=False)
        return str(shown)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def reply(said: Any) -> tuple[int, ...]:
        message = {"role": "assistant", "content": said} if isinstance(said, str) else said
        whole = ids(text([*example.messages, message], generate=False).rstrip())
        assert whole[: len(prompt)] == prompt
        behind = whole[len(prompt) :]
        return behind if behind[-1] in ends else (*behind, tokenizer.eos_token_id)

    prompt = ids(text([*example.messages], generate=True))
    rejected = None if example.rejected is None else reply(example.rejected)
    return Rendered(prompt, reply(example.reply), rejected_ids=rejected)


def test_what_examples_have_in_common_is_encoded_once(tokenizer: Any) -> None:
    counting: Any = Counting(tokenizer)
    examples = {
        "a": [Example(ASKED, "Because.", "a", rejected="So.")],
        "b": [Example(ASKED, "So.", "b", rejected="Because."), Example(ASKED, "So.", "b")],
    }
    rendered = render_all(examples, counting, NEVER_CUT)
    prompt = tokenizer.apply_chat_template([*ASKED], add_generation_prompt=True, tokenize=False)
    assert counting.texts == {prompt: 1, f"{prompt}Because.<|im_end|>": 1, f"{prompt}So.<|im_end|>": 1}
    (first,), (second, third) = rendered["a"], rendered["b"]
    assert first.prompt_ids is second.prompt_ids is third.prompt_ids
    assert first.reply_ids is second.rejected_ids
    assert first.rejected_ids is second.reply_ids is third.reply_ids


def test_replies_of_other_prompts_and_prompts_of_other_replies_are_their_own(tokenizer: Any) -> None:
    conversations = [ASKED, ({"role": "user", "content": "Who?"},)]
    examples = {"a": [Example(asked, said, "a") for asked in conversations for said in ("I.", "You.")]}
    assert render_all(examples, tokenizer, NEVER_CUT)["a"] == [by_itself(e, tokenizer, (2,)) for e in examples["a"]]


def test_a_reply_is_encoded_as_what_stands_behind_each_of_its_prompts() -> None:
    """Behind one prompt it runs into it, so that it is by itself there, with the space that starts a text."""
    tokenizer = running_together()
    examples = [Example(({"role": "user", "content": asked},), "yes", "a") for asked in ("hm", "so")]
    behind, by_itself = render_all({"a": examples}, tokenizer, NEVER_CUT)["a"]
    assert tokenizer.convert_ids_to_tokens(behind.reply_ids) == ["y", "e", "s", "</s>"]
    assert tokenizer.convert_ids_to_tokens(by_itself.reply_ids) == ["▁", "y", "e", "s", "</s>"]


def running_together() -> Any:
    """A tokenizer of characters that starts texts with a space and takes `oy` for one, with no mark behind prompts."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<unk>", "</s>", *"▁ehmosy", "oy"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("o", "y")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Prepend("▁")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", chat_template=template
    )


@pytest.mark.parametrize("name", ["pairwise", "pointwise", "hh", "prompt_completion", "mixed"])
def test_ids_of_the_examples_are_those_of_each_by_itself(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    examples = load_examples(load_config(ROOT / "examples/data" / f"{name}.yaml"))
    for label, group in render_all(examples, tokenizer, NEVER_CUT).items():
        assert group == [by_itself(example, tokenizer, (2,)) for example in examples[label]]


def test_all_turns_of_many_are_those_of_each(tokenizer: Any) -> None:
    chat = (*ASKED, {"role": "assistant", "content": "So."}, *ASKED)
    examples = [Example(chat, said, "a", supervise="all") for said in ("Because.", "So.", "Because.")]
    first, second, third = (render(example, tokenizer) for example in examples)
    assert render_all({"a": examples}, tokenizer, NEVER_CUT) == {"a": [first, second, third]}
    assert first == third
    assert tokenizer.decode(first.targets) == "So.<|im_end|>Because.<|im_end|>"


@pytest.mark.parametrize("kind", ["likelihood", "preference"])
def test_ids_of_real_dialogues_are_those_of_each_by_itself(kind: str, tmp_path: Path) -> None:
    file = SHARED / "hh_rlhf_pairs.valid.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file} is absent: public data that is kept beside the project, not inside it")
    config = TrainConfig.model_validate(
        {
            "name": "real",
            "base": "smollm2-135m",
            "output": tmp_path / "bundle",
            "data": [{"path": file, "chosen": "good", "rejected": "bad", "bad_rows": "leave_out"}],
            "preferences": {"good": {"axis": "quality", "opposite": "bad"}, "bad": {"axis": "quality"}},
            "objective": {"kind": kind},
        }
    )
    folder = resolve_base("smollm2-135m")
    tokenizer = load_tokenizer(folder)
    ends = end_ids(folder, tokenizer)
    examples = for_objective(load_examples(config), config)
    assert sum(map(len, examples.values())) > 2 * EXAMPLES_AT_ONCE
    for label, group in render_all(examples, tokenizer, NEVER_CUT, ends).items():
        assert group == [by_itself(example, tokenizer, ends) for example in examples[label]]


def test_it_is_told_how_many_are_rendered(tokenizer: Any) -> None:
    told: list[tuple[int, int]] = []
    num = EXAMPLES_AT_ONCE + 1
    examples = {"a": [Example(ASKED, "So.", "a")] * num, "b": [Example(ASKED, "No.", "b")] * 2}
    render_all(examples, tokenizer, NEVER_CUT, on_rendered=lambda done, num_all: told.append((done, num_all)))
    assert told == [(EXAMPLES_AT_ONCE, num + 2), (num, num + 2), (num + 2, num + 2)]
