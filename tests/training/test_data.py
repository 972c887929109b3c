"""Files -> examples -> token ids -> batches: exact expectations, and every mistake named with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from meet_training.config import DataConfig, TrainConfig, load_config
from meet_training.data import forms
from meet_training.data.batches import Item, make_schedule, num_uncontrolled, passes
from meet_training.data.forms import Example, load_examples
from meet_training.data.render import Rendered, render, render_all
from meet_training.data.sources import read_rows
from meet_training.errors import TrainingError


def config(path: Path, **more: Any) -> TrainConfig:
    fields: dict[str, Any] = {
        "name": "t",
        "base": "none",
        "output": path.parent / "out",
        "data": [{"path": path}],
        "preferences": {"short": {"axis": "length", "opposite": "long"}, "long": {"axis": "length"}},
    }
    return TrainConfig.model_validate(fields | more)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_every_container_are_the_same(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": "é"}]
    lines = "".join(json.dumps(row) + "\n\n" for row in rows)
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    for path in tmp_path.iterdir():
        assert [row.fields for row in read_rows(path)] == rows
    assert [row.number for row in read_rows(tmp_path / "x.jsonl")] == [1, 3]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.jsonl", "x.json"])
def test_a_mark_at_the_start_of_a_file_is_no_part_of_it(tmp_path: Path, name: str) -> None:
    """Spreadsheets write one."""
    text = {"csv": "prompt,b\nWhy?,1\n", "json": '[{"prompt": "Why?", "b": "1"}]'}
    content = text.get(name.split(".")[1], '{"prompt": "Why?", "b": "1"}\n').encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [row.fields for row in read_rows(tmp_path / name)] == [{"prompt": "Why?", "b": "1"}]


DAMAGED = gzip.compress(b'{"a": 1}\n')[:10] + b"\xff" * 20
"""The head of a gzipped file, and behind it what cannot be decompressed."""
BAD_FILES = {
    "x.jsonl": (b'{"a": 1}\n{"a": \n', r"x\.jsonl:2: not JSON"),
    "y.jsonl": (b"[1]\n", r"y\.jsonl:1: expected an object, found list"),
    "z.json": (b'{"a": 1}', r"z\.json: expected a list of objects, found dict"),
    "u.jsonl": (b"\xff\xfe\n", r"u\.jsonl is not UTF-8"),
    "v.jsonl.gz": (b"not gzip", r"v\.jsonl\.gz cannot be read"),
    "d.jsonl.gz": (DAMAGED, r"d\.jsonl\.gz cannot be read: Error -3 while decompressing"),
    "w.txt": (b"a,b", r"w\.txt: data files end in \.jsonl"),
    "missing.jsonl": (None, r"missing\.jsonl cannot be read: No such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        list(read_rows(tmp_path / name))


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "preference": "short"}, r":1: field 'reply' is missing; the row has prompt, preference"),
    (
        {"prompt": "a", "reply": " ", "preference": "short"},
        r":1: field 'reply' must be text that is not empty",
    ),
    ({"prompt": 3, "reply": "b", "preference": "short"}, r":1: field 'prompt' must be text .* found 3"),
    ({"messages": [], "reply": "b", "preference": "short"}, r":1: field 'messages' must be a list"),
    (
        {"messages": [{"role": "user"}], "reply": "b", "preference": "short"},
        r"field 'messages.0' must have role",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x"}], "reply": "b", "preference": "short"},
        r"must end before the reply",
    ),
    (
        {"prompt": "a\ud83d", "reply": "b", "preference": "short"},
        r":1: field 'prompt' must be Unicode text, found half of a surrogate pair, '\\ud83d'",
    ),
    (
        {"messages": [{"role": "user", "content": "\udc00"}], "reply": "b", "preference": "short"},
        r"field 'messages.0' must be Unicode text, found half of a surrogate pair, '\\udc00'",
    ),
    (
        {"prompt": "a", "reply": "b", "preference": "short", "tools": [{"name": "f\ud83d"}]},
        r"field 'tools' must be Unicode text",
    ),
    (
        {"prompt": "a", "reply": "b", "preference": "other"},
        r"label 'other' is none of the preferences \(short, long\)",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_file_line_and_field(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_examples(config(write(tmp_path / "d.jsonl", row)))


def test_a_row_that_no_tokenizer_takes_is_left_out_where_asked(tmp_path: Path) -> None:
    rows = [
        {"prompt": "\U0001f600", "reply": "a", "preference": "short"},
        {"prompt": "\ud83d", "reply": "b", "preference": "short"},
        {"prompt": "q", "reply": "c", "preference": "long"},
    ]
    path = write(tmp_path / "d.jsonl", *rows)
    found = load_examples(config(path, data=[{"path": path, "bad_rows": "leave_out"}]))
    assert [example.reply for group in found.values() for example in group] == ["a", "c"]


def test_empty_and_one_label_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no rows"):
        load_examples(config(write(tmp_path / "d.jsonl")))
    row = {"prompt": "a", "reply": "b", "preference": "short"}
    with pytest.raises(TrainingError, match="every row has the label 'short'"):
        load_examples(config(write(tmp_path / "d.jsonl", row, row)))


def test_columns_labels_and_where_choose_rows(tmp_path: Path) -> None:
    rows = [
        {"q": "1", "a": "x", "style": "concise", "model": "m"},
        {"q": "2", "a": "y", "style": "verbose", "model": "m"},
        {"q": "3", "a": "z", "style": "plain", "model": "m"},
        {"q": "4", "a": "z", "style": "concise", "model": "n"},
    ]
    data = {
        "path": write(tmp_path / "d.jsonl", *rows),
        "columns": {"prompt": "q", "reply": "a", "preference": "style"},
        "labels": {"concise": "short", "verbose": "long"},
        "where": {"model": "m"},
    }
    examples = load_examples(config(tmp_path / "d.jsonl", data=[data]))
    user = {"role": "user", "content": "1"}
    assert examples["short"] == [Example((user,), "x", "short")]
    assert [e.reply for e in examples["long"]] == ["y"]


def test_missing_preference_names_what_was_found(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "reply": "b", "preference": p} for p in ("short", "medium")]
    data = {"path": write(tmp_path / "d.jsonl", *rows), "labels": {"short": "short"}}
    with pytest.raises(TrainingError, match="no example of long; labels found: medium, short"):
        load_examples(config(tmp_path / "d.jsonl", data=[data]))


def test_examples_are_drawn_by_the_seed(preference_file: Path) -> None:
    first = load_examples(config(preference_file, examples_per_preference=3))
    assert {label: len(group) for label, group in first.items()} == {"short": 3, "long": 3}
    assert first == load_examples(config(preference_file, examples_per_preference=3))
    assert first != load_examples(config(preference_file, examples_per_preference=3, seed=1))
    assert forms.digest(first) != forms.digest(load_examples(config(preference_file)))


def test_exactly_the_reply_and_its_end_of_turn_are_supervised(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rendered = render(Example(({"role": "user", "content": "Hi"},), "Yes.", "short"), tokenizer)
    assert tokenizer.decode(rendered.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(rendered.reply_ids) == "Yes.<|im_end|>"
    assert rendered.reply_ids[-1] == tokenizer.eos_token_id
    # What the server sends for this conversation is the prompt that was trained.
    sent = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert tuple(sent["input_ids"]) == rendered.prompt_ids


def test_a_template_without_end_of_turn_gets_one(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    rendered = render(Example(({"role": "user", "content": "Hi"},), "Yes.", "short"), tokenizer)
    assert tokenizer.decode(rendered.reply_ids) == "Yes.<|im_end|>"


def test_a_template_that_rewrites_the_prompt_is_refused(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(TrainingError, match="renders a conversation differently once it is answered"):
        render(Example(({"role": "user", "content": "Hi"},), "Yes.", "short"), tokenizer)


def test_examples_that_are_too_long_are_left_out_not_cut(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    user = ({"role": "user", "content": "Hi"},)
    examples = {"short": [Example(user, "ok", "short"), Example(user, "x" * 90, "short")]}
    kept = render_all(examples, tokenizer, max_length=60)
    assert [tokenizer.decode(r.reply_ids) for r in kept["short"]] == ["ok<|im_end|>"]
    with pytest.raises(TrainingError, match="max_length: 8 leaves no example of 'short'"):
        render_all(examples, tokenizer, max_length=8)


def rendered(num_prompt: int, num_reply: int, start: int = 0) -> Rendered:
    return Rendered(tuple(range(start, start + num_prompt)), tuple(range(num_reply)))


def test_a_schedule_shows_every_example_once_an_epoch() -> None:
    group = [rendered(2, 2, start=i) for i in range(7)]
    schedule = make_schedule({"a": group, "b": group[:3]}, epochs=2, batch_size=3, seed="0")
    assert (schedule.num_steps_of(0), schedule.num_steps_of(1), schedule.num_steps) == (6, 2, 6)
    assert schedule.num_tokens == (14 + 6) * 4
    for first in (0, 3):
        seen = [r for batch in schedule.batches[0][first : first + 3] for r in batch]
        assert sorted(seen, key=lambda r: r.prompt_ids) == group
    assert schedule.batches[0][:3] != schedule.batches[0][3:]  # in another order each
    assert {item.control for item in schedule.step(1)} == {0, 1}
    assert {item.control for item in schedule.step(2)} == {0}


def test_the_order_of_a_control_does_not_depend_on_the_others() -> None:
    group = [rendered(2, 2, start=i) for i in range(9)]
    together = make_schedule({"a": group, "b": group}, epochs=2, batch_size=4, seed="0")
    alone = make_schedule({"b": group}, epochs=2, batch_size=4, seed="0")
    assert together.batches[1] == alone.batches[0]
    assert together.batches[0] != together.batches[1]


def test_part_of_an_epoch_takes_that_share_of_its_steps() -> None:
    group = [rendered(2, 2)] * 8
    assert make_schedule({"a": group}, epochs=0.5, batch_size=2, seed="0").num_steps == 2
    assert make_schedule({"a": group}, epochs=0.6, batch_size=2, seed="0").num_steps == 3  # 2.4 of 4
    assert make_schedule({"a": group}, epochs=0, batch_size=2, seed="0").num_steps == 0


def test_every_step_has_its_share_of_uncontrolled_examples() -> None:
    assert [num_uncontrolled(6, share) for share in (0.0, 0.01, 0.25, 0.5)] == [0, 1, 2, 6]
    group, own = [rendered(2, 2)] * 6, [rendered(3, 1, start=i) for i in range(4)]
    schedule = make_schedule(
        {"a": group, "b": group}, epochs=1, batch_size=3, seed="0", uncontrolled=own, uncontrolled_share=0.25
    )
    steps = [schedule.step(number) for number in range(schedule.num_steps)]
    assert [[item.control for item in step] for step in steps] == [[-1, -1, 0, 0, 0, 1, 1, 1]] * 2
    seen = [item.rendered for step in steps for item in step if item.control == -1]
    assert sorted(seen, key=lambda r: r.prompt_ids) == own


def test_passes_hold_the_token_budget_once_padded_and_mix_controls() -> None:
    lengths = [(0, 10), (0, 3), (1, 9), (1, 4), (2, 30)]
    items = [Item(control, rendered(1, length - 1)) for control, length in lengths]
    groups = passes(items, max_tokens=20)
    assert sorted((i.control, len(i.rendered)) for g in groups for i in g) == sorted(lengths)
    assert [[(i.control, len(i.rendered)) for i in g] for g in groups] == [
        [(2, 30)],  # longer than the budget: on its own
        [(0, 10), (1, 9)],
        [(0, 3), (1, 4)],
    ]
    for group in groups:
        assert [i.control for i in group] == sorted(i.control for i in group)


def test_configuration_mistakes_name_the_field(tmp_path: Path) -> None:
    good = (
        "name: t\nbase: b\noutput: o\ndata: [{path: d.jsonl}]\n"
        "preferences: {a: {axis: x}, b: {axis: x}}\nstage1: {epochs: 1}\n"
    )
    path = tmp_path / "c.yaml"
    path.write_text(good)
    loaded = load_config(path, ["stage1.epochs=3", "data.0.labels={p: a}", "controls.rank=4"])
    assert (loaded.stage1.epochs, loaded.controls.rank) == (3, 4)
    assert loaded.data == (DataConfig(path=tmp_path / "d.jsonl", labels={"p": "a"}),)
    mistakes = {
        ("stage1.epoch=3",): r"stage1\.epoch: unknown key",
        ("controls.rank=0",): r"controls\.lora\.rank|controls\.rank: Input should be greater than or equal to 1, not 0",
        ("default=c",): "default names 'c'; the preferences are a, b",
        ("preferences.a.opposite=c",): "preferences.a.opposite names 'c'",
        ("preferences.a.opposite=a",): r"preferences\.a\.opposite: 'a' is the preference itself; name another one",
        ("nonsense",): "override 'nonsense': expected field=value",
        ("name.x=1",): "override 'name.x=1': name is a value",
        ("data.3.path=x",): "'3' is no index of a list of 1",
        ("data=[{path: x}",): r"override 'data=\[{path: x}': its value is not YAML: while parsing a flow sequence",
        ("name=!!int x",): r"override 'name=!!int x': its value is not YAML: invalid literal for int",
        ("seed=20261130120000",): r"seed: Input should be less than or equal to 8796093022208, not 20261130120000",
        ("name=a/b",): "name: String should match pattern .* not 'a/b'",
    }
    for overrides, message in mistakes.items():
        with pytest.raises(TrainingError, match=message):
            load_config(path, overrides)
    with pytest.raises(TrainingError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    path.write_text("a: [")
    with pytest.raises(TrainingError, match="is not YAML"):
        load_config(path)
