"""How many tokens of one text a base can read: found without weights, held to, and told where it is no hard end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from meet_training.base_model import check_causal_model, shape_of
from meet_training.callbacks import Callback
from meet_training.config import TrainConfig
from meet_training.data.forms import Example, load_examples
from meet_training.errors import TrainingError
from meet_training.positions import Positions, positions_of
from meet_training.run import train
from meet_training.two_stages import Run

from ..conftest import tiny_tokenizer

NUM = 160
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": NUM},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "max_position_embeddings": NUM,
    },
    "gptj": {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": NUM, "rotary_dim": 4},
    "ctrl": {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": NUM, "dff": 32},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "max_position_embeddings": NUM,
    },
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 4},
}
"""One layer of each, with tables of their own, computed tables, turns by the position, and none of these."""

SOFT = {"kind": "soft_prompt", "num_virtual_tokens": 4}
MakeConfig = Callable[..., TrainConfig]


def small(kind: str) -> Any:
    torch.manual_seed(0)
    ids = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ids, **SMALL[kind]))


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    small(request.param).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    folder = tmp_path / "gpt2"
    small("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ("gpt2", Positions(NUM, is_table=True)),
        ("opt", Positions(NUM, is_table=True)),
        ("gptj", Positions(NUM, is_table=True)),
        ("ctrl", Positions(NUM, is_table=True)),
        ("llama", Positions(NUM, is_table=False)),
        ("bloom", None),
    ],
    indirect=["base"],
)
def test_a_table_of_positions_is_seen_without_weights_and_ends_where_the_model_does(
    base: Path, found: Positions | None
) -> None:
    shape = shape_of(base, check_causal_model(base))
    assert {parameter.device.type for parameter in shape.parameters()} == {"meta"}
    assert positions_of(shape) == found
    model = AutoModelForCausalLM.from_pretrained(base)
    model(torch.full((1, NUM), 5))
    if found is not None and found.is_table:
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, NUM + 1), 5))
    else:
        model(torch.full((1, NUM + 1), 5))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {},
            rf"max_length: 1024 is too long, the base has {NUM} positions \(max_position_embeddings\); at most {NUM}$",
        ),
        ({"max_length": NUM + 1}, f"max_length: {NUM + 1} is too long, .*; at most {NUM}$"),
        (
            {"max_length": NUM - 3, "controls": SOFT},
            f"max_length: {NUM - 3} is too long, .*, of which the control's virtual tokens take 4; at most {NUM - 4}$",
        ),
        (
            {"controls": {**SOFT, "num_virtual_tokens": NUM - 7}},
            f"controls.num_virtual_tokens: {NUM - 7} leave no room for text, .*; at most {NUM - 8}$",
        ),
    ],
)
def test_more_than_the_table_has_is_refused(
    make_config: MakeConfig, gpt2: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(make_config(base=str(gpt2), **more))


def with_one_of(num_tokens: int, config: TrainConfig, base: Path) -> dict[str, list[Example]]:
    """The examples, the last one longer: the tokenizer has a token for each character."""
    examples = load_examples(config)
    *others, last = examples["long"]
    more = num_tokens - len(Run(config, base, examples).rendered["long"][-1])
    return {**examples, "long": [*others, Example(last.messages, f"{last.reply}{'!' * more}", "long")]}


def test_as_much_as_the_table_has_trains(make_config: MakeConfig, gpt2: Path) -> None:
    """Prompt and reply, and the virtual tokens, take all of it."""
    config = make_config(base=str(gpt2), controls=SOFT, max_length=NUM - 4, stage2={"epochs": 0})
    run = Run(config, gpt2, with_one_of(NUM - 4, config, gpt2))
    assert [len(r) for r in run.rendered["long"]][-1] == NUM - 4
    run.tune()
    assert run.record.curves["stage1"].num_steps > 0


def test_replies_of_the_base_have_room_behind_the_longest_prompt(make_config: MakeConfig, gpt2: Path) -> None:
    shares = {"stage1": {"epochs": 1, "uncontrolled_share": 0.4}, "max_length": NUM - 4, "controls": SOFT}
    config = make_config(base=str(gpt2), uncontrolled={"max_new_tokens": NUM - 31}, **shares)
    message = (
        rf"uncontrolled.max_new_tokens: {NUM - 31} is too long behind the longest prompt of 32 tokens, the base has "
        rf"{NUM} positions \(max_position_embeddings\); at most {NUM - 32}, or a smaller max_length$"
    )
    with pytest.raises(TrainingError, match=message):
        Run(config, gpt2, load_examples(config))
    config = make_config(base=str(gpt2), uncontrolled={"max_new_tokens": NUM - 32}, **shares)
    Run(config, gpt2, load_examples(config))


@pytest.mark.parametrize(("base", "controls"), [("llama", {}), ("llama", SOFT)], indirect=["base"])
def test_examples_longer_than_what_a_rotary_base_was_made_for_are_told(
    make_config: MakeConfig, base: Path, controls: dict[str, Any]
) -> None:
    told: list[str] = []

    class Listening(Callback):
        def on_warning(self, what: str) -> None:
            told.append(what)

    config = make_config(base=str(base), controls=controls)
    most = NUM - (4 if controls else 0)
    Run(config, base, with_one_of(most, config, base), Listening()).warn()
    assert told == []
    Run(config, base, with_one_of(most + 1, config, base), Listening()).warn()
    assert len(told) == 1
    assert told[0].startswith(f"max_length: 1 of 12 examples have more tokens (up to {NUM + 1}")
    assert f"than the base was made for ({NUM}, max_position_embeddings)" in told[0]
    assert told[0].endswith(f"max_length={most} leaves them out")
